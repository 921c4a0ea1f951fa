"""Both branches' forecasts in the units of the series, and how far they are from the target and from each other.

    forecast[i] = normalised[i] * scale + loc                                      i: temporal, textual
    task = mean rho(forecast[0] - target),  consistency = mean rho'(forecast[0] - forecast[1])
    total = task + consistency_weight * consistency

A missing target (NaN) adds nothing to the task's sum, which is divided by all B H C values: the mean over micro-batches
and ranks is then the loss of the global batch. One pass each way in place of some thirty operations; bound by reading
the head's output and the target and writing the forecasts. B windows, C channels, H horizon.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import DTYPES, check_device, check_dtype, check_shape
from ._launch import device_guard, tl, triton, use_triton
from ._operation import Operation
from .configs import config_for
from .providers import by_library

KINDS = ("l1", "smooth_l1", "mse", "smape", "mase")


def mean_distance(kind: str, prediction: Tensor, target: Tensor, unit: Tensor | None, has_missing: bool) -> Tensor:
    """Mean of rho(prediction - target) over [B, H, C], divided by `unit` [B, C] for mase; in fp32 or float64."""
    if prediction.dtype != torch.float64:
        prediction, target = prediction.float(), target.float()
    if has_missing:
        observed = ~torch.isnan(target)
        target = torch.where(observed, target, 0.0)
        prediction = torch.where(observed, prediction, 0.0)
    if kind == "mase":
        prediction, target = prediction / unit[:, None], target / unit[:, None]
    if kind == "smape":
        # no gradient through the denominator: a forecast must not gain by growing
        size = prediction.detach().abs() + target.detach().abs()
        return (200 * (prediction - target).abs() / torch.where(size > 0, size, 1)).mean()
    rho = {"smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}.get(kind, F.l1_loss)
    return rho(prediction, target, reduction="none").mean()


def forecast_losses_ref(
    normalised: Tensor,
    loc: Tensor,
    scale: Tensor,
    target: Tensor,
    *,
    task: str,
    consistency: str | None,
    consistency_weight: float = 1.0,
    insample_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Specification and CPU path of `forecast_losses`; float64 throughout if the inputs are."""
    wide = normalised if normalised.dtype == torch.float64 else normalised.float()
    branches = wide.unflatten(0, (2, loc.shape[0])) * scale[..., None] + loc[..., None]
    forecasts = branches.flatten(0, 1).transpose(1, 2)
    time, text = forecasts.chunk(2)
    task_loss = mean_distance(task, time, target, insample_scale, has_missing=True)
    if consistency is None:
        return forecasts, task_loss, None, task_loss
    # a branch that has diverged is not one whose values are missing
    apart = mean_distance(consistency, time, text, insample_scale, has_missing=False)
    return forecasts, task_loss, apart, task_loss + consistency_weight * apart


@triton.jit
def _rho(first, second, unit, KIND: tl.constexpr):
    """rho of first - second, and its derivative by first; by second it is the same with its sign turned."""
    d = first - second
    # not d > 0: NaN stays NaN
    sign = tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, d))
    if KIND == "smooth_l1":
        return tl.where(tl.abs(d) < 1, 0.5 * d * d, tl.abs(d) - 0.5), tl.where(tl.abs(d) < 1, d, sign)
    if KIND == "mse":
        return d * d, 2 * d
    if KIND == "smape":
        size = tl.abs(first) + tl.abs(second)
        factor = 200 / tl.where(size == 0, 1.0, size)
        return tl.abs(d) * factor, sign * factor
    if KIND == "mase":
        return tl.abs(d) / unit, sign / unit
    return tl.abs(d), sign


@triton.jit
def _offsets(tile, C, H, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr):
    """Window, channels [BLOCK_C, 1] and steps [1, BLOCK_H] of a tile; the steps run fastest."""
    tiles_h = tl.cdiv(H, BLOCK_H)
    tiles = tl.cdiv(C, BLOCK_C) * tiles_h
    c = tile % tiles // tiles_h * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    h = tile % tiles_h * BLOCK_H + tl.arange(0, BLOCK_H)[None, :]
    return (tile // tiles).to(tl.int64), c, h


@triton.jit(do_not_specialize=["B"])
def _fwd_kernel(
    normalised_ptr, loc_ptr, scale_ptr, target_ptr, unit_ptr, forecasts_ptr, partial_ptr,
    B, C, H,
    stride_tb, stride_th, stride_tc,
    TASK: tl.constexpr, CONSISTENCY: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    b, c, h = _offsets(tile, C, H, BLOCK_C, BLOCK_H)
    mask = (c < C) & (h < H)
    scale = tl.load(scale_ptr + b * C + c, mask=c < C, other=0.0)
    loc = tl.load(loc_ptr + b * C + c, mask=c < C, other=0.0)
    unit = 1.0
    if unit_ptr is not None:
        unit = tl.load(unit_ptr + b * C + c, mask=c < C, other=1.0)
    offs = (b * C + c) * H + h
    textual = tl.cast(B, tl.int64) * C * H
    time = tl.load(normalised_ptr + offs, mask=mask, other=0.0).to(tl.float32) * scale + loc
    text = tl.load(normalised_ptr + textual + offs, mask=mask, other=0.0).to(tl.float32) * scale + loc
    tl.store(forecasts_ptr + offs, time, mask=mask)
    tl.store(forecasts_ptr + textual + offs, text, mask=mask)
    target_ptrs = target_ptr + b * stride_tb + h.to(tl.int64) * stride_th + c.to(tl.int64) * stride_tc
    target = tl.load(target_ptrs, mask=mask, other=float("nan")).to(tl.float32)
    rho, _ = _rho(time, target, unit, TASK)
    # a missing target is one that is not itself
    tl.store(partial_ptr + tile, tl.sum(tl.where(target == target, rho, 0.0)))
    if CONSISTENCY is not None:
        rho, _ = _rho(time, text, unit, CONSISTENCY)
        # beyond the tensors nothing is apart: the mask changes no value, but keeps the kernel at 48 registers, without
        # it 56, so that Traffic's programs are one wave
        tl.store(partial_ptr + tl.num_programs(0) + tile, tl.sum(tl.where(mask, rho, 0.0)))


@triton.jit(do_not_specialize=["num_partials"])
def _mean_kernel(
    partial_ptr, task_ptr, consistency_ptr, total_ptr,
    num_partials,
    inverse_count, consistency_weight,
    HAS_CONSISTENCY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    task = tl.zeros([BLOCK], tl.float32)
    apart = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_partials, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        task += tl.load(partial_ptr + offs, mask=offs < num_partials, other=0.0)
        if HAS_CONSISTENCY:
            apart += tl.load(partial_ptr + num_partials + offs, mask=offs < num_partials, other=0.0)
    mean_task = tl.sum(task) * inverse_count
    mean_apart = tl.sum(apart) * inverse_count
    tl.store(task_ptr, mean_task)
    tl.store(consistency_ptr, mean_apart)
    tl.store(total_ptr, mean_task + consistency_weight * mean_apart)


@triton.jit
def _factor(loss_ptr, total_ptr, weight):
    """What a loss counts for: its own gradient and its share of the total's, either of which may not be there."""
    factor = 0.0
    if loss_ptr is not None:
        factor += tl.load(loss_ptr)
    if total_ptr is not None:
        factor += tl.load(total_ptr) * weight
    return factor


@triton.jit(do_not_specialize=["B"])
def _bwd_kernel(
    dforecasts_ptr, dtask_ptr, dconsistency_ptr, dtotal_ptr, forecasts_ptr, scale_ptr, target_ptr, unit_ptr,
    dnormalised_ptr,
    B, C, H,
    inverse_count, consistency_weight,
    stride_tb, stride_th, stride_tc, stride_gb, stride_gh, stride_gc,
    TASK: tl.constexpr, CONSISTENCY: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    b, c, h = _offsets(tl.program_id(0), C, H, BLOCK_C, BLOCK_H)
    mask = (c < C) & (h < H)
    scale = tl.load(scale_ptr + b * C + c, mask=c < C, other=0.0)
    unit = 1.0
    if unit_ptr is not None:
        unit = tl.load(unit_ptr + b * C + c, mask=c < C, other=1.0)
    offs = (b * C + c) * H + h
    textual = tl.cast(B, tl.int64) * C * H
    time = tl.load(forecasts_ptr + offs, mask=mask, other=0.0)
    target_ptrs = target_ptr + b * stride_tb + h.to(tl.int64) * stride_th + c.to(tl.int64) * stride_tc
    target = tl.load(target_ptrs, mask=mask, other=float("nan")).to(tl.float32)
    _, slope = _rho(time, target, unit, TASK)
    dtime = tl.where(target == target, slope, 0.0) * (_factor(dtask_ptr, dtotal_ptr, 1.0) * inverse_count)
    dtext = tl.zeros_like(dtime)
    if CONSISTENCY is not None:
        text = tl.load(forecasts_ptr + textual + offs, mask=mask, other=0.0)
        _, slope = _rho(time, text, unit, CONSISTENCY)
        apart = slope * (_factor(dconsistency_ptr, dtotal_ptr, consistency_weight) * inverse_count)
        dtime += apart
        dtext -= apart
    if dforecasts_ptr is not None:
        grad_ptrs = dforecasts_ptr + h.to(tl.int64) * stride_gh + c.to(tl.int64) * stride_gc
        dtime += tl.load(grad_ptrs + b * stride_gb, mask=mask, other=0.0)
        dtext += tl.load(grad_ptrs + (b + B) * stride_gb, mask=mask, other=0.0)
    tl.store(dnormalised_ptr + offs, (dtime * scale).to(dnormalised_ptr.dtype.element_ty), mask=mask)
    tl.store(dnormalised_ptr + textual + offs, (dtext * scale).to(dnormalised_ptr.dtype.element_ty), mask=mask)


def _sizes(target: Tensor) -> dict:
    B, H, C = target.shape
    strides = target.stride()
    return {"B": B, "C": C, "H": H, "stride_tb": strides[0], "stride_th": strides[1], "stride_tc": strides[2]}


def _shape_class(target: Tensor) -> str:
    return "few channels" if target.shape[2] <= 8 else "many channels"


def _config(kernel: str, target: Tensor):
    return config_for(kernel, _shape_class(target), target)


def _grid(config, target: Tensor) -> tuple[int]:
    B, H, C = target.shape
    return (B * triton.cdiv(C, config.blocks["BLOCK_C"]) * triton.cdiv(H, config.blocks["BLOCK_H"]),)


def _empty_outputs(normalised, loc, scale, target, insample_scale, task, consistency, consistency_weight):
    scalars = (normalised.new_empty((), dtype=torch.float32) for _ in range(3))
    return normalised.new_empty(normalised.shape, dtype=torch.float32), *scalars


def forecast_losses_fwd(
    normalised: Tensor, loc: Tensor, scale: Tensor, target: Tensor, insample_scale: Tensor | None, task: str,
    consistency: str | None, consistency_weight: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """-> forecasts [2B, C, H] fp32, task, consistency (0 without one) and total; B, C, H > 0."""
    outputs = _empty_outputs(normalised, loc, scale, target, insample_scale, task, consistency, consistency_weight)
    forecasts, task_loss, apart, total = outputs
    config, mean = _config("forecast_losses_fwd", target), config_for("forecast_losses_mean", "any", target)
    grid = _grid(config, target)
    partial = normalised.new_empty(1 if consistency is None else 2, *grid, dtype=torch.float32)
    with device_guard(target):
        _fwd_kernel[grid](
            normalised, loc, scale, target, insample_scale, forecasts, partial,
            **_sizes(target), TASK=task, CONSISTENCY=consistency, **config.launch_options(),
        )  # fmt: skip
        _mean_kernel[(1,)](
            partial, task_loss, apart, total,
            num_partials=grid[0], inverse_count=1 / target.numel(), consistency_weight=consistency_weight,
            HAS_CONSISTENCY=consistency is not None, **mean.launch_options(),
        )  # fmt: skip
    return outputs


def _empty_grads(dforecasts, dtask, dconsistency, dtotal, forecasts, scale, target, insample_scale, task, consistency,
                 consistency_weight, dtype):  # fmt: skip
    return forecasts.new_empty(forecasts.shape, dtype=dtype)


def forecast_losses_bwd(
    dforecasts: Tensor | None, dtask: Tensor | None, dconsistency: Tensor | None, dtotal: Tensor | None,
    forecasts: Tensor, scale: Tensor, target: Tensor, insample_scale: Tensor | None, task: str, consistency: str | None,
    consistency_weight: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """-> dnormalised [2B, C, H] in `dtype`, of what gradients there are."""
    dnormalised = forecasts.new_empty(forecasts.shape, dtype=dtype)
    config = _config("forecast_losses_bwd", target)
    stride_gb, stride_gc, stride_gh = (0, 0, 0) if dforecasts is None else dforecasts.stride()
    with device_guard(target):
        _bwd_kernel[_grid(config, target)](
            dforecasts, dtask, dconsistency, dtotal, forecasts, scale, target, insample_scale, dnormalised,
            **_sizes(target), stride_gb=stride_gb, stride_gh=stride_gh, stride_gc=stride_gc,
            inverse_count=1 / target.numel(), consistency_weight=consistency_weight,
            TASK=task, CONSISTENCY=consistency, **config.launch_options(),
        )  # fmt: skip
    return dnormalised


def _save_for_backward(ctx, inputs, output):
    normalised, _, scale, target, insample_scale, ctx.task, ctx.consistency, ctx.consistency_weight = inputs
    ctx.save_for_backward(output[0], scale, target, insample_scale)
    ctx.dtype = normalised.dtype
    if ctx.consistency is None:
        ctx.mark_non_differentiable(output[2])


def _backward(ctx, dforecasts, dtask, dconsistency, dtotal):
    forecasts, scale, target, insample_scale = ctx.saved_tensors
    dnormalised = _backward_op(
        dforecasts, dtask, dconsistency if ctx.consistency else None, dtotal, forecasts, scale, target, insample_scale,
        ctx.task, ctx.consistency, ctx.consistency_weight, ctx.dtype,
    )  # fmt: skip
    return dnormalised, None, None, None, None, None, None, None


_backward_op = Operation("forecast_losses_backward", forecast_losses_bwd, fake=_empty_grads)
_op = Operation("forecast_losses", forecast_losses_fwd, fake=_empty_outputs, setup_context=_save_for_backward,
                backward=_backward)  # fmt: skip


def forecast_losses(
    normalised: Tensor,
    loc: Tensor,
    scale: Tensor,
    target: Tensor,
    *,
    task: str,
    consistency: str | None,
    consistency_weight: float = 1.0,
    insample_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """De-normalise two branches' forecasts and measure them.

    Args:
        normalised: `[2B, C, H]`, fp32, bf16 or fp16; the first half of the rows is the temporal branch's.
        loc, scale: `[B, C]` fp32, without gradient.
        target: `[B, H, C]`, fp32, bf16 or fp16; NaN marks a missing value. Without gradient.
        task: "l1", "smooth_l1" (beta 1), "mse", "smape" (percent, no gradient through its denominator) or "mase".
        consistency: likewise, None for none.
        consistency_weight: of the consistency in the total.
        insample_scale: `[B, C]` fp32, what mase divides errors by.

    Returns:
        forecasts `[2B, H, C]` fp32, and as fp32 scalars the task loss, the consistency (None without one) and their
        weighted sum. Gradients of all of them flow to `normalised`. Without values the losses are NaN.

    Raises:
        ValueError: a shape, dtype, device or kind is wrong, or mase has no insample_scale.
    """
    for name, kind in (("task", task), ("consistency", consistency)):
        if kind not in KINDS and (name, kind) != ("consistency", None):
            raise ValueError(f"{name}: expected one of {', '.join(KINDS)}, got {kind!r}")
    check_shape("target", target, "[B, H, C]", B=None)
    B, H, C = target.shape
    check_dtype("target", target, (*DTYPES, torch.float64))
    check_shape("normalised", normalised, "[2B, C, H]", **{"2B": 2 * B, "C": C, "H": H})
    check_dtype("normalised", normalised, (*DTYPES, torch.float64))
    check_device("normalised", normalised, target.device)
    units = {"loc": loc, "scale": scale} | ({} if insample_scale is None else {"insample_scale": insample_scale})
    for name, tensor in units.items():
        check_shape(name, tensor, "[B, C]", B=B, C=C)
        check_device(name, tensor, target.device)
    if "mase" in (task, consistency) and insample_scale is None:
        raise ValueError("mase: expected insample_scale [B, C], got None")
    if use_triton(target) and target.numel() and not by_library("forecast_losses", _shape_class(target), target):
        units = [None if t is None else t.detach().float().contiguous() for t in (loc, scale, insample_scale)]
        inputs = normalised.contiguous(), *units[:2], target.detach(), units[2]
        forecasts, task_loss, apart, total = _op(*inputs, task, consistency, consistency_weight)
        return forecasts.transpose(1, 2), task_loss, None if consistency is None else apart, total
    return forecast_losses_ref(
        normalised, loc, scale, target, task=task, consistency=consistency, consistency_weight=consistency_weight,
        insample_scale=insample_scale,
    )  # fmt: skip
