"""What every launcher shares: Triton if it is there, and the tensors it runs on."""
import contextlib
import os
import types

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    # without Triton the jit bodies below the references are never called: they only have to be importable
    triton = types.SimpleNamespace(jit=lambda fn: fn)
    tl = types.SimpleNamespace(constexpr=None)
    AVAILABLE = False
else:
    AVAILABLE = True

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
ENABLED = AVAILABLE and os.environ.get("LLATA_KERNELS") != "0"


def use_triton(x: torch.Tensor) -> bool:
    """CUDA tensors take Triton; CPU tensors only in the interpreter; LLATA_KERNELS=0 turns it off."""
    return ENABLED and (x.is_cuda or INTERPRET)


def device_guard(x: torch.Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
