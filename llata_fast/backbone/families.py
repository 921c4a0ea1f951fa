"""Published configs of pre-trained decoders: their sizes, without any files.

`FAMILIES` maps `random:<family>` to a family's smallest base model; `published` gives the planner any size. A row
holds the differences from its family, and a family those from the defaults of transformers' config class. For
multimodal models it is the text config. Letters: D width, F feed-forward width, A heads.
"""

import re
from typing import Any, NamedTuple


class _Size(NamedTuple):
    """One row: D, F, blocks, A, key-value heads, and any other fields."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    other: dict[str, Any] = {}


def _llama3_rope(factor: float) -> dict[str, Any]:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": factor}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_parameters": rope, "max_position_embeddings": 131072}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


_TIED = {"tie_word_embeddings": True}
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5}
_LLAMA3 = _LLAMA | {"vocab_size": 128256, "bos_token_id": 128000, "eos_token_id": 128001}
_MISTRAL = {"model_type": "mistral", "rms_norm_eps": 1e-5, "max_position_embeddings": 32768}
_MISTRAL_LONG = _MISTRAL | {"vocab_size": 32768, "sliding_window": None} | _rope(1e6)
_QWEN = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "vocab_size": 151936} | _rope(1e6)
_QWEN2 = {"model_type": "qwen2"} | _QWEN
_QWEN3 = {"model_type": "qwen3", "head_dim": 128} | _QWEN
_GEMMA2 = {"model_type": "gemma2", "sliding_window": 4096}
_GEMMA3 = {"model_type": "gemma3_text", "vocab_size": 262208, "sliding_window": 1024}
_SMALL_GEMMA3 = {"vocab_size": 262144, "max_position_embeddings": 32768, "sliding_window": 512}
_LARGE_QWEN2 = {"vocab_size": 152064, "max_position_embeddings": 131072}

_SMOLLM2 = _LLAMA | _TIED | {"vocab_size": 49152, "max_position_embeddings": 8192} | _rope(1e5)

# organisation, name with {} for the size, fields shared by all sizes, and the sizes
_TABLE: list[tuple[str, str, dict[str, Any], dict[str, _Size]]] = [
    (
        "meta-llama",
        "Llama-2-{}",
        _LLAMA | {"max_position_embeddings": 4096},
        {
            "7b": _Size(4096, 11008, 32, 32, 32),
            "13b": _Size(5120, 13824, 40, 40, 40),
            "70b": _Size(8192, 28672, 80, 64, 8),
        },
    ),
    (
        "meta-llama",
        "Llama-3-{}",
        _LLAMA3 | {"max_position_embeddings": 8192} | _rope(5e5),
        {"8B": _Size(4096, 14336, 32, 32, 8), "70B": _Size(8192, 28672, 80, 64, 8)},
    ),
    (
        "meta-llama",
        "Llama-3.1-{}",
        _LLAMA3 | _llama3_rope(8.0),
        {
            "8B": _Size(4096, 14336, 32, 32, 8),
            "70B": _Size(8192, 28672, 80, 64, 8),
            "405B": _Size(16384, 53248, 126, 128, 8),
        },
    ),
    (
        "meta-llama",
        "Llama-3.2-{}",
        _LLAMA3 | _TIED | _llama3_rope(32.0),
        {
            "1B": _Size(2048, 8192, 16, 32, 8, {"head_dim": 64}),
            "3B": _Size(3072, 8192, 28, 24, 8, {"head_dim": 128}),
        },
    ),
    ("meta-llama", "Llama-3.3-{}", _LLAMA3 | _llama3_rope(8.0), {"70B": _Size(8192, 28672, 80, 64, 8)}),
    (
        "mistralai",
        "{}",
        _MISTRAL_LONG,
        {
            "Mistral-7B-v0.1": _Size(
                4096, 14336, 32, 32, 8, {"vocab_size": 32000, "sliding_window": 4096} | _rope(1e4)
            ),
            "Mistral-7B-v0.2": _Size(4096, 14336, 32, 32, 8, {"vocab_size": 32000}),
            "Mistral-7B-v0.3": _Size(4096, 14336, 32, 32, 8),
            "Ministral-8B-2410": _Size(
                4096, 12288, 36, 32, 8, {"vocab_size": 131072, "head_dim": 128, "sliding_window": 32768} | _rope(1e8)
            ),
            "Mistral-Nemo-2407": _Size(5120, 14336, 40, 32, 8, {"vocab_size": 131072, "head_dim": 128}),
            "Codestral-22B-v0.1": _Size(6144, 16384, 56, 48, 8, {"head_dim": 128}),
            "Mistral-Small-2409": _Size(6144, 16384, 56, 48, 8, {"head_dim": 128}),
            "Mistral-Small-24B-2501": _Size(
                5120, 32768, 40, 32, 8, {"vocab_size": 131072, "head_dim": 128} | _rope(1e8)
            ),
            "Mistral-Large-2407": _Size(12288, 28672, 88, 96, 8, {"head_dim": 128, "max_position_embeddings": 131072}),
        },
    ),
    (
        "Qwen",
        "Qwen2.5-{}",
        _QWEN2,
        {
            "0.5B": _Size(896, 4864, 24, 14, 2, _TIED),
            "1.5B": _Size(1536, 8960, 28, 12, 2, _TIED),
            "3B": _Size(2048, 11008, 36, 16, 2, _TIED),
            "7B": _Size(3584, 18944, 28, 28, 4, _LARGE_QWEN2),
            "14B": _Size(5120, 13824, 48, 40, 8, _LARGE_QWEN2 | {"rms_norm_eps": 1e-5}),
            "32B": _Size(5120, 27648, 64, 40, 8, _LARGE_QWEN2 | {"rms_norm_eps": 1e-5}),
            "72B": _Size(8192, 29568, 80, 64, 8, _LARGE_QWEN2 | {"rms_norm_eps": 1e-5}),
        },
    ),
    (
        "Qwen",
        "Qwen3-{}",
        _QWEN3,
        {
            "0.6B": _Size(1024, 3072, 28, 16, 8, _TIED),
            "1.7B": _Size(2048, 6144, 28, 16, 8, _TIED),
            "4B": _Size(2560, 9728, 36, 32, 8, _TIED),
            "8B": _Size(4096, 12288, 36, 32, 8),
            "14B": _Size(5120, 17408, 40, 40, 8),
            "32B": _Size(5120, 25600, 64, 64, 8),
        },
    ),
    (
        "google",
        "gemma-2-{}",
        _GEMMA2,
        {
            "2b": _Size(2304, 9216, 26, 8, 4, {"head_dim": 256}),
            "9b": _Size(3584, 14336, 42, 16, 8, {"head_dim": 256}),
            "27b": _Size(4608, 36864, 46, 32, 16, {"head_dim": 128, "query_pre_attn_scalar": 144}),
        },
    ),
    (
        "google",
        "gemma-3-{}",
        _GEMMA3,
        {
            "270m": _Size(640, 2048, 18, 4, 1, _SMALL_GEMMA3),
            "1b": _Size(1152, 6912, 26, 4, 1, _SMALL_GEMMA3),
            "4b": _Size(2560, 10240, 34, 8, 4),
            "12b": _Size(3840, 15360, 48, 16, 8),
            "27b": _Size(5376, 21504, 62, 32, 16, {"head_dim": 128, "query_pre_attn_scalar": 168}),
        },
    ),
    (
        "HuggingFaceTB",
        "SmolLM2-{}",
        _SMOLLM2,
        {
            "135M": _Size(576, 1536, 30, 9, 3),
            "360M": _Size(960, 2560, 32, 15, 5),
            "1.7B": _Size(2048, 8192, 24, 32, 32, _rope(1.3e5)),
        },
    ),
]

PUBLISHED: dict[str, dict[str, Any]] = {
    f"{organisation}/{name.format(size)}": family | dict(zip(_Size._fields[:-1], row, strict=False)) | row.other
    for organisation, name, family, sizes in _TABLE
    for size, row in sizes.items()
} | {
    "openai-community/gpt2": {"model_type": "gpt2"},
    "openai-community/gpt2-medium": {"model_type": "gpt2", "n_embd": 1024, "n_layer": 24, "n_head": 16},
    "openai-community/gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "openai-community/gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": PUBLISHED["openai-community/gpt2"],
    "llama": PUBLISHED["meta-llama/Llama-3.2-1B"],
    "mistral": PUBLISHED["mistralai/Mistral-7B-v0.1"],
    "qwen2": PUBLISHED["Qwen/Qwen2.5-0.5B"],
    "qwen3": PUBLISHED["Qwen/Qwen3-0.6B"],
    "gemma2": PUBLISHED["google/gemma-2-2b"],
    "gemma3": PUBLISHED["google/gemma-3-270m"],
}

# instruction-tuned or converted models: another name, the same config
_VARIANT = re.compile(r"[-_](instruct|base|chat|hf|it|pt|text)(?=[-_]|$)")


def published(name: str) -> dict[str, Any] | None:
    """The config of the hub model `name`, with or without organisation, tuned or not; None if it is not listed."""
    return _BY_KEY.get(_key(name))


def _key(name: str) -> str:
    organisation, slash, model = name.lower().rpartition("/")
    return organisation + slash + _VARIANT.sub("", model.removeprefix("meta-"))


_BY_KEY = {key: config for name, config in PUBLISHED.items() for key in (_key(name), _key(name.rpartition("/")[2]))}
