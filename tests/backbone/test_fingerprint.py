"""A fingerprint identifies a frozen base, whatever its precision and location."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_backbone
from transformers import AutoConfig, AutoModelForCausalLM

from llata_fast.backbone.fingerprint import check_fingerprint, same_weights, take_fingerprint
from llata_fast.backbone.loading import load_backbone_weights, read_backbone_config, settled_source
from llata_fast.errors import InputError


def make_backbone(folder):
    """Save a tiny Llama to a folder."""
    config = AutoConfig.from_pretrained(random_backbone(folder.parent).removeprefix("random:"))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {f"h.{row}.w": torch.randn(8 + row, 16, generator=generator) for row in range(90)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_does_not_matter(weights, dtype):
    kept = {name: tensor.to(dtype) for name, tensor in weights.items()}
    check_fingerprint(kept, take_fingerprint(weights), "base")
    check_fingerprint(weights, take_fingerprint(kept), "base")


def test_other_weights_are_refused(weights):
    known = take_fingerprint(weights)
    for other in (
        {name: tensor * 1.02 for name, tensor in weights.items()},
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()},
        {name: tensor.flip(0) for name, tensor in weights.items()},
        {name: tensor * float("nan") for name, tensor in weights.items()},
    ):
        with pytest.raises(InputError, match="'base' has other weights than .* was trained on: .*--backbone"):
            check_fingerprint(other, known, "base")
    renamed = {name.replace("h.3.", "g.3."): tensor for name, tensor in weights.items()}
    reshaped = weights | {"h.3.w": weights["h.3.w"].T}
    fewer = {name: tensor for name, tensor in weights.items() if name != "h.3.w"}
    for other in (renamed, reshaped, fewer):
        with pytest.raises(InputError, match="has weights of other names or shapes"):
            check_fingerprint(other, known, "base")


def test_it_is_small_and_survives_json(weights):
    known = take_fingerprint(weights)
    assert len(known["values"]) <= 200 and same_weights(json.loads(json.dumps(known)), known)


def test_a_base_is_named_by_an_absolute_path(tmp_path, monkeypatch):
    make_backbone(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("base", "./base", "~/base", str(tmp_path / "base")):
        assert settled_source(source) == str(tmp_path / "base")
    assert settled_source("random:base") == f"random:{tmp_path / 'base'}"
    assert settled_source("random:gpt2") == "random:gpt2"
    assert settled_source("SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    with pytest.raises(InputError, match="no such file or folder; give its location by --backbone"):
        settled_source(str(tmp_path / "absent"))


def test_a_folder_of_other_weights_is_another_base(tmp_path):
    make_backbone(tmp_path / "base")
    config = read_backbone_config(str(tmp_path / "base"), 1)
    known = take_fingerprint(load_backbone_weights(str(tmp_path / "base"), config).blocks)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}, path, {"format": "pt"})
    check_fingerprint(load_backbone_weights(str(tmp_path / "base"), config).blocks, known, "base")
    save_file({name: torch.randn_like(tensor) for name, tensor in tensors.items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match="has other weights"):
        check_fingerprint(load_backbone_weights(str(tmp_path / "base"), config).blocks, known, "base")
