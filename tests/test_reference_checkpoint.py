"""Synthetic checkpoints in the reference's layout: what is read, and the one-line errors for the rest."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

from llata_fast.errors import InputError
from llata_fast.reference_checkpoint import load_reference_checkpoint

L, H, D, V, LAYERS, HEADS = 12, 5, 16, 7, 2, 4


@pytest.fixture
def state():
    """Random weights with the names of the published implementation, including its two copies of GPT-2."""
    sizes = {"n_embd": D, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 8, "vocab_size": 20}
    gpt2 = GPT2Model(GPT2Config(**sizes)).state_dict()
    weights = {f"gpt2_text.{name}": value for name, value in gpt2.items()}
    for name, value in gpt2.items():
        adapted = name.replace("attn.c_attn.", "attn.c_attn.base_layer.")
        weights[f"gpt2.base_model.model.{adapted}"] = value
        if name.endswith("attn.c_attn.weight"):
            lora = f"gpt2.base_model.model.{name.removesuffix('weight')}lora"
            weights |= {
                f"{lora}_A.default.weight": torch.randn(3, D),
                f"{lora}_B.default.weight": torch.zeros(3 * D, 3),
            }
    layer = nn.TransformerEncoderLayer(D, HEADS, dim_feedforward=20)
    parts = {
        "in_layer.linear": nn.Linear(L, D),
        "in_layer.transformer_encoder.layers.0": layer,
        "in_layer.cross_attention": nn.MultiheadAttention(D, HEADS),
        "out_layer": nn.Linear(D, H),
        **{f"{kind}_proj.{i}": nn.Linear(D, D, bias=False) for kind in ("time", "text") for i in range(LAYERS + 1)},
    }
    return weights | {
        f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()
    }


def test_sizes_are_read_from_the_weights(state, tmp_path):
    torch.save(state, tmp_path / "checkpoint.pth")
    model = load_reference_checkpoint(tmp_path / "checkpoint.pth", torch.randn(V, D), num_heads=HEADS)
    config = model.config
    assert (config.context_length, config.prediction_length, config.num_layers, config.lora_r) == (L, H, LAYERS, 3)
    past = torch.randn(2, L, 3)
    forecast = model(past).prediction_outputs
    assert forecast.shape == (2, H, 3) and forecast.isfinite().all()
    torch.testing.assert_close(model.merge()(past).prediction_outputs, forecast)


@pytest.mark.parametrize(
    "absent", ["out_layer.weight", "in_layer.cross_attention.in_proj_bias", "gpt2_text.wpe.weight", "out_layer.bias"]
)
def test_weights_with_other_names_are_refused(state, absent):
    del state[absent]
    with pytest.raises(InputError, match="not a (reference checkpoint|checkpoint of the reference implementation)"):
        load_reference_checkpoint(state, torch.randn(V, D), num_heads=HEADS)


def test_weights_of_another_size(state):
    state["out_layer.weight"] = state["out_layer.weight"][:, 1:]
    with pytest.raises(InputError, match="with these settings: size mismatch for head.weight"):
        load_reference_checkpoint(state, torch.randn(V, D), num_heads=HEADS)


def test_files_that_are_not_a_checkpoint(state, tmp_path):
    path = tmp_path / "checkpoint.pth"
    with pytest.raises(InputError, match="no reference checkpoint at"):
        load_reference_checkpoint(path, torch.randn(V, D))
    path.write_text("date,x\n")
    with pytest.raises(InputError, match="is not a reference checkpoint"):
        load_reference_checkpoint(path, torch.randn(V, D))
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds no state dict"):
        load_reference_checkpoint(path, torch.randn(V, D))
    for wrong in (torch.randn(V, D + 1), torch.randn(D)):
        with pytest.raises(InputError, match=r"prototypes must be \[V, 16\], got"):
            load_reference_checkpoint(state, wrong, num_heads=HEADS)
