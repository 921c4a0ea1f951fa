"""A pass over a decoder's blocks with each residual addition fused into the following norm.

transformers' blocks add, then normalise: two passes over the residual stream forward, and a cast and an addition
backward. Nothing else reads the sum in between, so `TwinNorm.add` computes sum and norm together, across block
boundaries. Only for families whose blocks are known here and can be called directly; others keep transformers' pass.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention import EAGER


class _Names(NamedTuple):
    """Module names of a pre-norm decoder: x + attention(norm(x)), then x + mlp(norm(x))."""

    blocks: str
    first_norm: str
    attention: str
    second_norm: str
    last_norm: str


_GPT2 = _Names("h", "ln_1", "attn", "ln_2", "ln_f")
_LLAMA = _Names("layers", "input_layernorm", "self_attn", "post_attention_layernorm", "norm")
_FAMILIES = {"gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}


def runs_blocks(model: PreTrainedModel) -> bool:
    """Whether `run_blocks` can replace `model`'s own pass; eager attention needs transformers' mask."""
    names = _FAMILIES.get(model.config.model_type)
    if names is None or model.config._attn_implementation == EAGER:
        return False
    # a checkpointed block must be called as a whole
    return not (model.training and getattr(model, names.blocks)[0].gradient_checkpointing)


def run_blocks(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, ...]:
    """tokens [rows, T, D] -> the inputs of every block and the last norm's output, [rows, T, D] each."""
    names = _FAMILIES[model.config.model_type]
    options: dict[str, Any] = {"attention_mask": None}
    stream = tokens
    if names is _GPT2:
        stream = model.drop(tokens)  # type: ignore[operator]
    else:
        position_ids = torch.arange(tokens.shape[1], device=tokens.device)[None]
        rotary = model.rotary_emb(tokens, position_ids=position_ids)  # type: ignore[operator]
        options["position_embeddings"] = rotary
    features, update = [], None
    for block in getattr(model, names.blocks):
        normed, stream = getattr(block, names.first_norm).add(stream, update)
        features.append(stream)
        update, _ = getattr(block, names.attention)(normed, **options)
        normed, stream = getattr(block, names.second_norm).add(stream, update)
        update = block.mlp(normed)
    normed, _ = getattr(model, names.last_norm).add(stream, update)
    return *features, normed
