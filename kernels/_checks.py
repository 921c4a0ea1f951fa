"""What every public op asks of its inputs, and the dtype that autocast gives them."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as `F.linear` does: to the autocast dtype inside an enabled region, untouched elsewhere and in float64."""
    device_type = tensors[0].device.type
    # the meta device, for one, knows no autocast
    if not (torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def check_shape(name: str, tensor: Tensor, letters: str, **sizes: int | None) -> None:
    """Raise unless `tensor` has one axis per letter and every size that is given; batch axes alone may be empty.

    `letters` is written "[B, L, C]"; a letter in `sizes` with an int must have that size, with None it may be 0.
    """
    axes = letters.strip("[]").split(", ")
    shape = tuple(tensor.shape)
    if len(shape) != len(axes):
        raise ValueError(f"{name}: expected {letters}, got {list(shape)}")
    for axis, size in zip(axes, shape, strict=True):
        expected = sizes.get(axis, -1)
        if expected == -1 and size < 1:
            raise ValueError(f"{name}: expected {letters} with {axis} >= 1, got {list(shape)}")
        if expected is not None and expected != -1 and size != expected:
            raise ValueError(f"{name}: expected {letters} with {axis} = {expected}, got {list(shape)}")


def check_dtype(name: str, tensor: Tensor, expected: tuple[torch.dtype, ...] = DTYPES) -> None:
    if tensor.dtype not in expected:
        raise ValueError(f"{name}: expected {' or '.join(map(str, expected))}, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, expected: torch.device) -> None:
    if tensor.device != expected:
        raise ValueError(f"{name}: expected a tensor on {expected}, got {tensor.device}")
