"""One multivariate series, from a CSV or a named dataset; input that would lead to a wrong forecast is refused."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pandas as pd

from ..errors import InputError, InputWarning
from .csv_files import CsvTable, parse_values, read_headerless, read_table, stacked_by
from .dates import date_format, parse_dates
from .grids import MAX_GRID_GROWTH, Grid, find_grid, fit, like, plain, usual_step
from .periods import DateError
from .registry import DatasetSpec, find_dataset, get_dataset
from .sources import locate
from .steps import DAY, Fixed, Step, Whole, parse_step

Missing = Literal["error", "mask"]


@dataclass(frozen=True, eq=False)
class TimeSeries:
    """A regular multivariate series: row r + 1 is one `frequency` after row r."""

    name: str
    values: np.ndarray
    """[rows, C] float64, NaN where missing, never infinite."""
    dates: pd.Index
    """[rows]: a DatetimeIndex, or whole numbers (int64) for a series indexed by number."""
    columns: tuple[str, ...]
    """Names of the C channels."""
    frequency: str
    """Step between rows, in the form that `parse_step` reads: pandas' alias if there is one."""
    seasonality: int
    """Rows per season, which a seasonal-naive forecast repeats."""
    date_column: str
    split_rows: tuple[int, int, int] | None = None
    """Rows of train, validation and test, with later rows unused; None: 70, 10 and 20 percent."""

    def __len__(self) -> int:
        return len(self.values)

    def select(self, columns: Sequence[str]) -> "TimeSeries":
        """The same series with `columns` alone, in their order."""
        places = {name: place for place, name in enumerate(self.columns)}
        values = self.values[:, [places[name] for name in columns]]
        return replace(self, values=values, columns=tuple(columns))

    def future_dates(self, steps: int) -> pd.Index:
        """The `steps` dates that follow the last row."""
        last = plain(self.dates[-1:], local=True)[0]
        return like(parse_step(self.frequency).after(last, steps), self.dates, local=True)

    @property
    def date_format(self) -> str | None:
        """The format of the series' dates and those after it; None for whole numbers."""
        return date_format(self.dates, parse_step(self.frequency))


def read_series(dataset: str, *, data_dir: str | os.PathLike | None = None, **how) -> TimeSeries:
    """Read a series by its registry name (in any case) or CSV path; `how` are the options of `read_wide_csv`.

    Options override the registry's entry. Raises InputError.
    """
    spec = find_dataset(dataset)
    how = {name: value for name, value in how.items() if value is not None}
    if spec is not None and spec.id_column is not None:
        raise InputError(f"{spec.name} is a panel: read it with Panel.from_csv, train with train.py or llata-fast fit")
    if spec is not None:
        return _read_named(spec, locate(spec, data_dir), how)
    if Path(dataset).name == dataset and not Path(dataset).suffix and not Path(dataset).expanduser().exists():
        # a bare word is a misspelt name rather than a path, so this raises
        get_dataset(dataset)
    return read_wide_csv(dataset, **how)


def read_wide_csv(
    path: str | os.PathLike,
    date_column: str | None = None,
    columns: Sequence[str] | None = None,
    missing: Missing = "error",
    *,
    skip_rows: int = 0,
    na_values: Sequence[str] = (),
    trust_rows: bool = False,
    frequency: str | None = None,
) -> TimeSeries:
    """Read the series in a CSV with a header and a date column.

    Args:
        date_column: default: the first of DATE_COLUMNS in the file.
        columns: channels; default: all but the date column.
        missing: "error" for missing cells and rows, or "mask" for NaN; infinities are always an error.
        skip_rows: number of lines above the header.
        na_values: markers of a missing value.
        trust_rows: treat rows as evenly spaced, whatever their dates say.
        frequency: the expected step, for instance a run's; used if the dates fit it, otherwise there is a warning.

    Raises:
        InputError: the message names file, line (counted from 1) and column.
    """
    table = read_table(path, date_column, columns, skip_rows=skip_rows, na_values=na_values)
    expected = parse_step(frequency) if frequency else None
    dates = _parse_dates(table, expected)
    if not trust_rows:
        _check_order(table, dates)
    values = parse_values(table, missing)
    if trust_rows:
        step, origin = _step_of_rows(table, dates, expected)
    else:
        grid = _choose_grid(table, dates, expected, frequency)
        step, origin = grid.step, grid.origin
        dates, values = _fill(table, grid, dates, values, missing)
    return TimeSeries(
        name=table.path.stem,
        values=values,
        dates=dates,
        columns=table.columns,
        frequency=step.alias(origin),
        seasonality=step.seasonality,
        date_column=table.date_column,
    )


def _read_named(spec: DatasetSpec, path: Path, how: dict[str, Any]) -> TimeSeries:
    columns = how.pop("columns", None) or spec.columns
    date_column = how.pop("date_column", None)
    missing = how.pop("missing", spec.missing)
    known: dict[str, Any] = {"seasonality": spec.seasonality, "split_rows": spec.split_rows, "name": spec.name}
    if spec.first_date is None:
        how = {"trust_rows": spec.trust_rows} | how
        series = read_wide_csv(path, date_column or spec.date_column, columns, missing, **how)
        if spec.trust_rows:
            known["frequency"] = spec.frequency
        return replace(series, **known)
    table = read_headerless(path, spec, date_column, columns or ())
    values = parse_values(table, missing)
    dates = pd.date_range(spec.first_date, periods=len(values), freq=spec.frequency)
    return TimeSeries(
        values=values,
        dates=dates,
        columns=table.columns,
        frequency=spec.frequency,
        date_column=spec.date_column,
        **known,
    )


def _parse_dates(table: CsvTable, expected: Step | None) -> pd.Index:
    try:
        return parse_dates(table.cells[table.date_column], table.date_column, expected=expected)
    except DateError as error:
        place = f"{table.path}, column {table.date_column!r}" if error.row is None else table.where(error.row)
        raise InputError(f"{place}: {error}") from None


def _check_order(table: CsvTable, dates: pd.Index):
    """Raise InputError for duplicate dates, with the usual reasons, and for unsorted ones."""
    if (row := _first(dates.duplicated())) is not None:
        earlier = _first(dates == dates[row])
        place = f"{table.where(row)}: {dates[row]} is a duplicate of line {table.lines[earlier]}"
        if names := stacked_by(table, dates):
            raise InputError(
                f"{place}: the file is a panel, with several series below each other; identify them by --id_column "
                f"{names[0]}{'' if len(names) == 1 else f' together with {names[1]}'}, or give each its own column"
            )
        raise InputError(place + _clock_hint(dates, dates[row]))
    if (row := _first(plain(dates[1:], True) < plain(dates[:-1], True))) is not None:
        raise InputError(
            f"{table.where(row + 1)}: {dates[row + 1]} is earlier than {dates[row]} in line {table.lines[row]}: "
            "the rows are not sorted"
        )


def _clock_hint(dates: pd.Index, date) -> str:
    """Advice about an hour of local time that occurs twice or never, as summer time ends or begins."""
    if not isinstance(dates, pd.DatetimeIndex) or dates.tz is not None or (dates == dates.normalize()).all():
        return ""
    if date.weekday() != 6 or date.month not in (3, 4, 9, 10, 11) or date.hour > 3:
        return ""
    return (
        "; local time repeats an hour when summer time ends and skips one when it begins: add the offset from UTC, "
        f"{date:%Y-%m-%d %H:%M}+02:00, or treat rows as evenly spaced with --trust_rows"
    )


def _step_of_rows(table: CsvTable, dates: pd.Index, expected: Step | None) -> tuple[Step, np.datetime64 | np.int64]:
    """The step of rows treated as evenly spaced, and a date on its grid."""
    moments = np.unique(plain(dates, local=True))
    last = plain(dates[-1:], local=True)[0]
    if expected is not None and isinstance(expected, Whole) == (moments.dtype.kind == "i"):
        return expected, last
    if len(moments) < 2:
        raise InputError(
            f"{table.path}, column {table.date_column!r}: a single date does not tell how far rows are apart"
        )
    grid = find_grid(moments)
    return (grid.step if grid else usual_step(moments)[0]), last


def _choose_grid(table: CsvTable, dates: pd.Index, expected: Step | None, frequency: str | None) -> Grid:
    """The grid of the expected step if the dates fit it, otherwise the grid that the dates suggest."""
    moments = plain(dates, local=True)
    own = find_grid(moments)
    grid = fit(expected, moments) if expected else None
    if grid is not None and len(grid) > MAX_GRID_GROWTH * len(moments):
        grid = None
    # gaps that exist only in the expected grid mean that the file has another step
    if grid is not None and (own is None or grid.holes <= own.holes or own.step.same_length(grid.step)):
        return grid
    if own is None:
        _refuse_irregular(table, dates, moments)
    if expected is not None and not own.step.same_length(expected):
        warnings.warn(
            f"{table.path}: the run was trained on rows {frequency} apart, but these are {own.alias} apart; the "
            "forecast uses the file's step",
            InputWarning,
            stacklevel=4,
        )
    return own


def _refuse_irregular(table: CsvTable, dates: pd.Index, moments: np.ndarray) -> NoReturn:
    if len(dates) < 3:
        raise InputError(
            f"{table.path}, column {table.date_column!r}: {len(dates)} dates are too few to infer the step between "
            "them; at least 3 are needed"
        )
    step, on_grid = usual_step(moments)
    alias = step.alias(moments[0])
    row = _first(~on_grid)
    if row is None:
        row = int(np.diff(moments).argmax()) + 1
        reason = f"{dates[row]} follows {dates[row - 1]}: too long a gap for the step {alias} of most rows"
        raise InputError(f"{table.where(row)}: irregular dates: {reason}")
    hint = "; to treat rows as evenly spaced, give --trust_rows"

    if isinstance(step, Fixed) and step.amount % DAY == 0 and _are_local_days(moments):
        hint = "; if these are days of local time, write them as 2024-03-31, without time and offset"

    raise InputError(
        f"{table.where(row)}: irregular dates: {dates[row]} is not on the grid of the step {alias} that most rows "
        f"have, and no step fits every date{hint}"
    )


def _are_local_days(moments: np.ndarray) -> bool:
    """Whether days begin at two different hours, one hour apart, like local days with summer time seen in UTC."""
    hours = np.unique((moments - moments.astype("M8[D]")).astype("m8[m]").astype(np.int64))
    return len(hours) == 2 and (hours[1] - hours[0]) % 1440 in (60, 1380)


def _fill(
    table: CsvTable, grid: Grid, dates: pd.Index, values: np.ndarray, missing: Missing
) -> tuple[pd.Index, np.ndarray]:
    """Every date of the grid and its values, with NaN for rows that the file lacks, or an InputError."""
    if not grid.holes:
        return dates, values
    every = like(grid.dates(), dates, local=True)
    row, hole = grid.first_hole()
    hole = every[grid.index[row] + 1]
    share = grid.holes / len(grid)
    fits = (
        f"; {share:.0%} of its dates are missing: if the rows are evenly spaced nevertheless, give --trust_rows"
        if share > 0.5
        else ""
    )
    if missing == "error":
        raise InputError(
            f"{table.where(row + 1)}: {hole} is missing, the first of {grid.holes} between {dates[0]} and {dates[-1]} "
            f"with the step {grid.alias}; to mask missing rows, give --missing mask{fits}{_clock_hint(dates, hole)}"
        )
    if fits:
        warnings.warn(f"{table.path}: the step between rows is taken as {grid.alias}{fits}", stacklevel=4)
    filled = np.full((len(grid), values.shape[1]), np.nan)
    filled[grid.index] = values
    return every, filled


def _first(flags: np.ndarray) -> int | None:
    """Index of the first True, None if there is none."""
    flags = np.asarray(flags)
    return int(flags.argmax()) if flags.any() else None
