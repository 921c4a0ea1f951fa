"""Distance between two branches' features, each projected by its own learned matrix.

    loss = mean_{m, f} rho(d[m, f]),   d = time @ time_weight^T - text @ text_weight^T

One GEMM, [time, text] @ [time_weight, -text_weight]^T, ends in rho and the mean. M rows, D width, F projected width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape
from ._launch import device_guard, dot_options, num_multiprocessors, num_splits, tl, triton, use_triton
from ._operation import Operation
from ._reduce import split_outputs
from .configs import config_for
from .providers import by_library

KINDS = ("l1", "smooth_l1", "mse")

# rows of rho' that an fp32 backward holds at a time: a few waves of tiles, and 64 MiB at F = 4096
RECOMPUTED_ROWS = 4096
# a kernel takes two pointers or four of every depth, and has 4 KiB for its arguments
DEPTHS_A_LAUNCH = 32
# 128 x 128 tiles below which larger ones leave much of the last wave idle
TILES_A_MULTIPROCESSOR = 8


def alignment_loss_ref(time: Tensor, text: Tensor, time_weight: Tensor, text_weight: Tensor, *, kind: str) -> Tensor:
    """Specification and CPU path of `alignment_loss`; float64 throughout if the inputs are."""
    difference = F.linear(time, time_weight) - F.linear(text, text_weight)
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
def _pick(values, index):
    """values[index] of a tuple that the kernel was started with."""
    value = values[0]
    for i in tl.static_range(1, len(values)):
        value = tl.where(index == i, values[i], value)
    return value


@triton.jit(do_not_specialize=["M"])
def _fwd_kernel(
    time_ptrs, text_ptrs, time_weight_ptr, text_weight_ptr, partial_ptr, slope_ptr,
    M, F, D,
    depth_weights,
    stride_tm, stride_td, stride_xm, stride_xd, stride_twg, stride_twf, stride_twd, stride_xwg, stride_xwf, stride_xwd,
    stride_sg,
    KIND: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_m, offs_f = _tile_offsets(M, F, BLOCK_M, BLOCK_F)
    in_m, in_f = offs_m < M, offs_f < F
    offs_m, offs_f = offs_m.to(tl.int64), offs_f.to(tl.int64)
    depth = tl.program_id(1)
    pid_g = depth.to(tl.int64)
    acc = _add_product(
        tl.zeros([BLOCK_M, BLOCK_F], tl.float32),
        _pick(text_ptrs, depth) + offs_m * stride_xm, text_weight_ptr + pid_g * stride_xwg + offs_f * stride_xwf,
        in_m, in_f, D, stride_xd, stride_xwd, DOT_DTYPE, INPUT_PRECISION, BLOCK_D,
    )  # fmt: skip
    # tensor cores only add: the sign turns once, between the two products
    d = _add_product(
        -acc,
        _pick(time_ptrs, depth) + offs_m * stride_tm, time_weight_ptr + pid_g * stride_twg + offs_f * stride_twf,
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
        partial_ptr += depth * tl.num_programs(0) + tl.program_id(0)
        tl.store(partial_ptr, tl.sum(rho) * _pick(depth_weights, depth))
    if slope_ptr is not None:
        slope_ptrs = slope_ptr + pid_g * stride_sg + offs_m[:, None] * F + offs_f[None, :]
        tl.store(slope_ptrs, slope.to(slope_ptr.dtype.element_ty), mask=in_m[:, None] & in_f[None, :])


@triton.jit(do_not_specialize=["num_partials"])
def _mean_kernel(partial_ptr, loss_ptr, num_partials, inverse_count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + offs, mask=offs < num_partials, other=0.0)
    tl.store(loss_ptr, tl.sum(total) * inverse_count)


@triton.jit(do_not_specialize=["M", "steps_per_split"])
def _grad_kernel(
    slope_ptr, time_ptrs, text_ptrs, dloss_ptr, dtime_ptrs, dtext_ptrs,
    M, F, J, steps_per_split,
    factors,
    stride_sg, stride_si, stride_sk, stride_tk, stride_tj, stride_xk, stride_xj, stride_split,
    SUM_ROWS: tl.constexpr, ACCUMULATE: tl.constexpr, DOT_DTYPE: tl.constexpr, INPUT_PRECISION: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dtime = slope @ time and dtext = -slope @ text, times dloss and the depth's factor, at every depth.

    slope is [depths, I, K], time and text are [K, J] of each depth. K is M where rows are summed, else it is F.
    """
    # a variable number of rows must not cost the wide loads along F, so the two sizes keep their names until here
    I, K = (F, M) if SUM_ROWS else (M, F)
    offs_i, offs_j = _tile_offsets(I, J, BLOCK_I, BLOCK_J)
    mask_i, mask_j = offs_i[:, None] < I, offs_j[None, :] < J
    split, depth = tl.program_id(1), tl.program_id(2)
    time_ptr, text_ptr = _pick(time_ptrs, depth), _pick(text_ptrs, depth)
    start = split * steps_per_split * BLOCK_K
    offs_k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
    slope_ptrs = (
        slope_ptr
        + depth.to(tl.int64) * stride_sg
        + offs_i[:, None].to(tl.int64) * stride_si
        + offs_k[None, :] * stride_sk
    )
    time_ptrs = time_ptr + offs_k[:, None] * stride_tk + offs_j[None, :].to(tl.int64) * stride_tj
    text_ptrs = text_ptr + offs_k[:, None] * stride_xk + offs_j[None, :].to(tl.int64) * stride_xj
    dtime = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    dtext = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for k in range(start, min(start + steps_per_split * BLOCK_K, K), BLOCK_K):
        mask_k = k + tl.arange(0, BLOCK_K) < K
        slope = tl.load(slope_ptrs, mask=mask_i & mask_k[None, :], other=0.0).to(DOT_DTYPE)  # [BLOCK_I, BLOCK_K]
        time = tl.load(time_ptrs, mask=mask_k[:, None] & mask_j, other=0.0).to(DOT_DTYPE)  # [BLOCK_K, BLOCK_J]
        text = tl.load(text_ptrs, mask=mask_k[:, None] & mask_j, other=0.0).to(DOT_DTYPE)  # [BLOCK_K, BLOCK_J]
        dtime = tl.dot(slope, time, dtime, input_precision=INPUT_PRECISION)
        dtext = tl.dot(slope, text, dtext, input_precision=INPUT_PRECISION)
        slope_ptrs += tl.cast(stride_sk, tl.int64) * BLOCK_K
        time_ptrs += tl.cast(stride_tk, tl.int64) * BLOCK_K
        text_ptrs += tl.cast(stride_xk, tl.int64) * BLOCK_K

    factor = _pick(factors, depth) * tl.load(dloss_ptr)
    dtime_ptr, dtext_ptr = _pick(dtime_ptrs, depth), _pick(dtext_ptrs, depth)
    offs = split.to(tl.int64) * stride_split + offs_i[:, None].to(tl.int64) * J + offs_j[None, :]
    mask = mask_i & mask_j
    dtime, dtext = dtime * factor, dtext * -factor
    if ACCUMULATE:
        dtime += tl.load(dtime_ptr + offs, mask=mask, other=0.0)
        dtext += tl.load(dtext_ptr + offs, mask=mask, other=0.0)
    tl.store(dtime_ptr + offs, dtime.to(dtime_ptr.dtype.element_ty), mask=mask)
    tl.store(dtext_ptr + offs, dtext.to(dtext_ptr.dtype.element_ty), mask=mask)


def shape_class(depths: int, rows: int, columns: int, tensor: Tensor) -> str:
    tiles = depths * -(-rows // 128) * -(-columns // 128)
    return "few tiles" if tiles < TILES_A_MULTIPROCESSOR * num_multiprocessors(tensor.device) else "many tiles"


def _config(kernel: str, depths: int, rows: int, columns: int, tensor: Tensor):
    tiles = shape_class(depths, rows, columns, tensor)
    return config_for(kernel, f"{tiles}, {tensor.dtype.itemsize * 8}-bit", tensor)


def _halves(time: list[Tensor], text: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Time and text [M, D] of each depth: given as they are, or without `text` as the halves of `time` [2M, D]."""
    return (time, text) if text else tuple(zip(*(both.chunk(2) for both in time), strict=True))


def _difference(time, text, time_weight, text_weight, depth_weights, kind, loss=None, slope=None) -> None:
    """Fill `loss`, `slope` [depths, M, F] (rho', for mse half of it) or both; M > 0."""
    M, (G, F, D) = len(time[0]), time_weight.shape
    config = _config("alignment_loss_fwd", G, M, F, time_weight)
    tiles = triton.cdiv(M, config.blocks["BLOCK_M"]) * triton.cdiv(F, config.blocks["BLOCK_F"])
    partial = None if loss is None else torch.empty(G, tiles, dtype=torch.float32, device=time_weight.device)
    stride_sg = 0 if slope is None else slope.stride(0)
    with device_guard(time_weight):
        for g in _launches(G):
            _fwd_kernel[(tiles, g.stop - g.start)](
                tuple(time[g]), tuple(text[g]), time_weight[g], text_weight[g],
                None if partial is None else partial[g], None if slope is None else slope[g],
                M=M, F=F, D=D, depth_weights=tuple(depth_weights[g]),
                stride_tm=time[0].stride(0), stride_td=time[0].stride(1),
                stride_xm=text[0].stride(0), stride_xd=text[0].stride(1),
                stride_twg=time_weight.stride(0), stride_twf=time_weight.stride(1), stride_twd=time_weight.stride(2),
                stride_xwg=text_weight.stride(0), stride_xwf=text_weight.stride(1), stride_xwd=text_weight.stride(2),
                stride_sg=stride_sg,
                KIND=kind, **dot_options(time_weight.dtype), **config.launch_options(),
            )  # fmt: skip
        if loss is not None:
            mean = config_for("alignment_loss_mean", "any", partial)
            _mean_kernel[(1,)](
                partial, loss, num_partials=partial.numel(), inverse_count=1 / (M * F), **mean.launch_options()
            )


def _launches(depths: int) -> list[slice]:
    return [slice(start, min(start + DEPTHS_A_LAUNCH, depths)) for start in range(0, depths, DEPTHS_A_LAUNCH)]


def _products(
    slope, time, text, dloss, factors, dtime, dtext, config, sum_rows, splits=1, stride_split=0, accumulate=False
) -> None:
    """dtime = dloss factor slope @ time, dtext = -dloss factor slope @ text of each depth, or `splits` partial sums."""
    (G, I, K), J = slope.shape, time[0].shape[1]
    M, F = (K, I) if sum_rows else (I, K)
    tiles = triton.cdiv(I, config.blocks["BLOCK_I"]) * triton.cdiv(J, config.blocks["BLOCK_J"])
    with device_guard(slope):
        for g in _launches(G):
            _grad_kernel[(tiles, splits, g.stop - g.start)](
                slope[g], tuple(time[g]), tuple(text[g]), dloss, tuple(dtime[g]), tuple(dtext[g]),
                M=M, F=F, J=J, steps_per_split=triton.cdiv(triton.cdiv(K, config.blocks["BLOCK_K"]), splits),
                factors=tuple(factors[g]),
                stride_sg=slope.stride(0), stride_si=slope.stride(1), stride_sk=slope.stride(2),
                stride_tk=time[0].stride(0), stride_tj=time[0].stride(1),
                stride_xk=text[0].stride(0), stride_xj=text[0].stride(1),
                stride_split=stride_split,
                SUM_ROWS=sum_rows, ACCUMULATE=accumulate, **dot_options(slope.dtype), **config.launch_options(),
            )  # fmt: skip


def _empty_outputs(time, text, time_weight, text_weight, depth_weights, kind, save):
    loss = time_weight.new_empty((), dtype=torch.float32)
    if not save or time_weight.dtype == torch.float32:
        return loss, time_weight.new_empty(0)
    M = len(time[0]) if text else len(time[0]) // 2
    return loss, time_weight.new_empty(len(time), M, time_weight.shape[1])


def alignment_loss_fwd(time: list[Tensor], text: list[Tensor], time_weight: Tensor, text_weight: Tensor,
                       depth_weights: list[float], kind: str, save: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Loss of features [M, D] of each depth, and what the backward needs of it.

    The two branches' features are `time` and `text`, or without `text` the halves of `time` [2M, D]; weights are
    [depths, F, D]. What is kept is the slope [depths, M, F] of 16-bit weights if `save`, else nothing [0].
    """
    loss, slope = _empty_outputs(time, text, time_weight, text_weight, depth_weights, kind, save)
    time, text = _halves(time, text)
    if len(time[0]) == 0:
        return loss.zero_(), slope
    kept = slope if slope.numel() else None
    _difference(time, text, time_weight, text_weight, depth_weights, kind, loss, kept)
    return loss, slope


def _empty_grads(dloss, time, text, time_weight, text_weight, slope, depth_weights, kind):
    return [t.new_empty(t.shape) for t in (*time, *text, time_weight, text_weight)]


def alignment_loss_bwd(dloss: Tensor, time: list[Tensor], text: list[Tensor], time_weight: Tensor, text_weight: Tensor,
                       slope: Tensor, depth_weights: list[float], kind: str) -> list[Tensor]:  # fmt: skip
    """-> gradients of every `time`, of every `text` and of the two weights."""
    grads = _empty_grads(dloss, time, text, time_weight, text_weight, slope, depth_weights, kind)
    *feature_grads, dtime_weight, dtext_weight = grads
    dtime, dtext = _halves(feature_grads[: len(time)], feature_grads[len(time) :])
    time, text = _halves(time, text)
    M, (G, F, D) = len(time[0]), time_weight.shape
    if M == 0:
        return [grad.zero_() for grad in grads]
    factors = [weight * (2 if kind == "mse" else 1) / (M * F) for weight in depth_weights]

    # sums over rows before they are divided by their number are beyond fp16
    library = time_weight.dtype != torch.float16 and by_library(
        "alignment_loss_backward", shape_class(G, M, D, time_weight), time_weight
    )
    recompute = slope.numel() == 0
    rows = min(M, max(1, RECOMPUTED_ROWS // G)) if recompute else M
    if recompute:
        slope = time_weight.new_empty(G, rows, F)
    config = _config("alignment_loss_grad", G, rows, D, time_weight)
    weight_config = _config("alignment_loss_grad", G, F, D, time_weight)
    tiles = triton.cdiv(F, weight_config.blocks["BLOCK_I"]) * triton.cdiv(D, weight_config.blocks["BLOCK_J"])
    steps = triton.cdiv(rows, weight_config.blocks["BLOCK_K"])
    splits = 1 if library else num_splits(dloss.device, weight_config.waves, G * tiles, limit=steps)
    # shares are added up over the parts, in fp32 in any case: only fp32 weights have more than one part
    weight_targets, stride_split, sum_splits = split_outputs(splits, dtime_weight, dtext_weight)
    weight_targets = [
        [target[..., g * F * D :] if splits > 1 else target[g] for g in range(G)] for target in weight_targets
    ]
    for start in range(0, M, rows):
        part = slice(start, min(start + rows, M))
        part_slope = slope[:, : part.stop - part.start]
        part_time, part_text = [t[part] for t in time], [t[part] for t in text]
        if recompute:
            _difference(part_time, part_text, time_weight, text_weight, depth_weights, kind, slope=part_slope)
        if library:
            scales = [dloss * factor for factor in factors]
            branches = (
                (time_weight, part_time, scales, dtime, dtime_weight),
                (text_weight, part_text, [-scale for scale in scales], dtext, dtext_weight),
            )
            for weight, features, signed, dfeatures, dweight in branches:
                dparts = [dfeature[part] for dfeature in dfeatures]
                _library_products(part_slope, weight, features, signed, dparts, dweight, accumulate=start > 0)
            continue
        _products(
            part_slope, time_weight.unbind(), text_weight.unbind(), dloss, factors,
            [t[part] for t in dtime], [t[part] for t in dtext], config, False,
        )  # fmt: skip
        _products(
            part_slope.transpose(1, 2), part_time, part_text, dloss, factors, *weight_targets,
            weight_config, True, splits, stride_split, accumulate=start > 0,
        )  # fmt: skip
    sum_splits()
    return grads


def _library_products(slope, weight, features, scales, dfeatures, dweight, accumulate) -> None:
    """Of one branch at each depth: dfeatures = scale slope @ weight, dweight (+)= scale slope^T @ features."""
    for g, scale in enumerate(scales):
        torch.mul(slope[g] @ weight[g], scale, out=dfeatures[g])
        product = slope[g].t() @ features[g].to(weight.dtype)
        if accumulate:
            dweight[g].addcmul_(product, scale)
        else:
            torch.mul(product, scale, out=dweight[g])


def _save_for_backward(ctx, inputs, output):
    time, text, time_weight, text_weight, ctx.depth_weights, ctx.kind, _ = inputs
    ctx.num_depths = len(time)
    ctx.save_for_backward(*time, *text, time_weight, text_weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, dloss, _):
    *features, time_weight, text_weight, slope = ctx.saved_tensors
    time, text = features[: ctx.num_depths], features[ctx.num_depths :]
    grads = _backward_op(dloss, time, text, time_weight, text_weight, slope, ctx.depth_weights, ctx.kind)
    *features, dtime_weight, dtext_weight = grads
    return features[: len(time)], features[len(time) :], dtime_weight, dtext_weight, None, None, None


_backward_op = Operation("alignment_loss_backward", alignment_loss_bwd, fake=_empty_grads)
_op = Operation("alignment_loss", alignment_loss_fwd, fake=_empty_outputs, setup_context=_save_for_backward,
                backward=_backward)  # fmt: skip


def launch(time, text, time_weight, text_weight, depth_weights, kind) -> Tensor:
    """The op by its kernels, on checked inputs."""
    tensors = *time, *text, time_weight, text_weight
    save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return _op(time, text, time_weight, text_weight, depth_weights, kind, save)[0]


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")


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
    check_kind(kind)
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
    F = time_weight.shape[0]
    if use_triton(time) and not by_library("alignment_loss", shape_class(1, M, F, time), time):
        return launch([time], [text], time_weight[None], text_weight[None], [1.0], kind)
    return alignment_loss_ref(time, text, time_weight, text_weight, kind=kind)
