"""Distance between two branches' features, each projected by its own learned matrix.

    loss = mean_{m, f} rho(d[m, f]),   d = time @ time_weight^T - text @ text_weight^T

The difference is one GEMM over the concatenated inner axis, [time, text] @ [time_weight, -text_weight]^T, and rho with
the mean is its epilogue. Bound by the GEMM. M rows (batch times tokens), D width, F projected width.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape

KINDS = ("l1", "smooth_l1", "mse")


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
    return alignment_loss_ref(time, text, time_weight, text_weight, kind=kind)
