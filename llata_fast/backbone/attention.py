"""Causal attention of the backbone without a mask tensor.

transformers builds its masks from position ids, reads them back to look for packed sequences (a host synchronisation
each step) and, when compiled, hands SDPA a mask that keeps it from its flash kernels. Our sequences are never padded
nor packed, so the implementation registered here declares no mask function: every layer gets None and SDPA its
`is_causal` flag.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

CAUSAL_SDPA = "causal_sdpa"


def causal_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """query [B, A, T, E], key and value [B, A / groups, T, E] -> [B, T, A, E], causal, within a window if any."""
    T = query.shape[2]
    band = None
    if sliding_window is not None and T > sliding_window:
        position = torch.arange(T, device=query.device)
        distance = position[:, None] - position  # [T, T]
        band = (distance >= 0) & (distance < sliding_window)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        dropout_p=dropout,
        is_causal=band is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL_SDPA, causal_sdpa)


def choose_attention(config: PreTrainedConfig) -> str:
    """The attention implementation for a backbone: SDPA, or eager where logits are soft-capped (Gemma 2)."""
    return CAUSAL_SDPA if getattr(config, "attn_logit_softcapping", None) is None else "eager"
