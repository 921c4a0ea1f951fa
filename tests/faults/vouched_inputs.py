"""Damaged runs from others, whose manifests match the damage: a valid manifest does not make a file meaningful.

Nothing then tells what the files should contain: any forecast, report or training counts as right, but never a
traceback or a hang. Tables of the future, which have no manifest, are included.
"""

import contextlib
import csv
import io
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet
import yaml
from faults.cases import Case
from tiny import write_series
from training.distributed_cases import train

from llata_fast.adapters.hub import model_card
from llata_fast.data import read_wide_csv
from llata_fast.data.frames import file_frame
from llata_fast.data.panel import Panel
from llata_fast.durable import write_manifest
from llata_fast.errors import InputError
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.report import page
from llata_fast.run_folder import RunFolder

HORIZON, ROWS = 4, 30


def vouched_cases(folder: Path, run: Path, settings: dict[str, Any]) -> list[Case]:
    """All cases, on copies of a run."""
    return [*_forecasts(folder, run), *_resumes(folder, run, settings), *_futures(folder)]


def _forecasts(folder: Path, run: Path) -> list[Case]:
    copy = RunFolder(shutil.copytree(run, folder / "vouched"))
    for path in copy.checkpoints():
        shutil.rmtree(path)
    series = read_wide_csv(write_series(folder / "vouched.csv", 30))
    cases = []

    def add(reader: str, name: str, read: Callable[[], Any], is_right: Callable[[Any], bool]):
        path = copy / name
        whole = None if path.suffix in (".npz", ".safetensors") else yaml.safe_load(path.read_text())
        cases.append(Case(f"vouched for, {reader}: {name}", path, read, is_right, whole, copy.finish))

    def forecast():
        return Forecaster.from_pretrained(copy.path).predict_df(series)

    for name in ("config.json", "preprocessor_config.json", "run.yaml", "calibration.npz", "model.safetensors"):
        add("forecast", name, forecast, lambda table: set(table.columns) >= {"target_name", "predictions"})

    def card() -> str:
        return str(model_card(copy.path, "org/name"))

    def report() -> Path:
        # other cases forecast the test windows
        with mock.patch.object(page, "_test_sections", lambda *_: ({}, None)):
            return page.write_report(copy.path, folder / "report.html")

    for name in ("run.yaml", "preprocessor_config.json", "metrics.json"):
        add("card", name, card, lambda text: text.startswith("---\n"))
    for name in ("run.yaml", "metrics.json", "log.jsonl"):
        if (copy / name).is_file() and name != "log.jsonl":
            add("report", name, report, lambda path: path.read_text().rstrip().endswith("</html>"))
    return cases


def _resumes(folder: Path, run: Path, settings: dict[str, Any]) -> list[Case]:
    """Cases that resume a checkpoint for one more step."""
    copy = shutil.copytree(run, folder / "resumed")
    checkpoint = copy / "checkpoint-2"
    flags = [f"--{name}={value}" for name, value in (settings | {"max_steps": 3, "save_strategy": "no"}).items()]
    flags += ["--eval_strategy=no", "--load_best_model_at_end=false"]

    def resume() -> Path:
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                train([*flags, f"--output_dir={copy}", f"--resume_from_checkpoint={checkpoint}"])
        except SystemExit as end:
            line = (said.getvalue().strip().splitlines() or [""])[-1]
            if end.code == 2 and "error: " in line and "Traceback" not in said.getvalue():
                raise InputError(line) from None
            raise
        return copy

    names = ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt"]
    names += ["trainer_state.json", "unaveraged.safetensors"]
    return [
        Case(
            f"vouched for, resume: {name}",
            checkpoint / name,
            resume,
            lambda path: (path / "model.safetensors").is_file(),
            yaml.safe_load((checkpoint / name).read_text()) if name.endswith(".json") else None,
            lambda: write_manifest(checkpoint),
            slow=True,
        )
        for name in names
    ]


def _futures(folder: Path) -> list[Case]:
    """Cases for tables of known covariates, numbers and texts, for the steps ahead."""
    dates = pd.date_range("2024-01-01", periods=ROWS + HORIZON, freq="D")
    rng = np.random.default_rng(0)
    table = pd.concat(
        [
            pd.DataFrame(
                {"id": f"item-{n}", "date": dates, "sold": rng.normal(50, 9, len(dates)).round(2)}
                | {"price": rng.normal(3, 1, len(dates)).round(3), "week": rng.choice(["a", "b"], len(dates))}
            )
            for n in range(2)
        ],
        ignore_index=True,
    )
    ahead = table["date"] >= dates[ROWS]
    panel = Panel.from_df(
        table[~ahead], id_column="id", timestamp_column="date", target="sold", known_covariates=["price", "week"]
    )
    text, parquet = folder / "future.csv", folder / "future.parquet"
    future = table[ahead].drop(columns="sold")
    future.to_csv(text, index=False)
    future.to_parquet(parquet)

    def rows_of(path: Path) -> list[dict[str, Any]]:
        if path == parquet:
            return pyarrow.parquet.read_table(path).to_pylist()
        return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"))))

    def as_file_says(found: Panel, path: Path) -> bool:
        said = {(str(row["id"]).strip(), pd.Timestamp(row["date"])): row for row in rows_of(path)}
        items, steps = np.repeat(np.arange(2), HORIZON), np.tile(np.arange(ROWS, ROWS + HORIZON), 2)
        assert found.covariates is not None
        values = found.covariates.frame(items, steps)
        for item, step, price, week in zip(items, steps, values["price"], values["week"], strict=True):
            row = said[str(found.ids[item]), dates[step]]
            if not _same(price, row["price"]) or (week or "") != (row["week"] or ""):
                return False
        return True

    return [
        Case(
            f"future: {path.suffix}",
            path,
            lambda path=path: panel.ahead(HORIZON, file_frame(path)),
            lambda found, path=path: as_file_says(found, path),
        )
        for path in (text, parquet)
    ]


def _same(found: float, said: Any) -> bool:
    if said in ("", None) or (isinstance(said, float) and math.isnan(said)):
        return math.isnan(found)
    return math.isclose(found, float(said), rel_tol=1e-6)
