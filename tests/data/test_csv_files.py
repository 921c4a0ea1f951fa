"""CSV files as users have them: lines above the header, other names for missing values, panels, suspicious numbers."""

import gzip
import time
import warnings

import numpy as np
import pandas as pd
import pytest

from llata_fast.data import read_wide_csv
from llata_fast.data.csv_files import as_numbers
from llata_fast.errors import InputError

HOURS = [f"2024-03-01 {hour:02}:00" for hour in range(6)]
PLAIN = ["date,a,b", *(f"{date},{i},{10 * i}" for i, date in enumerate(HOURS))]


@pytest.fixture
def write(tmp_path):
    def csv(lines, name="my.csv"):
        path = tmp_path / name
        text = "\n".join(lines) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return csv


def message(path, **options):
    with pytest.raises(InputError) as caught:
        read_wide_csv(path, **options)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize(
    ("above", "options"),
    [
        (["# exported 2024", "# site 5, north"], {}),
        (["sep=,"], {}),
        (["", "  "], {}),
        (["\ufeffsep=,"], {}),
        (["# a", "", "sep=,", "# b"], {}),
        (["Report of station 5", "made, with a comma, 2024"], {"skip_rows": 2}),
        (["Report of station 5", "# comment below it"], {"skip_rows": 1}),
    ],
    ids=["comments", "separator", "blank", "mark", "all", "lines", "both"],
)
def test_lines_above_the_header(write, above, options):
    for name in ("my.csv", "my.csv.gz"):
        series = read_wide_csv(write(above + PLAIN, name), **options)
        assert series.columns == ("a", "b")
        np.testing.assert_array_equal(series.values[:, 1], 10 * np.arange(6))
    broken = above + PLAIN[:3] + ["2024-03-01 02:00,oops,1"]
    assert f"line {len(above) + 4}, column 'a'" in message(write(broken), **options)


def test_a_header_may_be_a_comment(write):
    assert read_wide_csv(write(["#date,a,b", *PLAIN[1:]])).columns == ("a", "b")
    assert read_wide_csv(write(["# made today", "# date,a,b", *PLAIN[1:]])).date_column == "date"


def test_where_the_header_is(write):
    text = message(write(["Report of station 5", "2024", *PLAIN]))
    assert "line 1" in text and "the header seems to be in line 3" in text and "--skip_rows 2" in text
    assert "--skip_rows 1" in message(write(["x,y,z", *PLAIN]), date_column="date")
    with pytest.raises(InputError, match="skip_rows must be at least 0, got -1"):
        read_wide_csv("x", skip_rows=-1)


@pytest.mark.parametrize("name", ["year", "Month", "quarter", "week", "period"])
def test_a_period_is_the_date_where_there_is_no_other(write, name):
    lines = [f"{name},x", *(f"{year},1" for year in range(2000, 2010))]
    assert read_wide_csv(write(lines)).date_column == name
    assert (
        read_wide_csv(write([f"{name},date", *(f"{i},{date}" for i, date in enumerate(HOURS))])).date_column == "date"
    )


def test_dates_in_several_columns(write):
    lines = ["year,month,x", *(f"2005,{month},1" for month in range(1, 9))]
    assert "the dates are split over columns year and month" in message(write(lines))


def test_missing_values_by_another_name(write):
    lines = [
        "date,a,b",
        *(f"{date},{cell},1" for date, cell in zip(HOURS, ["1", "-9999", "-9999.0", "?", "-", "6"], strict=True)),
    ]
    series = read_wide_csv(write(lines), missing="mask", na_values=["-9999", "?", "-"])
    np.testing.assert_array_equal(series.values[:, 0], [1, np.nan, np.nan, np.nan, np.nan, 6])
    text = message(write(lines), na_values=["-9999"])
    assert "line 5" in text and "'?' is not a number" in text and "--na_values '?' --missing mask" in text
    # only channels are checked: an index begins at 0
    lines = ["date,a", *(f"{row},{row}" for row in range(6))]
    assert read_wide_csv(write(lines), na_values=["0"], missing="mask").dates[0] == 0


@pytest.mark.parametrize(
    ("cells", "warned"),
    [
        ([*range(80, 120), -9999, -9999], "-9999 appears 2 times"),
        ([*range(80, 120), -9999], "-9999 appears 1 times"),
        ([*range(40), -99], "-99 appears 1 times"),
        ([*range(40), 1e20, 1e20, 1e20], "1e+20 appears 3 times"),
        ([*range(40), 9000.5], None),
        ([*range(-40, 40), -99], None),
        ([0] * 30 + list(range(100, 112)), None),
        ([0, 0, 0, *range(100, 140)], None),
        ([5] * 40, None),
        ([0, 1] * 20, None),
        ([*range(40)], None),
        ([*np.random.default_rng(0).lognormal(0, 2, 400)], None),
    ],
)
def test_a_value_far_from_all_others(write, cells, warned):
    path = write(["date,a", *(f"{row},{cell}" for row, cell in enumerate(cells))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = read_wide_csv(path).values[:, 0]
    np.testing.assert_array_equal(values, cells)
    assert [str(warning.message) for warning in caught if warned is None] == []
    assert warned is None or (
        len(caught) == 1 and warned in str(caught[0].message) and "column 'a'" in str(caught[0].message)
    )


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ('"1,234"', "without a separator"),
        ('"1,5"', "decimals with a point"),
        ("12 %", "write only the number"),
        ("$12", "write only the number"),
        ("n.a.", "--na_values 'n.a.' --missing mask"),
        ("12a", "'12a' is not a number"),
    ],
)
def test_cells_that_are_not_numbers_get_a_hint(write, cell, hint):
    text = message(write(["date,a", *(f"{date},{cell if i == 3 else i}" for i, date in enumerate(HOURS))]))
    assert "line 5, column 'a'" in text and hint in text


def panel(ids, **columns):
    rows = [",".join(["ds", *ids, *columns, "y"])]
    for key in np.ndindex(*map(len, ids.values())):
        names = [str(values[place]) for values, place in zip(ids.values(), key, strict=True)]
        rows += [",".join([date, *names, *columns.values(), str(i)]) for i, date in enumerate(HOURS)]
    return rows


def test_a_panel_read_as_a_series_is_recognised(write):
    for ids in ({"store": [1, 2, 3]}, {"sku": ["A", "B"]}, {"number": ["1.0", "2.0"]}):
        text = message(write(panel(ids, extra="7")))
        assert "line 8" in text and "panel" in text and f"--id_column {next(iter(ids))}" in text
    # the id need not be a channel
    assert "--id_column sku" in message(write(panel({"sku": ["A", "B"]})), columns=["y"])
    text = message(write(panel({"store": [1, 2], "item": ["a", "b"]})))
    assert "--id_column store" in text and "item" in text
    # sorted by date, so that the items alternate
    lines = panel({"store": [1, 2]})
    assert "--id_column store" in message(write([lines[0], *sorted(lines[1:])]))


def test_duplicated_rows_are_not_taken_for_a_panel(write):
    assert "--id_column" not in message(write(PLAIN + PLAIN[1:]))
    assert "--id_column" not in message(write([*PLAIN, "2024-03-01 05:00,8,9"]))


def test_the_home_folder(write, monkeypatch, tmp_path):
    write(PLAIN)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_wide_csv("~/my.csv")) == 6


def test_a_million_rows_are_read_by_columns(write):
    """No step works row by row: time grows far less than a Python loop over rows would make it."""

    def seconds(rows):
        dates = pd.date_range("1990-01-01", periods=rows, freq="min").strftime("%d/%m/%Y %H:%M")
        path = write(["date,a", *(f"{date},{i % 977}" for i, date in enumerate(dates))])
        begin = time.process_time()
        assert len(read_wide_csv(path)) == rows
        return time.process_time() - begin

    seconds(50_000)
    assert seconds(200_000) < 10 * max(seconds(50_000), 0.05)


def test_integers_too_large_for_a_float_are_infinite():
    for beside in ("text", 1.5, 3, None):
        assert as_numbers(pd.Series([10**400, beside], dtype=object))[0] == np.inf
