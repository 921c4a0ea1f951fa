"""GELU computed with the sigmoid equals GELU's tanh approximation."""

import pytest
import torch
from tiny import random_backbone
from torch.nn import functional as F
from transformers.activations import GELUTanh, NewGELUActivation

from llata_fast.backbone.activations import TanhGelu
from llata_fast.backbone.loading import build_backbone, read_backbone_config


def test_values_and_extremes():
    x = torch.cat([torch.linspace(-30, 30, 20_001), torch.tensor([0.0, -0.0, 1e5, -1e5, 3e38, torch.inf])])
    with torch.no_grad():
        ours = TanhGelu()(x)
    torch.testing.assert_close(ours, F.gelu(x, approximate="tanh"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.double(), NewGELUActivation()(x.double()), rtol=1e-6, atol=1e-6)


def test_input_is_not_modified():
    x = torch.randn(7, 3)
    before = x.clone()
    with torch.inference_mode():
        assert TanhGelu()(x) is not x
    assert torch.equal(x, before)


def test_gradient_matches_a_single_operation():
    x = torch.randn(50, requires_grad=True)
    (ours,) = torch.autograd.grad(TanhGelu()(x).sum(), x)
    (theirs,) = torch.autograd.grad(F.gelu(x, approximate="tanh").sum(), x)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3_text"])
def test_every_gelu_of_a_backbone_is_replaced(tmp_path, family):
    source = random_backbone(tmp_path, family)
    config = read_backbone_config(source, 2)
    model = build_backbone(config)
    modules = list(model.modules())
    assert sum(isinstance(module, TanhGelu) for module in modules) == 2
    assert not any(isinstance(module, GELUTanh | NewGELUActivation) for module in modules)
    # saved configs name the function as transformers does
    name = "activation_function" if family == "gpt2" else "hidden_activation"
    assert getattr(model.config, name) == getattr(config, name)
