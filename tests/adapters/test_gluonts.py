"""The predictor forecasts what the forecaster does, complete and in the shape of each entry."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.adapters.gluonts import LlataPredictor, SeasonalNaivePredictor
from llata_fast.errors import InputError
from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture
def forecaster(tmp_path):
    info = Preprocessor("waves", ["a", "b"], "date", "h", 24, mean=[0.0] * 2, scale=[1.0] * 2)
    calibration = Calibration(torch.randn(5, 2, len(CALIBRATED_LEVELS)).sort(-1).values, 100)
    return Forecaster(tiny_model(random_backbone(tmp_path)), info, calibration)


def entries(count, channels, rows=30):
    start = pd.Period("2024-01-01", freq="D")
    targets = np.random.default_rng(0).normal(size=(count, channels, rows)).cumsum(-1)
    return [{"item_id": f"i{place}", "start": start, "target": target} for place, target in enumerate(targets)]


def test_forecasts_match_the_forecaster(forecaster):
    data = entries(5, 2)
    data[1]["target"][0, -4:] = np.nan
    predictor = LlataPredictor(forecaster, 5, levels=(0.9, 0.1), batch_size=2)
    forecasts = list(predictor.predict(iter(data)))
    points, quantiles = forecaster.predict([entry["target"].T for entry in data], quantile_levels=[0.1, 0.9])
    assert [forecast.item_id for forecast in forecasts] == ["i0", "i1", "i2", "i3", "i4"]
    for forecast, point, spread in zip(forecasts, points, quantiles, strict=True):
        for ours, theirs in (("mean", point), ("0.1", spread[..., 0]), ("p90", spread[..., 1])):
            np.testing.assert_allclose(forecast[ours], theirs, rtol=1e-5)
        assert forecast.start_date == pd.Period("2024-01-31", freq="D") and forecast.prediction_length == 5
        assert (forecast["0.1"] <= forecast.median).all() and (forecast.median <= forecast["0.9"]).all()


def test_series_with_gaps_have_complete_forecasts(forecaster):
    data = entries(3, 2)
    data[0]["target"][0] = np.nan
    data[2]["target"][1, -20:] = np.nan
    first, _, last = LlataPredictor(forecaster, 5).predict(data)
    assert (first["mean"][:, 0] == 0).all() and not np.isnan(first.quantiles).any()
    known = data[2]["target"][1, 9]
    assert (last["mean"][:, 1] == known).all() and (last["0.1"][:, 1] == known).all()


def test_other_channels_are_refused(forecaster):
    with pytest.raises(InputError, match=r"\[steps, 2\]"):
        list(LlataPredictor(forecaster, 5).predict(entries(1, 3)))


def test_baseline_repeats_the_last_season():
    target = np.tile([1.0, 2, 3, 4], 5)
    (forecast,) = SeasonalNaivePredictor(6, 4).predict([{"target": target, "item_id": "a"}])
    assert forecast["mean"].tolist() == forecast["0.9"].tolist() == [1, 2, 3, 4, 1, 2]
