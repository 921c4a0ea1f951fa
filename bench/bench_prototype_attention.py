"""prototype_attention, with and without its projections, against the reference, SDPA and torch.compile."""

import sys

import pytest
import torch
import torch.nn.functional as F
from common import MODES, Case
from llata_fast.kernels import prototype_attention, prototype_attention_ref

GPT2 = {"D": 768, "A": 12, "V": 500}
PROJECTED = {**GPT2, "projections": 4}
CASES = [
    Case("ETT with projections", {"B": 256, "C": 7, **PROJECTED}, cpu=True),
    Case("Weather with projections", {"B": 64, "C": 21, **PROJECTED}, cpu=True),
    Case("ECL with projections", {"B": 32, "C": 321, **PROJECTED}),
    Case("ETT", {"B": 256, "C": 7, **GPT2}),
    Case("Weather", {"B": 64, "C": 21, **GPT2}),
    Case("ECL", {"B": 32, "C": 321, **GPT2}),
    Case("Traffic", {"B": 16, "C": 862, **GPT2}),
    Case("large backbone", {"B": 32, "C": 321, "D": 4096, "A": 32, "V": 1000}),
]


def make_inputs(sizes, dtype, device):
    B, C, D, V = (sizes[letter] for letter in "BCDV")
    draw = lambda *shape: torch.randn(shape, device=device)
    tensors = {"queries": draw(B, C, D)}
    if "projections" in sizes:
        tensors |= {"prototypes": draw(V, D), "in_weight": draw(3 * D, D) * D**-0.5, "in_bias": draw(3 * D)}
        tensors |= {"out_weight": draw(D, D) * D**-0.5, "out_bias": draw(D)}
    else:
        tensors |= {"keys": draw(V, D), "values": draw(V, D)}
    # prototypes are not trained
    inputs = {name: t.to(dtype).requires_grad_(name != "prototypes") for name, t in tensors.items()}
    return inputs, draw(B, C, D).to(dtype)


def with_attention(attention):
    """A provider with all queries in one block; if there are projections, keys and values are projected once."""

    def provider(inputs, sizes):
        queries = inputs["queries"]
        heads = lambda t: t.reshape(-1, sizes["A"], sizes["D"] // sizes["A"])
        if "projections" not in sizes:
            return attention(heads(queries), heads(inputs["keys"]), heads(inputs["values"])).reshape(queries.shape)
        sources = queries, inputs["prototypes"], inputs["prototypes"]
        weights, biases = inputs["in_weight"].chunk(3), inputs["in_bias"].chunk(3)
        out = attention(*(heads(F.linear(*args)) for args in zip(sources, weights, biases, strict=True)))
        return F.linear(out.reshape(queries.shape), inputs["out_weight"], inputs["out_bias"])

    return provider


def reference(inputs, sizes):
    """Copies keys and values for every window; with projections it projects every copy and returns the maps."""
    queries, A = inputs["queries"], sizes["A"]
    if "projections" not in sizes:
        copies = (inputs[name].repeat(sizes["B"], 1, 1) for name in ("keys", "values"))
        q, k, v = (t.unflatten(-1, (A, -1)).transpose(1, 2) for t in (queries, *copies))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    prototypes = inputs["prototypes"].repeat(sizes["B"], 1, 1).transpose(0, 1)
    out, _ = F.multi_head_attention_forward(
        queries.transpose(0, 1), prototypes, prototypes, sizes["D"], A, inputs["in_weight"], inputs["in_bias"],
        None, None, False, 0.0, inputs["out_weight"], inputs["out_bias"],
    )  # fmt: skip
    return out.transpose(0, 1)


PROVIDERS = {
    "reference": reference,
    # one call of scaled_dot_product_attention over flattened queries: FlashAttention on a GPU
    "ref": with_attention(prototype_attention_ref),
    "compile": torch.compile(with_attention(prototype_attention_ref)),
    "triton": with_attention(prototype_attention),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: two GEMMs forward, five backward, and those of the projections."""
    B, C, D, V = (sizes[letter] for letter in "BCDV")
    M = B * C
    elements = {"fwd": 2 * M * D + 2 * V * D, "bwd": 4 * M * D + 4 * V * D}
    flops = {"fwd": 4 * M * V * D, "bwd": 10 * M * V * D}
    if "projections" in sizes:
        # prototypes need no gradient, so keys and values take one GEMM each forward and backward
        flops["fwd"] += (4 * M + 4 * V) * D * D
        flops["bwd"] += (8 * M + 4 * V) * D * D
        elements = {mode: n + 4 * D * D for mode, n in elements.items()}
    return {mode: (elements[mode] * dtype.itemsize, flops[mode]) for mode in elements}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_prototype_attention(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
