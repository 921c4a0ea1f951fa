"""Windows are slices of the series, splits have the usual borders, and the scaler uses only training rows."""

import importlib.util
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from llata_fast.data import (
    StandardScaler,
    TimeSeries,
    WindowDataset,
    WindowUnits,
    collate,
    evaluation_windows,
    read_series,
    split_windows,
)
from llata_fast.errors import InputError


def make_series(values, split_rows=None):
    values = np.asarray(values, dtype=np.float64)
    dates = pd.date_range("2024-01-01", periods=len(values), freq="h")
    columns = tuple(f"c{channel}" for channel in range(values.shape[1]))
    return TimeSeries("toy", values, dates, columns, "h", 24, "date", split_rows)


@pytest.fixture
def series():
    """200 rows, 3 channels with different levels and spreads."""
    return make_series(np.random.randn(200, 3).cumsum(axis=0) * [1, 10, 1000] + [0, 5, -1e5])


@given(st.data())
def test_windows_are_slices(data):
    draw = lambda low, high: data.draw(st.integers(low, high))
    context, horizon, channels, skipped = draw(1, 6), draw(1, 6), draw(1, 4), draw(0, 3)
    rows = context + horizon + draw(0, 9)
    # a split is a slice of a longer tensor
    values = torch.randn(skipped + rows, channels, dtype=torch.float64)[skipped:]
    gaps = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, channels - 1)), max_size=3))
    for row, channel in gaps:
        values[row, channel] = torch.nan
    windows = WindowDataset(values, context, horizon)
    assert len(windows) == rows - context - horizon + 1

    indices = data.draw(st.lists(st.integers(0, len(windows) - 1), min_size=1, max_size=5))
    batch = windows.__getitems__(indices)
    assert ("past_observed_mask" in batch) == bool(gaps)
    for position, start in enumerate(indices):
        past, future = values[start : start + context], values[start + context : start + context + horizon]
        item = windows[start]
        assert item.keys() == batch.keys()
        for got in (item, {key: value[position] for key, value in batch.items()}):
            units = WindowUnits.of(past)
            torch.testing.assert_close(got["past_values"], units.remove(past), rtol=0, atol=0)
            torch.testing.assert_close(got["window_scale"], units.scale[0].float(), rtol=0, atol=0)
            series = got["window_level"] + got["window_scale"] * got["past_values"]
            observed = ~past.isnan()
            torch.testing.assert_close(series[observed], past.float()[observed], rtol=1e-5, atol=1e-6)
            expected = (future - units.level).float()
            torch.testing.assert_close(got["future_values"], expected, rtol=0, atol=0, equal_nan=True)
            if gaps:
                assert torch.equal(got["past_observed_mask"], observed)
    ((past, observed, future),) = windows.batches(len(windows))
    for start in range(len(windows)):
        whole = torch.cat((past[start].masked_fill(~observed[start], torch.nan), future[start]))
        unseen = ~observed[start].any(0)
        assert whole[context:, unseen].isnan().all()
        expected = values[start : start + context + horizon]
        torch.testing.assert_close(whole[:, ~unseen], expected[:, ~unseen], rtol=0, atol=0, equal_nan=True)


def test_batches_are_contiguous():
    windows = WindowDataset(torch.randn(50, 7), 8, 4)
    assert all(value.is_contiguous() for value in windows.__getitems__([5, 1, 5]).values())


def test_index_beyond_the_last_window():
    windows = WindowDataset(torch.randn(20, 2), 8, 4)
    future = windows[-1]["future_values"] + windows[-1]["window_level"]
    torch.testing.assert_close(future, windows.values[-4:].float(), rtol=1e-5, atol=1e-6)
    assert len(list(windows)) == len(windows) == 9
    with pytest.raises(IndexError):
        windows.__getitems__([9])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_loader_gives_every_window_once(batch_size):
    windows = WindowDataset(torch.arange(60.0)[:, None], 5, 3)
    batches = list(DataLoader(windows, batch_size=batch_size, shuffle=True, collate_fn=collate))
    middles = torch.cat([batch["window_level"][:, 0] for batch in batches])
    assert sorted(middles.tolist()) == list(range(2, 55))


def test_to_device(device):
    windows = WindowDataset(torch.randn(30, 2), 4, 4).to(device)
    assert windows.__getitems__([0, 3])["past_values"].device.type == device.type


def test_split_borders(series):
    splits = split_windows(series, 12, 6)
    values = torch.from_numpy(splits.scaler.transform(series.values))
    # 140, 20 and 40 rows; lookbacks of validation and test reach into the split before, their targets do not
    for windows, first_target, rows in zip(splits[:3], (12, 140, 160), (128, 20, 40), strict=True):
        assert len(windows) == rows - 6 + 1
        past, future = windows.stretches([0, len(windows) - 1])
        assert torch.equal(future[0], values[first_target : first_target + 6])
        assert torch.equal(past[0], values[first_target - 12 : first_target])
        assert torch.equal(future[1], values[first_target + rows - 6 : first_target + rows])


def test_splits_of_given_rows_ignore_the_rest(series):
    splits = split_windows(make_series(series.values, (100, 30, 20)), 12, 6)
    assert [len(windows) for windows in splits[:3]] == [83, 25, 15]
    with pytest.raises(InputError, match=r"toy has 200 rows, but its splits need 150 \+ 30 \+ 30"):
        split_windows(make_series(series.values, (150, 30, 30)), 12, 6)


def test_scaler_sees_training_rows_only(series):
    scaler = split_windows(series, 12, 6).scaler
    np.testing.assert_allclose(scaler.mean, series.values[:140].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scaler.scale, series.values[:140].std(axis=0), rtol=1e-12)
    changed = series.values.copy()
    changed[140:] = 1e9
    after = split_windows(make_series(changed), 12, 6).scaler
    assert scaler.to_dict() == after.to_dict()


def test_scaler_round_trips(series):
    scaler = StandardScaler.fit(series.values, series.columns)
    restored = StandardScaler.from_dict(json.loads(json.dumps(scaler.to_dict())))
    standardised = restored.transform(series.values)
    np.testing.assert_allclose(standardised.std(axis=0), 1)
    np.testing.assert_allclose(scaler.inverse_transform(standardised), series.values, rtol=1e-12)


def test_scaler_leaves_missing_values_out(series):
    gappy = series.values.copy()
    gappy[3:9, 1] = np.nan
    scaler = StandardScaler.fit(gappy, series.columns)
    np.testing.assert_allclose(scaler.scale[1], np.delete(gappy[:, 1], np.s_[3:9]).std(), rtol=1e-12)
    gappy[:140, 2] = np.nan
    with pytest.raises(InputError, match="column 'c2' has no value in the 140 training rows"):
        split_windows(make_series(gappy), 12, 6)


def test_constant_column_is_scaled_by_one(series):
    values = series.values.copy()
    # sums of 0.1 round, so the standard deviation is not exactly 0
    values[:, 1] = 0.1
    values[5, 1] = np.nan
    with pytest.warns(UserWarning, match="constant in the training rows, scaled by 1: 'c1'"):
        splits = split_windows(make_series(values), 12, 6)
    assert splits.scaler.scale[1] == 1
    batch = splits.train.__getitems__(range(len(splits.train)))
    assert (batch["past_values"][..., 1] == 0).all()


@pytest.mark.parametrize(("horizon", "num_windows"), [(96, 332), (192, 236), (336, 92)])
def test_few_shot_rows(horizon, num_windows):
    values = np.random.randn(14400, 1)
    full = split_windows(make_series(values, (8640, 2880, 2880)), 96, horizon)
    few = split_windows(make_series(values, (8640, 2880, 2880)), 96, horizon, few_shot_percent=5)
    assert len(few.train) == num_windows
    assert torch.equal(few.train.values, full.train.values[: num_windows + 96 + horizon - 1])
    assert [len(few.val), len(few.test)] == [len(full.val), len(full.test)]
    assert few.scaler.to_dict() == full.scaler.to_dict()


@pytest.mark.parametrize(
    ("context", "horizon", "percent", "message"),
    [
        (100, 60, None, "toy, train split: 140 rows are too few for context 100 + horizon 60"),
        (12, 30, None, "toy, validation split: 32 rows are too few for context 12 + horizon 30"),
        (12, 18, 5, "toy, train split: 18 rows are too few for context 12 + horizon 18"),
        (150, 1, None, "train split: 140 rows"),
        (0, 6, None, r"context \(0\) and horizon \(6\) must be at least 1"),
        (12, 6, 0, "few_shot_percent must be above 0 and at most 100, got 0"),
        (12, 6, 101, "got 101"),
    ],
)
def test_split_without_a_window(series, context, horizon, percent, message):
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        split_windows(series, context, horizon, few_shot_percent=percent)


def test_values_too_large_for_fp32_are_refused(series):
    with pytest.raises(InputError, match="column 'b': its values are too large to standardise"):
        StandardScaler.fit(np.array([[0.0, 1e300], [1.0, -1e300]]), ["a", "b"])
    far = series.values.copy()
    far[-1, 1] = 1e30
    with pytest.raises(InputError, match="1e\\+30 is .* standard deviations from"):
        split_windows(make_series(far), 3, 2)


def test_a_split_without_a_value_to_forecast(series):
    values = series.values.copy()
    values[int(0.8 * len(values)) :] = np.nan
    for read in (split_windows, evaluation_windows):
        with pytest.raises(InputError, match="test split: every value to forecast is missing"):
            read(make_series(values), 3, 2)


def test_evaluation_windows_are_the_test_split(series):
    splits = split_windows(series, 12, 6)
    windows, scaler = evaluation_windows(series, 12, 6)
    assert torch.equal(windows.values, splits.test.values)
    assert scaler.to_dict() == splits.scaler.to_dict()
    # a lookback longer than the training rows, but not longer than the rows before the test targets
    windows, _ = evaluation_windows(series, 150, 6)
    assert len(windows) == 35
    with pytest.raises(InputError, match="toy, test split: 200 rows are too few"):
        evaluation_windows(series, 190, 20)


def test_metro_windows_keep_missing_targets():
    if importlib.util.find_spec("autots") is None:
        pytest.skip("the package autots, which carries the file, is not installed")
    splits = split_windows(read_series("Metro"), 336, 96)
    assert [len(windows) for windows in splits[:3]] == [11833, 1657, 3409]
    for windows in splits[:3]:
        batch = windows.__getitems__(range(0, len(windows), 16))
        assert batch["past_values"].isfinite().all()
        assert (batch["past_values"][~batch["past_observed_mask"]] == 0).all()


def test_a_batch_costs_little_more_than_a_copy_of_its_windows():
    windows = WindowDataset(torch.randn(8640, 7), 96, 96)
    batches = [indices.tolist() for indices in torch.randperm(len(windows))[:8192].split(256)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # warm-up: the first batch measures the windows once
        windows.__getitems__(batches[0])
        pairs = [(_seconds(windows.__getitems__, batches), _seconds(windows.stretches, batches)) for _ in range(10)]
    finally:
        torch.set_num_threads(threads)
    made, copied = map(min, zip(*pairs, strict=True))
    assert made < 6 * copied


def _seconds(make, batches):
    # CPU time of this process: the machine may be busy
    start = time.process_time()
    for indices in batches:
        make(indices)
    return time.process_time() - start
