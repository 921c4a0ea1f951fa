"""The scripts of examples/, at toy size."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import TINY_SETTINGS, random_backbone, write_series

from llata_fast.run_folder import RunFolder
from llata_fast.training.arguments import given_flags

pytestmark = pytest.mark.usefixtures("plain_ops")

ROOT = Path(__file__).resolve().parents[2]
TOY = TINY_SETTINGS | {
    "batch_size": 8,
    "max_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


def toy(folder):
    return TOY | {"backbone": random_backbone(folder), "output_dir": str(folder / "run")}


def test_own_csv(tmp_path, capsys):
    path = write_series(tmp_path / "load.csv", rows=300)
    output = tmp_path / "forecast.csv"
    forecast = example("own_csv")(str(path), 8, str(output), context_length=24, **toy(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == ["llata", "seasonal_naive", "linear", "linear_per_channel"]
    assert len(pd.read_csv(output)) == len(forecast) == 8 * forecast["target_name"].nunique()
    assert (forecast["0.1"] <= forecast["0.9"]).all()


def test_panel_with_intervals(tmp_path, capsys):
    days, rng = pd.date_range("2024-01-01", periods=120), np.random.default_rng(0)
    items = [pd.DataFrame({"sku": sku, "date": days, "qty": rng.poisson(9, 120)}) for sku in ("a", "b", "c")]
    pd.concat(items).to_csv(tmp_path / "sales.csv", index=False)
    main = example("panel_intervals")
    forecast, scores = main(str(tmp_path / "sales.csv"), "sku", "date", "qty", **toy(tmp_path))
    assert len(forecast) == 3 * 7 and set(forecast["sku"]) == {"a", "b", "c"}
    assert "coverage" in scores.to_string()


def test_large_backbone_prints_a_command_that_parses(tmp_path, capsys):
    backbone = random_backbone(tmp_path, "gpt2")
    example("large_backbone")(backbone, "1", "2", "h100-80g", "--dataset", "my.csv")
    launcher, _, ranks, script, *options = capsys.readouterr().out.split()
    assert (launcher, ranks, script) == ("deepspeed", "2", "train.py")
    assert given_flags(options)["backbone"] == backbone and options[-2:] == ["--dataset", "my.csv"]


def test_many_gpus_resumes_under_another_stage(tmp_path, free_port):
    """On one CPU rank; tests/training/test_distributed.py resumes with other numbers of ranks."""
    given = toy(tmp_path) | {"dataset": write_series(tmp_path / "load.csv"), "context_length": 24}
    del given["max_steps"]
    given |= {"prediction_length": 8, "recipe": "paper"}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PATH": tools, "STEPS": "1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment |= {"LLATA_KERNELS": "0", "MASTER_PORT": str(free_port)}
    command = ["sh", ROOT / "examples" / "many_gpus.sh", "1", "1", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert RunFolder(tmp_path / "run").read_metrics()["training"]["steps"] == 2
