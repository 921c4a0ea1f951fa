"""twin_norm with the residual addition, against two concatenated norms, plain PyTorch and torch.compile."""

import sys

import pytest
import torch
from common import MODES, Case
from llata_fast.kernels import twin_norm, twin_norm_ref
from torch import nn

CASES = [
    Case("ETT", {"M": 2 * 256 * 7, "D": 768}, cpu=True),
    Case("Weather", {"M": 2 * 64 * 21, "D": 768}, cpu=True),
    Case("ECL", {"M": 2 * 32 * 321, "D": 768}),
    Case("Traffic", {"M": 2 * 16 * 862, "D": 768}),
    Case("large backbone", {"M": 2 * 32 * 321, "D": 4096}),
]
EPS = 1e-5


def make_inputs(sizes, dtype, device):
    """An fp32 residual stream, as under autocast, and an update in `dtype`."""
    M, D = sizes["M"], sizes["D"]
    draw = lambda *shape, dtype=torch.float32: torch.randn(shape, device=device).to(dtype)
    trained = {"x": draw(M, D), "update": draw(M, D, dtype=dtype), "time_weight": draw(D), "time_bias": draw(D)}
    inputs = {name: t.requires_grad_() for name, t in trained.items()}
    # both outputs are differentiated, with cotangents of the same size
    return inputs | {"text_weight": draw(D), "text_bias": draw(D)}, draw(2, M, D)


def reference(inputs, sizes):
    total = inputs["x"] + inputs["update"]
    time, text = total.chunk(2)
    shape = (sizes["D"],)
    time = nn.functional.layer_norm(time, shape, inputs["time_weight"], inputs["time_bias"], EPS)
    text = nn.functional.layer_norm(text, shape, inputs["text_weight"], inputs["text_bias"], EPS)
    return torch.stack((torch.cat((time, text)).to(inputs["update"].dtype).float(), total))


def twin(op):
    def call(inputs, sizes):
        names = ("x", "time_weight", "time_bias", "text_weight", "text_bias")
        out_dtype = inputs["update"].dtype
        y, total = op(
            *(inputs[name] for name in names),
            update=inputs["update"],
            num_time_rows=sizes["M"] // 2,
            eps=EPS,
            kind="layer",
            out_dtype=out_dtype,
        )
        return torch.stack((y.to(total.dtype), total))

    return call


PROVIDERS = {
    "reference": reference,
    "ref": twin(twin_norm_ref),
    "compile": torch.compile(reference),
    "triton": twin(twin_norm),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: forward reads and writes two tensors, backward reads three and writes two."""
    elements = sizes["M"] * sizes["D"]
    return {
        "fwd": (elements * (8 + 2 * dtype.itemsize), 8 * elements),
        "bwd": (elements * (12 + 2 * dtype.itemsize), 0),
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_twin_norm(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
