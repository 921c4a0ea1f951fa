"""The tanh form of GELU used by GPT-2 and Gemma, computed without a tanh where that is slow."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import GELUTanh, NewGELUActivation

_CUBIC = 0.044715
_SLOPE = 2 * math.sqrt(2 / math.pi)


class TanhGelu(nn.Module):
    """GELU's tanh approximation as one operation, where transformers' `gelu_new` takes eight.

    0.5 (1 + tanh(u / 2)) is the sigmoid of u, which a CPU computes several times as fast. That path is for inference
    only, as autograd would store every intermediate.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
            return F.gelu(x, approximate="tanh")
        # in place: on a CPU, allocating memory costs more than the arithmetic
        return (x * x).mul_(_SLOPE * _CUBIC).add_(_SLOPE).mul_(x).sigmoid_().mul_(x)


def replace_gelus(model: nn.Module):
    """Replace transformers' module of the same function in `model` by `TanhGelu`."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, GELUTanh | NewGELUActivation):
                setattr(module, name, TanhGelu())
