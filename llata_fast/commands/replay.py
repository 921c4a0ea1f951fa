"""Repeat the step whose loss or gradient was not finite, and name the term, the windows and the layer.

The training that stopped at that step left its weights, batch and random state in the run's folder.
"""

import argparse
from pathlib import Path
from typing import Any

from ..durable import find_damage
from ..errors import InputError
from ..run_folder import NONFINITE


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of the run whose training stopped")


def main(options: argparse.Namespace):
    from ..training.replay import replay

    folder = Path(options.run, NONFINITE)
    if not folder.is_dir():
        raise InputError(f"{options.run} has no {NONFINITE}/: its losses and gradients were always finite")
    if damage := find_damage(folder):
        raise InputError(f"{folder} is damaged: {damage}")
    for batch in replay(folder):
        _print(batch)


def _print(batch: dict[str, Any]):
    print(f"step {batch['step']}, rank {batch['rank']}, micro-step {batch['micro_step']}")
    for name, value in batch["terms"].items():
        print(f"  {name}: {value:g}, in training {batch['recorded'][name]}")
    if batch["windows"]:
        print(f"  windows whose own loss is not finite: {', '.join(map(str, batch['windows']))}")
    print(f"  first module whose output is not finite: {batch['module'] or 'none'}")
    print(f"  parameters whose gradient is not finite: {', '.join(batch['parameters'][:5]) or 'none'}")
