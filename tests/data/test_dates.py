"""Which text is read as which date: every row of docs/data.md, and the general rules."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llata_fast.data.dates import date_format, parse_dates
from llata_fast.data.grids import find_grid, plain
from llata_fast.data.periods import DateError
from llata_fast.data.steps import parse_step

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()


def rows(columns):
    """(labels, further cells) from the page's tables of dates with this many columns."""
    tables = re.findall(r"^\| labels \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for table in tables for line in table.splitlines()]
    return [(re.findall("`(.*?)`", first), *rest) for first, *rest in cells if len(rest) == columns]


READ, REFUSED = rows(2), rows(1)


def test_the_page_lists_dates():
    assert len(READ) > 40 and len(REFUSED) > 20


@pytest.mark.parametrize(
    ("labels", "first", "step"), READ, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_dates_are_read_as_the_page_says(labels, first, step):
    dates = parse_dates(labels)
    moments = plain(dates, local=True)
    assert str(dates[0]).removesuffix(" 00:00:00") == first
    assert find_grid(moments).alias == step
    assert find_grid(moments).holes == 0


@pytest.mark.parametrize(("labels", "why"), REFUSED, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_dates_are_refused_as_the_page_says(labels, why):
    with pytest.raises(DateError) as caught:
        parse_dates(labels)
    assert why in str(caught.value) and "\n" not in str(caught.value)


FORMATS = (
    *("%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y/%m/%d %H:%M", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"),
    *(
        "%m/%d/%Y %I:%M %p",
        "%d-%b-%Y %H:%M",
        "%B %d, %Y %I:%M %p",
        "%a %d %b %Y %H:%M",
        "%Y%m%d%H%M",
        "%Y-%m-%d %H:%MZ",
    ),
    *("%Y-%m-%d %H:%M:%S-0330", "%d/%m/%y %H:%M", "%Y.%m.%d %H:%M", "%Y%m%d %H:%M"),
)


@given(
    form=st.sampled_from(FORMATS),
    step=st.sampled_from(["15min", "h", "6h", "D", "W-TUE", "MS", "ME", "B"]),
    start=st.integers(0, 400_000),
    count=st.integers(34, 60),
)
def test_dates_in_one_format_are_read(form, step, start, count):
    """Enough rows to include a day after the twelfth, or for the step to tell days from months."""
    first = np.datetime64("1975-01-01", "us") + np.timedelta64(start, "h")
    dates = pd.DatetimeIndex(parse_step(step).after(first, count))
    if (
        step in ("15min", "h", "6h")
        and "%m" in form
        and len(set(dates.day)) < 12
        and "%d/%m" in form.replace("%m/%d", "%d/%m")
    ):
        return
    read = parse_dates(dates.strftime(form).to_series())
    assert list(read.tz_localize(None)) == list(dates)


@given(st.lists(st.text(alphabet="0123456789-/.: TZQWMJan+", max_size=24), min_size=1, max_size=6))
def test_any_text_is_read_or_refused(labels):
    try:
        dates = parse_dates(labels)
    except DateError as error:
        assert "\n" not in str(error)
        assert error.row is None or 0 <= error.row < len(labels)
    else:
        assert len(dates) == len(labels) and not dates.isna().any()


def test_errors_name_the_offending_row():
    for labels, row in (
        (["2024-01-01", "x", "2024-01-03"], 1),
        (["1", "2", "x"], 2),
        (["2005Q1", "2005Q5"], 1),
        (["x"], 0),
    ):
        with pytest.raises(DateError) as caught:
            parse_dates(labels)
        assert caught.value.row == row
    with pytest.raises(DateError, match="the date is missing") as caught:
        parse_dates(["2024-01-01", None])
    assert caught.value.row == 1


@pytest.mark.parametrize(
    "labels",
    [
        pd.date_range("2024-01-01", periods=3),
        pd.date_range("2024-01-01", periods=3, tz="Europe/Berlin"),
        pd.date_range("2024-01-01", periods=3).date,
        pd.period_range("2024-01-01", periods=3, freq="D"),
        pd.Series(pd.date_range("2024-01-01", periods=3)).astype("category"),
        pd.Series(["2024-01-01", "2024-01-02", "2024-01-03"], dtype="category"),
    ],
    ids=["dates", "zone", "objects", "periods", "categories", "text"],
)
def test_labels_of_any_type(labels):
    dates = parse_dates(labels)
    assert list(dates.tz_localize(None)) == list(pd.date_range("2024-01-01", periods=3))
    assert (dates.tz is not None) == (getattr(labels, "tz", None) is not None)


def test_numbers_of_any_type():
    for labels in (np.arange(3), pd.Series([0.0, 1.0, 2.0]), ["0", "1", "2"], pd.Series([0, 1, 2], dtype="Int64")):
        assert parse_dates(labels).tolist() == [0, 1, 2] and parse_dates(labels).dtype == np.int64


def test_years_are_dates_where_the_name_says_so():
    years = [str(year) for year in range(1990, 1995)]
    for name in ("year", "Year", "fiscal_years", "yr"):
        assert parse_dates(years, name)[0] == pd.Timestamp("1990-01-01")
    for name in ("date", "time", "yearning"):
        assert parse_dates(years, name)[0] == 1990


def test_unix_time_is_read_where_the_name_says_so():
    labels = [str(1_706_738_400 + 3600 * row) for row in range(3)]
    assert parse_dates(labels, "timestamp")[0] == pd.Timestamp("2024-01-31 22:00", tz="UTC")
    assert parse_dates(labels, "row")[0] == 1_706_738_400


def test_the_expected_step_resolves_ambiguous_dates():
    labels = ["01/02/2024", "02/02/2024", "03/02/2024"]
    assert parse_dates(labels, expected=parse_step("D"))[0] == pd.Timestamp("2024-02-01")
    assert parse_dates(labels, expected=parse_step("MS"))[0] == pd.Timestamp("2024-01-02")
    assert parse_dates(["200501", "200502"], expected=parse_step("1"))[0] == 200_501


def test_one_item_of_a_table_settles_day_or_month_first():
    days = list(pd.date_range("2024-01-01", periods=20, freq="MS").strftime("%d/%m/%Y"))
    labels = [*days, *days]
    with pytest.raises(DateError, match="day first or month first"):
        parse_dates(labels)
    dates = parse_dates(labels, item=slice(0, 20))
    assert dates[11] == dates[31] == pd.Timestamp("2024-12-01")


@pytest.mark.parametrize(
    ("dates", "step", "form"),
    [
        (["2024-01-01 00:00"], "h", "%Y-%m-%d %H:%M:%S"),
        (["2024-01-01"], "D", "%Y-%m-%d"),
        (["2024-01-01 09:30"], "D", "%Y-%m-%d %H:%M:%S"),
        (["2024-01-01"], "ms", "%Y-%m-%d %H:%M:%S.%f"),
        (["2024-01-01"], "h@Mon-Fri 08:00-15:00", "%Y-%m-%d %H:%M:%S"),
        (["2024-01-01"], "MS", "%Y-%m-%d"),
        (["2024-01-01"], "36h", "%Y-%m-%d %H:%M:%S"),
    ],
)
def test_one_format_for_all(dates, step, form):
    assert date_format(pd.DatetimeIndex(dates), parse_step(step)) == form


def test_numbers_have_no_format_and_offsets_need_a_time():
    assert date_format(pd.Index([1, 2]), parse_step("1")) is None
    assert date_format(pd.DatetimeIndex(["2024-01-01"], tz="UTC"), parse_step("D")) == "%Y-%m-%d %H:%M:%S"
