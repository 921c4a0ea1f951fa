"""A limit on tokens and values bounds the memory of a forecast for any series."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from tiny import tiny_config, tiny_model

from llata_fast.data import TimeSeries
from llata_fast.forecasting import batches
from llata_fast.forecasting.batches import TOKENS_PER_BATCH, VALUES_PER_BATCH, windows_at_once
from llata_fast.forecasting.wide import WideForecaster
from llata_fast.run_folder import Preprocessor


@pytest.mark.parametrize("patches", [{}, {"patch_length": 4, "patch_stride": 2}], ids=["variates", "patches"])
@pytest.mark.parametrize("num_channels", [1, 7, 862, 3000, 10_000])
@pytest.mark.parametrize("paths", [1, 10])
def test_batches_respect_the_limit(patches, num_channels, paths, backbone):
    config = tiny_config(backbone, **patches)
    number = windows_at_once(config, num_channels, 50, paths)
    tokens = num_channels * (1 if not patches else config.num_patches) * paths
    assert number >= 1
    assert number == 1 or (
        number * tokens <= TOKENS_PER_BATCH and number * num_channels * 50 * paths <= VALUES_PER_BATCH
    )
    # and it is the largest batch within the limit
    assert (number + 1) * tokens > TOKENS_PER_BATCH or (number + 1) * num_channels * 50 * paths > VALUES_PER_BATCH


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
    monkeypatch.setattr(batches, "TOKENS_PER_BATCH", 120)
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
