"""One multivariate series, from a CSV or a dataset with a name: what would end in a wrong forecast is refused."""

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
    """A regular multivariate series: row r + 1 stands one `frequency` after row r."""

    name: str
    values: np.ndarray
    """[rows, C] float64, NaN where missing, never infinite."""
    dates: pd.Index
    """[rows] a DatetimeIndex, or whole numbers (int64) of a series that is counted."""
    columns: tuple[str, ...]
    """Names of the C channels."""
    frequency: str
    """Step between rows, as `parse_step` reads it: pandas' alias where it has one."""
    seasonality: int
    """Rows in the period that a seasonal-naive forecast repeats."""
    date_column: str
    split_rows: tuple[int, int, int] | None = None
    """Rows of train, validation and test, rows behind them unused; None: 70, 10 and 20 percent."""

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
        """How every date of the series and after it is written; None: whole numbers, as they are."""
        return date_format(self.dates, parse_step(self.frequency))


def read_series(dataset: str, *, data_dir: str | os.PathLike | None = None, **how) -> TimeSeries:
    """The series of a registry name (in any case) or of a CSV's path, read as `how` says: the options of `read_csv`.

    Those that are given override the registry's entry. Raises InputError.
    """
    spec = find_dataset(dataset)
    how = {name: value for name, value in how.items() if value is not None}
    if spec is not None and spec.id_column is not None:
        raise InputError(f"{spec.name} is a panel: Panel.from_csv reads it, train.py and llata-fast fit train on it")
    if spec is not None:
        return _read_named(spec, locate(spec, data_dir), how)
    if Path(dataset).name == dataset and not Path(dataset).suffix and not Path(dataset).expanduser().exists():
        # a bare word is a misspelt name, not a path: this raises
        get_dataset(dataset)
    return read_csv(dataset, **how)


def read_csv(
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
    """The series in a CSV with a header and a date column.

    Args:
        date_column: by default the first of DATE_COLUMNS that the file has.
        columns: channels, by default all but the date column.
        missing: missing cells and missing rows are an error, or NaN under "mask"; infinities are always an error.
        skip_rows: lines above the header.
        na_values: what stands in a cell without a value.
        trust_rows: take the rows as evenly spaced, whatever their dates say.
        frequency: the step that is expected, of a run for instance: it is taken where the dates fit it, else there is a
            warning.

    Raises:
        InputError: names file, line (the file's first is line 1) and column.
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
        series = read_csv(path, date_column or spec.date_column, columns, missing, **how)
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
    """Raise InputError for dates that are there twice, with the usual reasons for it, and for unsorted ones."""
    if (row := _first(dates.duplicated())) is not None:
        earlier = _first(dates == dates[row])
        place = f"{table.where(row)}: {dates[row]} is a duplicate of line {table.lines[earlier]}"
        if names := stacked_by(table, dates):
            raise InputError(
                f"{place}: the file is a panel, several series one below the other; --id_column {names[0]} tells them "
                f"apart{'' if len(names) == 1 else f' together with {names[1]}'}, or give each a column of its own"
            )
        raise InputError(place + _clock_hint(dates, dates[row]))
    if (row := _first(plain(dates[1:], True) < plain(dates[:-1], True))) is not None:
        raise InputError(
            f"{table.where(row + 1)}: {dates[row + 1]} is earlier than {dates[row]} in line {table.lines[row]}: "
            "the rows are not sorted"
        )


def _clock_hint(dates: pd.Index, date) -> str:
    """What to do about an hour of local time that is there twice, or never, as summer time ends or begins."""
    if not isinstance(dates, pd.DatetimeIndex) or dates.tz is not None or (dates == dates.normalize()).all():
        return ""
    if date.weekday() != 6 or date.month not in (3, 4, 9, 10, 11) or date.hour > 3:
        return ""
    return (
        "; local time repeats an hour when summer time ends and skips one when it begins: write the offset from UTC "
        f"behind it, {date:%Y-%m-%d %H:%M}+02:00, or take the rows as evenly spaced by --trust_rows"
    )


def _step_of_rows(table: CsvTable, dates: pd.Index, expected: Step | None) -> tuple[Step, np.datetime64 | np.int64]:
    """The step of rows that are taken as evenly spaced, and a date on its grid."""
    moments = np.unique(plain(dates, local=True))
    last = plain(dates[-1:], local=True)[0]
    if expected is not None and isinstance(expected, Whole) == (moments.dtype.kind == "i"):
        return expected, last
    if len(moments) < 2:
        raise InputError(
            f"{table.path}, column {table.date_column!r}: one date alone does not say how far rows are apart"
        )
    grid = find_grid(moments)
    return (grid.step if grid else usual_step(moments)[0]), last


def _choose_grid(table: CsvTable, dates: pd.Index, expected: Step | None, frequency: str | None) -> Grid:
    """The grid of the step that is expected, where the dates fit it, else the one that they show by themselves."""
    moments = plain(dates, local=True)
    own = find_grid(moments)
    grid = fit(expected, moments) if expected else None
    if grid is not None and len(grid) > MAX_GRID_GROWTH * len(moments):
        grid = None
    # holes in the expected grid that the dates' own does not have are those of another step
    if grid is not None and (own is None or grid.holes <= own.holes or own.step.same_length(grid.step)):
        return grid
    if own is None:
        _refuse_irregular(table, dates, moments)
    if expected is not None and not own.step.same_length(expected):
        warnings.warn(
            f"{table.path}: the run was trained on rows {frequency} apart, these are {own.alias} apart; the forecast "
            "goes on in the file's own steps",
            InputWarning,
            stacklevel=4,
        )
    return own


def _refuse_irregular(table: CsvTable, dates: pd.Index, moments: np.ndarray) -> NoReturn:
    if len(dates) < 3:
        raise InputError(
            f"{table.path}, column {table.date_column!r}: {len(dates)} dates are too few to know the step between "
            "them, it takes 3"
        )
    step, on_grid = usual_step(moments)
    alias = step.alias(moments[0])
    row = _first(~on_grid)
    if row is None:
        row = int(np.diff(moments).argmax()) + 1
        reason = f"{dates[row]} follows {dates[row - 1]}: too long a gap for a step of {alias}, which most rows have"
        raise InputError(f"{table.where(row)}: irregular dates: {reason}")
    hint = "; --trust_rows takes the rows as evenly spaced"

    if isinstance(step, Fixed) and step.amount % DAY == 0 and _are_local_days(moments):
        hint = "; if these are days of local time, write them so, 2024-03-31, without time and offset"

    raise InputError(
        f"{table.where(row)}: irregular dates: {dates[row]} does not lie on the grid of the step {alias} that most "
        f"rows have, and no step holds every date{hint}"
    )


def _are_local_days(moments: np.ndarray) -> bool:
    """Whether days begin at two hours, one apart, as those of a zone with summer time do in UTC."""
    hours = np.unique((moments - moments.astype("M8[D]")).astype("m8[m]").astype(np.int64))
    return len(hours) == 2 and (hours[1] - hours[0]) % 1440 in (60, 1380)


def _fill(
    table: CsvTable, grid: Grid, dates: pd.Index, values: np.ndarray, missing: Missing
) -> tuple[pd.Index, np.ndarray]:
    """Every date of the grid and its values, NaN where the file has no row, or InputError where that is an error."""
    if not grid.holes:
        return dates, values
    every = like(grid.dates(), dates, local=True)
    row, hole = grid.first_hole()
    hole = every[grid.index[row] + 1]
    share = grid.holes / len(grid)
    fits = (
        f"; {share:.0%} of its dates are missing: where the rows are evenly spaced all the same, give --trust_rows"
        if share > 0.5
        else ""
    )
    if missing == "error":
        raise InputError(
            f"{table.where(row + 1)}: {hole} is missing, the first of {grid.holes} between {dates[0]} and {dates[-1]} "
            f"by the step {grid.alias}; --missing mask takes the rows as missing{fits}{_clock_hint(dates, hole)}"
        )
    if fits:
        warnings.warn(f"{table.path}: the step between rows is taken as {grid.alias}{fits}", stacklevel=4)
    filled = np.full((len(grid), values.shape[1]), np.nan)
    filled[grid.index] = values
    return every, filled


def _first(flags: np.ndarray) -> int | None:
    """Index of the first True."""
    flags = np.asarray(flags)
    return int(flags.argmax()) if flags.any() else None
