"""M4's scores and Naive2: by hand, and on the competition's Hourly data, whose Naive2 scores are published."""

import numpy as np
import pytest

from llata_fast.data.m4 import M4_SPECS, M4Set, read_m4
from llata_fast.evaluation import m4_scores as scoring


def test_smape_by_hand():
    forecast, actual = np.array([[100.0, 50.0], [0.0, 3.0]]), np.array([[150.0, 50.0], [0.0, 1.0]])
    # 200 * 50 / 250, 0, 0 by convention, 200 * 2 / 4
    assert scoring.smape(forecast, actual) == pytest.approx((40 + 0 + 0 + 100) / 4)


def test_mase_by_hand():
    insample = [np.array([1.0, 2.0, 4.0, 7.0]), np.array([10.0, 10.0, 30.0])]
    forecast, actual = np.array([[8.0, 9.0], [30.0, 30.0]]), np.array([[10.0, 12.0], [30.0, 60.0]])
    # errors 2.5 and 15; steps of one row 2 and 10, of two rows 4 and 20
    assert scoring.mase(forecast, actual, insample, 1) == pytest.approx((2.5 / 2 + 15 / 10) / 2)
    assert scoring.mase(forecast, actual, insample, 2) == pytest.approx((2.5 / 4 + 15 / 20) / 2)


def test_naive2_repeats_an_exact_season():
    """Level times seasonal factors: the decomposition finds the factors, and the forecast repeats them."""
    factors = np.array([0.5, 1.0, 1.5, 1.0])
    values = 40 * np.tile(factors, 5)[:-1]
    assert scoring.is_seasonal(values, 4)
    np.testing.assert_allclose(scoring.seasonal_indices(values, 4), factors)
    np.testing.assert_allclose(scoring.naive2(values, 6, 4), 40 * np.array([1.0, 0.5, 1.0, 1.5, 1.0, 0.5]))


def test_odd_season_and_trend_by_hand():
    # m = 3: the trend is the mean of three values, exact on a line; the ratios average to 1, 1, 1
    np.testing.assert_allclose(scoring.seasonal_indices(np.arange(3.0, 15.0), 3), np.ones(3))


@pytest.mark.parametrize(
    "values, seasonality",
    [
        (np.tile([1.0, 5.0], 20), 1),
        (np.tile([1.0, 5.0, 2.0, 8.0], 3)[:-1], 4),
        (np.random.default_rng(0).normal(10, 1, 200), 12),
        (np.full(40, 3.0), 4),
        # 72 values: R's acf ends at lag 18
        (np.tile(np.arange(1.0, 25.0), 3), 24),
    ],
    ids=["no season", "under three seasons", "noise", "constant", "beyond the lags"],
)
def test_naive2_is_naive_without_a_season(values, seasonality):
    assert not scoring.is_seasonal(values, seasonality)
    assert scoring.naive2(values, 3, seasonality).tolist() == [values[-1]] * 3


def test_seasonality_limit_by_hand():
    """At m = 2 the limit is 1.645 / sqrt(n) * sqrt(1 + 2 r1^2)."""
    rng = np.random.default_rng(1)
    decisions = set()
    for _ in range(200):
        values = rng.normal(10, 1, 30) + rng.uniform(0, 1) * np.tile([0, 1], 15)
        x = values - values.mean()
        r1, r2 = ((x[lag:] * x[:-lag]).sum() / (x * x).sum() for lag in (1, 2))
        expected = abs(r2) > 1.645 / np.sqrt(30) * np.sqrt(1 + 2 * r1**2)
        assert scoring.is_seasonal(values, 2) == expected
        decisions.add(bool(expected))
    assert decisions == {True, False}


def test_naive2_scores_on_hourly_match_the_published_ones(shared):
    m4 = read_m4("Hourly", shared("data"))
    scores = scoring.m4_scores(scoring.naive2_forecasts(m4), m4)
    assert round(scores["smape"], 3) == 18.383
    assert round(scores["mase"], 3) == 2.395
    assert scores["owa"] == 1


def test_owa_is_the_mean_of_both_ratios():
    values = np.array([2.0, 4.0, 3.0, 5.0, 4.0, 6.0, 5.0, 7.0])
    future = np.full((1, 6), 8.0)
    m4 = M4Set(M4_SPECS["Yearly"], ("Y1",), (values,), future)
    # Naive2 repeats 7: sMAPE 200 / 15, error 1; the forecast is 10: sMAPE 400 / 18, error 2
    scores = scoring.m4_scores(np.full((1, 6), 10.0), m4)
    assert scores["smape"] == pytest.approx(400 / 18)
    assert scores["mase"] == pytest.approx(2 / np.abs(np.diff(values)).mean())
    assert scores["owa"] == pytest.approx(((400 / 18) / (200 / 15) + 2) / 2)
