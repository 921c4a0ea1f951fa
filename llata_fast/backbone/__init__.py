"""Pre-trained decoders: finding, loading and wrapping them."""

from .loading import (
    DEFAULT_BACKBONE,
    BackboneWeights,
    build_backbone,
    load_backbone_weights,
    max_tokens,
    read_backbone_config,
)

__all__ = [
    "DEFAULT_BACKBONE",
    "BackboneWeights",
    "build_backbone",
    "load_backbone_weights",
    "max_tokens",
    "read_backbone_config",
]
