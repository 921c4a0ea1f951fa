"""CSV reading: what is taken, and the one line for what is not."""

import numpy as np
import pandas as pd
import pytest

from llata_fast.data import read_csv, read_series
from llata_fast.errors import InputError

HOURS = [f"2024-03-01 {hour:02}:00" for hour in range(6)]


@pytest.fixture
def write(tmp_path):
    """`write(lines)` makes a CSV; `write.table(dates, values)` one with the columns date and x."""

    def csv(lines):
        path = tmp_path / "my.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    csv.table = lambda dates, values=None: csv(
        ["date,x", *(f"{date},{value}" for date, value in zip(dates, values or range(len(dates)), strict=True))]
    )
    return csv


def refused(path, *words, **options):
    """Reading `path` fails with one line that names the file and holds all `words`."""
    with pytest.raises(InputError) as caught:
        read_csv(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_reads_values_dates_and_frequency(write):
    series = read_csv(write(["when,a,Time,b", *(f"{i},{i / 8},{date},-{i}" for i, date in enumerate(HOURS))]))
    assert series.name == "my"
    assert series.columns == ("when", "a", "b")
    assert series.date_column == "Time"
    np.testing.assert_array_equal(series.values, [[i, i / 8, -i] for i in range(6)])
    assert series.values.dtype == np.float64
    assert list(series.dates.strftime("%Y-%m-%d %H:%M")) == HOURS
    assert (series.frequency, series.seasonality) == ("h", 24)
    assert series.split_rows is None
    assert list(series.future_dates(2)) == [pd.Timestamp("2024-03-01 06:00"), pd.Timestamp("2024-03-01 07:00")]


def test_read_series_takes_a_path_and_options(write):
    path = write(["stamp,a,b,date", *(f"{date},{i},{i * i},-" for i, date in enumerate(HOURS))])
    series = read_series(str(path), date_column="stamp", columns=["b", "a"])
    np.testing.assert_array_equal(series.values, [[i * i, i] for i in range(6)])


def test_default_date_column_goes_by_order_of_names(write):
    series = read_csv(write(["ds,DateTime,datetime", *(f"{i},{date},{i}" for i, date in enumerate(HOURS))]))
    assert series.date_column == "DateTime"
    assert series.columns == ("ds", "datetime")


@pytest.mark.parametrize(
    ("step", "seasonality"),
    [("15min", 96), ("10min", 144), ("h", 24), ("D", 7), ("B", 5), ("W-TUE", 52), ("MS", 12), ("QS", 4), ("YS", 1)],
)
def test_frequencies(write, step, seasonality):
    dates = pd.date_range("2021-03-02", periods=40, freq=step)
    series = read_csv(write.table(dates[:30]))
    assert series.seasonality == seasonality
    assert list(series.future_dates(10)) == list(dates[30:])


@pytest.mark.parametrize(
    "form", ["%d/%m/%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S+01:00", "%m/%d/%Y %I:%M %p", "iso"]
)
def test_date_formats(write, form):
    # the first days could be months
    dates = pd.date_range("2024-02-09 12:00", periods=20, freq="12h")
    # a spreadsheet leaves midnight's time out
    text = [str(date).removesuffix(" 00:00:00") for date in dates] if form == "iso" else dates.strftime(form)
    read = read_csv(write.table(text)).dates
    assert list(read.tz_localize(None)) == list(dates)


@pytest.mark.parametrize("day", ["%d/%m/%Y", "%m/%d/%Y"])
@pytest.mark.parametrize("step", ["h", "D"])
def test_twelve_hour_clocks_from_midnight(write, day, step):
    dates = pd.date_range("2024-03-25", periods=40, freq=step)
    assert list(read_csv(write.table(dates.strftime(f"{day} %I:%M:%S %p"))).dates) == list(dates)


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M"])
@pytest.mark.parametrize("step", ["h", "MS", "YS"])
def test_days_that_pass_for_months(write, form, step):
    """No day is beyond the twelfth: the reading that makes a regular series is the one that is meant."""
    dates = pd.date_range("2024-01-01" if step != "h" else "2024-03-05", periods=30, freq=step)
    assert list(read_csv(write.table(dates.strftime(form))).dates) == list(dates)


def test_dates_that_are_regular_either_way(write):
    days = pd.date_range("2024-01-01", periods=10)
    refused(write.table(days.strftime("%d/%m/%Y")), "'01/01/2024'", "day first and month first", "2024-01-31")
    assert read_csv(write.table(days.strftime("%Y-%m-%d"))).frequency == "D"


def test_names_lose_the_spaces_around_them(write):
    series = read_csv(write([" date , x", *(f"{date}, {i}" for i, date in enumerate(HOURS))]), columns=["x"])
    assert (series.date_column, series.columns) == ("date", ("x",))
    refused(write(["date,x, x", *(f"{date},1,2" for date in HOURS)]), "line 1", "'x' is there twice")


def test_select(write):
    series = read_csv(write(["date,a,b,c", *(f"{date},{i},-1,{-i}" for i, date in enumerate(HOURS))]))
    chosen = series.select(["c", "a"])
    assert chosen.columns == ("c", "a")
    np.testing.assert_array_equal(chosen.values, [[-i, i] for i in range(6)])


def test_blank_lines_are_skipped_and_counted(write):
    assert len(read_csv(write(["date,x", f"{HOURS[0]},1", "", f"{HOURS[1]},2", f"{HOURS[2]},3", "", ""]))) == 3
    refused(write(["date,x", f"{HOURS[0]},1", "", f"{HOURS[1]},oops", f"{HOURS[2]},3"]), "line 4")


@pytest.mark.parametrize(
    ("cell", "reason"), [("oops", "'oops' is not a number"), ("-inf", "infinite"), ("Infinity", "infinite")]
)
@pytest.mark.parametrize("missing", ["error", "mask"])
def test_bad_cells(write, cell, reason, missing):
    refused(write.table(HOURS, [0, 1, 2, cell, 4, 5]), "line 5", "column 'x'", reason, missing=missing)


@pytest.mark.parametrize("cell", ["", "nan", "NA"])
def test_missing_cells(write, cell):
    path = write.table(HOURS, [0, cell, 2, cell, 4, 5])
    refused(path, "line 3", "column 'x'", "missing, the first of 2", "--missing mask")
    np.testing.assert_array_equal(read_csv(path, missing="mask").values[:, 0], [0, np.nan, 2, np.nan, 4, 5])


def test_column_without_a_value(write):
    refused(write.table(HOURS, [""] * 6), "column 'x'", "every value is missing", missing="mask")


def test_missing_policy_is_checked(write):
    with pytest.raises(InputError, match="missing must be error or mask, got 'drop'"):
        read_csv(write.table(HOURS), missing="drop")


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        ([*HOURS[:2], "soon", *HOURS[3:]], ["line 4", "'soon' is not a date"]),
        (["soon", *HOURS[1:]], ["line 2", "'soon' is not a date"]),
        ([*HOURS[:2], "", *HOURS[3:]], ["line 4", "the date is missing"]),
        (["10:00", "11:00", "12:00"], ["line 2", "'10:00' is not a date"]),
        (["1709251200.5", "1709254800.5", "1709258400.5"], ["line 2", "write Unix timestamps as dates"]),
        (["2024-03-01 01:00+01:00", *HOURS[2:]], ["line 3", "no offset from UTC"]),
        ([*HOURS[:3], HOURS[1], *HOURS[4:]], ["line 5", "duplicate of line 3"]),
        ([HOURS[0], HOURS[2], HOURS[1], *HOURS[3:]], ["line 4", "not sorted"]),
        (HOURS[::-1], ["line 3", "not sorted"]),
        (HOURS[:2], ["2 dates are too few"]),
        (
            [*HOURS[:3], "2024-03-01 03:17", "2024-03-01 04:17"],
            ["line 5", "irregular", "2024-03-01 03:17", "step h"],
        ),
        ([*HOURS[:3], *HOURS[4:]], ["line 5", "2024-03-01 03:00:00 is missing", "step h", "--missing mask"]),
    ],
)
def test_bad_dates(write, dates, words):
    refused(write.table(dates), "column 'date'", *words)


def test_irregular_dates_stay_an_error_under_mask(write):
    refused(write.table([*HOURS[:3], "2024-03-01 03:17"]), "irregular", missing="mask")
    # a stray year: the grid between would be ten thousand times the file
    refused(write.table([*HOURS, "2124-03-01 00:00"]), "irregular", missing="mask")


@pytest.mark.parametrize("step", ["h", "15min", "D", "B", "MS", "ME", "W-TUE"])
def test_holes_become_missing_rows(write, step):
    # offsets, since pandas 2.0 and 2.1 spell the month's end M
    offset = pd.offsets.MonthEnd() if step == "ME" else step
    dates = pd.date_range("2021-01-01", periods=60, freq=offset)
    kept = np.delete(np.arange(60), [7, 30, 31, 32])
    series = read_csv(write.table(dates[kept], list(kept)), missing="mask")
    assert list(series.dates) == list(dates)
    assert np.isnan(series.values).sum() == 4
    np.testing.assert_array_equal(series.values[kept, 0], kept)
    assert list(series.future_dates(3)) == list(pd.date_range(dates[-1], periods=4, freq=offset)[1:])


@pytest.mark.parametrize(
    ("lines", "words", "options"),
    [
        ([], ["is empty"], {}),
        (["date,x"], ["no rows"], {}),
        (["day,x", "2024-03-01,1"], ["line 1", "no date column", "datetime", "among day, x", "--date_column"], {}),
        (["date,x", "2024-03-01,1"], ["line 1", "no column 'day'"], {"date_column": "day"}),
        (["date,x", "2024-03-01,1"], ["line 1", "no column 'y' among date, x"], {"columns": ["x", "y"]}),
        (["date,x", "2024-03-01,1"], ["repeat"], {"columns": ["x", "x"]}),
        (["date,x", "2024-03-01,1"], ["repeat"], {"columns": ["x", "date"]}),
        (["date", "2024-03-01"], ["line 1", "no value column"], {}),
        ([",date,x", "0,2024-03-01,1"], ["line 1", "column 1 has no name"], {}),
        (["date,x", "2024-03-01,1,2", "2024-03-02,1,2"], ["can't be read", "decimal commas"], {}),
        (["date;x", "2024-03-01;1,5", "2024-03-02;1,5"], ["line 1", "separated by ';'"], {}),
        (["date,x", "2024-03-01,1", "2024-03-02,1,2"], ["can't be read", "line 3"], {}),
    ],
)
def test_bad_files(write, lines, words, options):
    path = write(lines)
    if not lines:
        path.write_text("")
    refused(path, *words, **options)


def test_file_that_is_none(tmp_path):
    refused(tmp_path / "absent.csv", "no such file")
    refused(tmp_path, "is a folder")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(128, 256)))
    refused(binary, "can't be read", "not UTF-8")
