"""forecast_losses against the reference (de-normalise, then compare), plain PyTorch and torch.compile."""

import sys

import pytest
import torch
from common import MODES, Case
from llata_fast.kernels import forecast_losses, forecast_losses_ref
from torch import nn

CASES = [
    Case("ETT", {"B": 256, "H": 96, "C": 7}, cpu=True),
    Case("Weather", {"B": 64, "H": 96, "C": 21}, cpu=True),
    Case("Weather, long horizon", {"B": 64, "H": 720, "C": 21}),
    Case("ECL", {"B": 32, "H": 96, "C": 321}),
    Case("Traffic", {"B": 16, "H": 96, "C": 862}),
]


def make_inputs(sizes, dtype, device):
    B, H, C = sizes["B"], sizes["H"], sizes["C"]
    draw = lambda *shape: torch.randn(shape, device=device)
    inputs = {"normalised": draw(2 * B, C, H).to(dtype).requires_grad_(), "loc": draw(B, C)}
    inputs |= {"scale": 0.5 + draw(B, C).abs(), "target": draw(B, H, C)}
    # scaled up: gradients of a mean are small compared with the check's absolute tolerance
    return inputs, torch.tensor(float(B * H * C) ** 0.5, device=device)


def reference(inputs, sizes):
    """Assumes that every value is observed, like the reference."""
    normalised = inputs["normalised"] if inputs["normalised"].dtype == torch.float64 else inputs["normalised"].float()
    branches = normalised.unflatten(0, (2, sizes["B"])).transpose(2, 3)
    time, text = (branches * inputs["scale"][:, None] + inputs["loc"][:, None]).unbind()
    return nn.functional.l1_loss(time, inputs["target"]) + nn.functional.l1_loss(time, text)


def total_of(op):
    return lambda inputs, sizes: op(**inputs, task="l1", consistency="l1")[3]


PROVIDERS = {
    "reference": reference,
    "ref": total_of(forecast_losses_ref),
    "compile": torch.compile(reference),
    "triton": total_of(forecast_losses),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: forward reads two forecasts and the target and writes two, backward reversed."""
    elements = sizes["B"] * sizes["H"] * sizes["C"]
    size = elements * (4 + 2 * 4 + 2 * dtype.itemsize)
    return {"fwd": (size, 10 * elements), "bwd": (size, 10 * elements)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forecast_losses(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
