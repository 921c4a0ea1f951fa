"""Windows of a panel: split by time within each item, short items padded, items with large values weighted alike."""

import numpy as np
import pandas as pd
import pytest
import torch

from llata_fast.data.panel import Panel
from llata_fast.data.panel_windows import panel_splits
from llata_fast.errors import InputError, InputWarning

L, H = 12, 4


def make_panel(sizes, scales=None, seed=0):
    draws = np.random.default_rng(seed)
    scales = [1.0] * len(sizes) if scales is None else scales
    parts = [
        pd.DataFrame(
            {
                "item_id": place,
                "timestamp": pd.date_range("2024-01-01", periods=size, freq="h"),
                "target": scale * draws.normal(size=size).cumsum(),
            }
        )
        for place, (size, scale) in enumerate(zip(sizes, scales, strict=True))
    ]
    return Panel.from_df(pd.concat(parts))


def test_targets_of_a_split_lie_in_its_rows():
    panel = make_panel([100, 60, 200])
    splits = panel_splits(panel, L, H, test_share=0.2)
    ends = {"train": 0, "val": 0, "test": 0}
    for item, length in enumerate(panel.lengths):
        test = max(int(length * 0.2), H)
        val = max(int((length - test) * 0.1), H)
        borders = {"train": (L, length - test - val), "val": (length - test - val, length - test)}
        borders["test"] = (length - test, length)
        for name, windows in zip(("train", "val", "test"), splits, strict=False):
            cuts = windows.cuts[windows.items == item]
            low, high = borders[name]
            assert cuts.tolist() == list(range(low, high - H + 1)), (name, item)
            ends[name] += len(cuts)
    assert list(ends.values()) == [len(windows) for windows in splits[:3]]


def test_training_sees_nothing_after_its_rows():
    panel = make_panel([100])
    changed = make_panel([100])
    changed.values[-10:] = 1e6
    for one, other in zip(
        *(panel_splits(item, L, H).train.__getitems__(range(70)).values() for item in (panel, changed)), strict=True
    ):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_windows_contain_rows_of_one_item_only():
    panel = make_panel([30, 7, 40])
    windows = panel_splits(panel, L, H).train
    for index in range(len(windows)):
        item, cut = int(windows.items[index]), int(windows.cuts[index])
        past, future = windows.stretches([index])
        padded = np.concatenate((np.full(L, np.nan), windows.values[panel.offsets[item] : panel.offsets[item + 1], 0]))
        np.testing.assert_array_equal(past[0, :, 0], padded[cut : cut + L])
        expected = np.full(H, np.nan)
        rest = padded[cut + L : cut + L + H]
        expected[: len(rest)] = rest
        np.testing.assert_array_equal(future[0, :, 0], expected)
    assert set(windows.items.tolist()) == {0, 1, 2}
    short = windows.__getitems__(torch.nonzero(windows.items == 1).flatten().tolist())
    assert not short["past_observed_mask"].all() and short["past_values"].isfinite().all()
    assert short["future_values"].isfinite().any()


def test_windows_do_not_depend_on_an_items_unit():
    plain = panel_splits(make_panel([50, 50], seed=1), L, H).train.__getitems__(range(60))
    large = panel_splits(make_panel([50, 50], [1e9, 1e-9], seed=1), L, H).train.__getitems__(range(60))
    for name in plain:
        torch.testing.assert_close(plain[name], large[name], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_quiet_window_is_scaled_by_its_items_deviation():
    panel = make_panel([60])
    panel.values[20:34] = panel.values[20]
    windows = panel_splits(panel, L, H).train
    index = int(torch.nonzero(windows.cuts == 33).item())
    item = windows[index]
    assert item["window_scale"] == 0 and item["future_values"].isfinite().all()
    deviation = np.nanstd(windows.values.numpy())
    expected = (panel.values[33:37] - panel.values[20]) / deviation
    np.testing.assert_allclose(item["future_values"], expected, rtol=1e-5)


def test_a_constant_item_has_no_targets():
    panel = make_panel([60, 60])
    panel.values[:60] = 3.0
    windows = panel_splits(panel, L, H).train
    batch = windows.__getitems__(range(len(windows)))
    still = windows.items == 0
    assert batch["future_values"][still].isnan().all() and batch["future_values"][~still].isfinite().all()


def test_items_too_short_are_named_and_the_rest_trains():
    with pytest.warns(InputWarning, match="2 of 3 items have fewer than 3 rows and are left out: 0, 2"):
        splits = panel_splits(make_panel_with_step([1, 80, 2]), L, H)
    assert set(splits.train.items.tolist()) == {1}
    with pytest.warns(InputWarning), pytest.raises(InputError, match="no item has the 3 rows"):
        panel_splits(make_panel_with_step([2, 2, 1]), L, H)


def make_panel_with_step(sizes):
    parts = [
        pd.DataFrame(
            {
                "item_id": place,
                "timestamp": pd.date_range("2024-01-01", periods=size, freq="h"),
                "target": np.random.randn(size),
            }
        )
        for place, size in enumerate(sizes)
    ]
    return Panel.from_df(pd.concat(parts), freq="h")
