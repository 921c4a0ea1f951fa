"""Names of items, columns and datasets stay text everywhere: never a path, markup or a template."""

import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_model

from llata_fast.__main__ import main
from llata_fast.data.panel import Panel
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

NAMES = [
    "../../escaped",
    "/var/escaped",
    "a\x00b",
    "x" * 5000,
    "=1+cmd|' /C calc'!A0",
    "@SUM(1,2)",
    'two\nlines, a comma and "quotes"',
    "<script>alert(1)</script>",
    "{{ 7 * 7 }}%s{0}$x$",
    "\u202etxt.exe",
    " ",
    "nan",
]


def tree(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(backbone, plain_ops, tmp_path):
    model = tiny_model(backbone).eval()
    series = Preprocessor("../../x", ["=y()"], "date", "D", 7, [0.0], [1.0], id_column="../id")
    settings = {"dataset": "../../x", "backbone": backbone, "prediction_length": 5, "context_length": 12, "seed": 0}
    Forecaster(model, series, settings=settings).save_pretrained(tmp_path / "work" / "run")
    return tmp_path / "work" / "run"


@pytest.fixture
def table():
    dates = pd.date_range("2024-01-01", periods=14)
    parts = [pd.DataFrame({"../id": name, "date": dates, "=y()": np.arange(14.0) + n}) for n, name in enumerate(NAMES)]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_names_of_items_come_back_as_they_were(ending, run, table, tmp_path, monkeypatch):
    monkeypatch.chdir(run.parent)
    table.to_parquet("items.parquet")
    before = tree(tmp_path)
    main(["predict", "run", "--input", "items.parquet", "--output", f"forecast{ending}"])
    written = run.parent / f"forecast{ending}"
    assert tree(tmp_path) - before == {written}
    if ending == ".parquet":
        found = list(pd.read_parquet(written)["../id"])
    else:
        with (gzip.open if ending == ".csv.gz" else open)(written, "rt", newline="", encoding="utf-8") as file:
            found = [row["../id"] for row in csv.DictReader(file)]
    assert found == [name for name in NAMES for _ in range(5)]


def test_a_backtests_page_and_table_are_all_that_it_writes(run, table, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(run.parent)
    table.to_parquet("items.parquet")
    before = tree(tmp_path)
    main(["backtest", "run", "--input", "items.parquet", "--output", "scores.csv", "--report", "page.html"])
    assert tree(tmp_path) - before == {run.parent / "scores.csv", run.parent / "page.html"}
    page = (run.parent / "page.html").read_text()
    assert "<script" not in page and "{{ 7" not in page.replace("{{ 7 * 7 }}%s{0}$x$", "")


def test_names_of_channels_are_no_paths(backbone, plain_ops, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    names = [name for name in NAMES if name.strip()]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(14, len(names))), columns=names)
    table.insert(0, "date", pd.date_range("2024-01-01", periods=14))
    table.to_csv("wide.csv", index=False)
    scales = [[0.0] * len(names), [1.0] * len(names)]
    series = Preprocessor("wide", [name.strip() for name in names], "date", "D", 7, *scales)
    Forecaster(tiny_model(backbone).eval(), series).save_pretrained("run")
    before = tree(tmp_path)
    main(["predict", "run", "--input", "wide.csv", "--output", "forecast.csv"])
    assert tree(tmp_path) - before == {work / "forecast.csv"}
    with open("forecast.csv", newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["date", *series.columns]


def test_a_corpus_of_hostile_names_stays_in_its_folder(table, tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    table.to_parquet("items.parquet")
    before = tree(tmp_path)
    flags = ["--id_column", "../id", "--date_column", "date", "--columns", "=y()"]
    main(["corpus", "build", "items.parquet", "--output", "corpus", *flags])
    assert all(path.is_relative_to(work / "corpus") for path in tree(tmp_path) - before)
    shutil.rmtree("corpus")


def test_a_panel_keeps_every_name(table):
    panel = Panel.from_df(table, id_column="../id", timestamp_column="date", target="=y()")
    assert list(panel.ids) == NAMES
