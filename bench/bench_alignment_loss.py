"""alignment_loss against the reference implementation, plain PyTorch and torch.compile."""

import sys

import pytest
import torch
from common import MODES, Case
from llata_fast.kernels import alignment_loss, alignment_loss_ref
from torch import nn

CASES = [
    Case("ETT", {"M": 256 * 7, "D": 768, "F": 768}, cpu=True),
    Case("Weather", {"M": 64 * 21, "D": 768, "F": 768}, cpu=True),
    Case("ECL", {"M": 32 * 321, "D": 768, "F": 768}),
    Case("Traffic", {"M": 16 * 862, "D": 768, "F": 768}),
    Case("large backbone", {"M": 32 * 321, "D": 4096, "F": 4096}),
]


def make_inputs(sizes, dtype, device):
    M, D, F = sizes["M"], sizes["D"], sizes["F"]
    # differences on both sides of smooth_l1's kink
    draw = lambda rows: (torch.randn(rows, D, device=device) * D**-0.25).to(dtype).requires_grad_()
    inputs = {"time": draw(M), "text": draw(M), "time_weight": draw(F), "text_weight": draw(F)}
    # scaled up: gradients of a mean are small compared with the check's absolute tolerance
    return inputs, torch.tensor((M * F) ** 0.5, device=device)


def reference(inputs, sizes):
    """Stores both projections, then compares them."""
    time = nn.functional.linear(inputs["time"], inputs["time_weight"])
    text = nn.functional.linear(inputs["text"], inputs["text_weight"])
    return nn.functional.smooth_l1_loss(time.float(), text.float())


PROVIDERS = {
    "reference": reference,
    "ref": lambda inputs, sizes: alignment_loss_ref(**inputs, kind="smooth_l1"),
    "compile": torch.compile(reference),
    "triton": lambda inputs, sizes: alignment_loss(**inputs, kind="smooth_l1"),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: inputs read and gradients written once, two GEMMs forward, four backward."""
    M, D, F = sizes["M"], sizes["D"], sizes["F"]
    size = 2 * (M + F) * D * dtype.itemsize
    return {"fwd": (size, 4 * M * D * F), "bwd": (2 * size, 8 * M * D * F)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_alignment_loss(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
