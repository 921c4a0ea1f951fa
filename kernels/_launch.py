"""What every launcher shares: Triton if it is there, the tensors it runs on, and how its products are computed."""

import contextlib
import functools
import os
import types

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    # without Triton the jit bodies below the references are never called: they only have to be importable
    triton = types.SimpleNamespace(jit=lambda fn=None, **options: fn or (lambda fn: fn))
    tl = types.SimpleNamespace(constexpr=None)
    AVAILABLE = False
else:
    AVAILABLE = True

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"
ENABLED = AVAILABLE and os.environ.get("LLATA_KERNELS") != "0"

# what a grid is sized for where there is no GPU to ask: an H200's 132, or two, as each interpreted program takes 50 ms
DEFAULT_MULTIPROCESSORS = 2 if INTERPRET else 132


_fake = False


@contextlib.contextmanager
def triton_for_fake_tensors():
    """Within it the ops' Triton side runs on any device: on fake tensors, which launch nothing, as on a GPU's."""
    global _fake
    _fake = True
    try:
        yield
    finally:
        _fake = False


def use_triton(x: torch.Tensor) -> bool:
    """CUDA tensors take Triton; CPU tensors only in the interpreter; LLATA_KERNELS=0 turns it off."""
    return _fake or (ENABLED and (x.is_cuda or INTERPRET))


def device_guard(x: torch.Tensor):
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def target_name(device: torch.device) -> str:
    """The row of the tables that `device` takes: "sm_90", "gfx942", ... or "interpreter"; "any" where there is none."""
    if INTERPRET:
        return "interpreter"
    if not AVAILABLE:
        return "any"
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        try:
            target = triton.runtime.driver.active.get_current_target()
        except RuntimeError:
            # no driver: fake tensors, for which nothing is launched
            return "any"
    if target.backend != "cuda":
        return str(target.arch).split(":")[0]
    # one row serves a data-centre generation: sm_103 is tuned as sm_100
    return f"sm_{target.arch // 10 * 10}" if target.arch // 10 in (9, 10) else f"sm_{target.arch}"


@functools.cache
def num_multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return DEFAULT_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def num_splits(device: torch.device, waves: int, programs: int, limit: int) -> int:
    """Into how many parts, at most `limit`, to cut each program's work: as many as fit `waves` a multiprocessor.

    One part more would start another wave, which would be nearly empty.
    """
    wanted = waves * num_multiprocessors(device)
    return max(1, min(wanted // max(programs, 1), limit))


def dot_options(dtype: torch.dtype) -> dict:
    """The dtype a kernel multiplies in, and the precision of fp32 products: torch's own setting, never a default."""
    # the interpreter computes bf16 wrongly unless it is cast right after the load
    operand = torch.float32 if INTERPRET and dtype == torch.bfloat16 else dtype
    name = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[operand]
    return {"DOT_DTYPE": getattr(tl, name), "INPUT_PRECISION": "tf32" if _allows_tf32() else "ieee"}


def _allows_tf32() -> bool:
    # Triton has no TF32 on AMD GPUs
    if torch.version.hip:
        return False
    matmul = torch.backends.cuda.matmul
    # the legacy getter raises once the newer setting was used, and older versions have only the legacy one
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
