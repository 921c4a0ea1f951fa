"""What a checkpoint contains, what is loaded from it, and the errors for a damaged one."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, random_backbone, tiny_model, trained_weights, window
from transformers import AutoModel, LlamaConfig

from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("backbone_pass", ["twin", "two_pass"])
@pytest.mark.parametrize("include_backbone", [False, True], ids=["reference", "whole"])
def test_round_trip(tmp_path, family, backbone_pass, include_backbone):
    model = tiny_model(random_backbone(tmp_path, family), backbone_pass=backbone_pass)
    model.save_pretrained(tmp_path / "run", include_backbone=include_backbone)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert set(saved) >= set(trained_weights(model)) | {"prototypes"}
    assert bool(set(saved) & model.backbone.frozen_keys("backbone.")) == include_backbone
    assert not any(key.startswith("backbone.textual.") for key in saved)

    if include_backbone:
        # the checkpoint alone is enough
        (tmp_path / f"{family}.json").unlink()
    loaded = LlataForPrediction.from_pretrained(tmp_path / "run")
    assert not loaded.training
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert set(trained_weights(loaded)) == set(trained_weights(model))
    past, future = window()
    assert torch.equal(loaded(past).prediction_outputs, model.eval()(past).prediction_outputs)
    assert loaded.train()(past, future).loss == model.train()(past, future).loss


def test_save_again_after_load(tmp_path, backbone):
    tiny_model(backbone).save_pretrained(tmp_path / "whole", include_backbone=True)
    LlataForPrediction.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "small")
    model = LlataForPrediction.from_pretrained(tmp_path / "small")
    assert not set(load_file(tmp_path / "small" / "model.safetensors")) & model.backbone.frozen_keys("backbone.")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_merged_round_trip(tmp_path, family):
    model = tiny_model(random_backbone(tmp_path, family)).eval()
    past, _ = window()
    expected = model(past).prediction_outputs
    model.merge().save_pretrained(tmp_path / "merged")
    (tmp_path / f"{family}.json").unlink()
    loaded = LlataForPrediction.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(loaded(past).prediction_outputs, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(loaded.merge()(past).prediction_outputs, loaded(past).prediction_outputs)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        loaded.train()(past)


def test_moved_backbone(tmp_path):
    source = tmp_path / "backbone"
    AutoModel.from_config(LlamaConfig(**BACKBONES["llama"])).save_pretrained(source)
    model = tiny_model(str(source))
    model.save_pretrained(tmp_path / "run")
    source.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="backbone.*no such file or folder"):
        LlataForPrediction.from_pretrained(tmp_path / "run")
    moved = LlataForPrediction.from_pretrained(tmp_path / "run", backbone=str(tmp_path / "elsewhere"))
    past, _ = window()
    assert torch.equal(moved(past).prediction_outputs, model.eval()(past).prediction_outputs)


def test_a_misspelt_field_is_refused(tmp_path, backbone):
    tiny_model(backbone).save_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="no field 'bakcbone'"):
        LlataForPrediction.from_pretrained(tmp_path / "run", bakcbone=backbone)


@pytest.mark.parametrize("part", ["base", "lora_a", "prototypes", "head"])
def test_a_missing_key_is_an_error(tmp_path, backbone, part):
    tiny_model(backbone).save_pretrained(tmp_path / "run", include_backbone=True)
    path = tmp_path / "run" / "model.safetensors"
    weights = load_file(path)
    lost = next(key for key in weights if part in key)
    save_file({key: tensor for key, tensor in weights.items() if key != lost}, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"lacks {re.escape(lost)}"):
        LlataForPrediction.from_pretrained(tmp_path / "run")


def test_an_unknown_key_is_an_error(tmp_path, backbone):
    tiny_model(backbone).save_pretrained(tmp_path / "run")
    path = tmp_path / "run" / "model.safetensors"
    save_file(load_file(path) | {"extra": torch.ones(1)}, path, {"format": "pt"})
    with pytest.raises(InputError, match="holds extra"):
        LlataForPrediction.from_pretrained(tmp_path / "run")


def test_not_a_checkpoint(tmp_path, backbone):
    with pytest.raises(InputError, match="not the folder of a trained model"):
        LlataForPrediction.from_pretrained(tmp_path)
    tiny_model(backbone).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="not the folder of a trained model"):
        LlataForPrediction.from_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="nowhere/at_all"):
        LlataForPrediction.from_pretrained("nowhere/at_all")
