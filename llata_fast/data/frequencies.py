"""Frequency strings of every dialect, and the period that a seasonal-naive forecast repeats.

Corpora of different years spell one step differently: pandas before version 2.2 ("H", "T", "M", "Q-DEC", "A"), later
versions ("h", "min", "ME", "QE-DEC", "YE") and Monash's words ("half_hourly", "10_minutes").
"""

import functools
import re

import pandas as pd
from pandas.tseries.frequencies import to_offset

from ..errors import InputError

_OLD_ALIASES = {
    "H": "h",
    "T": "min",
    "S": "s",
    "L": "ms",
    "U": "us",
    "N": "ns",
    "M": "ME",
    "BM": "BME",
    "SM": "SME",
    "Q": "QE",
    "BQ": "BQE",
    "A": "YE",
    "Y": "YE",
    "BA": "BYE",
    "BY": "BYE",
    "AS": "YS",
    "BAS": "BYS",
}
_WORDS = {
    "yearly": "YE",
    "quarterly": "QE",
    "monthly": "ME",
    "weekly": "W",
    "daily": "D",
    "hourly": "h",
    "half_hourly": "30min",
    "minutely": "min",
}
_UNITS = {"second": "s", "minute": "min", "hour": "h", "day": "D", "week": "W", "month": "ME", "year": "YE"}
_DAY = pd.Timedelta(days=1)


@functools.cache
def read_frequency(text: str) -> pd.DateOffset:
    """The step that `text` names. Raises InputError for what is no frequency, or none that goes forward."""
    step = text.strip()
    if counted := re.fullmatch(r"(\d+)_([a-z]+?)s?", step):
        step = counted[1] + _UNITS.get(counted[2], counted[2])
    step = _WORDS.get(step, step)
    count, alias, anchor = re.fullmatch(r"([\d.]*)([^-]*)(.*)", step, re.DOTALL).groups()
    try:
        offset = to_offset(f"{count}{_OLD_ALIASES.get(alias, alias)}{anchor}")
    except ValueError:
        raise InputError(f"{text!r} is not a frequency that pandas knows") from None
    if offset is None or offset.n < 1:
        raise InputError(f"{text!r} is not a frequency: a step goes forward in time")
    return offset


@functools.cache
def seasonality(frequency: str) -> int:
    """Steps of the period that a seasonal-naive forecast repeats: a day for steps within one, else a week or a year.

    1 where no usual period is a whole number of steps. Raises InputError as `read_frequency` does.
    """
    offset = read_frequency(frequency)
    name = offset.freqstr.lstrip("0123456789").partition("-")[0]
    if name == "B":
        return _whole(5, offset.n)
    if name == "W":
        return _whole(52, offset.n)
    if name in ("ME", "MS", "BME", "BMS"):
        return _whole(12, offset.n)
    if name in ("QE", "QS", "BQE", "BQS"):
        return _whole(4, offset.n)
    if name == "D":
        return {1: 7, 7: 52}.get(offset.n, 1)
    try:
        step = pd.Timedelta(offset)
    except ValueError:
        return 1
    if step < _DAY:
        return int(_DAY / step) if _DAY % step == pd.Timedelta(0) else 1
    return 7 if step == _DAY else 1


def _whole(period: int, count: int) -> int:
    return period // count if period % count == 0 else 1
