"""The forecaster with sktime's interface passes sktime's own checks and forecasts what the run does."""

import gc

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.errors import InputError
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

pytest.importorskip("sktime")
pytestmark = pytest.mark.usefixtures("plain_ops")


# about 300 trainings: two minutes on an idle core
@pytest.mark.timeout(3600)
def test_sktime_checks_pass():
    from sktime.utils.estimator_checks import check_estimator

    from llata_fast.adapters.sktime import LlataForecaster

    # Only one set of parameters, since every check of fitting trains. Freezing keeps each training's garbage
    # collection from walking through the objects that exist by now.
    gc.freeze()
    checked = LlataForecaster(**LlataForecaster.get_test_params()[1])
    results = check_estimator(checked, raise_exceptions=False, verbose=0)
    gc.unfreeze()
    assert len(results) > 100
    assert {name: problem for name, problem in results.items() if problem != "PASSED"} == {}


@pytest.fixture
def run(tmp_path):
    info = Preprocessor("waves", ["a"], "date", "h", 24, mean=[0.0], scale=[1.0])
    calibration = Calibration(torch.randn(5, 1, len(CALIBRATED_LEVELS)).sort(-1).values, 9)
    forecaster = Forecaster(tiny_model(random_backbone(tmp_path)), info, calibration)
    forecaster.save_pretrained(tmp_path / "run")
    return str(tmp_path / "run")


def test_run_forecasts_the_same_through_sktime(run):
    from llata_fast.adapters.sktime import LlataForecaster

    y = pd.Series(np.random.default_rng(0).normal(size=40).cumsum(), pd.period_range("2024-01", periods=40, freq="M"))
    forecaster = LlataForecaster(run=run).fit(y)
    (points,), (quantiles,) = Forecaster.from_pretrained(run).predict([y.to_numpy()], quantile_levels=[0.1, 0.9])
    np.testing.assert_allclose(forecaster.predict(fh=[1, 3, 5]), points[[0, 2, 4], 0], rtol=1e-6)
    interval = forecaster.predict_interval(fh=[2, 5], coverage=0.8)
    np.testing.assert_allclose(interval.to_numpy(), quantiles[[1, 4], 0], rtol=1e-6)
    # it continues from the values passed to update
    later = pd.Series([5.0, 6.0], pd.period_range("2027-05", periods=2, freq="M"))
    (moved,), _ = Forecaster.from_pretrained(run).predict([pd.concat([y, later]).to_numpy()])
    np.testing.assert_allclose(forecaster.update(later).predict(fh=[1]), moved[:1, 0], rtol=1e-6)


def test_items_that_end_early_are_forecast_for_the_same_dates(run):
    from llata_fast.adapters.sktime import LlataForecaster

    dates = pd.date_range("2024-01-01", periods=30, freq="h")
    index = pd.MultiIndex.from_tuples([("a", date) for date in dates] + [("b", date) for date in dates[:26]])
    y = pd.DataFrame({"y": np.random.default_rng(0).normal(size=56)}, index)
    forecast = LlataForecaster(run=run).fit(y).predict(fh=[1, 2])
    ends = pd.date_range("2024-01-02 06:00", periods=2, freq="h")
    assert forecast.index.tolist() == [(item, date) for item in "ab" for date in ends]
    padded = np.concatenate([y.loc["b", "y"].to_numpy(), [np.nan] * 4])
    (expected,), _ = Forecaster.from_pretrained(run).predict([padded])
    np.testing.assert_allclose(forecast.loc["b", "y"], expected[:2, 0], rtol=1e-5, atol=1e-5)


def test_settings_are_refused_beside_a_run(run):
    from llata_fast.adapters.sktime import LlataForecaster

    with pytest.raises(InputError, match="context_length"):
        LlataForecaster(run=run, context_length=5).fit(pd.Series(np.arange(30.0)))


def test_training_beats_the_last_value(tmp_path):
    from sktime.forecasting.naive import NaiveForecaster

    from llata_fast.adapters.sktime import LlataForecaster

    y = pd.Series(np.sin(2 * np.pi * np.arange(120) / 12) + np.arange(120) / 50)
    known, ahead = y[:108], y[108:]
    settings = LlataForecaster.get_test_params()[0]["settings"] | {"max_steps": 4}
    errors = [
        (forecaster.fit(known, fh=range(1, 13)).predict() - ahead).abs().mean()
        for forecaster in (LlataForecaster(context_length=36, settings=settings), NaiveForecaster())
    ]
    assert errors[0] < 0.5 * errors[1]
