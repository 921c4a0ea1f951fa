"""Many series in one table: an item for each id, with its own length, start and, where it must be, step.

A panel is read from a long table (a row for each id and time) and kept on the items' regular grids, one below the
other: whatever the table lacks is NaN.
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
from . import series as wide
from .calendar import calendar_columns, calendar_names, calendar_texts, calendar_values
from .covariates import ROLES, Covariates, Roles
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
"""Rows of the shortest item that can train: two to measure a window by, one to forecast."""


@dataclass(frozen=True, eq=False)
class Panel:
    """Items of C targets each; item i holds rows `offsets[i]` to `offsets[i + 1]` of `values`."""

    name: str
    ids: pd.Index
    """[items] in the order of their first rows, in the caller's type."""
    offsets: np.ndarray
    """[items + 1] int64."""
    values: np.ndarray
    """[rows, C] float64, NaN where missing, never infinite."""
    origins: np.ndarray
    """[items] the items' first dates, as `grids.plain` gives them."""
    steps: tuple[Step, ...]
    step_of: np.ndarray
    """[items] which of `steps` lies between an item's rows."""
    targets: tuple[str, ...]
    id_column: str
    timestamp_column: str
    times: pd.Series
    """No rows: the caller's type of timestamps."""
    time_format: str | None = None
    """Of timestamps that were text."""
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
        """The panel in a long table (pandas, or a table of Arrow), whose rows may stand in any order.

        Args:
            id_column: of any type; by default item_id or unique_id.
            timestamp_column: by default timestamp, ds or another name for dates.
            target: a column or several; by default target or y.
            freq: the step of every item; by default each item's is found, and a warning says where it differs.
            missing: gaps and empty cells are masked, or an error; empty cells of covariates are masked.
            known_covariates: columns whose future is known, too: a price, a promotion, a weather forecast.
            past_covariates: columns that are seen beside the target, up to where its forecast begins.
            static_covariates: columns that have one value an item.
            calendar: hour, weekday, month and countries whose holidays count, read from the timestamps;
                True for those of the first three that a step is finer than.

        Covariates are numbers, or categories where they are text, booleans or pandas' categories.

        Raises:
            InputError: names item, column and row.
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
        """The panel in a CSV; keywords as in `from_df`."""
        how.setdefault("name", str(path))
        return cls.from_df(csv_frame(path), **how)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike, **how: Any) -> "Panel":
        """The panel in a Parquet file; keywords as in `from_df`."""
        how.setdefault("name", str(path))
        return cls.from_df(parquet_frame(path), **how)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **how: Any) -> "Panel":
        """`from_parquet` for a file of that ending, else `from_csv`."""
        return cls.from_parquet(path, **how) if is_parquet(path) else cls.from_csv(path, **how)

    @classmethod
    def of_series(cls, series: TimeSeries) -> "Panel":
        """A wide series as a panel of one item, whose targets are its channels."""
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
        """With the calendar's columns of these names (`calendar_columns`) among the known covariates."""
        columns = calendar_columns(names, self.steps, self.name)
        covariates = self._required_covariates
        if taken := set(columns) & {*covariates.columns, *covariates.static}:
            raise InputError(f"{self.name}: column {min(taken)!r} is one of the calendar: give it another name")
        return replace(
            self, covariates=covariates.with_calendar(columns, self._calendar(columns), calendar_texts(columns))
        )

    def ahead(self, horizon: int, future: Any = None) -> "Panel":
        """The same items, whose known covariates go on for `horizon` steps behind the last row of each.

        `future` is a table with the items' ids, timestamps and known covariates; rows of other ids and times are passed
        over, empty cells masked. Without one, the covariates of rows that `until` has cut off count.

        Raises InputError, by item and date, for what is not there.
        """
        covariates = self.covariates
        if covariates is None:
            if future is not None:
                raise InputError(f"{NAME}: there are no known covariates that it could bring")
            return self
        if future is None:
            short = covariates.ahead(self.lengths) < horizon
            if covariates.given and short.any():
                raise InputError(
                    f"{self.name}: the known covariates {', '.join(covariates.given)} end with the targets: give their "
                    f"next {horizon} steps as {NAME}, on the command line by --future"
                )
            extended = covariates.extended(np.maximum(self.lengths + horizon, np.diff(covariates.offsets)))
        else:
            if not covariates.given:
                raise InputError(f"{NAME}: there are no known covariates that it could bring")
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
        """[rows of the covariates, columns] what the timestamps say."""
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
        """The covariates as arguments of `from_df` name them; those of the calendar one by one."""
        if self.covariates is None:
            return dict.fromkeys((*ROLES, "calendar"))
        names = (self.covariates.given, self.covariates.past, self.covariates.static)
        roles = {role: list(columns) or None for role, columns in zip(ROLES, names, strict=True)}
        return roles | {"calendar": calendar_names(self.covariates.calendar) or None}

    @property
    def lengths(self) -> np.ndarray:
        """[items] rows of each item's grid."""
        return np.diff(self.offsets)

    @property
    def frequency(self) -> str:
        """The step of most items, as `parse_step` reads it."""
        most = np.bincount(self.step_of, minlength=len(self.steps)).argmax()
        return self.steps[most].alias(self.origins[(self.step_of == most).argmax()])

    @property
    def seasonality(self) -> int:
        """Rows in the usual period of most items' step."""
        return self.steps[np.bincount(self.step_of, minlength=len(self.steps)).argmax()].seasonality

    @property
    def date_format(self) -> str | None:
        """How every date of the panel and after it is written (`data.dates.date_format`)."""
        return date_format(pd.Index(self.origins), *self.steps)

    def item(self, index: int) -> np.ndarray:
        """Values [rows, C] of an item."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def at(self, items: np.ndarray) -> "Panel":
        """The items at these places [n], in this order."""
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
        """The same items with these targets alone, in this order."""
        values = self.values[:, [self.targets.index(name) for name in targets]]
        return replace(self, values=values, targets=tuple(targets))

    def select(self, ids: Iterable[Hashable]) -> "Panel":
        """The items of these ids alone, in this order. Raises InputError for an id that the panel does not have."""
        ids = list(ids)
        places = self.ids.get_indexer(pd.Index(ids))
        if (absent := np.flatnonzero(places < 0)).size:
            raise InputError(f"{self.name}: no item {quoted(ids[absent[0]])}")
        return self.at(places)

    def drop(self, ids: Iterable[Hashable]) -> "Panel":
        """All items but those of these ids, which are held out. Raises InputError as `select`."""
        held_out = self.select(ids).ids
        return self.at(np.flatnonzero(~self.ids.isin(held_out)))

    def without(self, names: Iterable[str]) -> "Panel":
        """`drop` of the items whose ids read like these names, as a command line has them."""
        texts = self.ids.astype(str)
        places = texts.get_indexer(pd.Index(list(names), dtype=texts.dtype))
        if (absent := np.flatnonzero(places < 0)).size:
            raise InputError(f"{self.name}: no item {list(names)[absent[0]]!r} to hold out")
        return self.at(np.setdiff1d(np.arange(len(self)), places))

    def until(self, steps_before_end: int) -> "Panel":
        """Every item without its last `steps_before_end` rows; what had no more is left out.

        Covariates of these rows stay: the known ones are those of the future then.
        """
        kept = self.at(np.flatnonzero(self.lengths > steps_before_end)) if steps_before_end else self
        lengths = kept.lengths - steps_before_end
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = ranges(kept.offsets[:-1], lengths)
        return replace(kept, offsets=offsets, values=kept.values[rows])

    def dates(self, items: np.ndarray, index: np.ndarray) -> pd.Series:
        """Timestamps, in the caller's type, of rows `index` [n] of the grids of `items` [n]; beyond the end, too."""
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

        Covariates stand behind the targets, but those of the calendar.
        """
        items = np.repeat(np.arange(len(self)), self.lengths)
        index = np.arange(len(items)) - self.offsets[items]
        frame = pd.DataFrame({self.id_column: self.ids[items], self.timestamp_column: self.dates(items, index)})
        frame = frame.assign(**dict(zip(self.targets, self.values.T, strict=True)))
        if self.covariates is None:
            return frame
        return frame.assign(**self.covariates.frame(items, index))


def read_csv(path: str | os.PathLike, **how: Any) -> Panel:
    """A wide CSV (a date column, a channel in every other column) as a panel of one item; keywords as `data.read_csv`.

    Raises InputError that names file, line and column.
    """
    return Panel.of_series(wide.read_csv(path, **how))


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
    """The panel of a registry name (in any case) or of a file's path; what is given overrides the registry's entry.

    Keywords as in `Panel.from_df`; gaps are masked by default. Raises InputError.
    """
    spec = find_dataset(dataset)
    if spec is not None and spec.id_column is None:
        raise InputError(f"{spec.name} is one wide series, not a panel: it has no id_column")
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
    """Say, once, which items have too few rows to learn from."""
    short = np.flatnonzero(panel.lengths < min_rows)
    if short.size:
        names = ", ".join(quoted(panel.ids[index]) for index in short[:5]) + (", ..." if short.size > 5 else "")
        warnings.warn(
            f"{panel.name}: {short.size} of {len(panel)} items have fewer than {min_rows} rows and are left out: "
            f"{names}",
            InputWarning,
            stacklevel=3,
        )
