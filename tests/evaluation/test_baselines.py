"""The baselines, and how they are scored."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import all_windows, waves

from llata_fast.evaluation.baselines import score, seasonal_naive

L, H, C = 8, 3, 2


@given(seasonality=st.integers(1, 12), horizon=st.integers(1, 30))
def test_seasonal_naive_repeats_the_last_period(seasonality, horizon):
    past = torch.arange(2.0 * L * C).reshape(2, L, C)
    forecast = seasonal_naive(seasonality, horizon)(past, torch.ones_like(past, dtype=torch.bool))
    # a period longer than the lookback is cut to it
    period = past[:, -min(seasonality, L) :].numpy()
    np.testing.assert_array_equal(forecast.numpy(), np.tile(period, (1, horizon, 1))[:, :horizon])


def test_seasonal_naive_fills_a_gap_with_the_mean():
    past = torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0, 0.0])[None, :, None]
    observed = torch.tensor([1, 1, 1, 0, 1, 0], dtype=torch.bool)[None, :, None]
    assert seasonal_naive(3, 4)(past, observed).flatten().tolist() == [2.75, 5.0, 2.75, 2.75]
    assert seasonal_naive(3, 1)(past, torch.zeros_like(observed)).item() == 0


def test_every_window_is_scored_once():
    windows = waves(gaps=[(30, 1)])
    naive = seasonal_naive(4, H)
    scores = score(naive, windows, ["a", "b"])
    for batch_size in (1, 7, 1000):
        assert sum(len(past) for past, _, _ in windows.batches(batch_size)) == len(windows)
        again = score(naive, windows, ["a", "b"], batch_size)
        assert again.pop("per_channel") == {
            name: pytest.approx(errors, rel=1e-12) for name, errors in scores["per_channel"].items()
        }
        assert again == pytest.approx({name: scores[name] for name in ("mse", "mae")}, rel=1e-12)
    past, observed, future = all_windows(windows)
    error = (naive(past, observed) - future).double().numpy()
    assert scores["mse"] == pytest.approx(np.nanmean(error**2))
    assert scores["mae"] == pytest.approx(np.nanmean(np.abs(error)))
    assert scores["per_channel"]["b"]["mse"] == pytest.approx(np.nanmean(error[..., 1] ** 2))
