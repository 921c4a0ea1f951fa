"""Streamed errors equal scikit-learn's over all observed values, for any batches."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, mean_squared_error
from transformers import EvalPrediction

from llata_fast.metrics import ForecastMetrics

COLUMNS = ["a", "b", "c"]


def pair(windows, missing=0.0):
    """Prediction and target [windows, 4, 3]."""
    prediction, target = torch.randn(2, windows, 4, 3) * torch.tensor([1.0, 10.0, 100.0])
    return prediction, target.masked_fill(torch.rand(target.shape) < missing, torch.nan)


def stream(prediction, target, sizes):
    metrics = ForecastMetrics(COLUMNS)
    for part in zip(prediction.split(sizes), target.split(sizes), strict=True):
        metrics.update(*part)
    return metrics.compute(), metrics.per_channel


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    missing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 999),
)
def test_sklearn_agrees_whatever_the_batches(sizes, missing, seed):
    torch.manual_seed(seed)
    prediction, target = pair(sum(sizes), missing)
    target[0, 0] = 0.0  # at least one value in every channel
    scores, per_channel = stream(prediction, target, sizes)

    def errors(prediction, target):
        observed = ~target.isnan()
        values = target[observed].double(), prediction[observed].double()
        return {"mse": pytest.approx(mean_squared_error(*values)), "mae": pytest.approx(mean_absolute_error(*values))}

    assert scores == errors(prediction, target)
    assert per_channel == {name: errors(prediction[..., c], target[..., c]) for c, name in enumerate(COLUMNS)}


def test_sums_are_float64():
    """A million equal errors: an fp32 sum would stop growing."""
    metrics = ForecastMetrics(["a"])
    target = torch.zeros(1000, 100, 1)
    for _ in range(200):
        metrics.update(target + 0.1, target)
    assert metrics.compute()["mae"] == pytest.approx(0.1, rel=1e-7)


def test_large_values_keep_their_digits():
    metrics = ForecastMetrics(["a"])
    metrics.update(torch.full((1, 1, 1), 1020.0, dtype=torch.bfloat16), torch.full((1, 1, 1), 1019.187))
    assert metrics.compute()["mae"] == pytest.approx(0.813, rel=1e-4)


def test_trainer_protocol():
    """It returns nothing for each batch and all scores for the last one, and then starts again."""
    prediction, target = pair(5, missing=0.2)
    metrics = ForecastMetrics(COLUMNS)
    batches = [EvalPrediction(*part) for part in zip(prediction.split(2), target.split(2), strict=True)]
    for _ in range(2):
        assert [metrics(batch, compute_result=False) for batch in batches[:-1]] == [{}, {}]
        assert metrics(batches[-1], compute_result=True) == stream(prediction, target, [5])[0]
    assert list(metrics.per_channel) == COLUMNS
    json.dumps(metrics.per_channel)


def test_channel_without_values():
    """Its errors are NaN; those of the other channels are not."""
    prediction, target = pair(3)
    target[..., 1] = torch.nan
    scores, per_channel = stream(prediction, target, [3])
    assert np.isnan(per_channel["b"]["mse"]) and np.isnan(per_channel["b"]["mae"])
    assert scores == stream(prediction, target, [1, 2])[0]
    assert scores["mse"] == pytest.approx((prediction - target)[..., [0, 2]].double().square().mean().item())


def test_nothing_observed():
    metrics = ForecastMetrics(["a"])
    metrics.update(torch.zeros(1, 4, 1), torch.full((1, 4, 1), torch.nan))
    assert all(np.isnan(value) for value in metrics.compute().values())
