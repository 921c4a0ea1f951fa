"""A norm whose first rows have weights of their own, with the residual addition before it and the cast behind it.

    sum = x + update,   y = norm(sum) * (offset + weight) + bias       layer: norm(s) = (s - mean) / sqrt(var + eps)
                                                                       rms: norm(s) = s / sqrt(mean(s^2) + eps)

Rows below `num_time_rows` take the trained weight and bias, the others the frozen ones, in one pass; bound by reading x
and update and writing sum and y. M rows, D width. RMS norm: Zhang and Sennrich, https://arxiv.org/abs/1910.07467
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import DTYPES, check_device, check_dtype, check_shape
from ._launch import device_guard, num_multiprocessors, tl, triton, use_triton
from ._operation import Operation
from ._reduce import split_outputs
from .configs import config_for
from .providers import by_library

KINDS = ("layer", "rms")


def twin_norm_ref(
    x: Tensor,
    time_weight: Tensor,
    time_bias: Tensor | None,
    text_weight: Tensor,
    text_bias: Tensor | None,
    *,
    num_time_rows: int,
    eps: float,
    kind: str,
    offset: float = 0.0,
    update: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Specification and CPU path of `twin_norm`; float64 throughout if the inputs are."""
    total = x if update is None else x + update
    wide = total if total.dtype == torch.float64 else total.float()
    rest = x.shape[0] - num_time_rows
    if rest == 0:
        branches = (wide,)
    elif num_time_rows == rest:
        branches = wide.unflatten(0, (2, rest)).unbind()
    else:
        branches = wide.split((num_time_rows, rest))
    weights = (time_weight, time_bias), (text_weight.detach(), None if text_bias is None else text_bias.detach())
    parts = []
    for rows, (weight, bias) in zip(branches, weights, strict=False):
        weight, bias = weight.to(wide.dtype), None if bias is None else bias.to(wide.dtype)
        weight = weight if offset == 0 else offset + weight
        if kind == "layer":
            parts.append(F.layer_norm(rows, weight.shape, weight, bias, eps))
        else:
            parts.append(F.rms_norm(rows, weight.shape, weight, eps))
    y = parts[0] if rest == 0 else torch.cat(parts)
    return y if x.dtype == torch.float64 else y.to(out_dtype or x.dtype), total


@triton.jit(do_not_specialize=["num_time_rows"])
def _fwd_kernel(
    x_ptr, update_ptr, time_weight_ptr, time_bias_ptr, text_weight_ptr, text_bias_ptr,
    y_ptr, sum_ptr, mean_ptr, rstd_ptr,
    num_time_rows, D,
    eps, offset,
    stride_xm, stride_um,
    LAYER: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A row a program; x and update are read along their rows."""
    row = tl.program_id(0).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    in_d = offs_d < D
    x = tl.load(x_ptr + row * stride_xm + offs_d, mask=in_d, other=0.0).to(tl.float32)
    if update_ptr is not None:
        x += tl.load(update_ptr + row * stride_um + offs_d, mask=in_d, other=0.0).to(tl.float32)
        rounded = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + offs_d, rounded, mask=in_d)
        x = rounded.to(tl.float32)
    mean = 0.0
    if LAYER:
        mean = tl.sum(x) / D
        x = tl.where(in_d, x - mean, 0.0)
        tl.store(mean_ptr + row, mean)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x) / D + eps)
    tl.store(rstd_ptr + row, rstd)
    is_time = row < num_time_rows
    weight_ptr = tl.where(is_time, time_weight_ptr, text_weight_ptr)
    y = x * rstd * (offset + tl.load(weight_ptr + offs_d, mask=in_d, other=0.0).to(tl.float32))
    if time_bias_ptr is not None:
        bias_ptr = tl.where(is_time, time_bias_ptr, text_bias_ptr)
        y += tl.load(bias_ptr + offs_d, mask=in_d, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + offs_d, y.to(y_ptr.dtype.element_ty), mask=in_d)


@triton.jit(do_not_specialize=["M", "num_time_rows", "rows_per_program"])
def _bwd_kernel(
    dy_ptr, dsum_ptr, sum_ptr, time_weight_ptr, text_weight_ptr, mean_ptr, rstd_ptr,
    dx_ptr, dupdate_ptr, dweight_ptr, dbias_ptr,
    M, num_time_rows, rows_per_program, D,
    offset,
    stride_gm, stride_rm, stride_sm, stride_split,
    LAYER: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of some rows, one after the other; those of weight and bias are this program's share."""
    offs_d = tl.arange(0, BLOCK_D)
    in_d = offs_d < D
    dweight = tl.zeros([BLOCK_D], tl.float32)
    dbias = tl.zeros([BLOCK_D], tl.float32)
    first = tl.program_id(0) * rows_per_program
    for index in range(first, min(first + rows_per_program, M)):
        row = tl.cast(index, tl.int64)
        dy = tl.load(dy_ptr + row * stride_gm + offs_d, mask=in_d, other=0.0).to(tl.float32)
        x = tl.load(sum_ptr + row * stride_sm + offs_d, mask=in_d, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        if LAYER:
            x -= tl.load(mean_ptr + row)
        normed = tl.where(in_d, x * rstd, 0.0)
        is_time = index < num_time_rows
        # from the cache each time: two weights would take the registers of wide rows
        weight_ptr = tl.where(is_time, time_weight_ptr, text_weight_ptr)
        dnormed = dy * (offset + tl.load(weight_ptr + offs_d, mask=in_d, other=0.0).to(tl.float32))
        dx = dnormed - normed * (tl.sum(dnormed * normed) / D)
        if LAYER:
            dx -= tl.sum(dnormed) / D
        dx *= rstd
        if dsum_ptr is not None:
            dx += tl.load(dsum_ptr + row * stride_rm + offs_d, mask=in_d, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row * D + offs_d, dx.to(dx_ptr.dtype.element_ty), mask=in_d)
        if dupdate_ptr is not None:
            tl.store(dupdate_ptr + row * D + offs_d, dx.to(dupdate_ptr.dtype.element_ty), mask=in_d)
        dweight += tl.where(is_time, dy * normed, 0.0)
        dbias += tl.where(is_time, dy, 0.0)
    # the first program has a share even where no row is temporal
    if (first < num_time_rows) | (first == 0):
        offs = tl.program_id(0).to(tl.int64) * stride_split + offs_d
        tl.store(dweight_ptr + offs, dweight.to(dweight_ptr.dtype.element_ty), mask=in_d)
        if dbias_ptr is not None:
            tl.store(dbias_ptr + offs, dbias.to(dbias_ptr.dtype.element_ty), mask=in_d)


def _shape_class(x: Tensor) -> str:
    width = next((limit for limit in (256, 1024, 4096) if x.shape[1] <= limit), None)
    return f"D <= {width}" if width else "D > 4096"


def _config(kernel: str, x: Tensor):
    return config_for(kernel, _shape_class(x), x)


def _empty_outputs(x, time_weight, time_bias, text_weight, text_bias, update, num_time_rows, eps, offset, kind,
                   out_dtype):  # fmt: skip
    M, D = x.shape
    statistics = [x.new_empty(M if used else 0, dtype=torch.float32) for used in (kind == "layer", True)]
    total = x.new_empty(0, D) if update is None else x.new_empty(M, D, dtype=torch.promote_types(x.dtype, update.dtype))
    return x.new_empty(M, D, dtype=out_dtype), total, *statistics


def twin_norm_fwd(
    x: Tensor, time_weight: Tensor, time_bias: Tensor | None, text_weight: Tensor, text_bias: Tensor | None,
    update: Tensor | None, num_time_rows: int, eps: float, offset: float, kind: str, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> y [M, D], x + update ([0, D] without it), mean ([0] of an rms norm) and 1 / deviation [M]."""
    outputs = _empty_outputs(
        x, time_weight, time_bias, text_weight, text_bias, update, num_time_rows, eps, offset, kind, out_dtype
    )
    M, D = x.shape
    config = _config("twin_norm_fwd", x)
    if M:
        with device_guard(x):
            _fwd_kernel[(M,)](
                x, update, time_weight, time_bias, text_weight, text_bias, *outputs,
                num_time_rows=num_time_rows, D=D, eps=eps, offset=offset,
                stride_xm=x.stride(0), stride_um=0 if update is None else update.stride(0),
                LAYER=kind == "layer", BLOCK_D=triton.next_power_of_2(D), **config.launch_options(),
            )  # fmt: skip
    return outputs


def _empty_grads(dy, dsum, total, time_weight, time_bias, text_weight, mean, rstd, num_time_rows, offset, kind, x_dtype,
                 update_dtype):  # fmt: skip
    dupdate = total.new_empty(total.shape if update_dtype is not None else 0, dtype=update_dtype or x_dtype)
    dbias = time_weight.new_empty(0 if time_bias is None else time_bias.shape)
    return total.new_empty(total.shape, dtype=x_dtype), dupdate, time_weight.new_empty(time_weight.shape), dbias


def twin_norm_bwd(
    dy: Tensor, dsum: Tensor | None, total: Tensor, time_weight: Tensor, time_bias: Tensor | None, text_weight: Tensor,
    mean: Tensor, rstd: Tensor, num_time_rows: int, offset: float, kind: str, x_dtype: torch.dtype,
    update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dx [M, D], dupdate [M, D], dweight, dbias [D] of the temporal rows; [0] of what there is not."""
    grads = _empty_grads(dy, dsum, total, time_weight, time_bias, text_weight, mean, rstd, num_time_rows, offset, kind,
                         x_dtype, update_dtype)  # fmt: skip
    dx, dupdate, dweight, dbias = grads
    M, D = total.shape
    if M == 0:
        dweight.zero_(), dbias.zero_()
        return grads
    config = _config("twin_norm_bwd", total)
    rows = triton.cdiv(M, config.waves * num_multiprocessors(total.device))
    splits = max(1, triton.cdiv(num_time_rows, rows))
    (to_weight, to_bias), stride_split, sum_splits = split_outputs(splits, dweight, dbias)
    with device_guard(total):
        _bwd_kernel[(triton.cdiv(M, rows),)](
            dy, dsum, total, time_weight, text_weight, mean, rstd,
            dx, None if update_dtype is None else dupdate, to_weight, None if time_bias is None else to_bias,
            M=M, num_time_rows=num_time_rows, rows_per_program=rows, D=D, offset=offset,
            stride_gm=dy.stride(0), stride_rm=0 if dsum is None else dsum.stride(0), stride_sm=total.stride(0),
            stride_split=stride_split,
            LAYER=kind == "layer", BLOCK_D=triton.next_power_of_2(D), **config.launch_options(),
        )  # fmt: skip
    sum_splits()
    return grads


def _save_for_backward(ctx, inputs, output):
    x, time_weight, time_bias, text_weight, _, update, ctx.num_time_rows, _, ctx.offset, ctx.kind, _ = inputs
    _, total, mean, rstd = output
    ctx.save_for_backward(x if update is None else total, time_weight, time_bias, text_weight, mean, rstd)
    ctx.x_dtype, ctx.update_dtype = x.dtype, None if update is None else update.dtype
    ctx.mark_non_differentiable(mean, rstd, *([total] if update is None else []))


def _backward(ctx, dy, dsum, *_):
    total, time_weight, time_bias, text_weight, mean, rstd = ctx.saved_tensors
    # either output may be unused: then its gradient is not there
    dy = torch.zeros_like(total) if dy is None else _rows(dy)
    dsum = None if dsum is None or ctx.update_dtype is None else _rows(dsum)
    dx, dupdate, dweight, dbias = _backward_op(
        dy, dsum, total, time_weight, time_bias, text_weight, mean, rstd, ctx.num_time_rows, ctx.offset, ctx.kind,
        ctx.x_dtype, ctx.update_dtype,
    )  # fmt: skip
    dbias = None if time_bias is None else dbias
    dupdate = None if ctx.update_dtype is None else dupdate
    return dx, dweight, dbias, None, None, dupdate, None, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """x [M, D] with neighbours along a row in neighbouring memory."""
    return x if x.stride(1) == 1 else x.contiguous()


_backward_op = Operation("twin_norm_backward", twin_norm_bwd, fake=_empty_grads)
_op = Operation("twin_norm", twin_norm_fwd, fake=_empty_outputs, setup_context=_save_for_backward, backward=_backward)


def twin_norm(
    x: Tensor,
    time_weight: Tensor,
    time_bias: Tensor | None,
    text_weight: Tensor,
    text_bias: Tensor | None,
    *,
    num_time_rows: int,
    eps: float,
    kind: str,
    offset: float = 0.0,
    update: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Norm of x + update, whose first `num_time_rows` rows take the trained weights and whose others the frozen ones.

    Args:
        x: `[M, D]`, fp32, bf16 or fp16; M may be 0.
        time_weight, text_weight: `[D]`, of one dtype.
        time_bias, text_bias: `[D]` or None, both or neither; None of an rms norm.
        num_time_rows: 0 to M.
        kind: "layer" or "rms".
        offset: added to the weights (Gemma's norms are 1 + weight).
        update: `[M, D]`, fp32, bf16 or fp16: what a residual stream x grows by.
        out_dtype: y's dtype; None: x's.

    Returns:
        y `[M, D]` in out_dtype, and x + update in x's dtype (x itself without update). Gradients flow to x, update,
        time_weight and time_bias; text_weight and text_bias are frozen.

    Raises:
        ValueError: a shape, dtype, device, number of rows or the kind is wrong.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    check_shape("x", x, "[M, D]", M=None)
    M, D = x.shape
    check_dtype("x", x, (*DTYPES, torch.float64))
    if not 0 <= num_time_rows <= M:
        raise ValueError(f"num_time_rows: expected 0 to {M}, got {num_time_rows}")
    if (time_bias is None) != (text_bias is None) or (kind == "rms" and time_bias is not None):
        raise ValueError("expected two biases or none, and none of an rms norm")
    named = {"time_weight": time_weight, "time_bias": time_bias, "text_weight": text_weight, "text_bias": text_bias}
    for name, tensor in named.items():
        if tensor is not None:
            check_shape(name, tensor, "[D]", D=D)
            check_dtype(name, tensor, (time_weight.dtype,))
            check_device(name, tensor, x.device)
    if update is not None:
        check_shape("update", update, "[M, D]", M=M, D=D)
        check_device("update", update, x.device)
    if use_triton(x) and not by_library("twin_norm", _shape_class(x), x):
        x, update = _rows(x), None if update is None else _rows(update)
        weights = (t if t is None else t.contiguous() for t in named.values())
        y, total, _, _ = _op(x, *weights, update, num_time_rows, eps, offset, kind, out_dtype or x.dtype)
        return y, x if update is None else total
    return twin_norm_ref(
        x, *named.values(), num_time_rows=num_time_rows, eps=eps, kind=kind, offset=offset, update=update,
        out_dtype=out_dtype,
    )  # fmt: skip
