"""Long tables, with a row for each id and time: read and validate them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import InputError
from .csv_files import as_numbers
from .dates import parse_dates
from .periods import DateError

ID_COLUMNS = ("item_id", "unique_id")
TIMESTAMP_COLUMNS = ("timestamp", "ds", "date", "datetime", "time")
TARGET_COLUMNS = ("target", "y")
"""Recognised column names, tried in this order if none is given."""


@dataclass(frozen=True, eq=False)
class LongTable:
    """The rows of a long table, sorted by item and time."""

    name: str
    ids: pd.Index
    """[items], in order of first appearance."""
    codes: np.ndarray
    """[rows]: the item of each row, non-decreasing."""
    moments: pd.Index
    """[rows], increasing within an item."""
    values: np.ndarray
    """[rows, C] float64, NaN where missing."""
    rows: np.ndarray
    """[rows]: position of each row in the caller's table."""
    targets: tuple[str, ...]
    id_column: str
    timestamp_column: str
    times: pd.Series
    time_format: str | None

    def where(self, row: int) -> str:
        """Item and position of a row, for messages."""
        return f"{self.name}, item {quoted(self.ids[self.codes[row]])}, row {self.rows[row]}"


def as_frame(df: Any, name: str) -> pd.DataFrame:
    """A DataFrame, or an Arrow table converted to one; column names must be unique."""
    if not isinstance(df, pd.DataFrame):
        if not hasattr(df, "to_pandas"):
            raise InputError(f"{name} must be a DataFrame or an Arrow table, got {type(df).__name__}")
        df = df.to_pandas()
    if doubled := df.columns[df.columns.duplicated()].tolist():
        raise InputError(f"{name}: column {doubled[0]!r} appears twice")
    return df


def read_frame(
    df: pd.DataFrame,
    id_column: str | None,
    timestamp_column: str | None,
    target: str | Sequence[str] | None,
    missing: str,
    name: str,
) -> LongTable:
    """Read the rows of a frame without changing it; arguments and errors as in `Panel.from_df`."""
    if missing not in ("error", "mask"):
        raise InputError(f"missing must be error or mask, got {missing!r}")
    id_column = _column(df, id_column, ID_COLUMNS, "id_column", name)
    timestamp_column = _column(df, timestamp_column, TIMESTAMP_COLUMNS, "timestamp_column", name)
    if target is None or isinstance(target, str):
        target = [_column(df, target, TARGET_COLUMNS, "target", name)]
    targets = tuple(_column(df, column, (), "target", name) for column in target)
    if not targets:
        raise InputError(f"{name}: no target: name at least one column")
    used = [id_column, timestamp_column, *targets]
    if len(set(used)) < len(used):
        raise InputError(f"{name}: column {next(item for item in used if used.count(item) > 1)!r} is named twice")
    if not len(df):
        raise InputError(f"{name} has no rows")
    if (empty := df[id_column].isna().to_numpy()).any():
        raise InputError(f"{name}, column {id_column!r}, row {empty.argmax()}: the id is missing")

    try:
        codes, ids = pd.factorize(df[id_column], sort=False)
    except TypeError:
        raise InputError(
            f"{name}, column {id_column!r}: an id is a text or a number, not {_kind(df[id_column])}"
        ) from None
    ids = pd.Index(ids)
    times, moments = df[timestamp_column], None
    try:
        moments = parse_dates(times, timestamp_column, item=np.flatnonzero(codes == codes[0]))
    except DateError as error:
        row = getattr(error, "row", None)
        place = "" if row is None else f", item {quoted(ids[codes[row]])}, row {row}"
        raise InputError(f"{name}, column {timestamp_column!r}{place}: {error}") from None
    values = np.column_stack([_numbers(df[column], ids, codes, name) for column in targets])
    order = np.lexsort((moments.asi8 if isinstance(moments, pd.DatetimeIndex) else moments.to_numpy(), codes))
    table = LongTable(
        name=name,
        ids=ids,
        codes=codes[order],
        moments=moments[order],
        values=values[order],
        rows=order,
        targets=targets,
        id_column=id_column,
        timestamp_column=timestamp_column,
        times=_example(times, moments),
        time_format=_time_format(times, moments),
    )
    _check_rows(table, missing)
    return table


def quoted(value: Any) -> str:
    """An id as shown in messages: 7, not np.int64(7)."""
    return repr(value.item() if isinstance(value, np.generic) else value)


def _column(df: pd.DataFrame, given: str | None, usual: Sequence[str], argument: str, name: str) -> str:
    if given is not None:
        if given not in df.columns:
            raise InputError(f"{name}: no column {given!r} ({argument}) among {', '.join(map(str, df.columns))}")
        return given
    found = next((column for column in usual if column in df.columns), None)
    if found is None:
        raise InputError(f"{name}: none of {', '.join(usual)} among {', '.join(map(str, df.columns))}: give {argument}")
    return found


def _kind(column: pd.Series) -> str:
    """What the first value that cannot be told from others is called."""
    return next((type(value).__name__ for value in column if not isinstance(value, Hashable)), "of several kinds")


def _numbers(column: pd.Series, ids: pd.Index, codes: np.ndarray, name: str) -> np.ndarray:
    """[rows] float64 of a target column."""
    numbers = as_numbers(column)
    # durations and dates would be numbers of nanoseconds, complex ones their real parts
    if {getattr(values.dtype, "kind", "") for values in (column, numbers)} & {"m", "M", "c"}:
        raise InputError(f"{name}, column {column.name!r}: its values are {column.dtype}, no numbers")
    values = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    text = np.isnan(values) & column.notna().to_numpy()
    for wrong, problem in ((text, "is not a number"), (np.isinf(values), "is infinite")):
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{name}, item {quoted(ids[codes[row]])}, column {column.name!r}, row {row}: {column.iloc[row]!r} "
                f"{problem}"
            )
    return values


def _example(times: pd.Series, moments: pd.Index) -> pd.Series:
    """An empty column of the type in which timestamps are returned."""
    kept = isinstance(times.dtype, pd.PeriodDtype) or pd.api.types.is_datetime64_any_dtype(times.dtype)
    whole = not isinstance(moments, pd.DatetimeIndex) and pd.api.types.is_integer_dtype(times.dtype)
    return times.iloc[:0] if kept or whole else pd.Series(moments[:0])


def _time_format(times: pd.Series, moments: pd.Index) -> str | None:
    """The format of timestamps given as ISO text; None for all others."""
    if not isinstance(moments, pd.DatetimeIndex) or pd.api.types.infer_dtype(times) != "string":
        return None
    for pattern in ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S"):
        sample = np.unique(np.linspace(0, len(times) - 1, 1000).astype(int))
        if (moments[sample].strftime(pattern) == times.iloc[sample].to_numpy()).all():
            return pattern
    return None


def _check_rows(table: LongTable, missing: str):
    same = (table.codes[1:] == table.codes[:-1]) & (table.moments[1:] == table.moments[:-1])
    if same.any():
        row = int(same.argmax()) + 1
        raise InputError(
            f"{table.where(row)}: {table.timestamp_column} {table.moments[row]} appears twice, first in row "
            f"{table.rows[row - 1]}"
        )
    empty = np.isnan(table.values)
    if missing == "error" and empty.any():
        row, column = np.argwhere(empty)[0]
        raise InputError(
            f"{table.where(row)}, column {table.targets[column]!r}: the value is missing, the first of {empty.sum()}; "
            "to mask missing values, use missing='mask'"
        )
