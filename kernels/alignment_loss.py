"""Distance between two branches' features, each projected by its own learned matrix.

    loss = mean_{m, f} rho(d[m, f]),   d = time @ time_weight^T - text @ text_weight^T

The difference is one GEMM over the concatenated inner axis, [time, text] @ [time_weight, -text_weight]^T, and rho with
the mean is its epilogue. Bound by the GEMM. M rows (batch times tokens), D width, F projected width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape
from ._launch import device_guard, dot_options, num_multiprocessors, num_splits, tl, triton, use_triton
from ._reduce import split_outputs
from .configs import config_for

KINDS = ("l1", "smooth_l1", "mse")

# rows of rho' that an fp32 backward holds at a time: a few waves of tiles, and 64 MiB at F = 4096
RECOMPUTED_ROWS = 4096


def alignment_loss_ref(time: Tensor, text: Tensor, time_weight: Tensor, text_weight: Tensor, *, kind: str) -> Tensor:
    """Specification and CPU path of `alignment_loss`; float64 throughout if the inputs are."""
    difference = torch.addmm(F.linear(time, time_weight), text, text_weight.t(), alpha=-1)
    if difference.dtype != torch.float64:
        difference = difference.float()
    if kind == "l1":
        rho = difference.abs()
    elif kind == "smooth_l1":
        rho = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")
    else:
        rho = difference.square()
    # an empty batch has loss 0, not the 0 / 0 of a mean
    return rho.sum() / max(rho.numel(), 1)


@triton.jit
def _add_product(
    acc, a_rows, b_rows, in_i, in_j, K, stride_ak, stride_bk,
    DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc + a @ b^T for one tile; a_rows [BLOCK_I] and b_rows [BLOCK_J] point at its rows of a and b, both K long."""
    offs_k = tl.arange(0, BLOCK_K)
    a_ptrs = a_rows[:, None] + offs_k[None, :].to(tl.int64) * stride_ak
    b_ptrs = b_rows[None, :] + offs_k[:, None].to(tl.int64) * stride_bk
    for start in range(0, K, BLOCK_K):
        in_k = offs_k < K - start
        a = tl.load(a_ptrs, mask=in_i[:, None] & in_k[None, :], other=0.0).to(DOT_DTYPE)  # [BLOCK_I, BLOCK_K]
        b = tl.load(b_ptrs, mask=in_k[:, None] & in_j[None, :], other=0.0).to(DOT_DTYPE)  # [BLOCK_K, BLOCK_J]
        acc = tl.dot(a, b, acc, input_precision=INPUT_PRECISION)
        a_ptrs += tl.cast(stride_ak, tl.int64) * BLOCK_K
        b_ptrs += tl.cast(stride_bk, tl.int64) * BLOCK_K
    return acc


@triton.jit
def _tile_offsets(I, J, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr):
    """Row and column indices of this program's tile; 8 row tiles go together and share b in the L2 cache."""
    tiles_i, tiles_j = tl.cdiv(I, BLOCK_I), tl.cdiv(J, BLOCK_J)
    pid = tl.program_id(0)
    pid_i, pid_j = tl.swizzle2d(pid // tiles_j, pid % tiles_j, tiles_i, tiles_j, 8)
    return pid_i * BLOCK_I + tl.arange(0, BLOCK_I), pid_j * BLOCK_J + tl.arange(0, BLOCK_J)


@triton.jit
def _fwd_kernel(
    time_ptr, text_ptr, time_weight_ptr, text_weight_ptr, partial_ptr, slope_ptr,
    M, F, D,
    stride_tm, stride_td, stride_xm, stride_xd, stride_twf, stride_twd, stride_xwf, stride_xwd,
    KIND: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_m, offs_f = _tile_offsets(M, F, BLOCK_M, BLOCK_F)
    in_m, in_f = offs_m < M, offs_f < F
    offs_m, offs_f = offs_m.to(tl.int64), offs_f.to(tl.int64)
    acc = _add_product(
        tl.zeros([BLOCK_M, BLOCK_F], tl.float32), text_ptr + offs_m * stride_xm, text_weight_ptr + offs_f * stride_xwf,
        in_m, in_f, D, stride_xd, stride_xwd, DOT_DTYPE, INPUT_PRECISION, BLOCK_D,
    )  # fmt: skip
    # tensor cores only add: the sign turns once, between the two products
    d = _add_product(
        -acc, time_ptr + offs_m * stride_tm, time_weight_ptr + offs_f * stride_twf,
        in_m, in_f, D, stride_td, stride_twd, DOT_DTYPE, INPUT_PRECISION, BLOCK_D,
    )  # fmt: skip
    if KIND == "l1":
        rho = tl.abs(d)
        slope = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0))
    elif KIND == "smooth_l1":
        rho = tl.where(tl.abs(d) < 1, 0.5 * d * d, tl.abs(d) - 0.5)
        slope = tl.clamp(d, -1.0, 1.0)
    else:
        rho = d * d
        # half of it: 2 d could overflow fp16 where d does not
        slope = d
    if partial_ptr is not None:
        # d is 0 outside the matrix, and so is rho
        tl.store(partial_ptr + tl.program_id(0), tl.sum(rho))
    if slope_ptr is not None:
        slope = slope.to(slope_ptr.dtype.element_ty)
        tl.store(slope_ptr + offs_m[:, None] * F + offs_f[None, :], slope, mask=in_m[:, None] & in_f[None, :])


@triton.jit
def _mean_kernel(partial_ptr, loss_ptr, num_partials, inverse_count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + offs, mask=offs < num_partials, other=0.0)
    tl.store(loss_ptr, tl.sum(total) * inverse_count)


@triton.jit
def _grad_kernel(
    slope_ptr, time_ptr, text_ptr, dloss_ptr, dtime_ptr, dtext_ptr,
    I, J, K, k_per_split,
    factor,
    stride_si, stride_sk, stride_tk, stride_tj, stride_xk, stride_xj, stride_split,
    ACCUMULATE: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dtime = slope @ time and dtext = -slope @ text, times dloss and factor; slope [I, K], time and text [K, J]."""
    offs_i, offs_j = _tile_offsets(I, J, BLOCK_I, BLOCK_J)
    mask_i, mask_j = offs_i[:, None] < I, offs_j[None, :] < J
    split = tl.program_id(1)
    start = split * k_per_split
    offs_k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
    slope_ptrs = slope_ptr + offs_i[:, None].to(tl.int64) * stride_si + offs_k[None, :] * stride_sk
    time_ptrs = time_ptr + offs_k[:, None] * stride_tk + offs_j[None, :].to(tl.int64) * stride_tj
    text_ptrs = text_ptr + offs_k[:, None] * stride_xk + offs_j[None, :].to(tl.int64) * stride_xj
    dtime = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    dtext = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for k in range(start, min(start + k_per_split, K), BLOCK_K):
        mask_k = k + tl.arange(0, BLOCK_K) < K
        slope = tl.load(slope_ptrs, mask=mask_i & mask_k[None, :], other=0.0).to(DOT_DTYPE)  # [BLOCK_I, BLOCK_K]
        time = tl.load(time_ptrs, mask=mask_k[:, None] & mask_j, other=0.0).to(DOT_DTYPE)  # [BLOCK_K, BLOCK_J]
        text = tl.load(text_ptrs, mask=mask_k[:, None] & mask_j, other=0.0).to(DOT_DTYPE)  # [BLOCK_K, BLOCK_J]
        dtime = tl.dot(slope, time, dtime, input_precision=INPUT_PRECISION)
        dtext = tl.dot(slope, text, dtext, input_precision=INPUT_PRECISION)
        slope_ptrs += tl.cast(stride_sk, tl.int64) * BLOCK_K
        time_ptrs += tl.cast(stride_tk, tl.int64) * BLOCK_K
        text_ptrs += tl.cast(stride_xk, tl.int64) * BLOCK_K

    factor *= tl.load(dloss_ptr)
    offs = split.to(tl.int64) * stride_split + offs_i[:, None].to(tl.int64) * J + offs_j[None, :]
    mask = mask_i & mask_j
    dtime, dtext = dtime * factor, dtext * -factor
    if ACCUMULATE:
        dtime += tl.load(dtime_ptr + offs, mask=mask, other=0.0)
        dtext += tl.load(dtext_ptr + offs, mask=mask, other=0.0)
    tl.store(dtime_ptr + offs, dtime.to(dtime_ptr.dtype.element_ty), mask=mask)
    tl.store(dtext_ptr + offs, dtext.to(dtext_ptr.dtype.element_ty), mask=mask)


def _config(kernel: str, rows: int, columns: int, tensor: Tensor):
    # fewer 128 x 128 tiles than multiprocessors: smaller tiles fill the GPU better
    few = triton.cdiv(rows, 128) * triton.cdiv(columns, 128) < num_multiprocessors(tensor.device)
    return config_for(kernel, f"{'few' if few else 'many'} tiles, {tensor.dtype.itemsize * 8}-bit", tensor)


def _difference(time, text, time_weight, text_weight, kind, loss=None, slope=None) -> None:
    """Fill `loss`, `slope` [M, F] (rho', for mse half of it) or both; M > 0."""
    M, F, D = *time.shape[:1], *time_weight.shape
    config = _config("alignment_loss_fwd", M, F, time)
    tiles = triton.cdiv(M, config.blocks["BLOCK_M"]) * triton.cdiv(F, config.blocks["BLOCK_F"])
    partial = None if loss is None else torch.empty(tiles, dtype=torch.float32, device=time.device)
    with device_guard(time):
        _fwd_kernel[(tiles,)](
            time, text, time_weight, text_weight, partial, slope,
            M=M, F=F, D=D,
            stride_tm=time.stride(0), stride_td=time.stride(1), stride_xm=text.stride(0), stride_xd=text.stride(1),
            stride_twf=time_weight.stride(0), stride_twd=time_weight.stride(1),
            stride_xwf=text_weight.stride(0), stride_xwd=text_weight.stride(1),
            KIND=kind, **dot_options(time.dtype), **config.launch_options(),
        )  # fmt: skip
        if loss is not None:
            mean = config_for("alignment_loss_mean", "any", time)
            _mean_kernel[(1,)](partial, loss, num_partials=tiles, inverse_count=1 / (M * F), **mean.launch_options())


def _products(
    slope, time, text, dloss, factor, dtime, dtext, config, splits=1, stride_split=0, accumulate=False
) -> None:
    """dtime = dloss factor slope @ time, dtext = -dloss factor slope @ text, or their `splits` partial sums."""
    (I, K), J = slope.shape, time.shape[1]
    block_k = config.blocks["BLOCK_K"]
    tiles = triton.cdiv(I, config.blocks["BLOCK_I"]) * triton.cdiv(J, config.blocks["BLOCK_J"])
    with device_guard(time):
        _grad_kernel[(tiles, splits)](
            slope, time, text, dloss, dtime, dtext,
            I=I, J=J, K=K, k_per_split=triton.cdiv(triton.cdiv(K, block_k), splits) * block_k,
            factor=factor,
            stride_si=slope.stride(0), stride_sk=slope.stride(1), stride_tk=time.stride(0), stride_tj=time.stride(1),
            stride_xk=text.stride(0), stride_xj=text.stride(1),
            stride_split=stride_split,
            ACCUMULATE=accumulate, **dot_options(time.dtype), **config.launch_options(),
        )  # fmt: skip


@torch.library.custom_op("llata_fast::alignment_loss", mutates_args=())
def alignment_loss_fwd(time: Tensor, text: Tensor, time_weight: Tensor, text_weight: Tensor, kind: str,
                       save: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-> loss, and what the backward needs: the slope [M, F] of 16-bit inputs if `save`, else nothing [0]."""
    loss, slope = _empty_outputs(time, text, time_weight, text_weight, kind, save)
    if len(time) == 0:
        return loss.zero_(), slope
    _difference(time, text, time_weight, text_weight, kind, loss, slope if slope.numel() else None)
    return loss, slope


@alignment_loss_fwd.register_fake
def _empty_outputs(time, text, time_weight, text_weight, kind, save):
    loss = time.new_empty((), dtype=torch.float32)
    if not save or time.dtype == torch.float32:
        return loss, time.new_empty(0)
    return loss, time.new_empty(len(time), len(time_weight), dtype=torch.int8 if kind == "l1" else time.dtype)


@torch.library.custom_op("llata_fast::alignment_loss_backward", mutates_args=())
def alignment_loss_bwd(dloss: Tensor, time: Tensor, text: Tensor, time_weight: Tensor, text_weight: Tensor,
                       slope: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> dtime, dtext [M, D], dtime_weight, dtext_weight [F, D]."""
    grads = _empty_grads(dloss, time, text, time_weight, text_weight, slope, kind)
    dtime, dtext, dtime_weight, dtext_weight = grads
    M, F, D = *time.shape[:1], *time_weight.shape
    if M == 0:
        return tuple(grad.zero_() for grad in grads)
    factor = (2 if kind == "mse" else 1) / (M * F)

    recompute = slope.numel() == 0
    rows = min(M, RECOMPUTED_ROWS) if recompute else M
    if recompute:
        slope = time.new_empty(rows, F)
    config = _config("alignment_loss_grad", rows, D, time)
    weight_config = _config("alignment_loss_grad", F, D, time)
    tiles = triton.cdiv(F, weight_config.blocks["BLOCK_I"]) * triton.cdiv(D, weight_config.blocks["BLOCK_J"])
    steps = triton.cdiv(rows, weight_config.blocks["BLOCK_K"])
    splits = num_splits(time.device, weight_config.waves, tiles, limit=steps)
    # shares are added up over the parts, in fp32 in any case: only fp32 inputs have more than one part
    weight_targets, stride_split, sum_splits = split_outputs(splits, dtime_weight, dtext_weight)
    for start in range(0, M, rows):
        part = slice(start, min(start + rows, M))
        part_slope = slope[: part.stop - part.start]
        if recompute:
            _difference(time[part], text[part], time_weight, text_weight, kind, slope=part_slope)
        _products(part_slope, time_weight, text_weight, dloss, factor, dtime[part], dtext[part], config)
        _products(
            part_slope.t(), time[part], text[part], dloss, factor, *weight_targets,
            weight_config, splits, stride_split, accumulate=start > 0,
        )  # fmt: skip
    sum_splits()
    return grads


@alignment_loss_bwd.register_fake
def _empty_grads(dloss, time, text, time_weight, text_weight, slope, kind):
    return tuple(t.new_empty(t.shape) for t in (time, text, time_weight, text_weight))


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.kind, _ = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dloss, _):
    return *alignment_loss_bwd(dloss, *ctx.saved_tensors, ctx.kind), None, None


alignment_loss_fwd.register_autograd(_backward, setup_context=_save_for_backward)


def alignment_loss(time: Tensor, text: Tensor, time_weight: Tensor, text_weight: Tensor, *, kind: str) -> Tensor:
    """Mean distance between the projections of two branches' features.

    Args:
        time, text: `[M, D]`, fp32, bf16 or fp16; M may be 0, which gives 0 and zero gradients.
        time_weight, text_weight: `[F, D]`, time's dtype.
        kind: "l1", "smooth_l1" (beta 1) or "mse".

    Returns:
        fp32 scalar, the mean over M F elements; gradients flow to all four inputs.

    Raises:
        ValueError: a shape, dtype, device or the kind is wrong.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    time, text, time_weight, text_weight = autocast(time, text, time_weight, text_weight)
    check_shape("time", time, "[M, D]", M=None)
    M, D = time.shape
    check_shape("text", text, "[M, D]", M=M, D=D)
    check_shape("time_weight", time_weight, "[F, D]", D=D)
    check_shape("text_weight", text_weight, "[F, D]", F=time_weight.shape[0], D=D)
    check_dtype("time", time)
    for name, tensor in (("text", text), ("time_weight", time_weight), ("text_weight", text_weight)):
        check_dtype(name, tensor, (time.dtype,))
        check_device(name, tensor, time.device)
    if use_triton(time):
        tensors = time, text, time_weight, text_weight
        save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        return alignment_loss_fwd(*tensors, kind, save)[0]
    return alignment_loss_ref(time, text, time_weight, text_weight, kind=kind)
