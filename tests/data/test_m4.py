"""Reading M4's files, and windows from series of different lengths."""

import numpy as np
import pandas as pd
import pytest
import torch

from llata_fast.data.m4 import M4_SPECS, M4Spec, M4Windows, insample_scale, last_lookbacks, read_m4
from llata_fast.errors import InputError

SPEC = M4Spec("Made", prediction_length=2, seasonality=2, last_cuts=3, pandas_frequency="D")
SERIES = [np.arange(1.0, 4.0), np.arange(10.0, 20.0)]


def write_m4(folder, frequency, lengths, seed=0):
    """Write files in the competition's format for a frequency; returns the in-sample and the future values."""
    H = M4_SPECS[frequency].prediction_length
    rng = np.random.default_rng(seed)
    names = [f"{frequency[0]}{number}" for number in range(1, len(lengths) + 1)]
    insample = [rng.uniform(50, 150, length).round(2) for length in lengths]
    future = rng.uniform(50, 150, (len(lengths), H)).round(2)
    for part, rows, width in (("train", insample, max(lengths)), ("test", future, H)):
        columns = [f"V{number}" for number in range(1, width + 2)]
        table = [[name, *row, *[np.nan] * (width - len(row))] for name, row in zip(names, rows, strict=True)]
        (folder / "m4").mkdir(exist_ok=True)
        pd.DataFrame(table, columns=columns).to_csv(folder / "m4" / f"{frequency}-{part}.csv", index=False)
    return insample, future


@pytest.mark.parametrize("frequency", M4_SPECS)
def test_reads_every_frequency(frequency, tmp_path):
    H = M4_SPECS[frequency].prediction_length
    insample, future = write_m4(tmp_path, frequency, [H + 2, 3 * H + 1])
    m4 = read_m4(frequency, tmp_path)
    assert m4.names == (f"{frequency[0]}1", f"{frequency[0]}2")
    for got, expected in zip(m4.insample, insample, strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(m4.future, future)


def test_hourly_of_the_competition(shared):
    m4 = read_m4("Hourly", shared("data"))
    assert len(m4.names) == 414 and m4.names[:2] == ("H1", "H2") and m4.future.shape == (414, 48)
    assert {len(values) for values in m4.insample} == {700, 960}
    assert m4.insample[0][:3].tolist() == [605, 586, 586]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda train, test: (train.drop(0), test), "series of the training and test files differ"),
        (lambda train, test: (train, test.iloc[:, :-1]), "test rows hold"),
        (lambda train, test: (train.assign(V3=np.nan), test), "empty, infinite or has a gap"),
        (lambda train, test: (train.iloc[:, :5], test), "has only 4 values"),
        (lambda train, test: (train.assign(V3="x"), test), "can't be read"),
    ],
    ids=["other series", "short test", "gap", "short series", "text"],
)
def test_inconsistent_files_are_refused(spoil, message, tmp_path):
    write_m4(tmp_path, "Yearly", [9, 20])
    paths = [tmp_path / "m4" / f"Yearly-{part}.csv" for part in ("train", "test")]
    for path, table in zip(paths, spoil(*map(pd.read_csv, paths)), strict=True):
        table.to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_m4("Yearly", tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no frequency 'Secondly'"):
        read_m4("Secondly", tmp_path)
    with pytest.raises(InputError, match="no file m4/Weekly-train.csv"):
        read_m4("Weekly", tmp_path)


def test_held_out_steps_are_the_last():
    batch = M4Windows(SERIES, SPEC).__getitems__([0, 1])
    # a series of three values has one before the last two
    assert batch["past_values"][..., 0].tolist() == [[0, 0, 0, 1], [14, 15, 16, 17]]
    assert batch["past_observed_mask"][..., 0].tolist() == [[False] * 3 + [True], [True] * 4]
    assert batch["future_values"][..., 0].tolist() == [[2, 3], [18, 19]]
    # seasonal differences of 2 over two rows; a single value has none
    assert batch["insample_scale"].tolist() == [[1], [2]]


def test_training_cuts_are_among_the_last_and_all_of_them():
    windows = M4Windows(SERIES, SPEC, last_cuts=3, windows_per_series=200)
    assert len(windows) == 400
    batch = windows.__getitems__(range(400))
    cuts = {series: set() for series in (0, 1)}
    for index in range(400):
        past, future = batch["past_values"][index, :, 0], batch["future_values"][index, :, 0]
        cuts[index % 2].add(past[-1].item())
        assert future[0] == past[-1] + 1
        assert future[1].isnan() if future[0] == SERIES[index % 2][-1] else future[1] == future[0] + 1
    # a series of three values has two cuts with values on both sides
    assert cuts == {0: {1, 2}, 1: {16, 17, 18}}
    assert {tuple(scale) for scale in batch["insample_scale"].tolist()} == {(2,)}


def test_every_cut_is_a_window_once():
    """Ten values have eight cuts with one value before and two after; three values have one."""
    batch = M4Windows(SERIES, SPEC, windows_per_series=10).__getitems__(range(20))
    past, future = batch["past_values"][:, -1, 0].tolist(), batch["future_values"][..., 0]
    cuts = [(last, *steps.tolist()) for last, steps in zip(past, future, strict=True) if not steps.isnan().any()]
    assert cuts == [(1, 2, 3), *((cut, cut + 1, cut + 2) for cut in range(17, 9, -1))]
    assert future.isnan().all(1).sum() == 20 - 9


def test_a_single_window_equals_one_of_a_batch():
    windows = M4Windows(SERIES, SPEC)
    for name, values in windows[1].items():
        torch.testing.assert_close(values, windows.__getitems__([1])[name][0])


def test_last_lookbacks():
    inputs = last_lookbacks(SERIES, 4)
    assert inputs["past_values"][..., 0].tolist() == [[0, 1, 2, 3], [16, 17, 18, 19]]
    assert inputs["past_observed_mask"][0, :, 0].tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    "values, seasonality, scale", [([1, 4, 2], 1, 2.5), ([1, 4, 2], 2, 1), ([5, 5], 1, 1), ([3], 4, 1)]
)
def test_insample_scale(values, seasonality, scale):
    assert insample_scale(np.array(values, dtype=float), seasonality) == scale
