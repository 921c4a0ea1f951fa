"""A run's report is one self-contained page: nothing is fetched, and names are never read as markup."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from tiny import TINY_SETTINGS, random_backbone, write_series

from llata_fast.__main__ import main
from llata_fast.data.panel import Panel
from llata_fast.errors import InputError
from llata_fast.experiment import train
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.report import measures
from llata_fast.report.page import write_report
from llata_fast.run_folder import METRICS, RunFolder

pytestmark = pytest.mark.usefixtures("plain_ops")
pytest.importorskip("matplotlib")

ITEMS = ["<script>alert(2)</script>", "a $$ & b", "c"]
NAMES = ["<script>alert(1)</script>", "a $$ & b", "c2"]
TINY = TINY_SETTINGS | {
    "context_length": 12,
    "prediction_length": 5,
    "max_steps": 4,
    "logging_steps": 1,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 2,
    "batch_size": 8,
    # as forecasts are computed in fp32, so that the scores agree
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_series(folder / "series.csv", rows=120)
    table = pd.read_csv(path).set_axis(["date", *NAMES], axis=1)
    table.to_csv(path, index=False)
    train(str(path), backbone=random_backbone(folder), output_dir=str(folder / "run"), **TINY)
    return folder / "run"


@pytest.fixture(scope="module")
def page(run):
    return write_report(run, run / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All tags with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_page_has_every_section(page):
    titles = [
        "Scores",
        "Training",
        "Error by step",
        "Error by channel",
        "Calibration",
        "Forecasts",
        "How far apart",
        "Prototypes",
        "Cost",
    ]
    headings = " ".join(re.findall(r"<h2>(.*?)</h2>", page))
    assert all(title in headings for title in titles)
    assert all(f"The {label} window" in page for label in ("best", "median", "worst"))


def test_scores_match_the_run(run, page):
    metrics = json.loads((run / METRICS).read_text())
    for scores in (metrics["test"], *metrics["baselines"].values()):
        assert f"{scores['mse']:.4f}" in page and f"{scores['mae']:.4f}" in page


def test_names_are_text(page):
    tags = Elements(page).tags
    assert not [tag for tag, _ in tags if tag == "script"]
    assert html.escape(NAMES[0]) in page and "$$" in page


def test_nothing_is_fetched(page):
    for tag, attributes in Elements(page).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            # a link within the page, or none
            assert attributes.get(name, "#")[:1] == "#" or attributes[name] == "data:,", (tag, attributes)
    assert "@import" not in page and "url(http" not in page


def test_chromium_shows_it_without_errors(run, page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    for width in (1280, 400):
        picture = tmp_path / f"{width}.png"
        shot = (f"--window-size={width},3000", f"--screenshot={picture}", (run / "report.html").as_uri())
        done = subprocess.run([browser, *flags, *shot], capture_output=True, text=True, timeout=240)
        assert picture.stat().st_size > 10_000
        assert not re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    """A run on a long table of three items with a known covariate, the table, and the page of a backtest."""
    folder = tmp_path_factory.mktemp("panel")
    hours = np.arange(60)
    items = {
        name: scale * (10 + np.sin(hours / 4) + hours % 3) for name, scale in zip(ITEMS, (1, 50, 900), strict=True)
    }
    frames = [
        pd.DataFrame(
            {"sku": name, "date": pd.date_range("2024-01-01", periods=60, freq="h"), "qty": values, "price": hours % 7}
        )
        for name, values in items.items()
    ]
    pd.concat(frames).to_csv(folder / "sales.csv", index=False)
    sizes = {name: TINY[name] for name in ("num_layers", "num_prototypes", "intermediate_size", "precision")}
    sizes |= {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "backbone": random_backbone(folder)}
    table = Panel.from_csv(folder / "sales.csv", id_column="sku", target="qty", known_covariates=["price"])
    Forecaster.fit(table, prediction_length=5, context_length=12, output_dir=folder / "run", **sizes)
    main(
        ["backtest", str(folder / "run"), "--input", str(folder / "sales.csv"), "--n_windows", "2"]
        + ["--output", str(folder / "scores.csv"), "--report", str(folder / "backtest.html")]
    )
    return folder


def test_page_of_a_backtest(panel):
    text = (panel / "backtest.html").read_text(encoding="utf-8")
    headings = " ".join(re.findall(r"<h2>(.*?)</h2>", text))
    assert all(title in headings for title in ("Scores", "Error by step", "Error by item", "Calibration", "Forecasts"))
    assert "On the last 2 windows of 3 items, 5 steps each" in text
    for _, scores in pd.read_csv(panel / "scores.csv").iterrows():
        assert f"{scores['MASE']:.4f}" in text and f"{scores['WQL']:.4f}" in text
    assert html.escape(ITEMS[0]) in text and not [tag for tag, _ in Elements(text).tags if tag == "script"]


def test_report_of_a_panel_shows_unseen_windows(panel):
    text = write_report(panel / "run", panel / "report.html").read_text(encoding="utf-8")
    assert "no test split was held out" in text and "Error by item" in text and "prototypes" in text


def test_errors_of_a_panel_by_hand(panel):
    table = Panel.from_csv(panel / "sales.csv", id_column="sku", target="qty", known_covariates=["price"])
    forecaster = Forecaster.from_pretrained(panel / "run")
    errors = measures.panel_errors(forecaster, table, 2)
    frame = forecaster.cross_validation(table, n_windows=2, quantile_levels=[0.3])
    season = {name: rows["qty"].iloc[:50].diff(24).abs().mean() for name, rows in table.to_df().groupby("sku")}
    miss = (frame["predictions"] - frame["qty"]).abs() / frame["sku"].map(season)
    by_item = miss.groupby(frame["sku"]).mean().sort_values(ascending=False)
    assert [name for name, _ in errors.by_item] == by_item.index.tolist()
    assert [error for _, error in errors.by_item] == pytest.approx(by_item.tolist(), rel=1e-5)
    assert errors.by_step.mean() == pytest.approx(miss.mean(), rel=1e-5)
    assert errors.below[measures.REPORTED_LEVELS.index(0.3)] == pytest.approx((frame["qty"] <= frame["0.3"]).mean())
    best, _, worst = errors.examples
    assert (
        best.error <= worst.error
        and worst.label == "worst"
        and worst.item in ITEMS
        and worst.quantiles.shape == (5, 1, 19)
    )


def test_missing_data_is_mentioned(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    moved = run.parent / "series.csv"
    moved.rename(tmp_path / "elsewhere.csv")
    try:
        text = write_report(copy, tmp_path / "report.html").read_text(encoding="utf-8")
    finally:
        (tmp_path / "elsewhere.csv").rename(moved)
    assert "The test windows are not shown" in text and "<h2>Scores</h2>" in text


def test_report_of_a_pre_training_has_a_row_per_set(run, tmp_path):
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    scores = {"windows": 1200, "mase": 0.9, "wql": 0.1, "naive_mase": 1.25, "naive_wql": None}
    metrics = folder.read_metrics() | {"test": {"relative_mase": 0.72, "per_set": {NAMES[0]: scores}}}
    folder.write_settings(folder.read_settings() | {"corpus": "mixture.yaml"})
    folder.write_metrics(metrics)
    folder.finish()
    text = write_report(folder.path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Scores by set" in text and "1.2500" in text and "1,200" in text and "pre-training are not shown" in text
    assert f"<td>{html.escape(NAMES[0])}</td>" in text


def test_errors_by_step_average_to_the_score(run):
    from llata_fast.evaluation.tasks import read_task
    from llata_fast.settings import DataSettings, ModelSettings

    folder = RunFolder(run)
    settings = folder.read_settings()
    lengths = {"context_length": 12, "prediction_length": 5}
    task = read_task(DataSettings(dataset=settings["dataset"]), ModelSettings(**lengths))
    errors = measures.series_errors(Forecaster.from_pretrained(run), task)
    assert errors.by_step.mean() == pytest.approx(folder.read_metrics()["test"]["mae"], rel=1e-5)
    best, median, worst = (window.error for window in errors.examples)
    assert best < median < worst


def test_an_unfinished_run_has_no_report(tmp_path):
    with pytest.raises(InputError, match="not the folder of a finished run"):
        write_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
