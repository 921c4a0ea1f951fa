"""A limit on tokens and values bounds the memory of a forecast for any series."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_config, tiny_model

from llata_fast import config
from llata_fast.data import TimeSeries
from llata_fast.forecasting import batches, panel_forecasts
from llata_fast.forecasting.batches import TOKENS_AT_ONCE, VALUES_PER_BATCH, windows_at_once
from llata_fast.forecasting.panel_forecasts import PanelForecaster
from llata_fast.forecasting.wide import WideForecaster
from llata_fast.preprocessor import Preprocessor


@pytest.mark.parametrize("patches", [{}, {"patch_length": 4, "patch_stride": 2}], ids=["variates", "patches"])
@pytest.mark.parametrize("num_channels", [1, 7, 862, 3000, 10_000])
@pytest.mark.parametrize("paths", [1, 10])
def test_batches_respect_the_limit(patches, num_channels, paths, backbone):
    config = tiny_config(backbone, **patches)
    number = windows_at_once(config, num_channels, 50, paths)
    tokens = num_channels * (1 if not patches else config.num_patches) * paths
    assert number >= 1
    assert number == 1 or (number * tokens <= TOKENS_AT_ONCE and number * num_channels * 50 * paths <= VALUES_PER_BATCH)
    # and it is the largest batch within the limit
    assert (number + 1) * tokens > TOKENS_AT_ONCE or (number + 1) * num_channels * 50 * paths > VALUES_PER_BATCH


def wide_series(rows, num_channels):
    dates = pd.date_range("2024-01-01", periods=rows, freq="h")
    values = np.random.default_rng(0).normal(size=(rows, num_channels))
    columns = tuple(f"c{number}" for number in range(num_channels))
    return TimeSeries("wide", values, dates, columns, frequency="h", seasonality=24, date_column="date")


def forecaster(backbone, series):
    model = tiny_model(backbone).eval()
    count = len(series.columns)
    return WideForecaster(
        model, Preprocessor("wide", list(series.columns), "date", "h", 24, [0.0] * count, [1.0] * count)
    )


def test_many_channels_are_forecast_a_few_rows_at_a_time(backbone, plain_ops, monkeypatch):
    series = wide_series(30, 40)
    whole = pd.concat(forecaster(backbone, series).stream(series))
    monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 120)
    sizes = [len(table) // 5 for table in forecaster(backbone, series).stream(series, batch_size=100)]
    assert max(sizes) == 3 and sum(sizes) == 30 - 12 + 1
    assert len(whole) == 5 * sum(sizes)


def test_memory_does_not_grow_with_the_windows(backbone, plain_ops):
    """Thirty times the forecasts have the same peak of Python's and numpy's memory."""
    series, peaks = wide_series(9_000, 40), []
    for every in (60, 2):
        ready = forecaster(backbone, series)
        tracemalloc.start()
        count = sum(len(table) for table in ready.stream(series, every)) // 5
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert count > 4000
    assert peaks[1] < 1.5 * peaks[0]


LEVELS = [0.1, 0.5, 0.9]
PATCHES = {"patch_length": 4, "patch_stride": 2}


def most_tokens(model, call):
    """The most tokens that any module of `model` returns at once during `call()`, and the result of `call()`."""
    seen = []

    def note(module, inputs, output):
        tokens = output[0] if isinstance(output, tuple) else output
        if isinstance(tokens, torch.Tensor) and tokens.ndim > 2 and tokens.shape[-1] == model.config.hidden_size:
            seen.append(tokens.numel() // tokens.shape[-1])

    hooks = [part.register_forward_hook(note) for part in model.modules()]
    result = call()
    for hook in hooks:
        hook.remove()
    return max(seen), result


@pytest.mark.parametrize("fields", [{}, {"linear_skip": True}, {"quantile_levels": LEVELS}], ids=str)
@pytest.mark.parametrize("num_channels", [9, 30, 300])
def test_a_window_of_many_channels_goes_through_in_groups(fields, num_channels, backbone, plain_ops, monkeypatch):
    """With patches every channel is a separate sequence: groups give the same forecasts with fewer tokens at once."""
    model = tiny_model(backbone, **PATCHES, **fields).eval()
    past = torch.randn(2, 12, num_channels).cumsum(1)
    observed = torch.rand(past.shape) > 0.1
    with torch.no_grad():
        whole, expected = most_tokens(model, lambda: model(past, past_observed_mask=observed))
        monkeypatch.setattr(config, "TOKENS_AT_ONCE", 40)
        tokens, output = most_tokens(model, lambda: model(past, past_observed_mask=observed))
    assert whole == 2 * num_channels * model.config.num_patches
    # for both windows
    assert tokens <= 2 * 40
    for name, values in expected.items():
        torch.testing.assert_close(output[name], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("patches", [{}, PATCHES], ids=["variates", "patches"])
def test_paths_of_one_window_are_no_more_than_a_batch(patches, backbone, plain_ops, monkeypatch):
    """Beyond the trained horizon a window continues as ten paths; with many channels, one path at a time."""
    model = tiny_model(backbone, **patches, quantile_levels=LEVELS).eval()
    ahead = PanelForecaster(model, None)
    past = torch.randn(1, 12, 30, dtype=torch.float64).cumsum(1)
    _, expected = most_tokens(model, lambda: ahead(past, 8, LEVELS))
    for module in (config, panel_forecasts):
        monkeypatch.setattr(module, "TOKENS_AT_ONCE", 40)
    tokens, found = most_tokens(model, lambda: ahead(past, 8, LEVELS))
    assert tokens <= 40
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_channels_that_attend_to_each_other_are_one_sequence(backbone, plain_ops, monkeypatch):
    monkeypatch.setattr(config, "TOKENS_AT_ONCE", 40)
    model = tiny_model(backbone).eval()
    with torch.no_grad():
        tokens, _ = most_tokens(model, lambda: model(torch.randn(1, 12, 60).cumsum(1)))
    assert tokens == 60
