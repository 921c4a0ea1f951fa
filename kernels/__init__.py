"""Triton kernels for the parts that LLaTA adds to a language model, each with a plain PyTorch reference beside it."""

from . import _flops  # noqa: F401
from .alignment_loss import alignment_loss, alignment_loss_ref
from .deep_alignment_loss import deep_alignment_loss, deep_alignment_loss_ref
from .forecast_losses import forecast_losses, forecast_losses_ref
from .patch_embed import patch_embed, patch_embed_ref
from .prototype_attention import prototype_attention, prototype_attention_ref
from .twin_norm import twin_norm, twin_norm_ref

__all__ = [
    "alignment_loss",
    "alignment_loss_ref",
    "deep_alignment_loss",
    "deep_alignment_loss_ref",
    "forecast_losses",
    "forecast_losses_ref",
    "patch_embed",
    "patch_embed_ref",
    "prototype_attention",
    "prototype_attention_ref",
    "twin_norm",
    "twin_norm_ref",
]
