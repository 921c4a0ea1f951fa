"""deep_alignment_loss against the reference implementation, plain PyTorch, one depth at a time, and torch.compile."""

import sys

import pytest
import torch
from common import MODES, Case
from llata_fast.kernels import alignment_loss, deep_alignment_loss, deep_alignment_loss_ref
from torch import nn

CASES = [
    Case("ETT", {"G": 7, "M": 256 * 7, "D": 768, "F": 768}, cpu=True),
    Case("Weather", {"G": 7, "M": 64 * 21, "D": 768, "F": 768}),
    Case("ECL", {"G": 7, "M": 32 * 321, "D": 768, "F": 768}),
    Case("Traffic", {"G": 7, "M": 16 * 862, "D": 768, "F": 768}),
    Case("large backbone", {"G": 33, "M": 32 * 321, "D": 4096, "F": 256}),
]


def make_inputs(sizes, dtype, device):
    G, M, D, F = (sizes[name] for name in "GMDF")
    # differences on both sides of smooth_l1's kink
    draw = lambda *shape: (torch.randn(shape, device=device) * D**-0.25).to(dtype).requires_grad_()
    inputs = {f"feature{g}": draw(2 * M, D) for g in range(G)}
    inputs |= {"time_weight": draw(G, F, D), "text_weight": draw(G, F, D)}
    # scaled up: gradients of a mean are small compared with the check's absolute tolerance
    return inputs, torch.tensor((M * F) ** 0.5, device=device)


def depth_weights(sizes):
    return [0.8**k for k in reversed(range(sizes["G"]))]


def features(inputs, sizes):
    return [inputs[f"feature{g}"] for g in range(sizes["G"])]


def reference(inputs, sizes):
    """Stores both projections of each depth, then compares them."""
    loss = 0
    for g, (both, weight) in enumerate(zip(features(inputs, sizes), depth_weights(sizes), strict=True)):
        time, text = both.chunk(2)
        time = nn.functional.linear(time, inputs["time_weight"][g])
        text = nn.functional.linear(text, inputs["text_weight"][g])
        loss = loss + weight * nn.functional.smooth_l1_loss(time.float(), text.float())
    return loss


def one_by_one(inputs, sizes):
    return sum(
        weight * alignment_loss(*both.chunk(2), inputs["time_weight"][g], inputs["text_weight"][g], kind="smooth_l1")
        for g, (both, weight) in enumerate(zip(features(inputs, sizes), depth_weights(sizes), strict=True))
    )


def deep(op):
    def call(inputs, sizes):
        weights = inputs["time_weight"], inputs["text_weight"]
        return op(features(inputs, sizes), *weights, depth_weights=depth_weights(sizes), kind="smooth_l1")

    return call


PROVIDERS = {
    "reference": reference,
    "ref": deep(deep_alignment_loss_ref),
    "compile": torch.compile(reference),
    "one by one": one_by_one,
    "triton": deep(deep_alignment_loss),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: inputs read and gradients written once, two GEMMs forward, four backward."""
    G, M, D, F = (sizes[name] for name in "GMDF")
    size = 2 * G * (M + F) * D * dtype.itemsize
    return {"fwd": (size, 4 * G * M * D * F), "bwd": (2 * size, 8 * G * M * D * F)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_deep_alignment_loss(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
