"""patch_embed against the reference implementation, plain PyTorch and torch.compile."""

import sys

import pytest
import torch
import torch.nn.functional as F
from common import MODES, Case
from llata_fast.kernels import patch_embed, patch_embed_ref

CASES = [
    Case("ETT", {"B": 256, "L": 96, "C": 7, "P": 96, "S": 96, "D": 768}, cpu=True),
    Case("Weather", {"B": 64, "L": 96, "C": 21, "P": 96, "S": 96, "D": 768}, cpu=True),
    Case("ECL", {"B": 32, "L": 96, "C": 321, "P": 96, "S": 96, "D": 768}, cpu=True),
    Case("Traffic", {"B": 16, "L": 96, "C": 862, "P": 96, "S": 96, "D": 768}),
    Case("Traffic, long window", {"B": 16, "L": 2048, "C": 862, "P": 2048, "S": 2048, "D": 768}),
    Case("ETT patches", {"B": 256, "L": 512, "C": 7, "P": 16, "S": 8, "D": 768}),
    Case("ECL patches", {"B": 32, "L": 512, "C": 321, "P": 16, "S": 8, "D": 768}),
]


def num_patches(sizes):
    return (sizes["L"] - sizes["P"]) // sizes["S"] + 1


def make_inputs(sizes, dtype, device):
    B, L, C, P, D = (sizes[letter] for letter in "BLCPD")
    x = torch.randn(B, L, C, device=device) * 3 + 20
    weight = (torch.randn(D, P, device=device) * P**-0.5).to(dtype).requires_grad_()
    bias = torch.randn(D, device=device).to(dtype).requires_grad_()
    dtokens = torch.randn(B, C, num_patches(sizes), D, device=device).to(dtype)
    return {"x": x, "weight": weight, "bias": bias}, dtokens


def with_embedding(embed):
    return lambda inputs, sizes: embed(**inputs, patch_length=sizes["P"], patch_stride=sizes["S"])[0]


def reference(inputs, sizes):
    """Normalise, transpose, cut into patches and project, each with a pass over memory."""
    x, weight, bias = inputs.values()
    means = x.mean(1, keepdim=True).detach()
    x = x - means
    deviation = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
    x = (x / deviation).transpose(1, 2)
    first = (sizes["L"] - sizes["P"]) % sizes["S"]
    patches = x[..., first:].unfold(-1, sizes["P"], sizes["S"]).contiguous()
    return F.linear(patches.to(weight.dtype), weight, bias)


PROVIDERS = {
    "reference": reference,
    "ref": with_embedding(patch_embed_ref),
    "compile": torch.compile(with_embedding(patch_embed_ref)),
    "triton": with_embedding(patch_embed),
}


def cost(sizes, dtype):
    """{mode: (bytes, operations)}: read the series, write tokens or read their gradient, one GEMM per direction."""
    B, L, C, P, D = (sizes[letter] for letter in "BLCPD")
    tokens = B * C * num_patches(sizes) * D
    one_way = (4 * B * L * C + (tokens + D * P) * dtype.itemsize, 2 * tokens * P)
    return {"fwd": one_way, "bwd": one_way}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_patch_embed(case, provider, mode, measure):
    measure(sys.modules[__name__], case, provider, mode)
