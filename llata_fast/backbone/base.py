"""The frozen base that a configuration names: built on the meta device, then filled with its source's weights."""

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


def load_base(
    config: LlataConfig, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, BackboneWeights | None]:
    """The pre-trained decoder that `config` names, without word embedding, and what is left of its source's weights.

    Projections are kept in `dtype`, or quantised as `config.base_precision` says. Under ZeRO-3 rank 0 alone reads, and
    the others have no weights left. Its fingerprint is taken, or compared with the one that `config` has.

    Raises:
        InputError: the source cannot be read or quantised here, or holds other weights than `config` knows.
    """
    if config.base_precision != "auto":
        bitsandbytes_for(config.base_precision)
        if is_deepspeed_zero3_enabled():
            raise InputError(
                f"base_precision {config.base_precision} cannot be partitioned by ZeRO-3: take a stage below it"
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
    fill_decoder(backbone, weights and weights.blocks, dtype, config.base_precision)
    return backbone, weights
