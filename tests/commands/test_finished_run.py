"""What a finished run can do, as a user of the commands sees it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from programs import H, L, evaluate, finished_run, llata_fast, make_table, tiny_run, train, write
from tiny import random_backbone
from transformers import AutoModel

from llata_fast.backbone.loading import load_backbone_weights, read_backbone_config
from llata_fast.data import read_wide_csv
from llata_fast.forecasting.forecaster import Forecaster

pytestmark = pytest.mark.usefixtures("plain_ops_throughout", "no_data_folder")


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain_ops_throughout):
    folder = tmp_path_factory.mktemp("trained")
    return finished_run(folder, random_backbone(folder))


@pytest.mark.parametrize("frequency", ["h", "15min", "D", "B", "MS"])
def test_predict_continues_the_series(run, tmp_path, capfd, frequency):
    table = make_table(60, frequency)
    output = tmp_path / "forecast.csv"
    llata_fast("predict", run, "--input", write(tmp_path, table), "--output", output)
    forecast = pd.read_csv(output, parse_dates=["date"])
    assert list(forecast.columns) == list(table.columns)
    dates = pd.date_range(table["date"].iloc[-1], periods=H + 1, freq=frequency)[1:]
    assert list(forecast["date"]) == list(dates)
    values = table.drop(columns="date")
    away = (forecast.drop(columns="date") - values.mean()).abs() / values.std()
    assert away.to_numpy().max() < 6
    assert forecast["load"].between(900, 1100).all()
    assert f"{H} rows" in capfd.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.csv", "series.csv"]


def test_predict_forecasts_in_the_units_of_its_input(run, tmp_path):
    # for another series, levels are measured on that series' own rows
    table = make_table(90)
    table[["load", "share"]] *= 1.5
    seen = table.drop(columns="date").to_numpy()[: int(90 * 0.7)]
    mean, scale = seen.mean(0), seen.std(0)
    llata_fast("predict", run, "--input", write(tmp_path, table), "--output", tmp_path / "forecast.csv")
    past = (table.drop(columns="date").to_numpy()[-L:] - mean) / scale
    forecast = Forecaster.from_pretrained(run)(torch.from_numpy(past).float()[None])[0].cpu().numpy() * scale + mean
    written = pd.read_csv(tmp_path / "forecast.csv").drop(columns="date").to_numpy()
    np.testing.assert_allclose((written - mean) / scale, (forecast - mean) / scale, atol=1e-4)


def test_predict_draws(run, tmp_path):
    pytest.importorskip("matplotlib")
    llata_fast("predict", run, "--input", run.parent / "series.csv", "--output", tmp_path / "next.csv", "--plot")
    assert (tmp_path / "next.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_forecaster_in_three_lines(run, tmp_path):
    path = run.parent / "series.csv"
    forecaster = Forecaster.from_pretrained(run)
    table = forecaster.wide.predict(read_wide_csv(path))
    assert table.shape == (H, 4)
    llata_fast("predict", run, "--input", path, "--output", tmp_path / "forecast.csv")
    pd.testing.assert_frame_equal(
        table, pd.read_csv(tmp_path / "forecast.csv", parse_dates=["date"]), check_dtype=False
    )


def test_merged_run_is_self_contained(run, tmp_path):
    """It forecasts the same without the backbone's source, and transformers loads its whole decoder."""
    source = random_backbone(tmp_path)
    train(*tiny_run(run.parent / "series.csv", tmp_path / "run", source))
    llata_fast("export", tmp_path / "run", "--format", "merged", "--output", tmp_path / "merged")
    path = run.parent / "series.csv"
    expected = Forecaster.from_pretrained(tmp_path / "run").wide.predict(read_wide_csv(path))
    words = load_backbone_weights(source, read_backbone_config(source, 2)).word_embeddings
    Path(source.removeprefix("random:")).unlink()
    forecaster = Forecaster.from_pretrained(tmp_path / "merged")
    pd.testing.assert_frame_equal(forecaster.wide.predict(read_wide_csv(path)), expected, rtol=1e-5)

    folder = tmp_path / "merged" / "backbone"
    decoder, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(decoder.get_input_embeddings().weight, words)
    tokens = torch.randn(2, 5, 48)
    features = decoder(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(features + tokens, forecaster.model.backbone(tokens)[-1])


@pytest.mark.parametrize("kind, names", [("adapter", {"adapter_config.json"}), ("onnx", {"model.onnx"})])
def test_export_writes_the_format_asked_for(run, tmp_path, kind, names):
    pytest.importorskip({"adapter": "peft", "onnx": "onnxscript"}[kind])
    llata_fast("export", run, "--format", kind, "--output", tmp_path / kind)
    assert names <= {path.name for path in (tmp_path / kind).iterdir()}


def test_evaluate_repeats_the_runs_own_scores(run, tmp_path, capfd):
    test = json.loads((run / "metrics.json").read_text())["test"]
    scores = evaluate(run, tmp_path / "scores.json")
    table = capfd.readouterr().out
    assert "llata" in table and "seasonal_naive" in table and f"{scores['llata']['mse']:.4f}" in table
    batched = evaluate(run, tmp_path / "batched.json", "--batch_size", "7")
    for got in (scores["llata"], batched["llata"]):
        assert got["mse"] == pytest.approx(test["mse"], rel=1e-5)
        assert got["mae"] == pytest.approx(test["mae"], rel=1e-5)
        assert got["per_channel"].keys() == test["per_channel"].keys()
    assert batched["seasonal_naive"]["mse"] == pytest.approx(scores["seasonal_naive"]["mse"], rel=1e-5)


def test_evaluate_another_series_in_its_own_units(run, tmp_path):
    """Five channels instead of three; every test window; standardised with that series' training rows."""
    table = make_table(300)
    table["kelvin"], table["parts"] = table["temperature"] + 273.15, 1e4 * table["share"]
    score = evaluate(run, tmp_path / "scores.json", "--dataset", write(tmp_path, table, "wide.csv"))["llata"]
    values = table.drop(columns="date").to_numpy()
    values = (values - values[:210].mean(0)) / values[:210].std(0)
    starts = range(240 - L, 300 - L - H + 1)
    past = np.stack([values[start : start + L] for start in starts])
    future = np.stack([values[start + L : start + L + H] for start in starts])
    forecast = Forecaster.from_pretrained(run)(torch.from_numpy(past).float()).cpu().numpy()
    assert score["mse"] == pytest.approx(np.square(forecast - future).mean(), rel=1e-5)
    assert list(score["per_channel"]) == list(table.columns[1:])


def test_predict_takes_the_runs_channels_by_name(run, tmp_path):
    table = make_table(60)
    mixed = table[["date", "temperature", "load", "share"]].assign(city="Rome")
    outputs = [tmp_path / f"{name}.csv" for name in ("plain", "mixed", "every")]
    for path, output, *more in (
        (write(tmp_path, table), outputs[0]),
        (write(tmp_path, mixed, "mixed_series.csv"), outputs[1]),
        (tmp_path / "mixed_series.csv", outputs[2], "--every", 100),
    ):
        llata_fast("predict", run, "--input", path, "--output", output, *more)
    plain, again, every = map(pd.read_csv, outputs)
    pd.testing.assert_frame_equal(again, plain)
    pd.testing.assert_frame_equal(every.drop(columns="origin"), plain)
    # in Python too
    series = read_wide_csv(tmp_path / "mixed_series.csv", columns=["temperature", "load", "share"])
    forecast = Forecaster.from_pretrained(run).wide.predict(series)
    pd.testing.assert_frame_equal(forecast.drop(columns="date"), plain.drop(columns="date"))


def test_predict_reads_dates_as_the_run_did(backbone, tmp_path):
    path = write(tmp_path, make_table(200).rename(columns={"date": "when"}))
    train(*tiny_run(path, tmp_path / "run", backbone, date_column="when"))
    llata_fast("predict", tmp_path / "run", "--input", path, "--output", tmp_path / "next.csv")
    assert list(pd.read_csv(tmp_path / "next.csv").columns)[0] == "when"


def test_evaluate_of_some_columns(run, tmp_path):
    scores = evaluate(run, tmp_path / "scores.json", "--columns", "share")
    assert list(scores["llata"]["per_channel"]) == ["share"]


def test_forecasts_in_gzip(run, tmp_path):
    output = tmp_path / "next.csv.gz"
    llata_fast("predict", run, "--input", run.parent / "series.csv", "--output", output)
    assert output.read_bytes()[:2] == b"\x1f\x8b" and len(pd.read_csv(output)) == H
