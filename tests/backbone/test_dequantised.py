"""The cache of dequantised GGUF weights returns the same weights, and never damaged ones or another file's."""

import pytest
import torch
from backbone.test_loading import full_model, write_gguf

from llata_fast.backbone import dequantised
from llata_fast.backbone.loading import load_backbone_weights, read_backbone_config


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_gguf(tmp_path / "model.gguf", full_model("llama", head_dim=12))
    return str(tmp_path / "model.gguf")


@pytest.fixture
def reads(monkeypatch):
    """A list with one entry, the number of blocks, for every time that a file is read in full."""
    calls, whole = [], dequantised._dequantise

    def counting(path, config):
        calls.append(config.num_hidden_layers)
        return whole(path, config)

    monkeypatch.setattr(dequantised, "_dequantise", counting)
    return calls


def load(source, num_layers=1):
    weights = load_backbone_weights(source, read_backbone_config(source, num_layers))
    return weights.blocks | {"words": weights.word_embeddings}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_is_read_whole_once(source, reads):
    first = load(source)
    assert_same(load(source), first)
    assert reads == [1]
    two = load(source, 2)
    assert reads == [1, 2] and len(two) > len(first)
    assert_same(load(source, 2), two)


def test_a_changed_file_is_read_again(source, reads):
    first = load(source)
    torch.manual_seed(1)
    model = full_model("llama", head_dim=12)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    write_gguf(source, model)
    again = load(source)
    assert reads == [1, 1] and not torch.equal(again["words"], first["words"])


@pytest.mark.parametrize("what", ["flip", "cut", "manifest", "tensors"])
def test_a_damaged_cache_is_rebuilt(source, reads, tmp_path, what, caplog):
    first = load(source)
    (folder,) = (tmp_path / "cache" / "llata_fast" / "backbones").iterdir()
    tensors = folder / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    if what == "flip":
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif what == "cut":
        tensors.write_bytes(data[:-8])
    else:
        (folder / {"manifest": "manifest.json", "tensors": tensors.name}[what]).unlink()
    assert_same(load(source), first)
    assert "cannot be used" in caplog.text and reads == [1, 1]
    assert_same(load(source), first)
    assert reads == [1, 1], "it is whole again"


def test_an_unwritable_cache_is_only_a_warning(source, reads, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_same(load(source), load(source))
    assert "could not be cached" in caplog.text and reads == [1, 1]
