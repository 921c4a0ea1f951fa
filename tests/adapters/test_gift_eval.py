"""GIFT-Eval's windows, metrics and files: by hand, and against gluonts where it is installed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.__main__ import main
from llata_fast.adapters import gift_eval
from llata_fast.adapters.gluonts import DEFAULT_LEVELS, LlataPredictor, QuantileForecast, SeasonalNaivePredictor
from llata_fast.data.m4 import read_m4
from llata_fast.errors import InputError
from llata_fast.forecasting import calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.usefixtures("plain_ops")


def any_series(tmp_path) -> Forecaster:
    """A calibrated forecaster for any series."""
    offsets = torch.randn(5, 1, len(calibration.CALIBRATED_LEVELS)).sort(-1).values
    model = tiny_model(random_backbone(tmp_path))
    return Forecaster(model, Preprocessor.of_any_series("mixture"), calibration.Calibration(offsets, 10))


@pytest.fixture
def folder(tmp_path):
    """Datasets in the benchmark's format; they include missing values, zeros and a constant series."""
    chance = np.random.default_rng(0)
    weekly = [np.abs(chance.normal(50, 9, rows)) for rows in (80, 95, 120)]
    weekly[0][[3, -2]] = np.nan
    weekly[1][-5:] = 0
    weekly[2][:] = 7
    save(tmp_path / "m4_weekly", "W-SUN", weekly)
    hourly = [chance.normal(0, 3, (2, 1000)).cumsum(1) for _ in range(2)]
    hourly[1][0, 100:140] = np.nan
    save(tmp_path / "ett1" / "H", "H", hourly)
    return tmp_path


def save(path, freq, targets):
    rows = [
        {"item_id": f"T{place}", "start": pd.Timestamp("2020-01-05"), "freq": freq, "target": target.tolist()}
        for place, target in enumerate(targets)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(path))


def test_windows_match_the_benchmark(folder):
    weekly, hourly = gift_eval.read_gift_eval_task(folder, "m4_weekly"), gift_eval.read_gift_eval_task(folder, "ett1/H")
    assert (weekly.name, weekly.horizon, weekly.windows, weekly.seasonality) == ("m4_weekly/W/short", 13, 1, 1)
    assert (weekly.domain, weekly.num_variates, len(weekly)) == ("Econ/Fin", 1, 3)
    # ceil(0.1 * 1000 / 48) windows of two series with two channels
    assert (hourly.name, hourly.horizon, hourly.windows, len(hourly)) == ("ett1/H/short", 48, 3, 12)
    assert (hourly.domain, hourly.num_variates, hourly.seasonality) == ("Energy", 2, 24)
    inputs, labels = list(hourly.inputs()), list(hourly.labels())
    assert [len(entry["target"]) for entry in inputs[:3]] == [856, 904, 952] and inputs[3]["item_id"] == "T0_dim1"
    np.testing.assert_array_equal(inputs[1]["target"][-48:], labels[0])
    assert gift_eval.read_gift_eval_task(folder, "ett1/H", "medium").horizon == 480


@pytest.mark.parametrize(
    "frequency, expected",
    [("15T", (15, "T")), ("15min", (15, "T")), ("A-DEC", (1, "A")), ("QE-DEC", (1, "Q")), ("h", (1, "H"))],
)
def test_frequencies_by_their_older_names(frequency, expected):
    assert gift_eval.split_frequency(frequency) == expected


def test_scores_by_hand():
    task = gift_eval.GiftEvalTask(
        "x/D/short", "Nature", 1, 2, 1, 1, [{"item_id": "a", "target": np.array([1.0, 3, 2, 4, 0, 6])}]
    )

    class Known:
        def predict(self, dataset):
            for _ in dataset:
                spread = np.arange(-5, 6)[:, None] * np.ones(2)
                yield QuantileForecast(np.array([1.0, 5.0]), np.array([1.0, 5.0]) + spread, DEFAULT_LEVELS, None)

    scores = gift_eval.score_gift_eval(Known(), task)
    # labels 0 and 6, errors 1 and 1, changes before them 2, 1 and 2
    expected = {"MSE[mean]": 1, "MAE[0.5]": 1, "MASE[0.5]": 0.6, "MAPE[0.5]": 1 / 6, "ND[0.5]": 2 / 6, "RMSE[mean]": 1}
    expected |= {"sMAPE[0.5]": (2 + 2 / 11) / 2, "MSIS": 6, "NRMSE[mean]": 1 / 3}
    assert {name: scores[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("name", ["m4_weekly", "ett1/H"])
@pytest.mark.parametrize("kind", ["llata", "seasonal_naive"])
def test_scores_match_gluonts(folder, tmp_path, name, kind):
    pytest.importorskip("gluonts")
    from gluonts.dataset.split import split
    from gluonts.ev import metrics
    from gluonts.model import evaluate_model

    task = gift_eval.read_gift_eval_task(folder, name)
    predictor = SeasonalNaivePredictor(task.horizon, task.seasonality)
    if kind == "llata":
        predictor = LlataPredictor(any_series(tmp_path), task.horizon)
    _, template = split(task.series, offset=-task.horizon * task.windows)
    data = template.generate_instances(task.horizon, windows=task.windows, distance=task.horizon)
    m = metrics
    wanted = [m.MSE("mean"), m.MSE(0.5), m.MAE(), m.MASE(), m.MAPE(), m.SMAPE(), m.MSIS(), m.RMSE(), m.NRMSE(), m.ND()]
    wanted.append(m.MeanWeightedSumQuantileLoss(quantile_levels=gift_eval.DECILES))
    theirs = evaluate_model(
        predictor,
        test_data=data,
        metrics=wanted,
        axis=None,
        mask_invalid_label=True,
        allow_nan_forecast=False,
        seasonality=task.seasonality,
    )
    ours = gift_eval.score_gift_eval(predictor, task)
    assert set(ours) == set(gift_eval.GIFT_EVAL_METRICS) == set(theirs.columns)
    assert ours == pytest.approx(theirs.iloc[0].to_dict(), rel=1e-9)


def test_seasonal_naive_on_m4_hourly_matches_the_leaderboard(tmp_path):
    try:
        m4 = read_m4("Hourly")
    except InputError:
        pytest.skip("no files of M4 here: LLATA_DATA names their folder")
    series = [np.concatenate(parts) for parts in zip(m4.insample, m4.future, strict=True)]
    save(tmp_path / "m4_hourly", "H", series)
    task = gift_eval.read_gift_eval_task(tmp_path, "m4_hourly")
    scores = gift_eval.score_gift_eval(SeasonalNaivePredictor(task.horizon, task.seasonality), task)
    # from results/seasonal_naive/all_results.csv of SalesforceAIResearch/gift-eval, which used fp32 values; without
    # MSIS, for which gluonts extrapolates the tails from the quantiles 0.1 to 0.9
    published = {
        "MSE[mean]": 3614355.993558776,
        "MAE[0.5]": 353.8562298711755,
        "MASE[0.5]": 1.1932101877276544,
        "MAPE[0.5]": 0.1561203125786282,
        "sMAPE[0.5]": 0.1391227341312525,
        "NRMSE[mean]": 0.25954838815818215,
        "ND[0.5]": 0.04830918594592099,
        "mean_weighted_sum_quantile_loss": 0.03757255147212195,
    }
    assert {name: scores[name] for name in published} == pytest.approx(published, rel=1e-6)


def test_result_files_match_the_leaderboard(folder, tmp_path):
    task = gift_eval.read_gift_eval_task(folder, "m4_weekly")
    submission = gift_eval.Submission("naive", "statistical", "No")
    files = gift_eval.ResultFiles(tmp_path / "results", submission)
    scores = gift_eval.score_gift_eval(SeasonalNaivePredictor(task.horizon, task.seasonality), task)
    files.add(task, scores)
    table = pd.read_csv(tmp_path / "results" / "all_results.csv")
    assert list(table) == [
        *("dataset", "model", "eval_metrics/MSE[mean]", "eval_metrics/MSE[0.5]", "eval_metrics/MAE[0.5]"),
        *("eval_metrics/MASE[0.5]", "eval_metrics/MAPE[0.5]", "eval_metrics/sMAPE[0.5]", "eval_metrics/MSIS"),
        *("eval_metrics/RMSE[mean]", "eval_metrics/NRMSE[mean]", "eval_metrics/ND[0.5]"),
        *("eval_metrics/mean_weighted_sum_quantile_loss", "domain", "num_variates"),
    ]
    assert table["dataset"].tolist() == ["m4_weekly/W/short"] and table["num_variates"].tolist() == [1]
    config = json.loads((tmp_path / "results" / "config.json").read_text())
    assert set(config) == {
        *("model", "model_type", "model_dtype", "model_link", "code_link", "org"),
        *("testdata_leakage", "replication_code_available"),
    }
    # a second start continues where the first one ended
    again = gift_eval.ResultFiles(tmp_path / "results", submission)
    assert again.row(task)["eval_metrics/MAE[0.5]"] == pytest.approx(scores["MAE[0.5]"])
    with pytest.raises(InputError, match="another model"):
        gift_eval.ResultFiles(tmp_path / "results", gift_eval.Submission("other", "statistical", "No"))


def test_unknown_sets_and_terms_are_refused(folder):
    for name, term, problem in [("m5", "short", "no such dataset"), ("ett1/H", "tiny", "unknown term")]:
        with pytest.raises(InputError, match=problem):
            gift_eval.read_gift_eval_task(folder, name, term)
    save(folder / "solar" / "H", "H", [np.arange(40.0)])
    with pytest.raises(InputError, match="40 rows is too short for a horizon of 48"):
        gift_eval.read_gift_eval_task(folder, "solar/H")


def test_command_scores_a_run_beside_the_baseline(folder, tmp_path, capsys):
    any_series(tmp_path).save_pretrained(tmp_path / "run")
    command = ["gift_eval", str(tmp_path / "run"), "--data_dir", str(folder), "--output", str(tmp_path / "results")]
    command += ["--model_type", "zero-shot", "--testdata_leakage", "No", "--datasets"]
    main([*command, "m4_weekly"])
    # existing results are not scored again
    main([*command, "m4_weekly", "ett1/H"])
    for model in ("llata", "seasonal_naive"):
        table = pd.read_csv(tmp_path / "results" / model / "all_results.csv")
        assert table["dataset"].tolist() == ["m4_weekly/W/short", "ett1/H/short"] and (table["model"] == model).all()
        assert np.isfinite(table["eval_metrics/MASE[0.5]"]).all()
    assert "ett1/H/short: seasonal_naive MASE" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "m4_weekly", "--batch_size", "0"])
    assert "batch_size must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "m4_weekly", "--model", "seasonal_naive"])
    assert "a valid folder name" in capsys.readouterr().err
