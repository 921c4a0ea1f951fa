"""PEFT loads an exported adapter onto the truncated backbone, which then gives the temporal branch's hidden states."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import BACKBONES, random_backbone, tiny_model
from transformers import AutoModel

from llata_fast.adapters.peft_adapter import export_adapter
from llata_fast.backbone.loading import load_backbone_weights
from llata_fast.errors import InputError
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("plain_ops")


def cut_base(config):
    """The backbone's first blocks as a plain transformers model, without our modules."""
    weights = load_backbone_weights(config.backbone, config.backbone_config, seed=config.backbone_seed)
    base = AutoModel.from_config(config.backbone_config, attn_implementation="eager")
    base.load_state_dict(weights.blocks, strict=False)
    return base


@pytest.mark.parametrize("family", BACKBONES)
def test_hidden_states_match_the_temporal_branch(tmp_path, family):
    source = random_backbone(tmp_path, family)
    model = tiny_model(source).eval()
    export_adapter(model, tmp_path / "adapter")

    decoder = peft.PeftModel.from_pretrained(cut_base(model.config), tmp_path / "adapter").eval()
    tokens = torch.randn(3, 6, model.config.hidden_size)
    with torch.no_grad():
        expected = model.backbone(tokens)[-1] - tokens
        got = decoder(inputs_embeds=tokens, use_cache=False).last_hidden_state
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_merged_model_has_no_adapter(tmp_path):
    model = tiny_model(random_backbone(tmp_path)).merge()
    with pytest.raises(InputError, match="no LoRA"):
        export_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("change", [{"lora_r": 0}, {"ablation": "no_llm"}])
def test_model_without_lora_has_no_adapter(tmp_path, change):
    with pytest.raises(InputError, match="no LoRA"):
        export_adapter(tiny_model(random_backbone(tmp_path), **change), tmp_path / "adapter")


def test_forecaster_exports_the_run_that_it_was_loaded_from(tmp_path):
    model = tiny_model(random_backbone(tmp_path))
    folder = RunFolder(tmp_path / "run")
    model.save_pretrained(folder.path)
    folder.write_settings({})
    info = Preprocessor("waves", ["a"], "date", "h", 24, mean=[0.0], scale=[1.0])
    folder.write_preprocessor(info)
    folder.finish()
    Forecaster.from_pretrained(folder.path).export_adapter(tmp_path / "adapter")
    export_adapter(model, tmp_path / "expected")
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "expected")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    with pytest.raises(InputError, match="loaded from a run"):
        Forecaster(model, info).export_adapter(tmp_path / "none")
