"""What `torch.utils.flop_counter.FlopCounterMode` counts for the ops: the products they need, none recomputed."""

import torch
from torch.utils.flop_counter import register_flop_formula

# their import registers the ops
from . import alignment_loss, patch_embed, prototype_attention  # noqa: F401

ops = torch.ops.llata_fast


@register_flop_formula([ops.patch_embed, ops.patch_embed_backward])
def _patch_embed_flops(first, second, *args, out_shape=None, **kwargs) -> int:
    """One GEMM either way; forward the tokens come out, backward their gradient comes in first."""
    forward = len(first) == 3
    tokens, (D, P) = (out_shape[0], second) if forward else (first, args[0])
    B, C, N, _ = tokens
    return 2 * B * C * N * D * P


@register_flop_formula(ops.prototype_attention)
def _attention_flops(q, k, *args, **kwargs) -> int:
    M, A, E = q
    return 4 * M * k[0] * A * E


@register_flop_formula(ops.prototype_attention_backward)
def _attention_backward_flops(dout, q, k, *args, **kwargs) -> int:
    """Scores again, and the four gradients' products."""
    M, A, E = q
    return 10 * M * k[0] * A * E


@register_flop_formula(ops.alignment_loss)
def _alignment_flops(time, text, time_weight, *args, **kwargs) -> int:
    return 4 * _aligned_rows(time, text) * time_weight[1] * time_weight[2]


@register_flop_formula(ops.alignment_loss_backward)
def _alignment_backward_flops(dloss, time, text, time_weight, *args, **kwargs) -> int:
    return 8 * _aligned_rows(time, text) * time_weight[1] * time_weight[2]


def _aligned_rows(time, text) -> int:
    """Rows of one branch, over all depths; without `text` both are in `time`."""
    rows = sum(shape[0] for shape in time)
    return rows if text else rows // 2
