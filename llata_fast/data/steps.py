"""Steps between rows: a fixed duration, months with a rule for the day, a week's opening hours, or whole numbers.

A step numbers the dates of its grid: `index` counts them from an origin, and `dates` is the inverse. All arrays are
datetime64[us] without time zone, or int64 for whole numbers. Arguments broadcast, so a table of thousands of items is
numbered in one call, with each row's own origin.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from ..errors import InputError

SECOND = 1_000_000
DAY = 86_400 * SECOND
WEEK = 7 * DAY
# 1970-01-05, the first Monday after numpy's epoch
_MONDAY = np.datetime64("1970-01-05", "us")

_UNITS = {"us": 1, "ms": 1000, "s": SECOND, "min": 60 * SECOND, "h": 3600 * SECOND, "D": DAY, "W": WEEK}
# units of older versions of pandas, which datasets still use
_OLD_UNITS = {"U": "us", "L": "ms", "S": "s", "T": "min", "H": "h"}
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTH_UNITS = {12: "Y", 3: "Q", 1: "M"}

FIRST, LAST, FIRST_WORKDAY, LAST_WORKDAY = "first", "last", "first workday", "last workday"
_ENDINGS = {FIRST: ("", "S"), LAST: ("", "E"), FIRST_WORKDAY: ("B", "S"), LAST_WORKDAY: ("B", "E")}


Moment = np.datetime64 | np.int64
"""A date, or the number of a row."""


class Step(ABC):
    """The distance between consecutive rows."""

    @abstractmethod
    def index(self, dates: np.ndarray, origin: np.ndarray | Moment) -> tuple[np.ndarray, np.ndarray]:
        """Number of steps (int64) from `origin` to each of `dates`, and a mask of those on the grid that it starts."""

    @abstractmethod
    def dates(self, origin: np.ndarray | Moment, index: np.ndarray) -> np.ndarray:
        """The dates `index` steps after `origin`, which must be on the grid."""

    @abstractmethod
    def alias(self, origin: Moment) -> str:
        """The step as text for `parse_step`: pandas' alias if there is one."""

    @property
    @abstractmethod
    def seasonality(self) -> int:
        """Rows per usual season: a day, else a week, else a year; 1 if there is none."""

    @property
    @abstractmethod
    def days(self) -> float:
        """Days between two rows, on average if they vary; 0 for whole numbers."""

    def after(self, last: Moment, count: int) -> np.ndarray:
        """The `count` dates after `last`."""
        return self.dates(last, np.arange(1, count + 1))

    def same_length(self, other: "Step") -> bool:
        """Whether both steps have the same length, wherever in the day, week, month or year they begin."""
        return self == other


@dataclass(frozen=True)
class Whole(Step):
    """Whole numbers, `amount` apart."""

    amount: int

    def index(self, dates, origin):
        distance = dates - origin
        return distance // self.amount, distance % self.amount == 0

    def dates(self, origin, index):
        return origin + np.asarray(index, dtype=np.int64) * self.amount

    def alias(self, origin):
        return str(self.amount)

    seasonality = 1
    days = 0.0


@dataclass(frozen=True)
class Fixed(Step):
    """A constant duration of `amount` microseconds."""

    amount: int

    def index(self, dates, origin):
        distance = (dates - origin).astype(np.int64)
        return distance // self.amount, distance % self.amount == 0

    def dates(self, origin, index):
        return origin + np.asarray(index, dtype=np.int64) * np.timedelta64(self.amount, "us")

    def alias(self, origin):
        if self.amount == WEEK:
            return f"W-{_WEEKDAYS[_weekday(origin)].upper()}"
        unit = next(unit for unit in ("D", "h", "min", "s", "ms", "us") if self.amount % _UNITS[unit] == 0)
        count = self.amount // _UNITS[unit]
        return unit if count == 1 else f"{count}{unit}"

    @property
    def seasonality(self):
        if self.amount < DAY:
            return DAY // self.amount if DAY % self.amount == 0 else 1
        return {DAY: 7, WEEK: 52}.get(self.amount, 1)

    @property
    def days(self):
        return self.amount / DAY


@dataclass(frozen=True)
class Months(Step):
    """`count` months, on the day of the month given by `day`.

    `day` is a number (capped at the month's last day), first, last, first workday, last workday, or a weekday with its
    place: (3, 4) is the third Friday, (-1, 4) the last one.
    """

    count: int
    day: int | str | tuple[int, int]

    def index(self, dates, origin):
        months = dates.astype("M8[M]")
        distance = (months - origin.astype("M8[M]")).astype(np.int64)
        on_grid = (distance % self.count == 0) & (self._day_of(months) + _time_of_day(origin) == dates)
        return distance // self.count, on_grid

    def dates(self, origin, index):
        months = origin.astype("M8[M]") + np.asarray(index, dtype=np.int64) * self.count
        return self._day_of(months) + _time_of_day(origin)

    def _day_of(self, months: np.ndarray) -> np.ndarray:
        """The day that the rule selects in each of `months` (datetime64[M]), as datetime64[us]."""
        first = months.astype("M8[D]")
        last = (months + 1).astype("M8[D]") - 1
        if self.day == FIRST:
            days = first
        elif self.day == LAST:
            days = last
        elif self.day == FIRST_WORKDAY:
            days = np.busday_offset(first, 0, roll="forward")
        elif self.day == LAST_WORKDAY:
            days = np.busday_offset(last, 0, roll="backward")
        elif isinstance(self.day, tuple):
            place, weekday = self.day
            if place > 0:
                days = first + (weekday - _weekday(first)) % 7 + 7 * (place - 1)
            else:
                days = last - (_weekday(last) - weekday) % 7
        else:
            assert isinstance(self.day, int)
            days = np.minimum(first + (self.day - 1), last)
        return days.astype("M8[us]")

    def alias(self, origin):
        if isinstance(self.day, tuple):
            place, weekday = self.day
            name = _WEEKDAYS[weekday].upper()
            return _counted(self.count, f"LWOM-{name}" if place < 0 else f"WOM-{place}{name}")
        if isinstance(self.day, int):
            return _counted(self.count, f"M@{self.day}")
        months = next(months for months in _MONTH_UNITS if self.count % months == 0)
        before, after = _ENDINGS[self.day]
        # the anchor is a month in which a year or quarter begins, or ends
        month = int(origin.astype("M8[M]").astype(np.int64)) % 12
        if months == 3:
            month = month % 3 if after == "S" else 9 + month % 3
        anchor = "" if months == 1 else f"-{_MONTHS[month]}"
        return _counted(self.count // months, f"{before}{_MONTH_UNITS[months]}{after}{anchor}")

    @property
    def seasonality(self):
        return 12 // self.count if 12 % self.count == 0 else 1

    @property
    def days(self):
        return self.count * 365.2425 / 12

    def same_length(self, other):
        return isinstance(other, Months) and other.count == self.count


@dataclass(frozen=True)
class Open(Step):
    """`base` microseconds, but only within the weekly opening hours `hours`.

    `hours` are pairs (first, last) of open rows, in microseconds after midnight on Monday, in order. For a base of one
    day they give only the day; the time of day comes from the origin.
    """

    base: int
    hours: tuple[tuple[int, int], ...]

    def index(self, dates, origin):
        shift = self._shift(origin)
        (week, place, on_grid), (first_week, first, _) = (self._place(moment - shift) for moment in (dates, origin))
        return (week - first_week) * len(_slots(self)) + place - first, on_grid

    def _place(self, dates: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The week, the index among its open rows, and whether the date is one of them."""
        slots = _slots(self)
        week, rest = np.divmod((dates - _MONDAY).astype(np.int64), WEEK)
        place = np.searchsorted(slots, rest)
        return week, place, slots[np.minimum(place, len(slots) - 1)] == rest

    def dates(self, origin, index):
        slots, shift = _slots(self), self._shift(origin)
        week, place, _ = self._place(origin - shift)
        week, place = np.divmod(week * len(slots) + place + np.asarray(index, dtype=np.int64), len(slots))
        return _MONDAY + (week * WEEK + slots[place]).astype("m8[us]") + shift

    def _shift(self, origin: np.ndarray) -> np.ndarray | np.timedelta64:
        return _time_of_day(origin) if self.base == DAY else np.timedelta64(0, "us")

    def alias(self, origin):
        base = Fixed(self.base).alias(origin)
        days = [(day, tuple(hours)) for day, hours in self._hours_of_days().items()]
        if self.base == DAY:
            names = _runs([day for day, _ in days])
            return "B" if names == "Mon-Fri" else f"{base}@{names}"
        groups: dict[tuple, list[int]] = {}
        for day, hours in days:
            groups.setdefault(hours, []).append(day)
        texts = [
            f"{_runs(members)} {','.join(f'{_clock(first)}-{_clock(last)}' for first, last in hours)}"
            for hours, members in groups.items()
        ]
        return f"{base}@{'; '.join(texts)}"

    def _hours_of_days(self) -> dict[int, list[tuple[int, int]]]:
        """Weekday -> its opening hours, in microseconds after midnight."""
        result: dict[int, list[tuple[int, int]]] = {}
        slots = _slots(self)
        for day, members in groupby(slots.tolist(), key=lambda slot: slot // DAY):
            times = [slot % DAY for slot in members]
            result[day] = _stretches(times, self.base)
        return result

    @property
    def seasonality(self):
        if self.base == DAY:
            return len(_slots(self))
        rows = {tuple(hours) for hours in self._hours_of_days().values()}
        week = len(_slots(self))
        return week // len(self._hours_of_days()) if len(rows) == 1 else week

    @property
    def days(self):
        return self.base / DAY


def open_step(base: int, slots: np.ndarray) -> Open:
    """The step whose open rows in a week are `slots`, in microseconds after midnight on Monday."""
    return Open(base, tuple(_stretches(slots.tolist(), base)))


WORKDAYS = Open(DAY, ((0, 4 * DAY),))


def parse_step(text: str) -> Step:
    """Parse an alias: pandas' (old spellings included), or one that `Step.alias` has written.

    Anchors (Tuesday in W-TUE, October in QS-OCT) are ignored, as the dates determine them. Raises InputError.
    """
    text = text.strip()
    try:
        step = _parse_number_or_time(text) or _parse_months(text) or _parse_open(text)
    except (ValueError, IndexError):
        step = None
    if step is None:
        raise InputError(
            f"{text!r} is not a step between rows: write it as 15min, h, D, B, W-SUN, MS, ME, QS-JAN or YS-JAN"
        )
    return step


def _parse_number_or_time(text: str) -> Step | None:
    if re.fullmatch("[1-9][0-9]*", text):
        return Whole(int(text))
    if match := re.fullmatch("([0-9]*)(us|ms|s|min|h|D|W|[ULSTH])(?:-(?:MON|TUE|WED|THU|FRI|SAT|SUN))?", text):
        count, unit = match.groups()
        amount = int(count or 1) * _UNITS[_OLD_UNITS.get(unit, unit)]
        return Fixed(amount) if amount else None
    if text in ("B", "C"):
        return WORKDAYS
    # pandas' business hours, nine to five
    if text in ("bh", "BH"):
        return open_step(_UNITS["h"], np.add.outer(np.arange(5) * DAY, np.arange(9, 17) * _UNITS["h"]).ravel())
    return None


def _parse_months(text: str) -> Step | None:
    if match := re.fullmatch("([0-9]*)M@([0-9]+)", text):
        return Months(int(match[1] or 1), int(match[2])) if 1 <= int(match[2]) <= 31 else None
    if match := re.fullmatch(f"([0-9]*)(?:WOM-([1-5])|LWOM-)({'|'.join(_WEEKDAYS).upper()})", text):
        return Months(int(match[1] or 1), (int(match[2] or -1), _WEEKDAYS.index(match[3].capitalize())))
    match = re.fullmatch(f"([0-9]*)(B?)([MQYA])([SE]?)(?:-(?:{'|'.join(_MONTHS)}))?", text)
    if match is None:
        return None
    count, business, unit, end = match.groups()
    months = {"M": 1, "Q": 3, "Y": 12, "A": 12}[unit] * int(count or 1)
    # old spellings without S or E mean the end of the period
    day = next(day for day, ending in _ENDINGS.items() if ending == (business, end or "E"))
    return Months(months, day) if months else None


def _parse_open(text: str) -> Step | None:
    base_text, at, rest = text.partition("@")
    base = _parse_number_or_time(base_text)
    if not at or not isinstance(base, Fixed) or WEEK % base.amount:
        return None
    slots: list[np.ndarray] = []
    for group in rest.split("; "):
        days, _, hours = group.partition(" ")
        times = [np.zeros(1, dtype=np.int64)]
        if hours:
            ends = [[_microseconds(clock) for clock in stretch.split("-")] for stretch in hours.split(",")]
            times = [np.arange(first, last + 1, base.amount) for first, last in ends]
        slots += [np.add.outer(np.array(_members(days)) * DAY, np.concatenate(times)).ravel()]
    return open_step(base.amount, np.unique(np.concatenate(slots)))


@lru_cache(maxsize=64)
def _slots(step: Open) -> np.ndarray:
    """Every open row of a week, in microseconds after midnight on Monday, in order."""
    return np.concatenate([np.arange(first, last + 1, step.base) for first, last in step.hours])


def _stretches(values: list[int], step: int) -> list[tuple[int, int]]:
    """Group sorted values into (first, last) of every run whose members are `step` apart."""
    result: list[list[int]] = []
    for value in values:
        if result and value - result[-1][1] == step:
            result[-1][1] = value
        else:
            result.append([value, value])
    return [(first, last) for first, last in result]


def _runs(days: list[int]) -> str:
    return ",".join(
        _WEEKDAYS[first] if first == last else f"{_WEEKDAYS[first]}-{_WEEKDAYS[last]}"
        for first, last in _stretches(days, 1)
    )


def _members(days: str) -> list[int]:
    result: list[int] = []
    for run in days.split(","):
        first, _, last = run.partition("-")
        result += range(_WEEKDAYS.index(first), _WEEKDAYS.index(last or first) + 1)
    return result


def _clock(microseconds: int) -> str:
    """Time of day as 09:30, with seconds and fractions only if needed."""
    seconds, fraction = divmod(microseconds, SECOND)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}"
    if seconds % 60 or fraction:
        text += f":{seconds % 60:02}"
    return text + (f".{fraction:06}" if fraction else "")


def _microseconds(clock: str) -> int:
    hours, minutes, *seconds = clock.split(":")
    whole, _, fraction = (seconds or ["0"])[0].partition(".")
    return ((int(hours) * 60 + int(minutes)) * 60 + int(whole)) * SECOND + int(fraction.ljust(6, "0") or 0)


def _counted(count: int, alias: str) -> str:
    return alias if count == 1 else f"{count}{alias}"


def _weekday(dates: np.ndarray) -> np.ndarray:
    """0 for Monday."""
    return (dates.astype("M8[D]").astype(np.int64) + 3) % 7


def _time_of_day(dates: np.ndarray) -> np.ndarray:
    return dates - dates.astype("M8[D]")
