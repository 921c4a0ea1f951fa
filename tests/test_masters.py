"""One copy casts all trained weights to autocast's dtype, and nothing else changes."""

import contextlib

import pytest
import torch
from tiny import tiny_model, window
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llata_fast import modeling
from llata_fast.masters import cast_masters

pytestmark = pytest.mark.usefixtures("plain_ops")
half = lambda: torch.autocast("cpu", torch.bfloat16)


class _Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def step(model, past, future):
    with _Operations() as operations:
        with half():
            output = model(past, future)
        output.loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return output.loss, grads, operations.names


@pytest.mark.parametrize("fields", [{}, {"patch_length": 4, "patch_stride": 3}, {"quantile_levels": [0.1, 0.9]}])
def test_same_step_with_fewer_casts(backbone, fields, monkeypatch):
    model = tiny_model(backbone, **fields)
    inputs = window()
    loss, grads, operations = step(model, *inputs)
    model.zero_grad()
    monkeypatch.setattr(modeling, "cast_masters", lambda modules: contextlib.nullcontext())
    expected_loss, expected, one_by_one = step(model, *inputs)
    assert loss == expected_loss
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and torch.equal(grad, expected[name]), name
    assert operations.count("aten::_foreach_copy_") == 2
    saved = one_by_one.count("aten::_to_copy") - operations.count("aten::_to_copy")
    assert saved >= 2 * sum(isinstance(m, nn.Linear) and m.weight.requires_grad for m in model.modules())


def test_checkpointed_blocks(backbone):
    model, inputs = tiny_model(backbone), window()
    _, expected, _ = step(model, *inputs)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, grads, _ = step(model, *inputs)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=2e-2, atol=1e-4, msg=name)


def test_the_weights_return_even_after_an_error(backbone):
    model = tiny_model(backbone)
    held = dict(model.named_parameters())
    linear, frozen = model.head, nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(KeyError), half(), cast_masters([linear, frozen]):
        assert linear.weight.dtype == linear.bias.dtype == torch.bfloat16 and frozen.weight.dtype == torch.float32
        raise KeyError
    assert all(parameter is held[name] for name, parameter in model.named_parameters())


def test_an_unused_weight_has_no_gradient():
    used, unused = nn.Linear(3, 3), nn.Linear(3, 3)
    with half(), cast_masters([used, unused]):
        loss = used(torch.ones(2, 3)).sum()
    loss.backward()
    assert used.weight.grad is not None and unused.weight.grad is unused.bias.grad is None


def test_nothing_to_cast_without_autocast():
    linear = nn.Linear(3, 3)
    with cast_masters([linear]):
        assert linear.weight.dtype == torch.float32
