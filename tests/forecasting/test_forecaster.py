"""`predict --every S`: a forecast after every S-th row, streamed to disk."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import perturb, random_backbone, tiny_config, write_series

from llata_fast.__main__ import main
from llata_fast.data import evaluation_windows, read_wide_csv, split_windows
from llata_fast.forecasting import wide as wide_module
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.forecasting.table_files import open_table
from llata_fast.modeling import LlataForPrediction
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
L, H, ROWS = 12, 5, 60

# forecasts 2,000 windows and then 20,000 in one process; prints how much the second adds to the peak, in MiB
GROWTH = """
import resource, sys
from llata_fast.__main__ import main
peaks = []
for series in sys.argv[2:]:
    main(["predict", sys.argv[1], "--input", series, "--output", f"{series}.out", "--every=1", "--batch_size=256"])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print("growth", peaks[1] - peaks[0])
"""


def make_run(folder, horizon=H, **fields):
    """A run's folder as training leaves it, without training; `fields` of the model's configuration."""
    path = write_series(folder / "series.csv", ROWS + horizon)
    series = read_wide_csv(path)
    config = tiny_config(random_backbone(folder), context_length=L, prediction_length=horizon, **fields)
    model = LlataForPrediction.from_backbone(config)
    perturb(model)
    if model.skip is not None:
        for parameter in model.skip.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "run")
    scaler = split_windows(read_wide_csv(write_series(folder / "long.csv", 1000)), L, horizon).scaler
    run = RunFolder(folder / "run")
    run.write_settings({"missing": "error"})
    run.write_preprocessor(Preprocessor.of(str(path), series, scaler))
    run.finish()
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        yield make_run(tmp_path_factory.mktemp("predict_all"))


def predict(run, series, output, *argv):
    main(["predict", str(run), "--input", str(series), "--output", str(output), *map(str, argv)])
    return pd.read_csv(output, parse_dates=["date", "origin"] if "--every" in argv else ["date"])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "skip"])
def linear_run(tmp_path_factory, request):
    """A run with a linear skip that does or does not use the level of its input."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        yield make_run(tmp_path_factory.mktemp("linear"), linear_skip=request.param)


def rescaled(path, k, c):
    """The series of a CSV, multiplied by k and shifted by c standard deviations of each column."""
    table = pd.read_csv(path)
    values = table.iloc[:, 1:]
    table.iloc[:, 1:] = k * values + c * k * values.std()
    table.to_csv(path.with_name("other.csv"), index=False)
    return path.with_name("other.csv"), k, c * k * values.std().to_numpy()


@pytest.mark.parametrize("k, c", [(1e-3, 0.0), (1.0, 1e9), (1e9, -1e6), (1e-9, 3.0)])
def test_predict_and_evaluate_do_not_depend_on_unit_or_level(linear_run, tmp_path, k, c):
    """A file in another unit has the same forecasts in that unit, and `evaluate` gives their scores."""
    path = write_series(tmp_path / "series.csv", ROWS)
    other, k, shift = rescaled(path, k, c)
    plain, moved = (
        predict(linear_run, file, tmp_path / "all.csv", "--every", 1).iloc[:, 2:].to_numpy() for file in (path, other)
    )
    deviation = np.array([read_wide_csv(path).values[row : row + L].std(0) for row in range(ROWS - L + 1)]).repeat(H, 0)
    assert (np.abs(moved - (k * plain + shift)) <= 1e-5 * k * deviation).all()

    scores = []
    for file in (path, other):
        main(["evaluate", str(linear_run), "--dataset", str(file), "--output", str(tmp_path / "scores.json")])
        scores.append(json.loads((tmp_path / "scores.json").read_text())["llata"]["mse"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    # the same windows, scored from the file that predict wrote
    series = read_wide_csv(other)
    windows, scaler = evaluation_windows(series, L, H)
    rows = ROWS - len(windows.values) + np.arange(len(windows))[:, None] + L + np.arange(H)
    written = moved.reshape(-1, H, 3)[-len(windows) - H : -H]
    errors = scaler.transform(written) - scaler.transform(series.values[rows])
    assert np.square(errors).mean() == pytest.approx(scores[1], rel=1e-4)


def test_a_channel_without_values_in_the_context_stays_empty(run, tmp_path, capsys):
    table = pd.read_csv(write_series(tmp_path / "series.csv", ROWS))
    table.loc[ROWS - L :, "c1"] = np.nan
    table.to_csv(tmp_path / "series.csv", index=False)
    for argv in ([], ["--every", "1"]):
        forecasts = predict(run, tmp_path / "series.csv", tmp_path / "all.csv", "--missing", "mask", *argv)
        assert capsys.readouterr().err.count("no value in the context of 'c1'") == 1
        assert forecasts["c1"].tail(H).isna().all() and not forecasts[["c0", "c2"]].isna().any(axis=None)
    assert not forecasts["c1"].head(H).isna().any()


@pytest.mark.parametrize("every, batch_size", [(1, 1024), (1, 7), (4, 5)])
def test_each_forecast_is_that_of_the_rows_before_it(run, tmp_path, every, batch_size):
    path = write_series(tmp_path / "series.csv", ROWS)
    table = predict(run, path, tmp_path / "all.csv", "--every", every, "--batch_size", batch_size)
    series = pd.read_csv(path, parse_dates=["date"])
    assert list(table.columns) == ["origin", *series.columns]
    origins = [row for row in range(ROWS) if row >= L - 1 and (ROWS - 1 - row) % every == 0]
    assert list(table["origin"]) == [date for date in series["date"][origins] for _ in range(H)]
    forecaster = Forecaster.from_pretrained(run)
    for row in (origins[0], origins[len(origins) // 2], origins[-1]):
        series[: row + 1].to_csv(tmp_path / "past.csv", index=False)
        expected = forecaster.wide.predict(read_wide_csv(tmp_path / "past.csv"))
        got = table[table["origin"] == series["date"][row]].drop(columns="origin")
        assert list(got["date"]) == list(expected["date"])
        np.testing.assert_allclose(got.iloc[:, 1:], expected.iloc[:, 1:], rtol=1e-5)


def test_missing_values(run, tmp_path):
    path = write_series(tmp_path / "series.csv", ROWS)
    table = pd.read_csv(path)
    table.loc[30, "c1"] = np.nan
    table.to_csv(path, index=False)
    forecasts = predict(run, path, tmp_path / "all.csv", "--every", 1, "--missing", "mask")
    assert len(forecasts) == (ROWS - L + 1) * H and not forecasts.isna().any(axis=None)


def test_parquet(run, tmp_path):
    pytest.importorskip("pyarrow")
    path = write_series(tmp_path / "series.csv", ROWS)
    expected = predict(run, path, tmp_path / "all.csv", "--every", 3, "--batch_size", 4)
    main(["predict", str(run), "--input", str(path), "--output", str(tmp_path / "all.parquet"), "--every", "3"])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "all.parquet"), expected, check_dtype=False)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--every", "0"], "--every must be at least 1, got 0"),
        (["--every", "1", "--batch_size", "-1"], "--batch_size must be at least 1, got -1"),
        (["--every", "1", "--plot"], "--plot draws the forecast after the last row"),
    ],
)
def test_bad_options(run, tmp_path, capsys, argv, words):
    path = write_series(tmp_path / "series.csv", ROWS)
    with pytest.raises(SystemExit) as exit:
        predict(run, path, tmp_path / "all.csv", *argv)
    assert exit.value.code == 2 and words in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["series.csv"]


def test_parquet_without_pyarrow(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        predict(run, write_series(tmp_path / "series.csv", ROWS), tmp_path / "all.parquet", "--every", 1)
    assert "parquet needs pyarrow" in capsys.readouterr().err


def test_an_interrupted_table_leaves_nothing(run, tmp_path, monkeypatch):
    path, output = write_series(tmp_path / "series.csv", ROWS), tmp_path / "all.csv"
    output.write_text("the one before\n")
    calls = []

    def interrupted(self, *args, **kwargs):
        calls.append(sorted(entry.name for entry in tmp_path.iterdir()))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return torch.zeros(5, H, 3, dtype=torch.float64)

    monkeypatch.setattr(wide_module.WideForecaster, "__call__", interrupted)
    with pytest.raises(SystemExit):
        predict(run, path, output, "--every", 1, "--batch_size", 5)
    # it was written under another name
    assert len(calls[-1]) == 3 and output.read_text() == "the one before\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["all.csv", "series.csv"]


def test_a_table_appears_once_complete(tmp_path):
    rows = pd.DataFrame({"a": [1, 2]})
    with open_table(tmp_path / "table.csv") as write:
        write(rows)
        write(rows)
        assert not (tmp_path / "table.csv").exists()
    assert (tmp_path / "table.csv").read_text().split() == ["a", "1", "2", "1", "2"]


def test_memory_does_not_grow_with_the_number_of_windows(launch, tmp_path):
    run = make_run(tmp_path, horizon=48)
    series = [write_series(tmp_path / f"{rows}.csv", rows) for rows in (2_000 + L - 1, 20_000 + L - 1)]
    (tmp_path / "growth.py").write_text(GROWTH)
    output = launch("python", tmp_path / "growth.py", run, *series, env={"PYTHONPATH": str(ROOT)})
    growth = float(output.split()[-1])
    with open(f"{series[1]}.out") as file:
        assert sum(1 for _ in file) == 1 + 20_000 * 48
    # MiB; the second run's forecasts and dates take 35, a table of them more
    assert growth < 20


def test_nonnegative_bounds_forecasts_only_on_request(run, tmp_path):
    """It bounds points and quantiles in every way of forecasting, and leaves other values alone."""
    table = pd.read_csv(run.parent / "series.csv")
    channels = list(table.columns[1:])
    table[channels] -= table[channels].mean()
    table.to_csv(tmp_path / "centred.csv", index=False)
    for options in ((), ("--every", 7)):
        free, bound = (
            predict(run, tmp_path / "centred.csv", tmp_path / "out.csv", *options, *more)[channels]
            for more in ((), ("--nonnegative",))
        )
        assert (free < 0).any().any()
        pd.testing.assert_frame_equal(bound, free.clip(lower=0))
    forecaster = Forecaster.from_pretrained(run)
    series = read_wide_csv(tmp_path / "centred.csv")
    free, bound = (forecaster.predict_df(series, nonnegative=nonnegative) for nonnegative in (False, True))
    assert (free["predictions"] < 0).any()
    pd.testing.assert_series_equal(bound["predictions"], free["predictions"].clip(lower=0))
    pd.testing.assert_frame_equal(bound.drop(columns="predictions"), free.drop(columns="predictions"))


def test_dates_have_one_format_in_all_batches(run, tmp_path):
    """Batches of one forecast each, some of them at midnight."""
    table = pd.read_csv(run.parent / "series.csv")
    for batch_size in (1, 5, 1024):
        output = tmp_path / f"{batch_size}.csv"
        predict(run, run.parent / "series.csv", output, "--every", 1, "--batch_size", batch_size)
    tables = [pd.read_csv(output, dtype=str)[["origin", "date"]] for output in tmp_path.glob("*.csv")]
    for dates in tables:
        pd.testing.assert_frame_equal(dates, tables[0])
        assert set(dates["origin"].str.len()) == set(dates["date"].str.len()) == {19}
    assert "00:00:00" in tables[0]["origin"].str[11:].values
    assert len(table) == ROWS + H
