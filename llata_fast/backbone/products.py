"""Matrix products with frozen weights on a CPU, by oneDNN where it is faster than PyTorch's default.

PyTorch passes fp32 products to MKL, which uses only AVX2 on CPUs not made by Intel. oneDNN, part of every x86 build,
uses AVX-512: 4 to 25 % faster at the sizes of GPT-2 and SmolLM2, 16 to 448 rows, on one thread of an AMD EPYC. On other
machines nothing is replaced.
"""

import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from transformers.pytorch_utils import Conv1D

_CPU_INFO = Path("/proc/cpuinfo")
# private, but Inductor's code calls it, too; no public function passes fp32 products to oneDNN
_ONEDNN: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this CPU has AVX-512 and is not Intel's."""
    if _ONEDNN is None or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return _CPU_INFO.exists() and "GenuineIntel" not in _CPU_INFO.read_text()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in]^T + bias [out] -> [..., out]; not differentiable through oneDNN."""
    if _takes_onednn(x, weight):
        # it ignores the strides of the bias
        return _ONEDNN(x, weight, bias if bias is None else bias.contiguous(), "none", [], "")
    return F.linear(x, weight, bias)


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return False
    # with one row, reading the weight takes most of the time, and oneDNN reads it more slowly
    return onednn_is_faster() and not torch.is_autocast_enabled("cpu") and x.numel() > x.shape[-1]


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        return product(dy, weight.t()), None, None


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if _is_frozen_and_whole(self.weight) and _takes_onednn(input, self.weight):
            return _FrozenProduct.apply(input, self.weight, self.bias)
        return super().forward(input)


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        if _is_frozen_and_whole(self.weight) and _takes_onednn(x, self.weight):
            return _FrozenProduct.apply(x, self.weight.t(), self.bias)
        return super().forward(x)


def _is_frozen_and_whole(weight: Tensor) -> bool:
    # ZeRO-3 gathers a weight only while its own module runs
    return not hasattr(weight, "ds_id") and not (weight.requires_grad and torch.is_grad_enabled())


def replace_products(model: nn.Module):
    """Make the linear layers of `model` use oneDNN while frozen; in place, with the same modules and weights."""
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear
        elif type(module) is Conv1D:
            module.__class__ = _Conv1D


if _ONEDNN is not None:

    @register_flop_formula(_ONEDNN)
    def _product_flops(x, weight, *args, out_shape=None, **kwargs) -> int:
        return 2 * weight[0] * weight[1] * math.prod(x[:-1])
