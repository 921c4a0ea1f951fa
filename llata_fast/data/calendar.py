"""Categories computed from a timestamp, and so known for the future: hour, weekday, month, holidays."""

import importlib.util
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import InputError
from .steps import Step, Whole

HOUR, WEEKDAY, MONTH, HOLIDAY = "hour", "weekday", "month", "holiday"
CALENDAR_COLUMNS = {name: f"calendar_{name}" for name in (HOUR, WEEKDAY, MONTH)}
_SAYS = {HOUR: lambda days: days < 1, WEEKDAY: lambda days: days < 7, MONTH: lambda days: days < 360}
_TEXTS = {
    HOUR: tuple(map(str, range(24))),
    WEEKDAY: ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    MONTH: tuple(map(str, range(1, 13))),
}


def calendar_columns(names: Sequence[str], steps: Sequence[Step], where: str) -> tuple[str, ...]:
    """Columns of the calendar. `names` may be hour, weekday, month, and countries for public holidays (DE, US).

    Without any of the first three, it takes those of them that are coarser than the time step.

    Raises:
        InputError: the items' timestamps are whole numbers, a name is unknown, or `holidays` is not installed.
    """
    if any(isinstance(step, Whole) for step in steps):
        raise InputError(f"{where}: a calendar needs dates, but these timestamps are whole numbers")
    finest = min(step.days for step in steps)
    chosen = [name for name in names if name in CALENDAR_COLUMNS]
    countries = [name for name in names if name not in CALENDAR_COLUMNS]
    for country in countries:
        _holidays(country, [2024])
    chosen = chosen or [name for name in CALENDAR_COLUMNS if _SAYS[name](finest)]
    columns = (
        *(CALENDAR_COLUMNS[name] for name in dict.fromkeys(chosen)),
        *(f"calendar_{HOLIDAY}_{name}" for name in countries),
    )
    if not columns:
        raise InputError(f"{where}: no calendar feature varies between steps of {finest:.0f} days")
    return columns


def calendar_names(columns: Sequence[str]) -> list[str]:
    """The names from which `calendar_columns` makes these columns."""
    of_parts = {column: name for name, column in CALENDAR_COLUMNS.items()}
    return [of_parts.get(column, column.removeprefix(f"calendar_{HOLIDAY}_")) for column in columns]


def calendar_texts(columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Column -> its categories."""
    of_parts = {CALENDAR_COLUMNS[name]: texts for name, texts in _TEXTS.items()}
    return {column: of_parts.get(column, ("False", "True")) for column in columns}


def calendar_values(columns: Sequence[str], dates: pd.DatetimeIndex, days: float) -> np.ndarray:
    """[rows, columns]: indices into `calendar_texts`, for rows that start at `dates` and last `days` days."""
    parts = {
        CALENDAR_COLUMNS[HOUR]: dates.hour,
        CALENDAR_COLUMNS[WEEKDAY]: dates.day_of_week,
        CALENDAR_COLUMNS[MONTH]: dates.month - 1,
    }
    values = [
        parts[column] if column in parts else _has_holiday(column.rpartition("_")[2], dates, days) for column in columns
    ]
    return np.stack([np.asarray(value, dtype=np.float64) for value in values], 1)


def _has_holiday(country: str, dates: pd.DatetimeIndex, days: float) -> np.ndarray:
    """[rows]: whether a holiday falls within the row's days."""
    if not len(dates):
        return np.zeros(0)
    first = dates.tz_localize(None).normalize().to_numpy().astype("M8[D]")
    count = max(1, round(days))
    years = range(int(dates.year.min()), int(dates.year.max()) + 2)
    free = np.sort(np.array(list(_holidays(country, years)), dtype="M8[D]"))
    return np.searchsorted(free, first + count) > np.searchsorted(free, first)


def _holidays(country: str, years: Sequence[int] | range):
    if importlib.util.find_spec("holidays") is None:
        raise InputError(f"calendar {country}: holidays need a package: pip install llata-fast[calendar]")
    import holidays

    try:
        return holidays.country_holidays(country, years=years)
    except NotImplementedError:
        raise InputError(
            f"calendar {country}: neither {', '.join(CALENDAR_COLUMNS)} nor a country with known holidays (DE, US)"
        ) from None
