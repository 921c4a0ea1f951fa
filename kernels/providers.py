"""Who computes an op: a written table, `providers.csv`, by (op, shape class, target), with a reason each.

An entry is estimated until `bench/tune.py --providers` has timed both on a GPU of that target and rewritten it. An op
whose provider is the library keeps its contract: it is composed of PyTorch's own products, norms and attention.
"""

import csv
import pathlib
from dataclasses import dataclass

from torch import Tensor

from ._launch import target_name

PATH = pathlib.Path(__file__).with_name("providers.csv")
TRITON, LIBRARY = "triton", "library"


@dataclass(frozen=True)
class Provider:
    op: str
    shape_class: str
    """Which inputs it serves, in the words of the op's launcher, without their bits."""
    target: str
    """A GPU ("sm_90", "gfx942"), or "any" for those without a row of their own."""
    provider: str
    """triton, or library: cuBLAS, SDPA and what else PyTorch calls."""
    basis: str
    """estimated or measured"""
    reason: str


def read_table() -> dict[tuple[str, str, str], Provider]:
    with PATH.open(newline="") as file:
        rows = [Provider(**row) for row in csv.DictReader(file)]
    return {(row.op, row.shape_class, row.target): row for row in rows}


TABLE = read_table()


def by_library(op: str, shape_class: str, tensor: Tensor) -> bool:
    """Whether the table gives `op` on inputs of this class, on `tensor`'s device, to the library."""
    row = TABLE.get((op, shape_class, target_name(tensor.device))) or TABLE[op, shape_class, "any"]
    return row.provider == LIBRARY
