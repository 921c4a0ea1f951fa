"""Distance between two branches' features at every depth of a network, by the kernels of `alignment_loss`.

    loss = sum_g depth_weights[g] mean_{m, f} rho(time[g] @ time_weight[g]^T - text[g] @ text_weight[g]^T)

One launch does all depths, forward (the weighted sum included) and for each kind of gradient: a depth alone has too few
tiles to fill a GPU where there are few channels. Bound by the GEMM. G depths, M rows (batch times tokens), D width,
F projected width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import autocast, check_device, check_dtype, check_shape
from ._launch import use_triton
from .alignment_loss import alignment_loss_ref, check_kind, launch, shape_class
from .providers import by_library


def deep_alignment_loss_ref(
    features: Sequence[Tensor],
    time_weight: Tensor,
    text_weight: Tensor,
    *,
    depth_weights: Sequence[float],
    kind: str,
) -> Tensor:
    """Specification and CPU path of `deep_alignment_loss`; float64 throughout if the inputs are."""
    losses = []
    for both, *weights in zip(features, time_weight.unbind(), text_weight.unbind(), strict=True):
        time, text = both.to(time_weight.dtype).unflatten(0, (2, len(both) // 2)).unbind()
        losses.append(alignment_loss_ref(time, text, *weights, kind=kind))
    return (torch.stack(losses) * losses[0].new_tensor(depth_weights)).sum()


def deep_alignment_loss(
    features: Sequence[Tensor],
    time_weight: Tensor,
    text_weight: Tensor,
    *,
    depth_weights: Sequence[float],
    kind: str,
) -> Tensor:
    """Weighted sum over depths of the mean distance between the projections of two branches' features.

    Args:
        features: `[2 M, D]` of each of G >= 1 depths, each in the weights' dtype or fp32. The first half of the rows is
            the temporal branch's, the second the textual one's; M may be 0, which gives 0 and zero gradients.
        time_weight, text_weight: `[G, F, D]`, fp32, bf16 or fp16.
        depth_weights: G numbers.
        kind: "l1", "smooth_l1" (beta 1) or "mse".

    Returns:
        fp32 scalar; gradients flow to every feature, in its dtype, and to both weights.

    Raises:
        ValueError: a shape, dtype, device, number of depths or the kind is wrong.

    Under autocast the weights are cast; products are in their dtype, and features are cast where they are read.
    """
    check_kind(kind)
    time_weight, text_weight = autocast(time_weight, text_weight)
    check_shape("time_weight", time_weight, "[G, F, D]")
    G, F, D = time_weight.shape
    check_shape("text_weight", text_weight, "[G, F, D]", G=G, F=F, D=D)
    check_dtype("time_weight", time_weight)
    check_dtype("text_weight", text_weight, (time_weight.dtype,))
    if len(features) != G or len(depth_weights) != G:
        raise ValueError(f"expected {G} features and weights, got {len(features)} and {len(depth_weights)}")
    M2 = len(features[0])
    for g, both in enumerate(features):
        name = f"features[{g}]"
        check_shape(name, both, "[2M, D]", **{"2M": M2 if M2 else None, "D": D})
        check_dtype(name, both, (torch.float32, time_weight.dtype))
        check_device(name, both, time_weight.device)
    if M2 % 2:
        raise ValueError(f"features: expected [2M, D], an even number of rows, got {M2}")
    check_device("text_weight", text_weight, time_weight.device)
    if use_triton(time_weight) and not by_library(
        "alignment_loss", shape_class(G, M2 // 2, F, time_weight), time_weight
    ):
        # the kernels take one dtype and one distance between rows for all depths
        if len({(both.dtype, both.stride()) for both in features}) > 1:
            features = [both.to(time_weight.dtype).contiguous() for both in features]
        return launch(list(features), [], time_weight, text_weight, list(depth_weights), kind)
    return deep_alignment_loss_ref(features, time_weight, text_weight, depth_weights=depth_weights, kind=kind)
