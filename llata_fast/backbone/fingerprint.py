"""A few hundred numbers that tell a frozen base from another one of the same shape.

Tensors' names and shapes, and values at fixed places of some of them. Values are those of the source before they are
kept in fewer bits: a base in int8 or bf16 has the fingerprint of its source, a GGUF file that of what it holds.
"""

import hashlib
import json

import torch
from torch import Tensor

from ..errors import InputError

_TENSORS, _VALUES = 48, 4
# what bf16 rounds off, and fp16 of small values
_TOLERANCE, _SMALLEST = 2**-7, 1e-6


def take_fingerprint(weights: dict[str, Tensor]) -> dict:
    """The fingerprint of a decoder's weights, as it stands in `config.json`: {"tensors": hash, "values": list}.

    Reads some hundred values, of a mapped 70B model as of a small one.
    """
    names = sorted(weights)
    shapes = json.dumps([[name, list(weights[name].shape)] for name in names])
    chosen = dict.fromkeys(names[len(names) * row // _TENSORS] for row in range(_TENSORS))
    values = [value for name in chosen for value in _sample(weights[name])]
    return {"tensors": hashlib.sha256(shapes.encode()).hexdigest()[:16], "values": values}


def _sample(tensor: Tensor) -> list[float]:
    flat = tensor.flatten()
    # neither the first nor the last, which padding and masks make equal
    places = torch.arange(1, _VALUES + 1) * flat.numel() // (_VALUES + 1)
    return flat[places].float().tolist()


def check_fingerprint(weights: dict[str, Tensor], expected: dict, source: str):
    """Raise InputError where `weights`, which come from `source`, are not those that `expected` was taken of."""
    found = take_fingerprint(weights)
    if same_weights(found, expected):
        return
    problem = "has other weights" if found["tensors"] == expected["tensors"] else "has weights of other names or shapes"
    raise InputError(
        f"the backbone {source!r} {problem} than the one that the run was trained on: give that one by --backbone"
    )


def same_weights(found: dict, expected: dict) -> bool:
    """Whether two fingerprints are of the same weights, up to what 16 bits round off."""
    return found["tensors"] == expected["tensors"] and _close(found["values"], expected["values"])


def _close(found: list[float], expected: list[float]) -> bool:
    a, b = torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64)
    return a.shape == b.shape and bool((a - b).abs().le(_TOLERANCE * b.abs() + _SMALLEST).all())
