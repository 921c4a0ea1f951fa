"""Variants of the default language model, each with one change, as folders for `--backbone`."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llata_fast.backbone.loading import (
    PROTOTYPES_FILE,
    BackboneWeights,
    load_backbone_weights,
    read_backbone_config,
)
from llata_fast.backbone.prototypes import backbone_prototypes
from llata_fast.backbone.tokenizer import read_tokenizer
from llata_fast.settings import DEFAULT_BACKBONE

WORDS = """zero one two three four five six seven eight nine ten hundred thousand million half double more less most
least many few all none every each some number count amount sum total mean average value rate ratio percent degree size
large small big little high low higher lower highest lowest maximum minimum peak top bottom level base limit range
rise rising rose fall falling fell grow growing growth decline decrease increase drop jump climb steep flat constant
steady stable change changing shift trend up down above below over under between near far
time second minute hour day night week month quarter year season spring summer autumn winter morning noon evening
midnight today yesterday tomorrow daily weekly monthly yearly hourly annual period cycle repeat repeated again regular
before after during while until since then now next last previous past future early late sooner later begin end start
stop first always never often seldom sometimes once twice wave curve line slope noise random gap missing event pulse
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August September
October November December""".split()
"""Words about quantities and time; those that are a single token become prototypes."""


def scaled_backbone(folder: Path, num_layers: int, source: str = DEFAULT_BACKBONE) -> str:
    """Rescale the blocks' outputs, so that they change tokens of deviation 1 as much as they change word embeddings.

    A block reads its input through a norm. Dividing its outputs (o_proj, down_proj) by the scale s of word embeddings
    gives for tokens of scale 1 what the original block gives for tokens of scale s, divided by s.
    """

    def change(weights: BackboneWeights) -> dict[str, Tensor]:
        scale = weights.word_embeddings.float().square().mean().sqrt()
        return {
            name: tensor / scale if name.endswith(("o_proj.weight", "down_proj.weight")) else tensor
            for name, tensor in weights.blocks.items()
        }

    return _write(folder / f"scaled-{num_layers}", source, num_layers, change)


def middle_backbone(folder: Path, num_layers: int, source: str = DEFAULT_BACKBONE) -> str:
    """The middle blocks of the model instead of the first ones."""
    total = read_backbone_config(source).num_hidden_layers
    first = (total - num_layers) // 2

    def change(weights: BackboneWeights) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in weights.blocks.items():
            head, *rest = name.split(".")
            if head != "layers":
                kept[name] = tensor
            elif first <= int(rest[0]) < first + num_layers:
                kept[".".join(("layers", str(int(rest[0]) - first), *rest[1:]))] = tensor
        return kept

    return _write(folder / f"middle-{num_layers}", source, num_layers, change, read_layers=total)


def worded_backbone(folder: Path, num_layers: int, source: str = DEFAULT_BACKBONE) -> str:
    """Prototypes are the embeddings of words about quantities and time instead of principal components."""

    def prototypes(weights: BackboneWeights) -> Tensor:
        tokenizer = read_tokenizer(source)
        assert tokenizer is not None, "the default backbone has one"
        tokens = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in WORDS]
        known = sorted({parts[0] for parts in tokens if len(parts) == 1})
        return weights.word_embeddings[known].float()

    return _write(folder / f"worded-{num_layers}", source, num_layers, lambda weights: weights.blocks, prototypes)


def count_prototypes(folder: str) -> int:
    """The number of prototypes in a backbone's folder."""
    with safe_open(Path(folder) / PROTOTYPES_FILE, framework="pt") as file:
        return file.get_slice("prototypes").get_shape()[0]


def random_backbone(folder: Path, num_layers: int, source: str = DEFAULT_BACKBONE) -> str:
    """Random matrices with the original shapes and standard deviations; the prototypes stay the same."""

    def change(weights: BackboneWeights) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        return {
            name: torch.randn(tensor.shape, generator=generator) * tensor.float().std() if tensor.ndim == 2 else tensor
            for name, tensor in weights.blocks.items()
        }

    return _write(folder / f"random-{num_layers}", source, num_layers, change)


def _write(
    path: Path,
    source: str,
    num_layers: int,
    change: Callable[[BackboneWeights], dict[str, Tensor]],
    prototypes: Callable[[BackboneWeights], Tensor] | None = None,
    read_layers: int | None = None,
) -> str:
    """Write a backbone of `num_layers` blocks, modified by `change`, unless the folder exists; returns its path."""
    if not (path / PROTOTYPES_FILE).is_file():
        path.mkdir(parents=True, exist_ok=True)
        weights = load_backbone_weights(source, read_backbone_config(source, read_layers or num_layers))
        config = read_backbone_config(source, num_layers)
        config.save_pretrained(path)
        blocks = {name: tensor.float().contiguous() for name, tensor in change(weights).items()}
        save_file(blocks, path / "model.safetensors", {"format": "pt"})
        made = backbone_prototypes(weights, config.hidden_size - 1) if prototypes is None else prototypes(weights)
        save_file({"prototypes": made.contiguous()}, path / PROTOTYPES_FILE, {"format": "pt"})
    return str(path.resolve())
