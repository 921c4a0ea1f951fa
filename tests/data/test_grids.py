"""The step of a series: a grid that contains every date, or none. Regular closing hours are not holes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llata_fast.data.grids import MAX_GRID_GROWTH, find_grid, fit, like, plain, regularity, usual_step
from llata_fast.data.steps import DAY, Fixed, open_step, parse_step

ALIASES = (
    *("s", "15min", "h", "6h", "7h", "D", "2D", "10D", "B", "W-TUE", "2W", "MS", "ME", "M@15", "M@30", "BMS", "BME"),
    *("WOM-3FRI", "LWOM-MON", "2MS", "QS", "QE", "BQE", "3M@15", "6MS", "YS", "YE", "BYE", "12M@29", "120M@1"),
    *("h@Mon-Fri 08:00-15:00", "30min@Mon-Fri 09:30-11:30,13:00-15:00", "h@Mon-Fri 08:00-17:00; Sat 09:00-12:00"),
    *(
        "D@Mon-Sat",
        "D@Mon,Wed,Fri",
        "15min@Mon-Sun 06:00-21:45",
        "h@Mon-Thu 00:00-23:00; Fri 00:00-20:00; Sun 22:00-23:00",
    ),
)
STARTS = st.integers(-2_000_000, 3_000_000)


def series(alias, start, rows):
    """`rows` dates one step apart; the first one is the first on the grid after `start` minutes."""
    step = parse_step(alias)
    moment = np.datetime64("2000-01-01", "us") + np.timedelta64(start * 15, "m")
    if "@" in alias and not alias.startswith(("M", "3M", "12M", "120M", "D")):
        moment = moment.astype("M8[D]").astype("M8[us]")
    return step.dates(step.dates(moment, np.array([0]))[0], np.arange(rows))


def rows_to_know(alias):
    """Rows needed to find the step: four weeks if there are closing hours, else two weeks of days."""
    per_week = (
        sum((last - first) // step.base + 1 for first, last in step.hours)
        if hasattr(step := parse_step(alias), "hours")
        else 3
    )
    return max(15, 4 * per_week)


@given(alias=st.sampled_from(ALIASES), start=STARTS, more=st.integers(0, 60))
@settings(deadline=None)
def test_every_step_is_found_and_continues(alias, start, more):
    rows = rows_to_know(alias) + more
    dates = series(alias, start, rows + 30)
    grid = find_grid(dates[:rows])
    assert grid is not None and grid.holes == 0
    np.testing.assert_array_equal(grid.dates(), dates[:rows])
    np.testing.assert_array_equal(grid.step.after(dates[rows - 1], 30), dates[rows:])


@given(alias=st.sampled_from(ALIASES), start=STARTS, seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_lost_rows_are_holes(alias, start, seed):
    """With one row in twelve lost, the grid is that of the full series and its first hole is the first lost row."""
    rows = 3 * rows_to_know(alias)
    dates = series(alias, start, rows)
    lost = np.sort(np.random.default_rng(seed).choice(np.arange(3, rows - 3), rows // 12, replace=False))
    grid = find_grid(np.delete(dates, lost))
    assert grid is not None
    np.testing.assert_array_equal(grid.dates(), dates)
    row, hole = grid.first_hole()
    assert hole == dates[lost[0]] and row == lost[0] - 1


@given(dates=st.lists(st.integers(0, 100_000_000), min_size=3, max_size=60, unique=True).map(sorted))
def test_a_grid_holds_every_date_or_there_is_none(dates):
    moments = np.datetime64("2020-01-01", "us") + np.array(dates) * np.timedelta64(1, "s")
    grid = find_grid(moments)
    if grid is not None:
        np.testing.assert_array_equal(grid.dates()[grid.index], moments)
        assert len(grid) <= MAX_GRID_GROWTH * len(moments)
    else:
        step, on_grid = usual_step(moments)
        assert on_grid.sum() >= 2


@given(alias=st.sampled_from(ALIASES), start=STARTS, row=st.integers(1, 40), seconds=st.integers(1, 86_399))
@settings(deadline=None)
def test_a_date_off_the_grid_is_never_ignored(alias, start, row, seconds):
    rows = rows_to_know(alias) + 40
    dates = series(alias, start, rows)
    moved = dates[row] + np.timedelta64(seconds, "s")
    assume(moved < dates[row + 1])
    dates = np.concatenate([dates[:row], [moved], dates[row + 1 :]])
    grid = find_grid(dates)
    # a finer grid may contain it, but then it has holes
    assert grid is None or (grid.holes and moved in grid.dates())
    if grid is None:
        assert not usual_step(dates)[1][row]


def test_a_hole_at_night_is_no_closed_night():
    hours = series("h", 0, 24 * 10)
    for lost in ([30], [30, 54], [30, 31, 32], list(range(30, 54))):
        grid = find_grid(np.delete(hours, lost))
        assert (grid.alias, grid.holes) == ("h", len(lost))


def test_holidays_are_holes_of_the_open_hours():
    step = parse_step("h@Mon-Fri 08:00-15:00")
    dates = step.dates(np.datetime64("2024-01-01T08:00", "us"), np.arange(8 * 60))
    holidays = np.flatnonzero(np.isin(dates.astype("M8[D]"), np.array(["2024-01-10", "2024-02-19"], dtype="M8[D]")))
    grid = find_grid(np.delete(dates, holidays))
    assert (grid.step, grid.holes) == (step, 16)
    assert grid.first_hole()[1] == np.datetime64("2024-01-10T08:00", "us")


def test_days_without_a_weekend_do_not_say_whether_it_is_open():
    hours = parse_step("h@Mon-Fri 08:00-15:00").dates(np.datetime64("2024-01-01T08:00", "us"), np.arange(40))
    assert find_grid(hours).alias == "h"
    assert find_grid(hours).holes > 60
    assert find_grid(parse_step("B").dates(np.datetime64("2024-01-01", "us"), np.arange(5))).alias == "D"
    assert find_grid(parse_step("B").dates(np.datetime64("2024-01-04", "us"), np.arange(5))).alias == "B"


def test_random_gaps_close_nothing():
    rng = np.random.default_rng(0)
    hours = series("h", 0, 24 * 21)
    for share in (0.05, 0.2, 0.5, 0.7):
        kept = np.sort(rng.choice(len(hours), int(len(hours) * (1 - share)), replace=False))
        assert find_grid(hours[kept]).alias == "h", share


@pytest.mark.parametrize(
    ("dates", "alias"),
    [
        (["2021-01-01", "2022-01-01", "2023-01-01"], "YS-JAN"),
        (["2021-07-01", "2021-08-01", "2021-09-01"], "MS"),
        (["2021-07-31", "2021-08-31", "2021-09-30"], "ME"),
        (["2021-01-30", "2021-02-28", "2021-03-30"], "M@30"),
        (["2021-02-28", "2022-02-28", "2023-02-28"], "YE-FEB"),
        (["2021-02-28", "2021-03-28", "2021-04-28"], "M@28"),
        (["2024-02-05", "2024-03-04", "2024-04-01"], "28D"),
        (["2005-01-01", "2006-02-01", "2007-03-01"], None),
        (["2024-01-01", "2024-01-02", "2074-01-01"], None),
        (["2024-01-01", "2024-01-02"], None),
    ],
)
def test_few_dates(dates, alias):
    grid = find_grid(np.array(dates, dtype="M8[us]"))
    assert (grid and grid.alias) == alias


def test_whole_numbers():
    assert find_grid(np.arange(5, 50, 5)).alias == "5"
    grid = find_grid(np.array([1, 2, 3, 5, 6]))
    assert grid.holes == 1 and grid.first_hole() == (2, 4)
    assert find_grid(np.array([1, 2, 3, 1000])) is None
    assert fit(parse_step("h"), np.arange(3)) is None and fit(parse_step("1"), series("h", 0, 3)) is None


def test_an_expected_step_needs_one_row():
    monday = np.array(["2022-03-07"], dtype="M8[us]")
    assert fit(parse_step("B"), monday).holes == 0
    assert fit(parse_step("B"), np.array(["2022-03-11", "2022-03-12"], dtype="M8[us]")) is None


def test_more_regular_readings_rank_first():
    hours = series("h", 0, 40)
    ranked = [hours, np.delete(hours, 5), hours + np.arange(40) ** 2 * np.timedelta64(7, "s"), hours[::-1]]
    assert sorted(map(regularity, ranked)) == list(map(regularity, ranked))


def test_zones():
    for zone in ("UTC", "+05:30", "Europe/Berlin"):
        dates = pd.date_range("2024-03-29", periods=6, tz=zone)
        for local in (True, False):
            pd.testing.assert_index_equal(
                like(plain(dates, local), dates, local), dates.as_unit("us"), exact="equiv", check_names=False
            )
    # when the clock is put forward at midnight, the day begins an hour later
    begins = like(np.array(["2024-03-31"], dtype="M8[us]"), pd.DatetimeIndex([], tz="Asia/Beirut"), local=True)
    assert str(begins[0]) == "2024-03-31 01:00:00+03:00"


def test_open_steps_name_whole_weeks():
    assert open_step(DAY, np.arange(7) * DAY).seasonality == 7
    assert Fixed(DAY).seasonality == 7
