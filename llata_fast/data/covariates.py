"""What a panel knows besides its targets: covariates known in advance, past covariates, and static ones per item.

The roles are the usual ones: `known` is fev's known_dynamic_columns and gluonts' feat_dynamic_real, `past` is
past_dynamic_columns and past_feat_dynamic_real, `static` is static_columns and feat_static_*.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..settings import COVARIATE_ROLES
from .long_tables import LongTable, quoted
from .ranges import ranges


@dataclass(frozen=True)
class Roles:
    """Which columns are covariates, and in which role."""

    known: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    calendar: tuple[str, ...] | None = None
    """Features computed from the timestamps; () for all that the step allows, None for none."""

    @classmethod
    def of(
        cls,
        known: str | Sequence[str] | None = None,
        past: str | Sequence[str] | None = None,
        static: str | Sequence[str] | None = None,
        calendar: bool | str | Sequence[str] | None = None,
    ) -> "Roles":
        """Build roles from arguments: one name, several or none."""
        if isinstance(calendar, bool):
            calendar = () if calendar else None
        return cls(_names(known), _names(past), _names(static), None if calendar is None else _names(calendar))

    def __bool__(self) -> bool:
        return bool(self.columns) or self.calendar is not None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every covariate column of the table."""
        return (*self.known, *self.past, *self.static)

    def check(self, df: pd.DataFrame, others: dict[str, str], name: str):
        """Raise InputError for a column that is missing or named twice; `others`: column -> its other role."""
        seen = dict(others)
        for role, columns in zip(COVARIATE_ROLES, (self.known, self.past, self.static), strict=True):
            for column in columns:
                if column not in df.columns:
                    raise InputError(f"{name}: no column {column!r} ({role}) among {', '.join(map(str, df.columns))}")
                if column in seen:
                    raise InputError(f"{name}: column {column!r} cannot be one of {role}: it is already {seen[column]}")
                seen[column] = f"one of {role}"


def _names(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, eq=False)
class Covariates:
    """Covariates of a panel's items: one row for each row of an item's grid, and for rows after its end."""

    known: tuple[str, ...]
    """The calendar's columns come last."""
    past: tuple[str, ...]
    static: tuple[str, ...]
    calendar: tuple[str, ...]
    """The part of `known` that is computed from timestamps."""
    categories: dict[str, tuple[str, ...]]
    """Categorical column -> its categories as text; other columns are numeric."""
    offsets: np.ndarray
    """[items + 1]: item i has rows `offsets[i]` to `offsets[i + 1]`, at least as many as its targets."""
    values: np.ndarray
    """[rows, K] float64, known columns before past ones; a category's index in `categories`; NaN where missing."""
    static_values: np.ndarray
    """[items, S], in the same encoding."""

    @classmethod
    def read(cls, df: pd.DataFrame, table: LongTable, rows: np.ndarray, offsets: np.ndarray, roles: Roles):
        """Read the covariates in the rows of `df` from which `table` was made; `rows`: grid positions of its rows.

        Raises InputError, with item, column and row, for values that are infinite, neither number nor text, or not
        static.
        """
        categories: dict[str, tuple[str, ...]] = {}
        dynamic = (*roles.known, *roles.past)
        values = np.full((offsets[-1], len(dynamic)), np.nan)
        for place, column in enumerate(dynamic):
            values[rows, place] = _read(df, column, table, categories)
        static = np.full((len(table.ids), len(roles.static)), np.nan)
        for place, column in enumerate(roles.static):
            static[:, place] = _of_items(_read(df, column, table, categories), column, table)
        return cls(roles.known, roles.past, roles.static, (), categories, offsets, values, static)

    @property
    def columns(self) -> tuple[str, ...]:
        """The K columns of `values`."""
        return (*self.known, *self.past)

    @property
    def given(self) -> tuple[str, ...]:
        """The known columns that a table must contain for the future."""
        return self.known[: len(self.known) - len(self.calendar)]

    def at(self, items: np.ndarray) -> "Covariates":
        """The covariates of the items at these positions [n], in this order."""
        lengths = np.diff(self.offsets)[items]
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        rows = ranges(self.offsets[:-1][items], lengths)
        return replace(self, offsets=offsets, values=self.values[rows], static_values=self.static_values[items])

    def ahead(self, lengths: np.ndarray) -> np.ndarray:
        """[items]: number of rows after the last of each item's `lengths` [items] rows."""
        return np.diff(self.offsets) - lengths

    def extended(self, sizes: np.ndarray) -> "Covariates":
        """Extend or cut each item to `sizes` [items] rows; new rows are missing."""
        offsets = np.concatenate(([0], np.cumsum(sizes)))
        kept = np.minimum(np.diff(self.offsets), sizes)
        values = np.full((offsets[-1], self.values.shape[1]), np.nan)
        values[ranges(offsets[:-1], kept)] = self.values[ranges(self.offsets[:-1], kept)]
        return replace(self, offsets=offsets, values=values)

    def frame(self, items: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
        """Column -> values [n] of rows `index` [n] of `items` [n], categories as text, without the calendar."""
        rows = self.offsets[items] + index
        numbers = {name: self.values[rows, place] for place, name in enumerate(self.columns)}
        numbers |= {name: self.static_values[items, place] for place, name in enumerate(self.static)}
        return {
            name: _as_text(values, self.categories[name]) if name in self.categories else values
            for name, values in numbers.items()
            if name not in self.calendar
        }

    def with_calendar(self, names: tuple[str, ...], values: np.ndarray, texts: dict[str, tuple[str, ...]]):
        """Add calendar columns [rows, names], computed from the timestamps of all rows, as known covariates."""
        inner = len(self.given)
        merged = np.concatenate((self.values[:, :inner], values, self.values[:, len(self.known) :]), 1)
        known = (*self.given, *names)
        return replace(self, known=known, calendar=names, values=merged, categories=self.categories | texts)


def _read(df: pd.DataFrame, column: str, table: LongTable, categories: dict[str, tuple[str, ...]]) -> np.ndarray:
    """[rows of table]; adds the texts of a categorical column to `categories`."""
    values, texts = read_column(df[column], lambda row: f"{table.name}, item {quoted(df[table.id_column].iloc[row])}")
    if texts is not None:
        categories[column] = texts
    return values[table.rows]


def read_column(column: pd.Series, where: Any, texts: Iterable[str] | None = None):
    """Read a column: values [rows] float64, NaN where missing, and the texts of a categorical column.

    Args:
        where: maps a row to its item, for messages.
        texts: the known categories of a categorical column, which come first; None if the kind is not known.

    Raises InputError for dates, infinite values, and objects that are neither numbers nor text.
    """
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind in ("datetime64", "datetime", "date", "timedelta64", "period", "complex", "mixed", "bytes", "interval"):
        row = int(column.notna().to_numpy().argmax())
        raise InputError(
            f"{where(row)}, column {column.name!r}, row {row}: {column.iloc[row]!r} is neither a number nor a category"
        )
    numeric = kind in ("integer", "floating", "mixed-integer-float", "decimal", "empty")
    if numeric and texts is None and not isinstance(column.dtype, pd.CategoricalDtype):
        values = pd.to_numeric(column).to_numpy(dtype=np.float64, na_value=np.nan)
        if (infinite := np.isinf(values)).any():
            row = int(infinite.argmax())
            raise InputError(f"{where(row)}, column {column.name!r}, row {row}: the value is infinite")
        return values, None
    codes, found = pd.factorize(column, sort=False)
    names = [_text(value) for value in found]
    known = list(texts) if texts is not None else sorted(set(names))
    places = {text: place for place, text in enumerate(dict.fromkeys([*known, *names]))}
    lookup = np.array([*(places[name] for name in names), np.nan])
    # pandas encodes a missing value as -1
    return lookup[codes], tuple(places)


def _text(value: Any) -> str:
    """A category's name: 3 and 3.0 are the same, as pandas turns integers with gaps into floats."""
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value)


def _as_text(codes: np.ndarray, texts: tuple[str, ...]) -> np.ndarray:
    places = np.where(np.isnan(codes), len(texts), codes).astype(np.int64)
    return np.array([*texts, None], dtype=object)[places]


def _of_items(values: np.ndarray, column: str, table: LongTable) -> np.ndarray:
    """[items]: the single value of each item; NaN if it has none."""
    seen = np.flatnonzero(~np.isnan(values))
    items, first = np.unique(table.codes[seen], return_index=True)
    result = np.full(len(table.ids), np.nan)
    result[items] = values[seen[first]]
    if (other := seen[values[seen] != result[table.codes[seen]]]).size:
        raise InputError(
            f"{table.where(other[0])}, column {column!r}: the value differs from the item's first row: a static "
            "covariate never changes"
        )
    return result
