"""Every way to start an experiment gives the same files and one schema of scores; a refused one writes nothing."""

import json
import math
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import TINY_SETTINGS, random_backbone, write_series

from llata_fast.__main__ import main
from llata_fast.data import read_wide_csv
from llata_fast.data.corpus_builder import build_corpus
from llata_fast.data.panel import Panel
from llata_fast.errors import InputError
from llata_fast.experiment import train, train_on_panel
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.training import presets

pytestmark = pytest.mark.usefixtures("plain_ops")

ROOT = Path(__file__).resolve().parent.parent

NUMBER = (int, float)
ERRORS = {"mse": NUMBER, "mae": NUMBER, "per_channel": {str: {"mse": NUMBER, "mae": NUMBER}}}
M4_ERRORS = {"smape": NUMBER, "mase": NUMBER, "owa": NUMBER}
RELATIVE = {"relative_mase": NUMBER, "relative_wql": NUMBER}
SET = {"windows": int} | {name: NUMBER for name in ("mase", "wql", "naive_mase", "naive_wql")}
SCHEMA = {
    "version": int,
    "dataset": str,
    "scored_on": str,
    "test": (ERRORS, M4_ERRORS, RELATIVE | {"per_set": {str: SET}}),
    "intervals": (
        {name: NUMBER for name in ("coverage_80", "interval_score_80", "wql", "mase")},
        {name: NUMBER for name in ("coverage_80", "wql")},
        type(None),
    ),
    "validation": {"step": int, "mse": NUMBER, "mae": NUMBER, "loss": NUMBER},
    "baselines": {str: (ERRORS, M4_ERRORS, RELATIVE)},
    "training": {"seconds": NUMBER, "steps": int, "epochs": NUMBER, "loss": NUMBER},
    "speed": {
        name: NUMBER for name in ("windows_per_s", "tokens_per_s", "step_ms", "data_wait_ms", "peak_memory_mib", "mfu")
    },
    "parameters": {str: int},
    "linear_start": {"mixture": {str: NUMBER}, "origins": {str: NUMBER}},
    "learned": {
        **{name: NUMBER for name in ("share", "mse", "mae", "start_mse", "start_mae", "seconds")},
        "trained_parameters": int,
        "without_language_model": (type(None), {str: NUMBER}),
    },
}


def fits(value, schema):
    """Whether a value read from JSON matches the schema and has exactly its keys."""
    if schema is type(None):
        return value is None
    if isinstance(schema, tuple) and not all(isinstance(entry, type) for entry in schema):
        return any(fits(value, entry) for entry in schema)
    if not isinstance(schema, dict):
        return isinstance(value, schema) and not isinstance(value, bool)
    if not isinstance(value, dict):
        return False
    if schema.keys() == {str}:
        return bool(value) and all(fits(entry, schema[str]) for entry in value.values())
    return value.keys() == schema.keys() and all(fits(value[key], schema[key]) for key in schema)


SETTINGS = TINY_SETTINGS | {
    "batch_size": 16,
    "max_steps": 3,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
}
SHORT = {"context_length": 24, "prediction_length": 8}


@pytest.fixture
def data_dir(tmp_path):
    """M4's yearly files, one constant series among them, and a dataset with the name ETTh1."""
    rng = np.random.default_rng(0)
    for part, width in (("train", 20), ("test", 6)):
        rows = [[f"Y{number}", *rng.uniform(50, 60, width).round(1)] for number in range(6)]
        rows.append(["Y7", *np.full(width, 3.0)])
        columns = [f"V{number}" for number in range(width + 1)]
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / f"Yearly-{part}.csv", index=False)
    return tmp_path


def by_command(**settings):
    argv = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *argv])
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    return Path(settings["output_dir"])


FILES = {"run.yaml", "config.json", "model.safetensors", "preprocessor_config.json", "manifest.json", "metrics.json"}


def check(folder):
    """Check that all files of the run exist and that its scores match their documentation; returns the scores."""
    assert {path.name for path in folder.iterdir()} >= FILES
    metrics = json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert fits(metrics, SCHEMA), json.dumps(metrics, indent=1)
    assert metrics["version"] == 2
    return metrics


def test_every_driver_writes_the_same_files(data_dir, tmp_path, monkeypatch):
    settings = SETTINGS | {"backbone": random_backbone(tmp_path)}
    series = write_series(tmp_path / "series.csv")
    run = by_command(dataset=series, output_dir=tmp_path / "command", **settings, **SHORT)
    commanded = check(run)
    outcome = train(str(series), output_dir=str(tmp_path / "library"), **settings, **SHORT)
    assert check(outcome.folder.path) == outcome.metrics
    for name in ("test", "validation", "baselines", "parameters"):
        assert outcome.metrics[name] == commanded[name], name

    m4 = check(by_command(dataset="M4-Yearly", data_dir=data_dir, output_dir=tmp_path / "m4", **settings))
    assert m4["test"].keys() == M4_ERRORS.keys() and m4["baselines"]["naive2"]["owa"] == 1
    monkeypatch.setattr(presets, "TUNED", presets.TUNED | settings)
    places = ("--data_dir", data_dir, "--out", tmp_path / "out", "--runs", tmp_path / "runs")
    main([str(part) for part in ("benchmark", "short_term", "--datasets", "Yearly", "--seeds", "2021", *places)])
    (folder,) = (tmp_path / "runs").iterdir()
    benchmarked = check(folder)
    assert benchmarked["test"] == m4["test"] and benchmarked["validation"] == m4["validation"]
    row = pd.read_csv(tmp_path / "out" / "results.csv").set_index("model").loc["llata"]
    assert row["owa"] == m4["test"]["owa"] and row["validation_mse"] == m4["validation"]["mse"]


def test_panels_and_corpora_write_them_too(tmp_path):
    settings = SETTINGS | SHORT | {"backbone": random_backbone(tmp_path)}
    series = write_series(tmp_path / "series.csv")
    long = pd.read_csv(series).melt("date", var_name="item_id", value_name="target")
    panel = Panel.from_df(long, timestamp_column="date")
    scores = check(train_on_panel(panel, output_dir=str(tmp_path / "panel"), **settings).folder.path)
    assert scores["scored_on"] == "validation" and scores["intervals"].keys() == {"coverage_80", "wql"}
    build_corpus([series], tmp_path / "corpus")
    run = by_command(
        corpus=tmp_path / "corpus", output_dir=tmp_path / "pretrained", patch_length=8, patch_stride=8, **settings
    )
    assert check(run)["test"]["per_set"].keys() == {"corpus"}


def test_m4_is_forecast_and_scored_like_any_series(data_dir, tmp_path):
    settings = SETTINGS | {"backbone": random_backbone(tmp_path), "data_dir": data_dir}
    run = by_command(dataset="M4-Yearly", output_dir=tmp_path / "m4", **settings)
    main(["evaluate", str(run), "--output", str(tmp_path / "scores.json")])
    scores, metrics = json.loads((tmp_path / "scores.json").read_text()), json.loads((run / "metrics.json").read_text())
    assert scores["llata"] == pytest.approx(metrics["test"], rel=1e-4)
    assert {name: scores[name] for name in metrics["baselines"]} == metrics["baselines"]
    series = read_wide_csv(write_series(tmp_path / "one.csv", rows=40, channels=1))
    assert len(Forecaster.from_pretrained(run).wide.predict(series)) == 6


def test_training_without_validation(tmp_path):
    """Then there are no validation scores, and the picture shows no best step."""
    settings = SETTINGS | SHORT | {"backbone": random_backbone(tmp_path), "eval_strategy": "no"}
    outcome = train(str(write_series(tmp_path / "series.csv")), output_dir=str(tmp_path / "run"), **settings)
    assert outcome.metrics["validation"] is None and math.isfinite(outcome.metrics["test"]["mse"])


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"dataset": "M4-Yearly", "prediction_length": 7}, "prediction_length of M4-Yearly is 6, not 7"),
        ({"dataset": "M4-Yearly", "columns": ["Y1"]}, "columns does not apply to M4-Yearly"),
        ({"dataset": "M4-Yearly", "few_shot_percent": 5.0}, "few_shot_percent does not apply to M4-Yearly"),
        ({"dataset": "M4-Secondly"}, "unknown dataset 'M4-Secondly'"),
        ({"dataset": "M4-Yearly", "bacth_size": 3}, "unknown option bacth_size: did you mean batch_size"),
        ({"dataset": "M4-Yearly", "batch_size": 0}, "batch_size must be at least 1"),
        ({"dataset": "M4-Yearly", "batch_size": "many"}, "batch_size must be a whole number"),
    ],
)
def test_refusals_write_nothing(data_dir, tmp_path, settings, words):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=words):
        train(**{"output_dir": str(tmp_path / "run"), "data_dir": str(data_dir)} | settings)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name, kind", [("task_loss", "smape"), ("consistency_loss", "mase")])
def test_m4_losses_are_refused_for_other_data(tmp_path, name, kind):
    series, backbone = write_series(tmp_path / "series.csv"), random_backbone(tmp_path)
    with pytest.raises(InputError, match=f"{name} {kind} is for the M4 datasets"):
        train(str(series), **SETTINGS | SHORT | {name: kind, "backbone": backbone, "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_deterministic_algorithms_when_asked_for(tmp_path, monkeypatch):
    """An operation without a deterministic algorithm is then an error; cuBLAS is switched by the environment."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    chosen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    settings = SETTINGS | SHORT | {"backbone": random_backbone(tmp_path), "max_steps": 1}
    series = str(write_series(tmp_path / "series.csv"))
    train(series, output_dir=str(tmp_path / "plain"), **settings)
    assert chosen == [] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    train(series, output_dir=str(tmp_path / "deterministic"), deterministic=True, **settings)
    assert chosen == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_same_seed_gives_the_same_bits(tmp_path):
    """Dropout, data order and initial weights; another seed gives other bits."""
    settings = SETTINGS | SHORT | {"backbone": random_backbone(tmp_path)}
    series = str(write_series(tmp_path / "series.csv"))

    def weights(name, seed):
        train(series, output_dir=str(tmp_path / name), seed=seed, **settings)
        return (tmp_path / name / "model.safetensors").read_bytes()

    assert weights("first", 1) == weights("again", 1) != weights("other", 2)


@pytest.mark.gpu
def test_the_same_seed_gives_the_same_bits_on_a_gpu(tmp_path):
    settings = SETTINGS | SHORT | {"backbone": random_backbone(tmp_path), "precision": "bf16", "deterministic": True}
    series = str(write_series(tmp_path / "series.csv"))
    for name in ("first", "again"):
        train(series, output_dir=str(tmp_path / name), **settings)
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again
