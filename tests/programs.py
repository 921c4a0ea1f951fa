"""Both programs in this process, and a series and a training of a second for them."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import TINY_SETTINGS

from llata_fast.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
L, H, ROWS = 24, 8, 400


def make_table(rows=ROWS, frequency="h"):
    """Three channels whose units differ a thousandfold: a load near 1000, a share near 0.5, a temperature near 0."""
    noise = np.random.default_rng(0).normal(size=(rows, 3))
    daily = np.sin(2 * np.pi * np.arange(rows) / 24)
    values = np.array([1000, 0.5, 0]) + np.array([20, 0.1, 8]) * (daily[:, None] + 0.2 * noise)
    table = pd.DataFrame(values.round(4), columns=["load", "share", "temperature"])
    table.insert(0, "date", pd.date_range("2024-01-01", periods=rows, freq=frequency))
    return table


def write(folder, table, name="series.csv"):
    path = Path(folder, name)
    table.to_csv(path, index=False)
    return path


def train(*argv):
    """`python train.py ...`, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def llata_fast(*argv):
    """`python -m llata_fast ...`, in this process."""
    main([str(part) for part in argv])


def tiny_run(dataset, output_dir, backbone, **options):
    """Arguments for a training that takes a second; `options` override them."""
    settings = TINY_SETTINGS | {
        "dataset": dataset,
        "output_dir": output_dir,
        "backbone": backbone,
        "context_length": L,
        "prediction_length": H,
        "num_layers": 2,
        "batch_size": 16,
        "max_steps": 3,
    }
    return [part for name, value in (settings | options).items() for part in (f"--{name}", value)]


def finished_run(folder, backbone):
    """Folder of a run that is trained on `series.csv` beside it."""
    train(*tiny_run(write(folder, make_table()), folder / "run", backbone))
    return folder / "run"


def evaluate(run, output, *argv):
    """The scores that `evaluate` writes."""
    llata_fast("evaluate", run, "--output", output, *argv)
    return json.loads(output.read_text())
