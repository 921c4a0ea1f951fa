"""Load the frozen base that a configuration names: build it on the meta device, then fill in its source's weights."""

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from ..config import LlataConfig
from ..errors import InputError
from ..ranks import on_first_rank
from .attention import choose_attention
from .fingerprint import check_fingerprint, take_fingerprint
from .loading import BackboneWeights, build_backbone, load_backbone_weights
from .placing import fill_decoder
from .quantised import bitsandbytes_for


def load_base(config: LlataConfig, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, BackboneWeights]:
    """Load the pre-trained decoder that `config` names, without word embedding; also returns the source's weights.

    Projections are stored in `dtype`, or quantised according to `config.base_precision`. Under ZeRO-3 only rank 0
    reads the source; the others get no tensors. The base's fingerprint is taken, or compared with `config`'s.

    Raises:
        InputError: the source cannot be read or quantised here, or its weights do not match the fingerprint.
    """
    if config.base_precision != "auto":
        bitsandbytes_for(config.base_precision)
        if is_deepspeed_zero3_enabled():
            raise InputError(
                f"base_precision {config.base_precision} cannot be partitioned by ZeRO-3: use a lower stage"
            )
    with init_empty_weights(include_buffers=False):
        backbone = build_backbone(
            config.backbone_config, choose_attention(config.backbone_config, config.attn_implementation).name
        )

    def read() -> BackboneWeights:
        weights = load_backbone_weights(config.backbone, config.backbone_config, seed=config.backbone_seed)
        if config.backbone_fingerprint is None:
            config.backbone_fingerprint = take_fingerprint(weights.blocks)
        else:
            check_fingerprint(weights.blocks, config.backbone_fingerprint, config.backbone)
        return weights

    weights = on_first_rank(read) if is_deepspeed_zero3_enabled() else read()
    if weights is None:
        weights = BackboneWeights({}, None)
    fill_decoder(backbone, weights.blocks, dtype, config.base_precision)
    return backbone, weights
