"""Find the step of a series, and the grid that it spans, from its dates alone.

A step qualifies only if its grid contains every date. Among those, the one whose grid has the fewest missing dates is
taken. Rows missing by a calendar pattern (months, opening hours) count as closed times only if chance would rarely
leave out the same rows so often.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .steps import (
    DAY,
    FIRST,
    FIRST_WORKDAY,
    LAST,
    LAST_WORKDAY,
    SECOND,
    WEEK,
    Fixed,
    Months,
    Step,
    Whole,
    open_step,
)

MAX_GRID_GROWTH = 10
"""A series whose grid would have more than this many times its rows is irregular, not one with gaps: two stray
timestamps years apart must not fill the memory."""

_CHANCE = 0.01
"""Largest probability that closed times are due to chance."""

_MAX_OPEN_ROWS = 200_000
_WEEKEND = {5, 6}


@dataclass(frozen=True, eq=False)
class Grid:
    """The dates of a step, and the positions of a series' dates among them."""

    step: Step
    origin: np.datetime64 | np.int64
    index: np.ndarray
    """[rows] int64, strictly increasing from 0."""

    def __len__(self) -> int:
        return int(self.index[-1]) + 1

    @property
    def holes(self) -> int:
        """Number of grid dates that the series lacks."""
        return len(self) - len(self.index)

    def dates(self) -> np.ndarray:
        """[len(self)]: every date of the grid."""
        return self.step.dates(self.origin, np.arange(len(self)))

    def first_hole(self) -> tuple[int, np.datetime64 | np.int64]:
        """The row before the first missing date, and that date."""
        row = int(np.flatnonzero(np.diff(self.index) > 1)[0])
        return row, self.step.dates(self.origin, self.index[row : row + 1] + 1)[0]

    @property
    def alias(self) -> str:
        return self.step.alias(self.origin)


def fit(step: Step, dates: np.ndarray) -> Grid | None:
    """The grid of `step` starting at the first of `dates` [rows]; None unless it contains them all, in order."""
    if isinstance(step, Whole) != (dates.dtype.kind == "i") or not len(dates):
        return None
    index, on_grid = step.index(dates, dates[0])
    return Grid(step, dates[0], index) if on_grid.all() and (np.diff(index) > 0).all() else None


def find_grid(dates: np.ndarray) -> Grid | None:
    """The grid with the fewest missing dates that contains all `dates` [rows >= 3], sorted datetime64[us] or int64.

    None if no step has such a grid, or only one with more than MAX_GRID_GROWTH times as many rows.
    """
    if len(dates) < 3:
        return None
    best = None
    for grid in _grids(dates):
        if len(grid) <= MAX_GRID_GROWTH * len(dates) and (best is None or grid.holes < best.holes):
            best = grid
        if best is not None and not best.holes:
            break
    return best


def usual_step(dates: np.ndarray) -> tuple[Step, np.ndarray]:
    """For dates [rows >= 2] that fit no grid: the step of their longest regular stretch, and a mask of the dates on the
    grid that continues this stretch.
    """
    best = None
    for step, row in _steps_of_stretches(dates):
        _, on_grid = step.index(dates, dates[row])
        if best is None or on_grid.sum() > best[1].sum():
            best = step, on_grid
    assert best is not None
    return best


def regularity(dates: np.ndarray) -> tuple[int, int]:
    """The quality of `dates` [rows] as a reading of text, smallest best: (0 evenly spaced, 1 with gaps, 2 irregular,
    3 unsorted; number of misplaced rows).
    """
    backwards = int((np.diff(dates).astype(np.int64) <= 0).sum())
    if backwards:
        return 3, backwards
    grid = find_grid(dates)
    if grid is None:
        return 2, 0
    return (1, grid.holes) if grid.holes else (0, 0)


def plain(dates: pd.Index, local: bool) -> np.ndarray:
    """Dates in the form that steps use: datetime64[us] in local time (`local`) or UTC, or int64."""
    if not isinstance(dates, pd.DatetimeIndex):
        return dates.to_numpy(dtype=np.int64)
    if dates.tz is not None:
        dates = dates.tz_localize(None) if local else dates.tz_convert(None)
    return dates.to_numpy().astype("M8[us]")


def like(dates: np.ndarray, example: pd.Index, local: bool) -> pd.Index:
    """The inverse of `plain`: an index in the time zone of `example`."""
    if dates.dtype.kind == "i":
        return pd.Index(dates)
    index = pd.DatetimeIndex(dates)
    zone = getattr(example, "tz", None)
    if zone is None:
        return index
    if not local:
        return index.tz_localize("UTC").tz_convert(zone)
    # a day whose midnight is skipped by summer time begins an hour later
    return index.tz_localize(zone, ambiguous=np.ones(len(index), dtype=bool), nonexistent="shift_forward")


def is_local(step: Step) -> bool:
    """Whether a step follows local time instead of elapsed time."""
    return not isinstance(step, Fixed) or step.days >= 1


def _grids(dates: np.ndarray) -> Iterator[Grid]:
    """Grids that contain all dates, the more usual ones first."""
    distances = np.diff(dates).astype(np.int64)
    if dates.dtype.kind == "i":
        steps: Iterator[Step] = (Whole(amount) for amount in _usual(distances))
    else:
        steps = _times(dates, distances)
    for step in steps:
        if (grid := fit(step, dates)) is not None:
            yield grid
    if dates.dtype.kind == "M":
        yield from _open_grids(dates, distances)


def _times(dates: np.ndarray, distances: np.ndarray) -> Iterator[Step]:
    by_month = list(_months(dates)) if distances.min() >= 25 * DAY else []
    # calendar months before 31 days, and 28 days before the first Monday of every month
    yield from (step for step in by_month if isinstance(step.day, int) or step.day in (FIRST, LAST))
    yield from (Fixed(amount) for amount in _usual(distances))
    yield from (step for step in by_month if isinstance(step.day, tuple) or step.day in (FIRST_WORKDAY, LAST_WORKDAY))


def _months(dates: np.ndarray) -> Iterator[Months]:
    months = dates.astype("M8[M]")
    days = dates.astype("M8[D]")
    day_of_month = (days - months.astype("M8[D]")).astype(np.int64) + 1
    weekday = int((days[0].astype(np.int64) + 3) % 7)
    rules = (FIRST, LAST, int(day_of_month.max()), FIRST_WORKDAY, LAST_WORKDAY)
    places = ((int(day_of_month[0] - 1) // 7 + 1, weekday), (-1, weekday))
    distances = np.diff(months).astype(np.int64)
    if distances.min() < 1:
        return
    for count in _usual(distances):
        # months must recur every year or with the years: a step of 13 months is a misreading of two numbers
        if 12 % count == 0 or count % 12 == 0:
            yield from (Months(count, day) for day in (*rules, *places))


def _usual(distances: np.ndarray) -> list[int]:
    """The distance in the longest regular stretch (the shorter one of a tie), and the most frequent distance."""
    start, _ = _longest_stretch(distances)
    values, counts = np.unique(distances, return_counts=True)
    return list(dict.fromkeys((int(distances[start]), int(values[counts.argmax()]))))


def _longest_stretch(distances: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest stretch of equal distances, with ties won by the shortest distance."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(distances)) + 1])
    lengths = np.diff(np.append(starts, len(distances)))
    best = np.lexsort((distances[starts], -lengths))[0]
    return int(starts[best]), int(lengths[best])


def _steps_of_stretches(dates: np.ndarray) -> Iterator[tuple[Step, int]]:
    """(step, a row of the stretch that it comes from)."""
    distances = np.diff(dates).astype(np.int64)
    row, _ = _longest_stretch(distances)
    amount = int(distances[row])
    if dates.dtype.kind == "i":
        yield Whole(amount), row
        return
    yield Fixed(amount), row
    months = np.diff(dates.astype("M8[M]")).astype(np.int64)
    if amount < 25 * DAY or months.min() < 1:
        return
    row, length = _longest_stretch(months)
    for step in _months(dates[row : row + length + 1]):
        yield step, row


def _open_grids(dates: np.ndarray, distances: np.ndarray) -> Iterator[Grid]:
    """Grids whose rows are missing at the same hours and days again and again."""
    start, _ = _longest_stretch(distances)
    for base in dict.fromkeys((int(distances[start]), int(np.gcd.reduce(distances)))):
        if not SECOND <= base <= DAY or WEEK % base:
            continue
        shift = dates[0] - dates[0].astype("M8[D]") if base == DAY else np.timedelta64(0, "us")
        moments = (dates - shift).astype(np.int64) + 3 * DAY  # 1970-01-01 is a Thursday
        if ((moments - moments[0]) % base).any() or len(np.unique(moments % WEEK)) > _MAX_OPEN_ROWS:
            continue
        for slots, is_believed in (*_days_and_hours(moments, base), *_whole_weeks(moments, base)):
            if not 0 < len(slots) < WEEK // base:
                continue
            grid = fit(open_step(base, slots), dates)
            if grid is not None and is_believed(_chance(grid.holes, len(dates))):
                yield grid


def _chance(absent: int, present: int) -> float:
    """Estimated probability that a row is missing."""
    return min(1.0, (absent + 1) / (present + 1))


_Rows = tuple[np.ndarray, Callable[[float], bool]]


def _days_and_hours(moments: np.ndarray, base: int) -> Iterator[_Rows]:
    """Opening hours: the same hours on the same days of every week, as their rows and a function that tells whether
    they are plausible when rows are missing with a given probability.
    """
    days, hours = np.unique(moments // DAY), np.unique(moments % DAY)
    passed = np.bincount(np.arange(days[0], days[-1] + 1) % 7, minlength=7)
    seen = np.bincount(days % 7, minlength=7)
    if DAY % base or any(not passed[day] for day in _WEEKEND):
        # the weekend is still unknown
        return
    never = {day for day in range(7) if passed[day] and not seen[day]}
    # in a short series, one missing weekday does not rule out a weekend
    for closed in (never, _WEEKEND) if never > _WEEKEND else (never,):
        open_days = np.array([day for day in range(7) if day not in closed])

        def is_believed(chance: float, closed: set[int] = closed, open_days: np.ndarray = open_days) -> bool:
            if len(hours) < DAY // base and DAY // base * chance ** len(days) > _CHANCE:
                return False
            if not closed or closed == _WEEKEND:
                return True
            chance = _chance(sum(passed[day] - seen[day] for day in open_days), len(days))
            return 7 * chance ** int(min(passed[day] for day in closed)) <= _CHANCE

        yield np.add.outer(open_days * DAY, hours).ravel(), is_believed


def _whole_weeks(moments: np.ndarray, base: int) -> Iterator[_Rows]:
    """Any rows of a week: those that occur, in the same form as `_days_and_hours`."""
    if weeks := int((moments[-1] - moments[0]) // WEEK):
        yield np.unique(moments % WEEK), lambda chance: WEEK // base * chance**weeks <= _CHANCE
