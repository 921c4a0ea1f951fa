"""Pre-trained decoders: finding, loading and wrapping them."""

from .loading import (
    BackboneWeights,
    build_backbone,
    load_backbone_weights,
    max_tokens,
    read_backbone_config,
)

__all__ = [
    "BackboneWeights",
    "build_backbone",
    "load_backbone_weights",
    "max_tokens",
    "read_backbone_config",
]
