"""A few hundred numbers that distinguish a frozen base from another one of the same shape.

They are the tensors' names and shapes, and values at fixed places of some tensors. The values are the source's, taken
before quantisation: a base in int8 or bf16 has its source's fingerprint, and a GGUF file that of its contents.
"""

import hashlib
import json

import torch
from torch import Tensor

from ..errors import InputError

_TENSORS, _VALUES = 48, 4
# relative rounding error of bf16, and the smallest value that fp16 still resolves
_TOLERANCE, _SMALLEST = 2**-7, 1e-6


def take_fingerprint(weights: dict[str, Tensor]) -> dict:
    """The fingerprint of a decoder's weights, as stored in `config.json`: {"tensors": hash, "values": list}.

    It reads a few hundred values, however large the model.
    """
    names = sorted(weights)
    shapes = json.dumps([[name, list(weights[name].shape)] for name in names])
    chosen = dict.fromkeys(names[len(names) * row // _TENSORS] for row in range(_TENSORS))
    values = [value for name in chosen for value in _sample(weights[name])]
    return {"tensors": hashlib.sha256(shapes.encode()).hexdigest()[:16], "values": values}


def _sample(tensor: Tensor) -> list[float]:
    flat = tensor.flatten()
    # not the first or last value, which padding and masks may make equal
    places = torch.arange(1, _VALUES + 1) * flat.numel() // (_VALUES + 1)
    return flat[places].float().tolist()


def check_fingerprint(weights: dict[str, Tensor], expected: dict, source: str):
    """Raise InputError if `weights`, loaded from `source`, do not match the fingerprint `expected`."""
    found = take_fingerprint(weights)
    if same_weights(found, expected):
        return
    problem = "has other weights" if found["tensors"] == expected["tensors"] else "has weights of other names or shapes"
    raise InputError(
        f"the backbone {source!r} {problem} than the one that the run was trained on: give that one by --backbone"
    )


def same_weights(found: dict, expected: dict) -> bool:
    """Whether two fingerprints belong to the same weights, up to 16-bit rounding."""
    return found["tensors"] == expected["tensors"] and _close(found["values"], expected["values"])


def _close(found: list[float], expected: list[float]) -> bool:
    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    return a.shape == b.shape and bool((a - b).abs().le(_TOLERANCE * b.abs() + _SMALLEST).all())
