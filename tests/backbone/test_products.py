"""Products of frozen weights with oneDNN equal F.linear's, and everything else still uses F.linear."""

import copy

import pytest
import torch
from check import LAYOUTS, assert_close_to_ref, in_layout
from tiny import random_backbone
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from llata_fast.backbone import products
from llata_fast.backbone.loading import build_backbone, read_backbone_config


@pytest.fixture(autouse=True)
def always_onednn(monkeypatch):
    if products._ONEDNN is None:
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


@pytest.fixture
def calls(monkeypatch):
    """A list of the input shapes of all calls to oneDNN."""
    shapes, onednn = [], products._ONEDNN

    def counted(x, *args):
        shapes.append(tuple(x.shape))
        return onednn(x, *args)

    monkeypatch.setattr(products, "_ONEDNN", counted)
    return shapes


def test_any_layout():
    weights = [in_layout(torch.randn(24, 40), layout) for layout in LAYOUTS]
    inputs = [in_layout(torch.randn(shape), layout) for shape in ((3, 5, 40), (15, 40), (1, 40)) for layout in LAYOUTS]
    inputs += [torch.randn(1, 1).expand(6, 40), torch.randn(2, 0, 40)]
    biases = (None, torch.randn(24), in_layout(torch.randn(24), "scattered"), torch.randn(1).expand(24))
    for x in inputs:
        for weight in weights:
            for bias in biases:
                exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
                assert_close_to_ref("y", products.product(x, weight, bias), F.linear(x, weight, bias), exact)


def pair(kind):
    """A plain frozen linear layer, and one with the same weights that may use oneDNN."""
    plain = nn.ModuleList([nn.Linear(12, 20) if kind is nn.Linear else Conv1D(20, 12)]).requires_grad_(False)
    replaced = copy.deepcopy(plain)
    products.replace_products(replaced)
    return plain[0], replaced[0]


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_layer_and_gradient_match_the_plain_layer(kind, calls):
    plain, replaced = pair(kind)
    x, dy = torch.randn(2, 3, 12, requires_grad=True), torch.randn(2, 3, 20)
    exact = copy.deepcopy(plain).double()(x.double())
    assert_close_to_ref("y", replaced(x), plain(x), exact)
    (dx,), (eager,), (exact,) = (
        torch.autograd.grad(y, x, gradient) for y, gradient in ((replaced(x), dy), (plain(x), dy), (exact, dy.double()))
    )
    assert_close_to_ref("dx", dx, eager, exact)
    assert calls == [(2, 3, 12), (2, 3, 12), (2, 3, 20)]


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_other_layers_still_use_f_linear(kind, calls):
    plain, replaced = pair(kind)
    x = torch.randn(5, 12)
    replaced.requires_grad_(True)
    replaced(x).sum().backward()
    assert replaced.weight.grad is not None and torch.equal(replaced(x), plain(x))
    replaced.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(replaced(x), plain(x))
    assert torch.equal(replaced(x[:1]), plain(x[:1]))
    assert torch.equal(copy.deepcopy(replaced).double()(x.double()), copy.deepcopy(plain).double()(x.double()))
    assert not calls


def test_weights_keep_their_names_and_layers_their_types():
    for kind in (nn.Linear, Conv1D):
        plain, replaced = pair(kind)
        assert isinstance(replaced, kind) and list(replaced.state_dict()) == list(plain.state_dict())
        # a copy has the same type, too
        assert type(copy.deepcopy(replaced)) is type(replaced)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_product_of_a_backbone_is_replaced(tmp_path, family):
    config = read_backbone_config(random_backbone(tmp_path, family), 2)
    model = build_backbone(config)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    assert len(layers) >= 8
    assert all(isinstance(layer, products._Linear | products._Conv1D) for layer in layers)


def test_flops_are_counted():
    x, weight = torch.randn(3, 5, 40), torch.randn(24, 40)
    counts = []
    for call in (products.product, F.linear):
        with FlopCounterMode(display=False) as counter:
            call(x, weight)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 15 * 24 * 40


def test_compiled_code_chooses_for_itself(calls):
    plain, replaced = pair(nn.Linear)
    exported = torch.export.export(replaced, (torch.randn(5, 12),)).module()
    x = torch.randn(5, 12)
    assert torch.equal(exported(x), plain(x))
    assert not calls
