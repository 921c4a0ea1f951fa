"""Every backbone family, and a series, small enough for a test."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from llata_fast.config import LlataConfig
from llata_fast.data import WindowDataset
from llata_fast.modeling import LlataForPrediction

# grouped queries, a head width that is not D / A, and sliding windows shorter than the tests' sequences
_DECODER = {
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
_LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
BACKBONES = {
    "gpt2": {
        "n_embd": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 16,
        "vocab_size": 80,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
    "llama": _DECODER,
    "mistral": _DECODER | {"sliding_window": 3},
    "qwen2": _DECODER | {"use_sliding_window": True, "sliding_window": 3, "layer_types": _LAYER_TYPES},
    "qwen3": _DECODER,
    "gemma2": _DECODER | {"sliding_window": 3, "layer_types": _LAYER_TYPES, "attn_logit_softcapping": 0.5},
    "gemma3_text": _DECODER | {"sliding_window": 3, "layer_types": _LAYER_TYPES},
}


def random_backbone(folder: Path, family: str = "llama", **fields) -> str:
    """A tiny `random:` source whose config is written to `folder`; `fields` override BACKBONES."""
    path = Path(folder, f"{family}.json")
    path.write_text(json.dumps({"model_type": family} | BACKBONES[family] | fields))
    return f"random:{path}"


def tiny_config(backbone: str, **fields) -> LlataConfig:
    """L 12, H 5, two layers and no dropout, unless `fields` override them."""
    sizes = {
        "num_layers": 2,
        "context_length": 12,
        "prediction_length": 5,
        "num_prototypes": 9,
        "intermediate_size": 20,
    }
    return LlataConfig(**{"backbone": backbone, "dropout": 0.0, "lora_dropout": 0.0, "lora_r": 3} | sizes | fields)


def tiny_model(backbone: str, **fields) -> LlataForPrediction:
    """A model in training mode whose branches differ: LoRA, tuned norms and positions have moved from their start."""
    model = LlataForPrediction.from_backbone(tiny_config(backbone, **fields))
    perturb(model)
    return model.train()


@torch.no_grad()
def perturb(model: LlataForPrediction):
    """Move the weights that only the temporal branch has, so that LoRA's product is no longer zero."""
    for parameter in model.backbone.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)


def trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def window(batch: int = 2, channels: int = 3, context: int = 12, horizon: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """past [B, L, C] and future [B, H, C] of random walks."""
    series = 50 + torch.randn(batch, context + horizon, channels).cumsum(1)
    return series.split((context, horizon), 1)


def write_series(path: Path, rows: int = 200, channels: int = 3, date_column: str = "date", seed: int = 0) -> Path:
    """A CSV of noisy hourly waves; every channel has another level."""
    noise = np.random.default_rng(seed).normal(size=(rows, channels))
    hours = np.arange(rows)[:, None]
    values = 100.0 * np.arange(1, channels + 1) + 10 * np.sin(2 * np.pi * hours / 24 + np.arange(channels)) + noise
    table = pd.DataFrame(values.round(3), columns=[f"c{channel}" for channel in range(channels)])
    table.insert(0, date_column, pd.date_range("2024-01-01", periods=rows, freq="h"))
    table.to_csv(path, index=False)
    return path


def waves(rows: int = 60, gaps=(), context: int = 8, horizon: int = 3) -> WindowDataset:
    """Windows of two noisy waves; `gaps` lists (row, channel) of missing values."""
    steps = torch.arange(rows)[:, None]
    values = torch.sin(2 * torch.pi * steps / torch.tensor([4, 6])) + 0.3 * torch.randn(rows, 2) + 5
    for row, channel in gaps:
        values[row, channel] = torch.nan
    return WindowDataset(values, context, horizon)


def all_windows(windows: WindowDataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Past values, observed mask and future values of every window."""
    ((past, observed, future),) = windows.batches(len(windows))
    return past, observed, future


TINY_SETTINGS = {
    "num_layers": 1,
    "num_prototypes": 9,
    "intermediate_size": 20,
    "precision": "fp32",
    "report_to": "none",
}
"""Settings of a training that takes seconds, besides data, backbone, lengths and steps."""


def training_flags(folder: Path, **settings) -> list[str]:
    """Flags for train.py: four steps an epoch, on a series and a random decoder that are written to `folder`."""
    settings = {
        "dataset": write_series(folder / "series.csv", 80),
        "backbone": random_backbone(folder),
        "num_layers": 1,
        "num_prototypes": 9,
        "context_length": 12,
        "prediction_length": 6,
        "batch_size": 10,
        "precision": "fp32",
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
    } | settings
    return [f"--{name}={value}" for name, value in settings.items()]
