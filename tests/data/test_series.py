"""Reading CSV files: what is accepted, and the one-line errors for the rest."""

import warnings

import numpy as np
import pandas as pd
import pytest

from llata_fast.data import read_series, read_wide_csv
from llata_fast.data.steps import parse_step
from llata_fast.errors import InputError

HOURS = [f"2024-03-01 {hour:02}:00" for hour in range(6)]


@pytest.fixture
def write(tmp_path):
    """`write(lines)` writes a CSV; `write.table(dates, values)` writes one with the columns date and x."""

    def csv(lines):
        path = tmp_path / "my.csv"
        path.write_text("\n".join(lines) + "\n")
        return path

    csv.table = lambda dates, values=None: csv(
        ["date,x", *(f"{date},{value}" for date, value in zip(dates, values or range(len(dates)), strict=True))]
    )
    return csv


def refused(path, *words, **options):
    """Reading `path` fails with one line that names the file and contains all `words`."""
    with pytest.raises(InputError) as caught:
        read_wide_csv(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


def test_reads_values_dates_and_frequency(write):
    series = read_wide_csv(write(["when,a,Time,b", *(f"{i},{i / 8},{date},-{i}" for i, date in enumerate(HOURS))]))
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
    series = read_wide_csv(write(["ds,DateTime,datetime", *(f"{i},{date},{i}" for i, date in enumerate(HOURS))]))
    assert series.date_column == "DateTime"
    assert series.columns == ("ds", "datetime")


@pytest.mark.parametrize(
    ("step", "seasonality"),
    [("15min", 96), ("10min", 144), ("h", 24), ("D", 7), ("B", 5), ("W-TUE", 52), ("MS", 12), ("QS", 4), ("YS", 1)],
)
def test_frequencies(write, step, seasonality):
    dates = pd.date_range("2021-03-02", periods=40, freq=step)
    series = read_wide_csv(write.table(dates[:30]))
    assert series.seasonality == seasonality
    assert list(series.future_dates(10)) == list(dates[30:])


@pytest.mark.parametrize(
    "form", ["%d/%m/%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S+01:00", "%m/%d/%Y %I:%M %p", "iso"]
)
def test_date_formats(write, form):
    # the first days could be read as months
    dates = pd.date_range("2024-02-09 12:00", periods=20, freq="12h")
    # a spreadsheet leaves out the time at midnight
    text = [str(date).removesuffix(" 00:00:00") for date in dates] if form == "iso" else dates.strftime(form)
    read = read_wide_csv(write.table(text)).dates
    assert list(read.tz_localize(None)) == list(dates)


@pytest.mark.parametrize("day", ["%d/%m/%Y", "%m/%d/%Y"])
@pytest.mark.parametrize("step", ["h", "D"])
def test_twelve_hour_clocks_from_midnight(write, day, step):
    dates = pd.date_range("2024-03-25", periods=40, freq=step)
    assert list(read_wide_csv(write.table(dates.strftime(f"{day} %I:%M:%S %p"))).dates) == list(dates)


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M"])
@pytest.mark.parametrize("step", ["h", "MS", "YS"])
def test_ambiguous_days_are_resolved_by_the_step(write, form, step):
    """No day is after the twelfth, so the reading that makes the series regular is taken."""
    dates = pd.date_range("2024-01-01" if step != "h" else "2024-03-05", periods=30, freq=step)
    assert list(read_wide_csv(write.table(dates.strftime(form))).dates) == list(dates)


def test_dates_regular_either_way_are_refused(write):
    days = pd.date_range("2024-01-01", periods=10)
    refused(write.table(days.strftime("%d/%m/%Y")), "'01/01/2024'", "day first or month first", "2024-01-31")
    assert read_wide_csv(write.table(days.strftime("%Y-%m-%d"))).frequency == "D"


def test_column_names_are_stripped(write):
    series = read_wide_csv(write([" date , x", *(f"{date}, {i}" for i, date in enumerate(HOURS))]), columns=["x"])
    assert (series.date_column, series.columns) == ("date", ("x",))
    refused(write(["date,x, x", *(f"{date},1,2" for date in HOURS)]), "line 1", "'x' appears twice")


def test_select(write):
    series = read_wide_csv(write(["date,a,b,c", *(f"{date},{i},-1,{-i}" for i, date in enumerate(HOURS))]))
    chosen = series.select(["c", "a"])
    assert chosen.columns == ("c", "a")
    np.testing.assert_array_equal(chosen.values, [[-i, i] for i in range(6)])


def test_blank_lines_are_skipped_and_counted(write):
    assert len(read_wide_csv(write(["date,x", f"{HOURS[0]},1", "", f"{HOURS[1]},2", f"{HOURS[2]},3", "", ""]))) == 3
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
    np.testing.assert_array_equal(read_wide_csv(path, missing="mask").values[:, 0], [0, np.nan, 2, np.nan, 4, 5])


def test_column_without_values(write):
    refused(write.table(HOURS, [""] * 6), "column 'x'", "every value is missing", missing="mask")


def test_missing_policy_is_checked(write):
    with pytest.raises(InputError, match="missing must be error or mask, got 'drop'"):
        read_wide_csv(write.table(HOURS), missing="drop")


@pytest.mark.parametrize(
    ("dates", "words"),
    [
        ([*HOURS[:2], "soon", *HOURS[3:]], ["line 4", "'soon' is not a date"]),
        (["soon", *HOURS[1:]], ["line 2", "'soon' is not a date"]),
        ([*HOURS[:2], "", *HOURS[3:]], ["line 4", "the date is missing"]),
        (["10:00", "11:00", "12:00"], ["line 2", "'10:00' is not a date"]),
        (["1709251200.5", "1709254800.5", "1709258400.5"], ["line 2", "write Unix timestamps as dates"]),
        (["2024-03-01 01:00+01:00", *HOURS[2:]], ["line 3", "no UTC offset"]),
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
    # a stray year: a grid up to it would be ten thousand times as large as the file
    refused(write.table([*HOURS, "2124-03-01 00:00"]), "irregular", missing="mask")


@pytest.mark.parametrize("step", ["h", "15min", "D", "B", "MS", "ME", "W-TUE"])
def test_holes_become_missing_rows(write, step):
    # an offset, since pandas 2.0 and 2.1 call the month's end M
    offset = pd.offsets.MonthEnd() if step == "ME" else step
    dates = pd.date_range("2021-01-01", periods=60, freq=offset)
    kept = np.delete(np.arange(60), [7, 30, 31, 32])
    series = read_wide_csv(write.table(dates[kept], list(kept)), missing="mask")
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


def test_unreadable_files_are_refused(tmp_path):
    refused(tmp_path / "absent.csv", "no such file")
    refused(tmp_path, "is a folder")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(bytes(range(128, 256)))
    refused(binary, "can't be read", "not UTF-8")


@pytest.mark.parametrize(
    ("step", "hole"),
    [
        ("h", "2021-01-01 07:00:00"),
        ("D", "2021-01-08 00:00:00"),
        ("B", "2021-01-12 00:00:00"),
        ("MS", "2021-08-01 00:00:00"),
        ("BME", "2021-08-31 00:00:00"),
        ("QS", "2022-10-01 00:00:00"),
        ("YS", "2028-01-01 00:00:00"),
        ("M@15", "2021-08-15 00:00:00"),
        ("h@Mon-Fri 08:00-15:00", "2021-01-01 15:00:00"),
    ],
)
def test_a_hole_is_named_by_its_date(write, step, hole):
    step = parse_step(step)
    start = np.datetime64("2021-01-01T08:00" if step.days < 1 and hasattr(step, "hours") else "2021-01-01", "us")
    dates = step.dates(step.dates(start, np.array([0]))[0], np.arange(120))
    table = write.table(pd.DatetimeIndex(np.delete(dates, [7, 60])))
    refused(table, "line 9", hole + " is missing, the first of 2", "--missing mask")
    assert list(read_wide_csv(table, missing="mask").dates) == list(pd.DatetimeIndex(dates))


def caught(call):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = call()
    return result, [str(warning.message) for warning in seen]


@pytest.mark.parametrize(
    ("dates", "frequency", "following"),
    [
        (pd.bdate_range("2022-03-07", periods=5), "B", "2022-03-14"),
        (pd.date_range("2022-03-11 08:00", periods=8, freq="h"), "h@Mon-Fri 08:00-15:00", "2022-03-14 08:00"),
        (pd.date_range("2022-03-12", periods=1), "MS", None),
        (pd.date_range("2022-03-01", periods=1), "MS", "2022-04-01"),
        (pd.date_range("2021-02-28", periods=3, freq="YE-FEB"), "YE-FEB", "2024-02-29"),
        (pd.date_range("2022-03-07", periods=1), "h", "2022-03-07 01:00"),
    ],
)
def test_the_expected_step_is_taken_where_the_dates_fit_it(write, dates, frequency, following):
    table = write.table(dates)
    if following is None:
        refused(table, "too few", frequency=frequency)
        return
    series, said = caught(lambda: read_wide_csv(table, frequency=frequency))
    assert not said
    assert series.future_dates(1)[0] == pd.Timestamp(following)


@pytest.mark.parametrize(
    ("step", "frequency", "warned"),
    [("D", "h", True), ("B", "D", True), ("D", "B", True), ("15min", "h", True), ("1", "h", True), ("h", "1", True)]
    + [("MS", "ME", False), ("W-TUE", "W-SUN", False), ("QS", "QE", False), ("h", "h", False), ("1", "1", False)],
)
def test_another_step_than_expected_is_a_warning(write, step, frequency, warned):
    kind = parse_step(step)
    start = np.int64(0) if step == "1" else kind.dates(np.datetime64("2022-03-07", "us"), np.array([0]))[0]
    dates = kind.dates(start, np.arange(20))
    table = write.table(dates if step == "1" else pd.DatetimeIndex(dates))
    for missing in ("error", "mask"):
        series, said = caught(lambda: read_wide_csv(table, missing=missing, frequency=frequency))  # noqa: B023
        assert parse_step(series.frequency).same_length(kind)
        assert len(series) == 20 and (series.future_dates(1)[0] == kind.after(dates[-1], 1)[0])
        assert bool(said) is warned and all(frequency in text for text in said)


def test_trusted_rows_follow_each_other(write):
    """With trust_rows, rows follow each other whatever their dates: sessions at odd times, or an hour twice."""
    sessions = [
        f"2024-03-{day:02} {hour:02}:{minute:02}" for day in (4, 5, 7, 8) for hour in (9, 10) for minute in (0, 5, 10)
    ]
    series = read_wide_csv(write.table(sessions), trust_rows=True)
    assert (series.frequency, len(series)) == ("5min", 24)
    assert list(series.dates.strftime("%Y-%m-%d %H:%M")) == sessions
    assert series.future_dates(1)[0] == pd.Timestamp("2024-03-08 10:15")
    twice = [*HOURS[:3], HOURS[2], *HOURS[3:]]
    assert read_wide_csv(write.table(twice), trust_rows=True).frequency == "h"
    assert read_wide_csv(write.table(twice), trust_rows=True, frequency="15min").frequency == "15min"
    assert read_wide_csv(write.table(["1", "3", "4", "5"]), trust_rows=True).future_dates(1)[0] == 6
    refused(write.table(HOURS[:1]), "a single date", trust_rows=True)


def test_a_grid_that_is_mostly_empty_is_a_warning(write):
    hours = pd.date_range("2024-03-04 09:00", periods=4, freq="h")
    dates = [date + pd.Timedelta(days=day) for day in (0, 1, 3) for date in hours]
    refused(write.table(dates), "2024-03-04 13:00:00 is missing", "--trust_rows")
    series, said = caught(lambda: read_wide_csv(write.table(dates), missing="mask"))
    assert len(series) == 76 and "84% of its dates are missing" in said[0] and "--trust_rows" in said[0]


def test_summer_time_in_local_hours_is_explained(write):
    hours = pd.date_range("2024-10-25", "2024-10-29", freq="h", tz="Europe/Berlin")
    local = hours.tz_localize(None).strftime("%Y-%m-%d %H:%M")
    refused(write.table(local), "2024-10-27 02:00:00 is a duplicate", "summer time", "--trust_rows", "+02:00")
    assert len(read_wide_csv(write.table(local), trust_rows=True)) == len(hours)
    spring = pd.date_range("2024-03-30", "2024-04-02", freq="h", tz="Europe/Berlin").tz_localize(None)
    refused(write.table(spring), "2024-03-31 02:00:00 is missing", "summer time")
    series = read_wide_csv(write.table([date.isoformat() for date in hours]))
    assert series.frequency == "h" and list(series.dates) == list(hours)


def test_local_days(write):
    days = pd.date_range("2024-03-01", periods=60, tz="Europe/Berlin")
    series = read_wide_csv(write.table([date.isoformat() for date in days]))
    assert series.frequency == "D" and series.future_dates(1)[0] == pd.Timestamp("2024-04-30")
    refused(write.table([date.isoformat() for date in days.tz_convert("UTC")]), "days of local time", "2024-03-31")


def test_number_indices_continue_as_numbers(write):
    series = read_wide_csv(write.table(range(1500, 2100)))
    assert series.frequency == "1" and series.date_format is None
    assert series.future_dates(2).tolist() == [2100, 2101]
    refused(write.table([1, 2, 4, 5]), "line 4", "3 is missing")
    assert read_wide_csv(write.table([1, 2, 4, 5]), missing="mask").dates.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("year", [1066, 1600, 2300, 9000])
def test_any_year(write, year):
    dates = pd.date_range(f"{year}-12-30", periods=20, unit="s")
    series = read_wide_csv(write.table(dates))
    assert list(series.dates) == list(dates)
    assert series.future_dates(1)[0] == pd.Timestamp(f"{year + 1}-01-19")
