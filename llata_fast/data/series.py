"""Reads one multivariate series from a CSV and refuses, in one line, whatever would end in a wrong forecast."""

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset

from ..errors import InputError
from .registry import DatasetSpec, find_dataset, get_dataset
from .sources import locate

DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "ds")
"""Names looked for, in this order and in any case, when no date column is given."""

MAX_GRID_GROWTH = 10
"""A series whose regular grid has more rows than this many times its own is taken for irregular, not for one with
gaps: two stray timestamps years apart must not fill the memory."""

Missing = Literal["error", "mask"]

# pandas guesses a format by the first cell, and not from midnight on a twelve-hour clock
_TWELVE_HOURS = ("%m/%d/%Y %I:%M:%S %p", "%m/%d/%Y %I:%M %p", "%d/%m/%Y %I:%M:%S %p", "%d/%m/%Y %I:%M %p")


@dataclass(frozen=True, eq=False)
class TimeSeries:
    """A regular multivariate series: row r + 1 stands one `frequency` after row r."""

    name: str
    values: np.ndarray
    """[rows, C] float64, NaN where missing, never infinite."""
    dates: pd.DatetimeIndex
    columns: tuple[str, ...]
    """Names of the C channels."""
    frequency: str
    """Step between rows, as a pandas offset."""
    seasonality: int
    """Rows in the period that a seasonal-naive forecast repeats."""
    date_column: str
    split_rows: tuple[int, int, int] | None = None
    """Rows of train, validation and test, rows behind them unused; None: 70, 10 and 20 percent."""

    def __len__(self) -> int:
        return len(self.values)

    def select(self, columns: Sequence[str]) -> "TimeSeries":
        """The same series with `columns` alone, in their order."""
        values = self.values[:, [self.columns.index(name) for name in columns]]
        return replace(self, values=values, columns=tuple(columns))

    def future_dates(self, steps: int) -> pd.DatetimeIndex:
        """The `steps` dates that follow the last row."""
        return pd.date_range(self.dates[-1], periods=steps + 1, freq=self.frequency)[1:]


def read_series(
    dataset: str,
    *,
    data_dir: str | os.PathLike | None = None,
    date_column: str | None = None,
    columns: Sequence[str] | None = None,
    missing: Missing | None = None,
) -> TimeSeries:
    """The series of a registry name (in any case) or of a CSV's path.

    `date_column`, `columns` (the value columns, in this order) and `missing` override the registry's entry; for a
    CSV they mean what they mean in `read_csv`. Raises InputError.
    """
    spec = find_dataset(dataset)
    if spec is not None:
        return _read_named(spec, locate(spec, data_dir), date_column, columns, missing or spec.missing)
    if Path(dataset).name == dataset and not Path(dataset).suffix and not Path(dataset).exists():
        # a bare word is a misspelt name, not a path: this raises
        get_dataset(dataset)
    return read_csv(dataset, date_column, columns, missing or "error")


def read_csv(
    path: str | os.PathLike,
    date_column: str | None = None,
    columns: Sequence[str] | None = None,
    missing: Missing = "error",
) -> TimeSeries:
    """The series in a CSV with a header and a date column.

    `date_column` defaults to the first of DATE_COLUMNS that the file has, `columns` to all others. Missing cells and
    missing rows are an error, or NaN under `missing="mask"`; infinities are always an error. Raises InputError that
    names file, line (the header is line 1) and column.
    """
    path = Path(path)
    table, date_column = _read_table(path, date_column, columns)
    dates = _parse_dates(path, table.pop(date_column))
    values = _parse_values(path, table, missing, first_line=2)
    lines = table.index.to_numpy() + 2
    dates, values, frequency = _on_regular_grid(path, date_column, lines, dates, values, missing)
    return TimeSeries(
        name=path.stem,
        values=values,
        dates=dates,
        columns=tuple(table.columns),
        frequency=frequency,
        seasonality=_seasonality(dates),
        date_column=date_column,
    )


def _read_named(
    spec: DatasetSpec, path: Path, date_column: str | None, columns: Sequence[str] | None, missing: Missing
) -> TimeSeries:
    columns = columns or spec.columns
    if spec.first_date is None and not spec.trust_rows:
        series = read_csv(path, date_column or spec.date_column, columns, missing)
        return replace(series, name=spec.name, seasonality=spec.seasonality, split_rows=spec.split_rows)

    if spec.first_date is None:
        table, date_column = _read_table(path, date_column or spec.date_column, columns)
        dates = _parse_dates(path, table.pop(date_column))
        values = _parse_values(path, table, missing, first_line=2)
    else:
        table = _read_headerless(path, spec, date_column, columns)
        values = _parse_values(path, table, missing, first_line=1)
        dates = pd.date_range(spec.first_date, periods=len(table), freq=spec.frequency)
    return TimeSeries(
        name=spec.name,
        values=values,
        dates=dates,
        columns=tuple(table.columns),
        frequency=spec.frequency,
        seasonality=spec.seasonality,
        date_column=date_column or spec.date_column,
        split_rows=spec.split_rows,
    )


def _load(path: Path, **options) -> pd.DataFrame:
    """`pandas.read_csv`, whatever it trips over told as InputError."""
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a CSV" if path.is_dir() else f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            # rows longer than the header: pandas would drop their last cells with a warning
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, index_col=False, low_memory=False, **options)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} can't be read as a CSV: it is not UTF-8 text ({error})") from None
    except pd.errors.ParserWarning:
        raise InputError(
            f"{path} can't be read as a CSV: rows have more cells than the header, as decimal commas would make them"
        ) from None
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} can't be read as a CSV: {reason}") from None


def _read_table(path: Path, date_column: str | None, columns: Sequence[str] | None) -> tuple[pd.DataFrame, str]:
    """Date column (as text) and value columns of a CSV, and the date column's name. Row i stands in line i + 2."""
    raw_header = list(_load(path, nrows=0).columns)
    header = [name.strip() for name in raw_header]
    if doubled := [name for name in header if header.count(name) > 1]:
        raise InputError(f"{path}, line 1: column {doubled[0]!r} is there twice")
    if len(header) == 1 and (separators := re.findall("[;\t|]", header[0])):
        raise InputError(
            f"{path}, line 1: columns are separated by {separators[0]!r}; separate them by commas, decimals by points"
        )
    if date_column is None:
        by_lower = {name.lower(): name for name in reversed(header)}
        date_column = next((by_lower[name] for name in DATE_COLUMNS if name in by_lower), None)
        if date_column is None:
            raise InputError(
                f"{path}, line 1: no date column: none of {', '.join(DATE_COLUMNS)} among {_shortened(header)}; "
                "name it with --date_column"
            )
    if columns is None:
        columns = [name for name in header if name != date_column]
        if nameless := [header.index(name) + 1 for name in columns if name.startswith("Unnamed: ")]:
            raise InputError(f"{path}, line 1: column {nameless[0]} has no name; choose columns with --columns")
    for name in (date_column, *columns):
        if name not in header:
            raise InputError(f"{path}, line 1: no column {name!r} among {_shortened(header)}")
    if not columns:
        raise InputError(f"{path}, line 1: no value column beside {date_column!r}")
    if len({date_column, *columns}) < len(columns) + 1:
        raise InputError(f"{path}: columns {_shortened(columns)} repeat a name or the date column {date_column!r}")
    wanted = [date_column, *columns]
    # no usecols: with it pandas lets rows pass that are longer than the header. Blank lines stay in until here, so that
    # the index counts lines
    table = _load(path, dtype={raw_header[header.index(date_column)]: str}, skip_blank_lines=False)
    table = table.set_axis(header, axis=1).dropna(how="all")[wanted]
    if table.empty:
        raise InputError(f"{path} is empty: it has a header and no rows")
    return table, date_column


def _read_headerless(path: Path, spec: DatasetSpec, date_column: str | None, columns: Sequence[str]) -> pd.DataFrame:
    """Value columns of a file without header and dates. Row i stands in line i + 1."""
    if date_column is not None:
        raise InputError(f"{spec.name} has no date column, got --date_column {date_column}")
    if unknown := [name for name in columns if name not in spec.columns]:
        raise InputError(f"{spec.name} has no column {unknown[0]!r} among {', '.join(spec.columns)}")
    table = _load(path, header=None)
    if table.shape[1] != len(spec.columns):
        raise InputError(f"{path} has {table.shape[1]} columns, {spec.name} has {len(spec.columns)}")
    return table.set_axis(list(spec.columns), axis=1)[list(columns)]


def _shortened(names: Sequence[str], limit: int = 12) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + rest


def _parse_values(path: Path, table: pd.DataFrame, missing: Missing, first_line: int) -> np.ndarray:
    """[rows, C] float64 with NaN for missing cells. Raises InputError for text, infinities and forbidden gaps."""
    if missing not in ("error", "mask"):
        raise InputError(f"missing must be error or mask, got {missing!r}")

    def where(row: int, column: int) -> str:
        return f"{path}, line {table.index[row] + first_line}, column {table.columns[column]!r}"

    values = np.empty(table.shape)
    for column, name in enumerate(table.columns):
        values[:, column] = pd.to_numeric(table[name], errors="coerce")
        if pd.api.types.is_numeric_dtype(table[name]):
            continue
        text = np.flatnonzero(np.isnan(values[:, column]) & table[name].notna())
        if text.size:
            raise InputError(f"{where(text[0], column)}: {table[name].iloc[text[0]]!r} is not a number")
    infinite = np.argwhere(np.isinf(values))
    if infinite.size:
        raise InputError(f"{where(*infinite[0])}: the value is infinite")
    empty = np.isnan(values)
    if missing == "error" and empty.any():
        raise InputError(
            f"{where(*np.argwhere(empty)[0])}: the value is missing, the first of {empty.sum()}; "
            "--missing mask leaves missing values out"
        )
    if empty.all(axis=0).any():
        raise InputError(f"{path}, column {table.columns[empty.all(axis=0)][0]!r}: every value is missing")
    return values


def _parse_dates(path: Path, text: pd.Series) -> pd.DatetimeIndex:
    """Timestamps of a text column, all of one format (or ISO 8601 of any precision). Raises InputError."""
    where = f"column {text.name!r}"
    attempts = []
    for options in ({}, {"format": "ISO8601"}, {"dayfirst": True}):
        dates = _dates_as(text, **options)
        if dates is None:
            continue
        if dates.notna().all():
            swapped = None if re.match(r"\d{4}", text.iloc[0]) else _dates_as(text, dayfirst=True)
            return pd.DatetimeIndex(_day_or_month_first(path, text, dates, swapped), name=None)
        attempts.append(dates)
    whole = [dates for form in _TWELVE_HOURS if (dates := _dates_as(text, format=form)).notna().all()]
    if whole:
        return pd.DatetimeIndex(_day_or_month_first(path, text, whole[0], whole[-1]), name=None)
    if not attempts:
        raise InputError(f"{path}, {where}: the timestamps mix time zones; write them in one, UTC for instance")
    row = np.flatnonzero(min(attempts, key=lambda dates: dates.isna().sum()).isna())[0]
    cell = text.iloc[row]
    what = "the date is missing" if pd.isna(cell) else f"{cell!r} is not a date"
    if re.fullmatch(r"\d{9,19}(\.\d*)?", str(cell)):
        what += "; write Unix timestamps as dates"
    raise InputError(f"{path}, line {text.index[row] + 2}, {where}: {what}")


def _dates_as(text: pd.Series, **options) -> pd.Series | None:
    """What `pandas.to_datetime` makes of the cells, NaT where it fails; None if they have no format in common."""
    with warnings.catch_warnings():
        # pandas warns where it would guess cell by cell, and so read "10:00" as today
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Parsing dates in")
        try:
            return pd.to_datetime(text, errors="coerce", **options)
        except (ValueError, Warning):
            return None


def _day_or_month_first(path: Path, text: pd.Series, dates: pd.Series, swapped: pd.Series | None) -> pd.Series:
    """Of dates like 02/01/2024, whose days all pass for months, the reading that makes a regular series."""
    if swapped is None or swapped.isna().any() or swapped.equals(dates) or not _is_regular(swapped):
        return dates
    if not _is_regular(dates):
        return swapped
    raise InputError(
        f"{path}, column {text.name!r}: {text.iloc[0]!r} and the other dates can be read day first and month first; "
        "write them as 2024-01-31"
    )


def _is_regular(dates: pd.Series) -> bool:
    return len(dates) > 2 and dates.is_monotonic_increasing and _infer_offset(pd.DatetimeIndex(dates)) is not None


def _on_regular_grid(
    path: Path, column: str, lines: np.ndarray, dates: pd.DatetimeIndex, values: np.ndarray, missing: Missing
) -> tuple[pd.DatetimeIndex, np.ndarray, str]:
    """Dates [rows] and values [rows, C] with one frequency, and that frequency.

    Holes in the grid become NaN rows under `missing="mask"`. Raises InputError for doubled, unsorted and irregular
    timestamps; `lines` [rows] are the rows' lines in the file.
    """

    def where(row: int) -> str:
        return f"{path}, line {lines[row]}, column {column!r}"

    if len(dates) < 3:
        raise InputError(
            f"{path}, column {column!r}: {len(dates)} timestamps are too few to infer a frequency, it takes 3"
        )
    steps = dates[1:] - dates[:-1]
    if (row := _first(dates.duplicated())) is not None:
        earlier = _first(dates == dates[row])
        raise InputError(f"{where(row)}: timestamp {dates[row]} is a duplicate of line {lines[earlier]}")
    if (row := _first(steps < pd.Timedelta(0))) is not None:
        raise InputError(
            f"{where(row + 1)}: timestamp {dates[row + 1]} is earlier than {dates[row]} in line "
            f"{lines[row]}: the rows are not sorted"
        )
    if (offset := _infer_offset(dates)) is not None:
        return dates, values, offset.freqstr

    usual = steps.to_series().mode()[0]
    grid = _grid_with_holes(dates, usual)
    if grid is not None and missing == "mask":
        filled = np.full((len(grid), values.shape[1]), np.nan)
        filled[grid.get_indexer(dates)] = values
        return grid, filled, grid.freqstr
    row = _first(steps != usual) if grid is None else _first(~grid.isin(dates)) - 1
    hint = "no frequency fits" if grid is None else "--missing mask takes the rows between as missing"
    raise InputError(
        f"{where(row + 1)}: irregular timestamps: {dates[row + 1]} follows {dates[row]}, the usual step "
        f"is {usual}; {hint}"
    )


def _infer_offset(dates: pd.DatetimeIndex) -> pd.DateOffset | None:
    """The step between dates without a hole, or None."""
    with warnings.catch_warnings():
        # infer_freq gives text, later versions of pandas an offset, and say so; to_offset takes both
        warnings.simplefilter("ignore")
        return to_offset(pd.infer_freq(dates))


def _grid_with_holes(dates: pd.DatetimeIndex, step: pd.Timedelta) -> pd.DatetimeIndex | None:
    """The regular dates from first to last that all `dates` belong to; None if there are none."""
    if (dates[-1] - dates[0]) / step > MAX_GRID_GROWTH * len(dates):
        return None
    offsets = [to_offset(step)]
    # steps of the calendar: a hole in business days is not a weekend, and months differ in length
    if step == pd.Timedelta(days=1):
        offsets.insert(0, pd.offsets.BusinessDay())
    elif pd.Timedelta(days=28) <= step <= pd.Timedelta(days=31):
        offsets = [pd.offsets.MonthBegin(), pd.offsets.MonthEnd(), *offsets]
    for offset in offsets:
        grid = pd.date_range(dates[0], dates[-1], freq=offset)
        if dates.isin(grid).all():
            return grid
    return None


def _seasonality(dates: pd.DatetimeIndex) -> int:
    """Rows a day for steps within a day; else the rows of the next period: a week, a year. 1: no usual period."""
    days = (dates[1:] - dates[:-1]).min() / pd.Timedelta(days=1)
    if days < 1:
        per_day = round(1 / days)
        return per_day if np.isclose(per_day * days, 1) else 1
    if days == 1:
        return 5 if _infer_offset(dates) == pd.offsets.BusinessDay() else 7
    periods = {7: 52, 28: 12, 29: 12, 30: 12, 31: 12, 90: 4, 91: 4, 92: 4}
    return periods.get(days, 1)


def _first(flags: np.ndarray) -> int | None:
    """Index of the first True."""
    return int(flags.argmax()) if flags.any() else None
