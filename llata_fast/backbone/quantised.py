"""The frozen base in 8 or 4 bits, through bitsandbytes (github.com/bitsandbytes-foundation/bitsandbytes, MIT).

8 bits are LLM.int8() (arXiv 2208.07339); 4 bits are NF4 with quantised statistics, as in QLoRA (arXiv 2305.14314). Only
projections are quantised: norms and positions stay in fp32, trained weights keep their precision, and gradients pass
through to them.
"""

import importlib
import logging
import math
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import InputError

QUANTISED_DEVICE = "cuda"

# NF4: weights per scale, and scales per second-level scale
_BLOCK, _SCALES = 64, 256
# LLM.int8(): input columns with a larger value are multiplied in 16 bits
_OUTLIER = 6.0


def bitsandbytes_for(base_precision: str) -> ModuleType:
    """The package `bitsandbytes`, if it can store a base in `base_precision` (int8 or int4) here.

    Raises:
        InputError: it is not installed or is broken, or there is no CUDA device.
    """
    needs = f"base_precision {base_precision} needs"
    try:
        package = importlib.import_module("bitsandbytes")
    except ModuleNotFoundError:
        raise InputError(f"{needs} bitsandbytes: pip install llata-fast[quantization]") from None
    except Exception as error:  # importing it loads native libraries, which can fail in any way
        raise InputError(f"{needs} bitsandbytes, which cannot be imported ({type(error).__name__}: {error})") from error
    if QUANTISED_DEVICE == "cuda" and not torch.cuda.is_available():
        raise InputError(f"{needs} a CUDA device, but there is none here")
    return package


class QuantisedLinear(nn.Module):
    """A frozen projection x [..., in_features] -> [..., out_features], its weight in 8 or 4 bits on the device.

    Args:
        weight: [out_features, in_features], in the dtype of its products.
        bias: [out_features], or None.
        base_precision: int8 or int4.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, base_precision: str):
        super().__init__()
        package = bitsandbytes_for(base_precision)
        self.out_features, self.in_features = weight.shape
        sizes = (self.in_features, self.out_features, bias is not None)
        if base_precision == "int8":
            # it computes in fp16, and would log that at every call
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            projection = package.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=_OUTLIER, device="meta")
        else:
            # without an explicit dtype, it would keep that of its first input
            projection = package.nn.Linear4bit(*sizes, weight.dtype, True, "nf4", device="meta")
        # bitsandbytes' parameter classes quantise themselves when moved to a device
        empty = projection.weight
        projection.weight = type(empty)(weight, requires_grad=False, **vars(empty)).to(QUANTISED_DEVICE)
        if bias is not None:
            projection.bias = nn.Parameter(bias.to(QUANTISED_DEVICE), requires_grad=False)
        self.projection = projection
        self.register_state_dict_post_hook(_leave_out_statistics)

    @property
    def num_weights(self) -> int:
        return self.out_features * self.in_features

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            # autocast does not cover bitsandbytes' own operations
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return self.projection(x)


def _leave_out_statistics(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict):
    """Drop scales and tables: they are not parameters, so code that drops frozen parameters by name keeps them."""
    own = f"{prefix}projection."
    for key in [key for key in state if key.startswith(own)]:
        if key.removeprefix(own) not in ("weight", "bias"):
            del state[key]


def quantised_modules(module: nn.Module) -> list[QuantisedLinear]:
    """Every quantised projection in `module`; empty unless its base is quantised."""
    return [child for child in module.modules() if isinstance(child, QuantisedLinear)]


def quantised_bytes(out_features: int, in_features: int, base_precision: str) -> int:
    """Bytes of a projection's weight in `base_precision`, including its scales."""
    if base_precision == "int8":
        return out_features * in_features + 4 * out_features
    blocks = math.ceil(out_features * in_features / _BLOCK)
    return math.ceil(out_features * in_features / 2) + blocks + 4 * math.ceil(blocks / _SCALES)
