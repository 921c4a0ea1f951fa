"""Steps of every kind number the dates on their grid, and can be parsed from their own text."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llata_fast.data.steps import DAY, SECOND, Fixed, Months, Whole, open_step, parse_step
from llata_fast.errors import InputError

PANDAS = (
    *("s", "15min", "h", "6h", "D", "2D", "B", "W-TUE", "2W-SUN", "MS", "ME", "BMS", "BME", "WOM-3FRI", "2MS"),
    *("QS-FEB", "QE-SEP", "BQS-JAN", "BQE-MAR", "YS-JAN", "YE-JUN", "BYS-APR", "BYE-DEC", "10YS-JAN"),
)
DAYS = st.one_of(
    st.integers(1, 31),
    st.sampled_from(["first", "last", "first workday", "last workday"]),
    st.tuples(st.integers(1, 4), st.integers(0, 6)),
    st.tuples(st.just(-1), st.integers(0, 6)),
)
MONTHS = st.builds(Months, st.sampled_from([1, 2, 3, 4, 6, 12, 24, 120]), DAYS)
FIXED = st.builds(Fixed, st.sampled_from([1, 250, 1000, SECOND, 60 * SECOND, 3600 * SECOND, DAY])).flatmap(
    lambda step: st.builds(Fixed, st.integers(1, 90).map(lambda count: count * step.amount))
)
BASES = st.sampled_from([900 * SECOND, 3600 * SECOND, 5 * 3600 * SECOND + 36 * 60 * SECOND, DAY])
OPEN = BASES.flatmap(
    lambda base: st.builds(
        lambda slots: open_step(base, np.array(sorted(slots)) * base),
        st.sets(st.integers(0, 7 * DAY // base - 1), min_size=1, max_size=40),
    )
)
STEPS = st.one_of(FIXED, MONTHS, OPEN)
MOMENTS = st.integers(-12_000, 60_000).map(lambda hours: np.datetime64("2000-01-01", "us") + np.timedelta64(hours, "h"))


def on_grid(step, moment):
    """A date near `moment` on the grid of `step`."""
    if isinstance(step, Months):
        return step.dates(moment, np.array([0]))[0]
    if hasattr(step, "hours"):
        return step.dates(moment, np.array([0]))[0]
    return moment


@given(step=STEPS, moment=MOMENTS, index=st.lists(st.integers(0, 500), min_size=1, max_size=20))
def test_index_and_dates_are_inverse(step, moment, index):
    origin = on_grid(step, moment)
    dates = step.dates(origin, np.array(index))
    counted, fits = step.index(dates, origin)
    assert fits.all()
    np.testing.assert_array_equal(counted, index)
    # with a separate origin for each row, as for the items of a table
    np.testing.assert_array_equal(step.index(dates, dates)[0], np.zeros(len(index)))
    np.testing.assert_array_equal(
        step.dates(dates, np.ones(len(index), dtype=int)), step.dates(origin, np.array(index) + 1)
    )


@given(step=STEPS, moment=MOMENTS)
def test_dates_between_steps_are_off_the_grid(step, moment):
    origin = on_grid(step, moment)
    dates = step.dates(origin, np.arange(30))
    assert (np.diff(dates) > np.timedelta64(0)).all()
    gap = dates[1:] - dates[:-1]
    between = (dates[:-1] + gap // 2)[gap > np.timedelta64(1, "us")]
    assert not step.index(between, origin)[1].any()


@given(step=STEPS, moment=MOMENTS)
def test_text_names_the_step(step, moment):
    origin = on_grid(step, moment)
    read = parse_step(step.alias(origin))
    np.testing.assert_array_equal(read.dates(origin, np.arange(40)), step.dates(origin, np.arange(40)))


@pytest.mark.parametrize("alias", PANDAS)
def test_pandas_aliases(alias):
    """They give the dates that pandas generates, and the same alias is found for these dates."""
    dates = pd.date_range("2021-03-02 05:00", periods=60, freq=alias).to_numpy("M8[us]")
    step = parse_step(alias)
    np.testing.assert_array_equal(step.after(dates[19], 40), dates[20:])
    assert list(pd.date_range(dates[0], periods=60, freq=step.alias(dates[0]))) == list(pd.DatetimeIndex(dates))


@pytest.mark.parametrize(
    ("old", "alias"),
    [("H", "h"), ("10T", "10min"), ("S", "s"), ("M", "ME"), ("Q-DEC", "QE"), ("A-DEC", "YE"), ("Y", "YE")],
)
def test_old_aliases(old, alias):
    assert parse_step(old) == parse_step(alias)


@pytest.mark.parametrize(
    ("text", "last", "following"),
    [
        ("h@Mon-Fri 08:00-15:00", "2024-03-22 15:00", ["2024-03-25 08:00", "2024-03-25 09:00"]),
        ("h@Mon-Fri 08:00-15:00; Sat 09:00-12:00", "2024-03-22 15:00", ["2024-03-23 09:00", "2024-03-23 10:00"]),
        ("30min@Mon-Fri 09:30-11:30,13:00-15:00", "2024-03-22 11:30", ["2024-03-22 13:00", "2024-03-22 13:30"]),
        ("D@Mon-Sat", "2024-03-22", ["2024-03-23", "2024-03-25"]),
        ("B", "2022-03-11", ["2022-03-14", "2022-03-15"]),
        ("M@15", "2024-12-15", ["2025-01-15", "2025-02-15"]),
        ("M@31", "2024-01-31", ["2024-02-29", "2024-03-31"]),
        ("ME", "2023-01-31", ["2023-02-28", "2023-03-31"]),
        ("YE-FEB", "2023-02-28", ["2024-02-29", "2025-02-28"]),
        ("W", "9999-12-24", ["9999-12-31", "10000-01-07"]),
        ("YS", "1499-01-01", ["1500-01-01", "1501-01-01"]),
    ],
)
def test_dates_that_follow(text, last, following):
    step = parse_step(text)
    np.testing.assert_array_equal(step.after(np.datetime64(last, "us"), 2), np.array(following, dtype="M8[us]"))


def test_whole_numbers():
    step = parse_step("5")
    assert step == Whole(5) and step.alias(np.int64(3)) == "5"
    np.testing.assert_array_equal(step.after(np.int64(8), 3), [13, 18, 23])
    index, fits = step.index(np.array([-2, 3, 9, 13]), np.int64(3))
    assert fits.tolist() == [True, True, False, True] and index[fits].tolist() == [-1, 0, 2]


@pytest.mark.parametrize(
    "text", ["", "soon", "0h", "-1D", "5M@40", "h@", "h@Mon 9", "7h@", "WOM-9FRI", "0", "1.5h", "h@Fun"]
)
def test_invalid_steps_are_refused(text):
    with pytest.raises(InputError, match="is not a step between rows"):
        parse_step(text)


@pytest.mark.parametrize(
    ("text", "rows"),
    [("h", 24), ("15min", 96), ("7h", 1), ("D", 7), ("2D", 1), ("B", 5), ("W", 52), ("ME", 12), ("M@15", 12), ("QS", 4)]
    + [("YE", 1), ("5MS", 1), ("D@Mon-Sat", 6), ("h@Mon-Fri 08:00-15:00", 8), ("h@Mon 08:00-09:00; Tue 08:00", 3)],
)
def test_seasonality(text, rows):
    if text.endswith("Tue 08:00"):
        text += "-08:00"
    assert parse_step(text).seasonality == rows


def test_same_length():
    assert parse_step("MS").same_length(parse_step("ME")) and parse_step("W-TUE").same_length(parse_step("W-SUN"))
    assert not parse_step("B").same_length(parse_step("D")) and not parse_step("h").same_length(parse_step("1"))
