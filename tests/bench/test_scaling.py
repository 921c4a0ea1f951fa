"""The scaling study: its combinations, rows that are not repeated, and comparisons of rows."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
from tiny import random_backbone

REPORT = Path(__file__).resolve().parents[2] / "bench" / "scaling_report.py"


@pytest.fixture
def study(tmp_path, launch):
    """`study(*options)` simulates a tiny model into a new folder and returns the summary and the rows."""

    def run(*options):
        backbone = f"{random_backbone(tmp_path, 'llama', num_attention_heads=4)}:2"
        command = ("python", "-W", "ignore", "bench/scaling.py", "--simulate", "--backbones", backbone, "--batch", "8")
        output = launch(*command, "--stages", "ddp", "zero3", "--out", tmp_path / "out", *options)
        return json.loads(output.splitlines()[-1]), pd.read_csv(tmp_path / "out" / "scaling.csv")

    return run


def test_rows_are_added_once_and_compared(study, tmp_path):
    (tmp_path / "out").mkdir()
    measured = {
        "kind": "measured",
        "device": "cpu",
        "scaling": "weak",
        "backbone": "b",
        "num_layers": 2,
        "stage": "ddp",
    }
    seconds = {1: 1.0, 2: 1.25}
    rows = [
        measured | {"ranks": ranks, "batch": 8 * ranks, "step_seconds": taken, "windows_per_s": 8 * ranks / taken}
        for ranks, taken in seconds.items()
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "out" / "scaling.csv", index=False)

    summary, table = study("--ranks", "1", "2", "--scaling", "weak", "--plot")
    assert summary["rows"] == len(table) == 2 + 2 * 2
    two = table[(table.kind == "measured") & (table.ranks == 2)].iloc[0]
    assert two.efficiency == pytest.approx(0.8) and two.comm_share == pytest.approx(0.2)
    simulated = table[table.kind == "simulated"]
    assert (simulated.batch == 8 * simulated.ranks).all() and (simulated.windows_per_rank == 8).all()
    assert simulated.fits.all() and (simulated.basis == "data sheet").all()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    # also quality.png, if the quality results contain such runs
    assert names >= {"README.md", "efficiency.png", "throughput.png", "memory.png"}

    # four ranks are new, the others are not repeated; the batch of a strong step does not change
    summary, grown = study("--ranks", "1", "2", "4", "--scaling", "weak", "strong")
    assert len(grown) == 2 + 3 * 2 * 2
    strong = grown[grown.scaling == "strong"]
    assert (strong.batch == 8).all() and sorted(set(strong.ranks)) == [1, 2, 4]
    first = grown[(grown.ranks == 1) & (grown.kind == "simulated")]
    assert (first.efficiency == 1).all()


@pytest.mark.parametrize("sizes, drawn", [((0, 70), True), ((70, 70), False)])
def test_quality_is_drawn_only_if_sizes_differ(tmp_path, sizes, drawn):
    spec = importlib.util.spec_from_file_location("scaling_report", REPORT)
    report = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(report)
    rows = [
        {"protocol": "long_term", "dataset": "d", "recipe": "paper", "horizon": 96, "model": model, "mse": 0.4}
        | {"frozen_parameters": size * 1e6}
        for model, size in zip(("no_llm", "llata"), sizes, strict=True)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    report._draw_quality(tmp_path, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").exists() == drawn


def test_bad_input(launch):
    assert "nothing to do" in launch("python", "bench/scaling.py", returncode=2)
