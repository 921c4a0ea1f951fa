"""Many series in one table: each id is an item, with its own length, start and, if necessary, step.

A panel is read from a long table (a row for each id and time) and stored on the items' regular grids, concatenated.
Values missing from the table are NaN.
"""

import os
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError, InputWarning
from ..settings import COVARIATE_ROLES
from . import series as wide
from .calendar import calendar_columns, calendar_names, calendar_texts, calendar_values
from .covariates import Covariates, Roles
from .dates import date_format
from .frames import csv_frame, is_parquet, parquet_frame
from .future_rows import NAME, FutureRows
from .grids import is_local, like, plain
from .item_steps import place_on_grids
from .long_tables import LongTable, as_frame, quoted, read_frame
from .ranges import ranges
from .registry import find_dataset
from .series import Missing, TimeSeries
from .sources import locate
from .steps import Step, parse_step

MIN_ROWS = 3
"""Minimum rows of an item to train on: two to standardise a window, one to forecast."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Items with C targets each; item i has rows `offsets[i]` to `offsets[i + 1]` of `values`."""

    name: str
    ids: pd.Index
    """[items], in order of first appearance, in the caller's type."""
    offsets: np.ndarray
    """[items + 1] int64."""
    values: np.ndarray
    """[rows, C] float64, NaN where missing, never infinite."""
    origins: np.ndarray
    """[items]: each item's first date, in the form of `grids.plain`."""
    steps: tuple[Step, ...]
    step_of: np.ndarray
    """[items]: index in `steps` of the item's step."""
    targets: tuple[str, ...]
    id_column: str
    timestamp_column: str
    times: pd.Series
    """An empty column with the caller's type of timestamps."""
    time_format: str | None = None
    """Format of timestamps that were given as text."""
    covariates: Covariates | None = None

    @classmethod
    def from_df(
        cls,
        df: pd.DataFrame,
        id_column: str | None = None,
        timestamp_column: str | None = None,
        target: str | Sequence[str] | None = None,
        freq: str | None = None,
        missing: Missing = "mask",
        name: str = "panel",
        known_covariates: str | Sequence[str] | None = None,
        past_covariates: str | Sequence[str] | None = None,
        static_covariates: str | Sequence[str] | None = None,
        calendar: bool | str | Sequence[str] | None = None,
    ) -> "Panel":
        """Read a panel from a long table (pandas or Arrow) with rows in any order.

        Args:
            id_column: of any type; default item_id or unique_id.
            timestamp_column: default timestamp, ds or another usual name for dates.
            target: one or more columns; default target or y.
            freq: the step of every item; default: inferred per item, with a warning where steps differ.
            missing: "mask" gaps and empty cells, or raise an "error"; empty cells of covariates are always masked.
            known_covariates: columns whose future is known: a price, a promotion, a weather forecast.
            past_covariates: columns known only up to where the forecast begins.
            static_covariates: columns with one value per item.
            calendar: hour, weekday, month, and countries for public holidays, computed from the timestamps;
                True for those of the first three that are coarser than the step.

        Covariates are numeric, or categories if they hold text, booleans or pandas categories.

        Raises:
            InputError: the message names item, column and row.
        """
        roles = Roles.of(known_covariates, past_covariates, static_covariates, calendar)
        df = as_frame(df, name)
        table = read_frame(df, id_column, timestamp_column, target, missing, name)
        others = {column: "the target" if len(table.targets) == 1 else "a target" for column in table.targets}
        others |= {table.id_column: "the id", table.timestamp_column: "the timestamp"}
        roles.check(df, others, name)
        return cls._on_grids(table, freq, missing, df, roles)

    @classmethod
    def from_csv(cls, path: str | os.PathLike, **how: Any) -> "Panel":
        """Read a panel from a CSV; keywords as in `from_df`."""
        how.setdefault("name", str(path))
        return cls.from_df(csv_frame(path), **how)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike, **how: Any) -> "Panel":
        """Read a panel from a Parquet file; keywords as in `from_df`."""
        how.setdefault("name", str(path))
        return cls.from_df(parquet_frame(path), **how)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **how: Any) -> "Panel":
        """`from_parquet` for a .parquet file, otherwise `from_csv`."""
        return cls.from_parquet(path, **how) if is_parquet(path) else cls.from_csv(path, **how)

    @classmethod
    def of_series(cls, series: TimeSeries) -> "Panel":
        """A wide series as a panel of one item, with its channels as targets."""
        step = parse_step(series.frequency)
        times = pd.Series(series.dates)
        return cls(
            name=series.name,
            ids=pd.Index([series.name]),
            offsets=np.array([0, len(series)]),
            values=series.values,
            origins=plain(series.dates[:1], is_local(step)),
            steps=(step,),
            step_of=np.zeros(1, dtype=np.int64),
            targets=series.columns,
            id_column="item_id",
            timestamp_column=series.date_column,
            times=times[:0],
        )

    @classmethod
    def _on_grids(cls, table: LongTable, freq: str | None, missing: Missing, df: pd.DataFrame, roles: Roles) -> "Panel":
        placed = place_on_grids(table, parse_step(freq) if freq else None, missing)
        values = np.full((placed.offsets[-1], table.values.shape[1]), np.nan)
        rows = placed.offsets[table.codes] + placed.index
        values[rows] = table.values
        panel = cls(
            name=table.name,
            ids=table.ids,
            offsets=placed.offsets,
            values=values,
            origins=placed.origins,
            steps=placed.steps,
            step_of=placed.step_of,
            targets=table.targets,
            id_column=table.id_column,
            timestamp_column=table.timestamp_column,
            times=table.times,
            time_format=table.time_format,
        )
        if not roles:
            return panel
        panel = replace(panel, covariates=Covariates.read(df, table, rows, placed.offsets, roles))
        return panel if roles.calendar is None else panel._with_calendar(roles.calendar)

    def _with_calendar(self, names: tuple[str, ...]) -> "Panel":
        """Add the calendar columns `names` (see `calendar_columns`) to the known covariates."""
        columns = calendar_columns(names, self.steps, self.name)
        covariates = self._required_covariates
        if taken := set(columns) & {*covariates.columns, *covariates.static}:
            raise InputError(f"{self.name}: column {min(taken)!r} is also a calendar column: rename it")
        return replace(
            self, covariates=covariates.with_calendar(columns, self._calendar(columns), calendar_texts(columns))
        )

    def ahead(self, horizon: int, future: Any = None) -> "Panel":
        """The same items, with known covariates for the `horizon` steps after the last row of each.

        `future` is a table with the items' ids, timestamps and known covariates; rows of other ids and times are
        ignored, and empty cells masked. Without it, covariates of rows that `until` has cut off are used.

        Raises InputError, with item and date, for missing values.
        """
        covariates = self.covariates
        if covariates is None:
            if future is not None:
                raise InputError(f"{NAME} is not used: there are no known covariates")
            return self
        if future is None:
            short = covariates.ahead(self.lengths) < horizon
            if covariates.given and short.any():
                raise InputError(
                    f"{self.name}: the known covariates {', '.join(covariates.given)} end with the targets: give their "
                    f"next {horizon} steps as {NAME}, on the command line with --future"
                )
            extended = covariates.extended(np.maximum(self.lengths + horizon, np.diff(covariates.offsets)))
        else:
            if not covariates.given:
                raise InputError(f"{NAME} is not used: there are no known covariates")
            rows = FutureRows(self, future, covariates.given, horizon)
            extended = covariates.extended(self.lengths + horizon)
            places = (extended.offsets[:-1] + self.lengths)[:, None] + np.arange(horizon)
            extended.values[places, : len(covariates.given)] = rows.values
            extended = replace(extended, categories=extended.categories | rows.texts)
        panel = replace(self, covariates=extended)
        if not covariates.calendar:
            return panel
        first, known = len(covariates.given), len(covariates.known)
        extended.values[:, first:known] = panel._calendar(covariates.calendar)
        return panel

    def _calendar(self, columns: tuple[str, ...]) -> np.ndarray:
        """[rows of the covariates, columns]: features computed from the timestamps."""
        offsets = self._required_covariates.offsets
        items = np.repeat(np.arange(len(self)), np.diff(offsets))
        index = np.arange(len(items)) - offsets[items]
        values = np.zeros((len(items), len(columns)))
        for number, step in enumerate(self.steps):
            rows = self.step_of[items] == number
            dates = step.dates(self.origins[items[rows]], index[rows])
            zoned = like(dates, pd.DatetimeIndex(self._as_dates(self.times)), all(map(is_local, self.steps)))
            values[rows] = calendar_values(columns, pd.DatetimeIndex(zoned), step.days)
        return values

    @staticmethod
    def _as_dates(times: pd.Series) -> pd.Series:
        return times.dt.to_timestamp() if isinstance(times.dtype, pd.PeriodDtype) else times

    @property
    def _required_covariates(self) -> Covariates:
        if self.covariates is None:
            raise InputError(f"{self.name} has no covariates")
        return self.covariates

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> tuple[str, ...]:
        """The C targets."""
        return self.targets

    @property
    def roles(self) -> dict[str, list[str] | None]:
        """The covariates, by the argument names of `from_df`; calendar columns are listed one by one."""
        if self.covariates is None:
            return dict.fromkeys((*COVARIATE_ROLES, "calendar"))
        names = (self.covariates.given, self.covariates.past, self.covariates.static)
        roles = {role: list(columns) or None for role, columns in zip(COVARIATE_ROLES, names, strict=True)}
        return roles | {"calendar": calendar_names(self.covariates.calendar) or None}

    @property
    def lengths(self) -> np.ndarray:
        """[items]: number of rows of each item's grid."""
        return np.diff(self.offsets)

    @property
    def frequency(self) -> str:
        """The step of most items, in the form that `parse_step` reads."""
        most = np.bincount(self.step_of, minlength=len(self.steps)).argmax()
        return self.steps[most].alias(self.origins[(self.step_of == most).argmax()])

    @property
    def seasonality(self) -> int:
        """Rows in the usual season of the step of most items."""
        return self.steps[np.bincount(self.step_of, minlength=len(self.steps)).argmax()].seasonality

    @property
    def date_format(self) -> str | None:
        """The format of the panel's dates and those after it (`data.dates.date_format`)."""
        return date_format(pd.Index(self.origins), *self.steps)

    def item(self, index: int) -> np.ndarray:
        """Values [rows, C] of an item."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def at(self, items: np.ndarray) -> "Panel":
        """The items at these positions [n], in this order."""
        lengths = self.lengths[items]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = ranges(self.offsets[:-1][items], lengths)
        return replace(
            self,
            ids=self.ids[items],
            offsets=offsets,
            values=self.values[rows],
            origins=self.origins[items],
            step_of=self.step_of[items],
            covariates=self.covariates and self.covariates.at(items),
        )

    def with_targets(self, targets: Sequence[str]) -> "Panel":
        """The same items with only these targets, in this order."""
        values = self.values[:, [self.targets.index(name) for name in targets]]
        return replace(self, values=values, targets=tuple(targets))

    def select(self, ids: Iterable[Hashable]) -> "Panel":
        """Only the items with these ids, in this order. Raises InputError for an unknown id."""
        ids = list(ids)
        places = self.ids.get_indexer(pd.Index(ids))
        if (absent := np.flatnonzero(places < 0)).size:
            raise InputError(f"{self.name}: no item {quoted(ids[absent[0]])}")
        return self.at(places)

    def drop(self, ids: Iterable[Hashable]) -> "Panel":
        """All items except those with these ids. Raises InputError as `select` does."""
        held_out = self.select(ids).ids
        return self.at(np.flatnonzero(~self.ids.isin(held_out)))

    def without(self, names: Iterable[str]) -> "Panel":
        """`drop` for ids given as text, as on a command line."""
        texts = self.ids.astype(str)
        places = texts.get_indexer(pd.Index(list(names), dtype=texts.dtype))
        if (absent := np.flatnonzero(places < 0)).size:
            raise InputError(f"{self.name}: no item {list(names)[absent[0]]!r} to hold out")
        return self.at(np.setdiff1d(np.arange(len(self)), places))

    def until(self, steps_before_end: int) -> "Panel":
        """Every item without its last `steps_before_end` rows; items that have no more rows are left out.

        The covariates of the removed rows are kept: the known ones then serve as the future.
        """
        kept = self.at(np.flatnonzero(self.lengths > steps_before_end)) if steps_before_end else self
        lengths = kept.lengths - steps_before_end
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = ranges(kept.offsets[:-1], lengths)
        return replace(kept, offsets=offsets, values=kept.values[rows])

    def dates(self, items: np.ndarray, index: np.ndarray) -> pd.Series:
        """Timestamps, in the caller's type, of rows `index` [n] of the grids of `items` [n], also beyond their end."""
        result = np.empty(len(items), dtype=self.origins.dtype)
        for number, step in enumerate(self.steps):
            rows = self.step_of[items] == number
            result[rows] = step.dates(self.origins[items[rows]], index[rows])
        return self._in_the_callers_type(result)

    def _in_the_callers_type(self, dates: np.ndarray) -> pd.Series:
        dtype = self.times.dtype
        if dates.dtype.kind == "i":
            return pd.Series(dates).astype(dtype)
        if isinstance(dtype, pd.PeriodDtype):
            return pd.Series(pd.DatetimeIndex(dates).to_period(dtype.freq))
        index = like(dates, pd.DatetimeIndex(self.times), all(map(is_local, self.steps)))
        if self.time_format is not None:
            return pd.Series(index.strftime(self.time_format))
        return pd.Series(index).astype(dtype) if pd.api.types.is_datetime64_any_dtype(dtype) else pd.Series(index)

    def to_df(self) -> pd.DataFrame:
        """The long table on the grids: a row for every id and time, NaN where nothing was observed.

        Covariates follow the targets; calendar columns are left out.
        """
        items = np.repeat(np.arange(len(self)), self.lengths)
        index = np.arange(len(items)) - self.offsets[items]
        frame = pd.DataFrame({self.id_column: self.ids[items], self.timestamp_column: self.dates(items, index)})
        frame = frame.assign(**dict(zip(self.targets, self.values.T, strict=True)))
        if self.covariates is None:
            return frame
        return frame.assign(**self.covariates.frame(items, index))


def read_csv(path: str | os.PathLike, **how: Any) -> Panel:
    """Read a wide CSV (a date column, and a channel per other column) as a panel of one item; see `data.read_wide_csv`.

    Raises InputError that names file, line and column.
    """
    return Panel.of_series(wide.read_wide_csv(path, **how))


def read_panel(
    dataset: str,
    *,
    data_dir: str | os.PathLike | None = None,
    id_column: str | None = None,
    timestamp_column: str | None = None,
    target: str | Sequence[str] | None = None,
    missing: Missing | None = None,
    **how: Any,
) -> Panel:
    """Read the panel with a registry name (in any case) or from a file; arguments override the registry's entry.

    Keywords as in `Panel.from_df`; gaps are masked by default. Raises InputError.
    """
    spec = find_dataset(dataset)
    if spec is not None and spec.id_column is None:
        raise InputError(f"{spec.name} is a wide series, not a panel: it has no id_column")
    path: str | os.PathLike = dataset
    if spec is not None:
        path = locate(spec, data_dir)
        id_column, timestamp_column = id_column or spec.id_column, timestamp_column or spec.date_column
        target, how = target or list(spec.columns or ()), how | {"name": spec.name}
    elif not Path(dataset).is_file():
        raise InputError(f"{dataset}: no such file")
    return Panel.from_file(
        path, id_column=id_column, timestamp_column=timestamp_column, target=target, missing=missing or "mask", **how
    )


def warn_of_short(panel: Panel, min_rows: int = MIN_ROWS):
    """Warn once about items with too few rows to learn from."""
    short = np.flatnonzero(panel.lengths < min_rows)
    if short.size:
        names = ", ".join(quoted(panel.ids[index]) for index in short[:5]) + (", ..." if short.size > 5 else "")
        warnings.warn(
            f"{panel.name}: {short.size} of {len(panel)} items have fewer than {min_rows} rows and are left out: "
            f"{names}",
            InputWarning,
            stacklevel=3,
        )
