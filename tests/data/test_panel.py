"""Panels: for any ids, order, lengths, starts and steps of a long table, every value lies on its item's grid."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_series

from llata_fast.data import read_series as read_wide
from llata_fast.data import read_wide_csv
from llata_fast.data.panel import Panel, read_csv, read_panel
from llata_fast.errors import InputError, InputWarning

COLUMNS = {"id_column": "id", "timestamp_column": "when", "target": "value"}


def long_table(sizes, freq="D", ids=None, starts=None, seed=0):
    draws = np.random.default_rng(seed)
    parts = []
    for place, size in enumerate(sizes):
        start = pd.Timestamp("2024-01-01") if starts is None else starts[place]
        dates = pd.date_range(start, periods=size, freq=freq)
        name = ids[place] if ids is not None else f"item {place}"
        parts.append(pd.DataFrame({"id": [name] * size, "when": dates, "value": draws.normal(size=size)}))
    return pd.concat(parts, ignore_index=True)


FREQUENCIES = ["15min", "h", "D", "B", "W-TUE", "MS", "ME", "QS-JAN", "YE-DEC"]


@settings(max_examples=40)
@given(
    st.lists(st.integers(4, 30), min_size=1, max_size=6),
    st.sampled_from(FREQUENCIES),
    st.sampled_from(["text", "number", "category"]),
    st.integers(0, 1000),
)
def test_every_value_lies_on_its_items_grid(sizes, freq, kind, seed):
    ids = {"text": [f"0{i}" for i in range(6)], "number": [7, 3, 9, 1, 4, 2]}.get(kind, list("fedcba"))
    table = long_table(sizes, freq, ids, seed=seed)
    if kind == "category":
        table["id"] = table["id"].astype("category")
    draws = np.random.default_rng(seed)
    # a gap inside each item that is long enough to keep both ends
    keep = np.ones(len(table), dtype=bool)
    for rows in table.groupby("id", observed=True).indices.values():
        keep[draws.choice(rows[2:-1], size=len(rows) // 8, replace=False)] = False
    shuffled = table[keep].sample(frac=1, random_state=seed)
    before = shuffled.copy()
    panel = Panel.from_df(shuffled, **COLUMNS, freq=freq)
    pd.testing.assert_frame_equal(shuffled, before)
    assert list(panel.ids) == list(dict.fromkeys(shuffled["id"]))
    back = panel.to_df()
    assert back["id"].dtype == table["id"].dtype or kind == "category"
    key = ["id", "when"]
    expected = table[keep].astype({"id": object}).sort_values(key).reset_index(drop=True)
    got = back.dropna().astype({"id": object}).sort_values(key).reset_index(drop=True)
    pd.testing.assert_frame_equal(got, expected, check_dtype=False)
    sizes_by_id = table.groupby("id", observed=True).size()
    assert list(panel.lengths) == [sizes_by_id[name] for name in panel.ids]


@pytest.mark.parametrize("freq", FREQUENCIES)
def test_the_step_is_found_and_continues(freq):
    table = long_table([40, 25], freq)
    panel = Panel.from_df(table, **COLUMNS)
    for item, size in enumerate((40, 25)):
        dates = pd.date_range("2024-01-01", periods=size + 5, freq=freq)
        got = panel.dates(np.full(5, item), size + np.arange(5))
        assert list(got) == list(dates[size:])


@pytest.mark.parametrize(
    "times",
    [
        pd.date_range("2024-03-29", periods=8, freq="D", tz="Europe/Berlin"),
        pd.date_range("2024-03-30 22:00", periods=8, freq="h", tz="Europe/Berlin"),
        pd.Index(np.arange(8, dtype=np.int32)),
        pd.period_range("2024-01", periods=8, freq="M"),
        pd.date_range("2024-01-01", periods=8, freq="D").strftime("%Y-%m-%d"),
        pd.date_range("2024-01-01", periods=8, freq="D").as_unit("ns"),
    ],
    ids=["local days", "hours over summer time", "integers", "periods", "text", "nanoseconds"],
)
def test_timestamps_come_back_in_the_callers_type(times):
    table = pd.DataFrame({"unique_id": 1, "ds": times[:6], "y": np.arange(6.0)})
    panel = Panel.from_df(table)
    future = panel.dates(np.zeros(2, dtype=int), np.array([6, 7]))
    assert future.dtype == table["ds"].dtype
    assert list(future) == list(pd.Series(times[6:]))
    assert panel.to_df()["unique_id"].dtype == table["unique_id"].dtype


def test_items_with_another_step_are_named_once():
    daily = long_table([30, 30, 20])
    weekly = long_table([20, 12], "W-MON", ids=["w1", "w2"])
    with pytest.warns(InputWarning, match=r"the step of item 'w1' and 1 others is W-MON, that of most items D") as said:
        panel = Panel.from_df(pd.concat([daily, weekly]), **COLUMNS)
    assert len(said) == 1
    assert list(panel.lengths) == [30, 30, 20, 20, 12]
    assert list(panel.dates(np.array([0, 4]), np.array([30, 12]))) == [
        pd.Timestamp("2024-01-31"),
        pd.Timestamp("2024-03-25"),
    ]


def test_sparse_items_stay_on_the_panels_grid():
    table = long_table([60, 60])
    table = table[(table["id"] == "item 0") | table.index.isin([60, 63, 70, 75, 90, 119])]
    panel = Panel.from_df(table, **COLUMNS)
    assert list(panel.lengths) == [60, 60]
    assert np.isfinite(panel.item(1)).sum() == 6


def test_several_targets_and_files(tmp_path):
    table = long_table([10, 8]).assign(other=1.0)
    table.to_csv(tmp_path / "table.csv", index=False)
    table.to_parquet(tmp_path / "table.parquet")
    columns = COLUMNS | {"target": ["other", "value"]}
    for panel in (
        Panel.from_csv(tmp_path / "table.csv", **columns),
        Panel.from_parquet(tmp_path / "table.parquet", **columns),
        read_panel(str(tmp_path / "table.parquet"), **columns),
        Panel.from_df(table, **columns),
    ):
        assert panel.targets == ("other", "value") and list(panel.lengths) == [10, 8]
        np.testing.assert_allclose(panel.item(1)[:, 1], table["value"][10:])
        assert list(panel.with_targets(["value"]).values[0]) == [table["value"][0]]


def test_a_wide_file_is_a_panel_of_one_item(tmp_path):
    path = write_series(tmp_path / "series.csv", 30)
    panel, series = read_csv(path), read_wide_csv(path)
    assert len(panel) == 1 and panel.targets == series.columns
    np.testing.assert_array_equal(panel.item(0), series.values)
    assert list(panel.dates(np.zeros(2, dtype=int), np.array([30, 31]))) == list(series.future_dates(2))


def test_items_are_held_out_and_cut():
    panel = Panel.from_df(long_table([10, 8, 6]), **COLUMNS)
    assert list(panel.drop(["item 1"]).ids) == ["item 0", "item 2"]
    np.testing.assert_array_equal(panel.select(["item 2", "item 0"]).item(0), panel.item(2))
    shorter = panel.until(7)
    assert list(shorter.ids) == ["item 0", "item 1"] and list(shorter.lengths) == [3, 1]
    np.testing.assert_array_equal(shorter.item(1), panel.item(1)[:1])
    with pytest.raises(InputError, match="no item 'x'"):
        panel.select(["x"])


def test_eia():
    pytest.importorskip("autots")
    panel = read_panel("eia")
    assert len(panel) == 9 and set(panel.lengths) == {1028} and panel.frequency == "W-FRI" and panel.seasonality == 52
    with pytest.raises(InputError, match="EIA is a panel"):
        read_wide("EIA")
    with pytest.raises(InputError, match="ETTh1 is a wide series"):
        read_panel("ETTh1")


def broken(**changes):
    table = long_table([6, 6])
    for column, (row, value) in changes.items():
        table[column] = table[column].astype(object)
        table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "columns", "words"),
    [
        (long_table([5]), {"id_column": "nobody"}, "no column 'nobody' (id_column) among id, when, value"),
        (long_table([5]).drop(columns="id"), {"id_column": None}, "none of item_id, unique_id among when, value"),
        (long_table([5]), {"target": ["value", "value"]}, "column 'value' is named twice"),
        (long_table([5]), {"target": []}, "no target"),
        (long_table([5])[:0], {}, "has no rows"),
        (pd.concat([long_table([5])] * 2, axis=1), {}, "column 'id' appears twice"),
        (broken(value=(8, "many")), {}, "item 'item 1', column 'value', row 8: 'many' is not a number"),
        (broken(value=(8, np.inf)), {}, "item 'item 1', column 'value', row 8: inf is infinite"),
        (broken(id=(3, None)), {}, "column 'id', row 3: the id is missing"),
        (broken(when=(9, None)), {}, "column 'when', item 'item 1', row 9"),
        (
            broken(when=(7, pd.Timestamp("2024-01-01"))),
            {},
            "item 'item 1', row 7: when 2024-01-01 00:00:00 appears twice",
        ),
        (broken(value=(7, np.nan)), {"missing": "error"}, "item 'item 1', row 7, column 'value': the value is missing"),
        (long_table([6]).drop(3), {"missing": "error"}, "item 'item 0', row 2: rows are missing after 2024-01-03"),
        (long_table([6]), {"freq": "W-SUN"}, "item 'item 0', row 1: 2024-01-02 00:00:00 is not on the grid"),
        (long_table([6]), {"missing": "drop"}, "missing must be error or mask"),
        ([1, 2], {}, "must be a DataFrame or an Arrow table, got list"),
    ],
)
def test_errors_name_the_place(table, columns, words):
    with pytest.raises(InputError) as refused:
        Panel.from_df(table, **COLUMNS | columns)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_a_stray_timestamp_does_not_fill_the_memory():
    table = long_table([50, 50], "min")
    table.loc[49, "when"] = pd.Timestamp("1970-01-01")
    with pytest.raises(InputError, match="item 'item 0'.*timestamps are irregular"):
        Panel.from_df(table, **COLUMNS)
