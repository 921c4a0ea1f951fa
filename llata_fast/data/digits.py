"""Interpret whole numbers in a date column: dates written in digits, Unix time, years, or an index of steps."""

import re

import numpy as np
import pandas as pd

from .grids import find_grid
from .periods import DateError
from .steps import Step, Whole


def read_numbers(text: pd.Series, name: str, expected: Step | None = None) -> pd.Index:
    """Interpret whole numbers in a date column: dates in digits (200501, 20240131, 2024013112), Unix time, years if the
    column's name says so, and otherwise an index of steps (int64).

    `expected` is the step that the dates should have. Raises DateError for ambiguous numbers.
    """
    if len(too_long := np.flatnonzero(text.str.len() > 19)):
        raise DateError(f"{text.iloc[too_long[0]]!r} is too large", int(too_long[0]))
    if len(padded := np.flatnonzero(text.str.match("[-+]?0[0-9]"))):
        raise DateError(f"{text.iloc[padded[0]]!r} is not a date; write it as 2024-01-31", int(padded[0]))
    numbers = text.str.replace("[.]0+$", "", regex=True).astype(np.int64).to_numpy()
    if isinstance(expected, Whole):
        return pd.Index(numbers)
    widths = np.unique(np.char.str_len(numbers.astype(str))) if numbers.min() > 0 else [0]
    width = int(widths[0]) if len(widths) == 1 else 0
    if width == 4 and re.search("(?i)(^|[^a-z])(years?|yr|jahr)([^a-z]|$)", name):
        return pd.DatetimeIndex((numbers - 1970).astype("M8[Y]").astype("M8[us]"))
    for layout, reads in _LAYOUTS.get(width, {}).items():
        moments, valid = _from_digits(numbers, layout)
        if valid.all():
            if not reads or (layout == "YYYYJJJ" and find_grid(numbers) is not None):
                example = pd.Timestamp(moments[0])
                raise DateError(f"{text.iloc[0]!r} can be a number or {example:%d %B %Y}: write {example:%Y-%m-%d}", 0)
            return pd.DatetimeIndex(moments)
        if reads and valid.mean() > 0.5:
            row = int((~valid).argmax())
            hint = "; write weeks as 2019-W13" if layout == "YYYYMM" and (numbers % 100 <= 53).all() else ""
            raise DateError(f"{text.iloc[row]!r} is not a date like {text[valid].iloc[0]!r}{hint}", row)
    if unit := _epoch_unit(numbers, width, name):
        return pd.DatetimeIndex(numbers.astype(f"M8[{unit}]").astype("M8[us]"), tz="UTC")
    if (
        width == 6
        and ((numbers % 100 <= 53) & (numbers % 100 > 0) & (numbers // 100 >= 1900) & (numbers // 100 <= 2099)).all()
    ):
        raise DateError(f"{text.iloc[0]!r} can be a week or a number: write weeks as 2019-W13", 0)
    return pd.Index(numbers)


# number of digits -> layout that is read, and layout that is refused because it could be mistaken for it
_LAYOUTS = {
    6: {"YYYYMM": True, "YYMMDD": False, "DDMMYY": False, "MMDDYY": False},
    7: {"YYYYJJJ": True},
    8: {"YYYYMMDD": True, "DDMMYYYY": False, "MMDDYYYY": False},
    10: {"YYYYMMDDhh": True},
    12: {"YYYYMMDDhhmm": True},
    14: {"YYYYMMDDhhmmss": True},
}


def _from_digits(numbers: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Moments (datetime64[us]) of numbers in the digit `layout`, and a mask of those that exist in the calendar from
    1600 to 2399.
    """

    def part(letter: str, default: int) -> np.ndarray:
        first, length = layout.find(letter), layout.count(letter)
        return (
            numbers // 10 ** (len(layout) - first - length) % 10**length if length else np.full_like(numbers, default)
        )

    year, month, day = part("Y", 0), part("M", 1), part("D", 1)
    if layout.count("Y") == 2:
        year = year + 2000
    hour, minute, second = part("h", 0), part("m", 0), part("s", 0)
    valid = (1600 <= year) & (year <= 2399) & (1 <= month) & (month <= 12) & (hour < 24) & (minute < 60) & (second < 60)
    months = (np.where(valid, year - 1970, 0) * 12 + np.where(valid, month - 1, 0)).astype("M8[M]")
    if "J" in layout:
        day = part("J", 1)
        length = ((months.astype("M8[Y]") + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64)
    else:
        length = ((months + 1).astype("M8[D]") - months.astype("M8[D]")).astype(np.int64)
    valid &= (1 <= day) & (day <= length)
    seconds = (hour * 60 + minute) * 60 + second
    return months.astype("M8[D]") + (day - 1) + seconds.astype("m8[s]").astype("m8[us]"), valid


def _epoch_unit(numbers: np.ndarray, width: int, name: str) -> str | None:
    """The unit of Unix time in a column whose name suggests time, for the years 2001 (ten digits) to 2099."""
    unit = {10: "s", 13: "ms", 16: "us", 19: "ns"}.get(width)
    if unit is None or not re.search("(?i)date|time|stamp|epoch|unix|^[td]s$", name):
        return None
    return unit if numbers.max() < 4_102_444_800 * 10 ** (width - 10) else None
