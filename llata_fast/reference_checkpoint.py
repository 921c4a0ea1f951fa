"""Load checkpoints of the reference implementation (github.com/Hank0626/CALF) into our model.

The reference keeps two complete copies of GPT-2 and uses its own module names; only this file knows those names.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from .config import LlataConfig
from .errors import InputError
from .modeling import LlataForPrediction

_BLOCK = r"gpt2\.base_model\.model\."
# GPT-2's norms, and the RMS norms of other decoders
_NORM = r"((?:(?:h|layers)\.\d+\.)?(?:ln_\w+|\w*norm))\."

# reference key -> ours; GPT-2's weights fill the shared frozen base and the modules tuned from it
_RENAMES = [
    (r"in_layer\.linear\.", "embedding."),
    (r"in_layer\.transformer_encoder\.layers\.0\.self_attn\.in_proj_", "encoder.qkv_proj."),
    (r"in_layer\.transformer_encoder\.layers\.0\.self_attn\.out_proj\.", "encoder.out_proj."),
    (r"in_layer\.transformer_encoder\.layers\.0\.linear1\.", "encoder.up_proj."),
    (r"in_layer\.transformer_encoder\.layers\.0\.linear2\.", "encoder.down_proj."),
    (r"in_layer\.transformer_encoder\.layers\.0\.norm", "encoder.norm"),
    (r"in_layer\.cross_attention\.out_proj\.", "cross_attention.out_proj."),
    (r"out_layer\.", "head."),
    (r"time_proj\.(\d+)\.weight", r"alignment.\1.time_weight"),
    (r"text_proj\.(\d+)\.weight", r"alignment.\1.text_weight"),
    (_BLOCK + r"wpe\.", "backbone.positions.time."),
    (r"gpt2_text\.wpe\.", "backbone.positions.text."),
    (_BLOCK + r"(.*)\.lora_A\.default\.", r"backbone.model.\1.lora_a."),
    (_BLOCK + r"(.*)\.lora_B\.default\.", r"backbone.model.\1.lora_b."),
    (_BLOCK + r"(.*)\.base_layer\.", r"backbone.model.\1.base."),
    (_BLOCK + _NORM, r"backbone.model.\1.tuned."),
    (_BLOCK, "backbone.model."),
    (r"gpt2_text\." + _NORM, r"backbone.model.\1.base."),
]


def load_reference_checkpoint(
    source: str | Path | dict[str, Tensor],
    prototypes: Tensor,
    *,
    lora_alpha: float = 32,
    num_heads: int = 12,
    **config,
) -> LlataForPrediction:
    """Load a reference checkpoint and its prototypes as a `LlataForPrediction`, in evaluation mode.

    Args:
        source: path of a `checkpoint.pth`, or its state dict.
        prototypes: [V, D].
        lora_alpha: LoRA's alpha, which a state dict does not contain.
        num_heads: heads of encoder, cross-attention and GPT-2, which it does not contain either.
        **config: further fields of `LlataConfig`; every dropout is 0 unless given.

    Raises:
        InputError: the file is missing or damaged, its weights are not the reference's, or the prototypes have another
            width.
    """
    state = _read_state(source)
    try:
        sizes, weights = _sizes(state), reference_weights(state, prototypes)
    except KeyError as error:
        raise InputError(f"not a checkpoint of the reference implementation: it lacks {error.args[0]}") from None
    if prototypes.ndim != 2 or prototypes.shape[1] != sizes["hidden_size"]:
        raise InputError(f"prototypes must be [V, {sizes['hidden_size']}], got {list(prototypes.shape)}")
    dropout = config.setdefault("dropout", 0.0)
    config.setdefault("lora_dropout", 0.0)
    gpt2 = GPT2Config(
        n_embd=sizes["hidden_size"],
        n_layer=sizes["num_layers"],
        n_head=num_heads,
        n_positions=sizes["num_positions"],
        vocab_size=sizes["vocabulary"],
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
    )
    fields: dict[str, Any] = {
        "backbone": "gpt2",
        "num_layers": sizes["num_layers"],
        "context_length": sizes["context_length"],
        "prediction_length": sizes["prediction_length"],
        "intermediate_size": sizes["intermediate_size"],
        "lora_r": sizes["lora_r"],
        "alignment_rank": sizes["hidden_size"],
        "num_prototypes": len(prototypes),
    }
    model = LlataForPrediction(LlataConfig(gpt2, num_heads=num_heads, lora_alpha=lora_alpha, **(fields | config)))
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # torch's error for weights of other shapes
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"not a reference checkpoint with these settings: {reason}") from None
    missing = [key for key in missing if key not in model.backbone.shared_keys("backbone.")]
    if missing or unexpected:
        raise InputError(f"not a reference checkpoint: {(missing + unexpected)[0]} has no counterpart")
    return model.eval()


def reference_names(keys) -> dict[str, str]:
    """Reference key -> our state-dict key, for every reference tensor that we use, stacked by depth or not."""
    names = {}
    for key in keys:
        for pattern, ours in _RENAMES:
            if re.match(pattern, key):
                names[key] = re.sub("^" + pattern, ours, key)
                break
    # only the principal components of the vocabulary are used
    return {key: ours for key, ours in names.items() if ".wte." not in ours}


def reference_weights(state: dict[str, Tensor], prototypes: Tensor) -> dict[str, Tensor]:
    """Convert the reference's state dict and prototypes [V, D] to ours, without the weights that two_pass shares."""
    weights = {ours: state[key] for key, ours in reference_names(state).items()}
    return weights | {"prototypes": prototypes} | _split_cross_attention(state)


def _split_cross_attention(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split the stacked projection in two: queries come from the tokens, keys and values from the prototypes."""
    parts = {}
    for kind in ("weight", "bias"):
        stacked = state[f"in_layer.cross_attention.in_proj_{kind}"]
        D = stacked.shape[0] // 3
        parts[f"cross_attention.q_proj.{kind}"], parts[f"cross_attention.kv_proj.{kind}"] = stacked.split((D, 2 * D))
    return parts


def _read_state(source: str | Path | dict[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(source, dict):
        return source
    if not Path(source).is_file():
        raise InputError(f"no reference checkpoint at {source}")
    try:
        state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or foreign file can raise anything
        raise InputError(f"{source} is not a reference checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise InputError(f"{source} is not a reference checkpoint: it holds no state dict")
    return state


def _sizes(state: dict[str, Tensor]) -> dict[str, int]:
    hidden_size, context_length = state["in_layer.linear.weight"].shape
    layers = [int(found[1]) for key in state if (found := re.match(_BLOCK + r"h\.(\d+)\.", key))]
    lora = [tensor for key, tensor in state.items() if key.endswith("lora_A.default.weight")]
    return {
        "hidden_size": hidden_size,
        "context_length": context_length,
        "prediction_length": state["out_layer.weight"].shape[0],
        "num_layers": max(layers, default=-1) + 1,
        "intermediate_size": state["in_layer.transformer_encoder.layers.0.linear1.weight"].shape[0],
        "num_positions": state["gpt2_text.wpe.weight"].shape[0],
        "vocabulary": state["gpt2_text.wte.weight"].shape[0],
        "lora_r": lora[0].shape[0] if lora else 0,
    }
