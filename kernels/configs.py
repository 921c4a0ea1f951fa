"""The launch configs: a written table, `configs.csv`, by (kernel, shape class, target), with a reason each.

Nothing is timed while a model trains, so every rank launches the same code; `bench/tune.py` rewrites rows on a GPU.
"""

import csv
import json
import pathlib
from dataclasses import dataclass

from torch import Tensor

from ._launch import target_name

PATH = pathlib.Path(__file__).with_name("configs.csv")


@dataclass(frozen=True)
class Config:
    kernel: str
    """File and function: `alignment_loss_fwd` is `_fwd_kernel` of alignment_loss.py."""
    shape_class: str
    """Which inputs it serves, in the words of the op's launcher."""
    target: str
    """A GPU ("sm_90", "gfx942"), "any" for those without a row of their own, or "interpreter"."""
    blocks: dict[str, int]
    """Tile sizes, the kernel's `BLOCK_*` arguments."""
    num_warps: int
    num_stages: int
    waves: int
    """Programs per multiprocessor for which a launcher splits its grid."""
    reason: str

    def launch_options(self) -> dict:
        # FP fusion (a * b + c in one rounding) is explicit because Triton's default differs between versions
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def read_table() -> dict[tuple[str, str, str], Config]:
    table = {}
    with PATH.open(newline="") as file:
        for row in csv.DictReader(file):
            row["blocks"] = json.loads(row["blocks"])
            row |= {name: int(row[name]) for name in ("num_warps", "num_stages", "waves")}
            table[row["kernel"], row["shape_class"], row["target"]] = Config(**row)
    return table


TABLE = read_table()


def config_for(kernel: str, shape_class: str, tensor: Tensor) -> Config:
    target = target_name(tensor.device)
    return TABLE.get((kernel, shape_class, target)) or TABLE[kernel, shape_class, "any"]
