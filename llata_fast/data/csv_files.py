"""Parse a CSV: find the header and the date column, and report cells that are not numbers."""

import csv
import functools
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.common import get_handle, infer_compression

from ..errors import InputError, InputWarning, in_one_line
from .memory import free_memory
from .registry import DatasetSpec

DATE_COLUMNS = ("date", "datetime", "timestamp", "time", "ds")
"""Names of a date column, tried in this order regardless of case, if none is given."""

PERIOD_COLUMNS = ("year", "quarter", "month", "week", "period")
"""Further names of a date column, used if none of DATE_COLUMNS and only one of these exists."""

# lines above the header that can be recognised: comments, and the separator declaration for spreadsheets
_ABOVE_HEADER = re.compile(r"#.*|sep=.|\s*")
_HEAD = 50
# largest compression ratio of these formats; others have no limit
_MOST_PACKED = {"gzip": 1032, "zip": 1032, None: 1}
# values that logs write for "no value"
_SENTINELS = (-9999, -999, -99, 9999, 99999, 999999)


@dataclass(frozen=True, eq=False)
class CsvTable:
    """The cells of a CSV, with the date column as text."""

    path: Path
    date_column: str
    columns: tuple[str, ...]
    """The requested value columns."""
    cells: pd.DataFrame
    lines: np.ndarray
    """[rows]: line number of each row in the file, from 1."""

    def where(self, row: int, column: str | None = None) -> str:
        """Position of a cell for messages; default: in the date column."""
        return f"{self.path}, line {self.lines[row]}, column {column or self.date_column!r}"


def load(path: Path, **options) -> pd.DataFrame:
    """`pandas.read_csv`, with every error as an InputError."""
    if not path.is_file():
        raise InputError(f"{path} is a folder, not a CSV" if path.is_dir() else f"{path}: no such file")
    try:
        check_memory(path)
        with warnings.catch_warnings():
            # pandas would drop the last cells of rows longer than the header, with only a warning
            warnings.simplefilter("error", pd.errors.ParserWarning)
            return pd.read_csv(path, index_col=False, low_memory=False, encoding="utf-8-sig", **options)
    except pd.errors.EmptyDataError:
        raise InputError(f"{path} is empty") from None
    except InputError:
        raise
    except UnicodeError as error:
        raise InputError(f"{path} can't be read as a CSV: it is not UTF-8 text ({error})") from None
    except pd.errors.ParserWarning:
        raise InputError(
            f"{path} can't be read as a CSV: rows have more cells than the header; are there decimal commas?"
        ) from None
    except Exception as error:  # a damaged file can raise anything, depending on its decompressor
        raise InputError(f"{path} can't be read as a CSV: {in_one_line(error)}") from None


def check_memory(path: Path):
    """Raise InputError if a table is larger, once unpacked, than free memory: pandas would use it all up."""
    free, status = free_memory(), path.stat()
    packing = infer_compression(path, "infer")
    if status.st_size * _MOST_PACKED.get(packing, free) <= free:
        return
    if packing is None or not _unpacks_within(path, free, status.st_size, status.st_mtime_ns):
        raise InputError(f"{path} can't be read: unpacked, it is larger than the {free / 2**30:.1f} GiB of free memory")


@functools.lru_cache(maxsize=8)
def _unpacks_within(path: Path, limit: int, size: int, written: int) -> bool:
    """Whether a packed file, of this size and age, holds at most `limit` bytes."""
    with get_handle(path, "rb", compression="infer", is_text=False) as unpacked:
        while limit >= 0 and (part := unpacked.handle.read(2**20)):
            limit -= len(part)
    return limit >= 0


def check_row_lengths(path: Path, table: pd.DataFrame):
    """Raise InputError if a row has fewer cells than the header, as pandas silently fills in missing ones."""
    if not table.iloc[:, -1:].isna().to_numpy().any():
        return
    # a separator that never occurs reads every line as one cell
    lines = load(path, sep="\x1f", quoting=csv.QUOTE_NONE, names=["line"], dtype=str, keep_default_na=False)["line"]
    for number, row in enumerate(csv.reader(lines)):
        if row and len(row) < table.shape[1]:
            cells = f"{len(row)} cells, but the header has {table.shape[1]}"
            raise InputError(f"{path}, row {number} has {cells}: was the file cut short?")


def read_table(
    path: str | os.PathLike,
    date_column: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    skip_rows: int = 0,
    na_values: Sequence[str] = (),
) -> CsvTable:
    """Read the cells of a CSV, whose header follows `skip_rows` lines, comments and blank lines.

    `date_column` defaults to the first of DATE_COLUMNS in the file, `columns` to all others. Cells equal to one of
    `na_values` are missing. Raises InputError.
    """
    path = Path(path).expanduser()
    if skip_rows < 0:
        raise InputError(f"skip_rows must be at least 0, got {skip_rows}")
    head = _head(path)
    above = _lines_above(head, skip_rows)
    raw_header = list(load(path, nrows=0, skiprows=above).columns)
    header = [name.strip() for name in raw_header]
    header[0] = header[0].removeprefix("#").strip()
    line = above + 1
    _check_header(path, line, header)
    if date_column is None:
        date_column = _date_column(path, line, header, head)
    if columns is None:
        columns = [name for name in header if name != date_column]
        if nameless := [name for name in columns if name.startswith("Unnamed: ")]:
            place = header.index(nameless[0]) + 1
            raise InputError(f"{path}, line {line}: column {place} has no name; choose columns with --columns")
    there = set(header)
    for name in (date_column, *columns):
        if name not in there:
            raise InputError(
                f"{path}, line {line}: no column {name!r} among {shortened(header)}{_header_hint(head, line, name)}"
            )
    if not columns:
        raise InputError(f"{path}, line {line}: no value column beside {date_column!r}")
    if len({date_column, *columns}) < len(columns) + 1:
        raise InputError(f"{path}: columns {shortened(columns)} repeat a name or the date column {date_column!r}")
    # without usecols, so that pandas reports rows longer than the header; blank lines are kept so that the index counts
    # lines
    cells = load(
        path,
        skiprows=above,
        dtype={raw_header[header.index(date_column)]: str},
        na_values={raw_header[header.index(name)]: list(na_values) for name in columns} if na_values else None,
        skip_blank_lines=False,
    )
    cells = cells.set_axis(header, axis=1).dropna(how="all")
    if cells.empty:
        raise InputError(f"{path} is empty: it has a header but no rows")
    return CsvTable(path, date_column, tuple(columns), cells, cells.index.to_numpy() + line + 1)


def _head(path: Path) -> list[str]:
    """The first lines of the file, unparsed."""
    # a separator that never occurs reads every line as one cell
    options = {"sep": "\x1f", "quoting": csv.QUOTE_NONE, "names": ["line"], "dtype": str, "keep_default_na": False}
    return load(path, nrows=_HEAD, skip_blank_lines=False, **options)["line"].tolist()


def _lines_above(head: list[str], skip_rows: int) -> int:
    """Number of lines above the header."""
    rows = range(skip_rows, len(head))
    header = next((row for row in rows if not _ABOVE_HEADER.fullmatch(head[row])), skip_rows)
    # the last comment may itself be the header
    comment = head[header - 1] if header > skip_rows else ""
    is_header = comment.startswith("#") and _has_date_name(comment[1:]) and not _has_date_name(head[header])
    return header - is_header


def _has_date_name(line: str, names: Sequence[str] = (*DATE_COLUMNS, *PERIOD_COLUMNS)) -> bool:
    return any(cell.strip(" \"'").lower() in names for cell in line.split(","))


def _check_header(path: Path, line: int, header: list[str]):
    counts = Counter(header)
    if doubled := [name for name in header if counts[name] > 1]:
        raise InputError(f"{path}, line {line}: column {doubled[0]!r} appears twice")
    if len(header) == 1 and (separators := re.findall("[;\t|]", header[0])):
        raise InputError(
            f"{path}, line {line}: columns are separated by {separators[0]!r}; use commas between columns, and points "
            "for decimals"
        )


def _date_column(path: Path, line: int, header: list[str], head: list[str]) -> str:
    by_lower = {name.lower(): name for name in reversed(header)}
    if name := next((by_lower[name] for name in DATE_COLUMNS if name in by_lower), None):
        return name
    periods = [by_lower[name] for name in PERIOD_COLUMNS if name in by_lower]
    hint = _header_hint(head, line)
    if len(periods) == 1 and not hint:
        return periods[0]
    if len(periods) > 1 and not hint:
        raise InputError(
            f"{path}, line {line}: the dates are split over columns {' and '.join(periods)}: write them in one, named "
            "date, as 2005-01 or 2005-01-31"
        )
    raise InputError(
        f"{path}, line {line}: no date column: none of {', '.join(DATE_COLUMNS)} among {shortened(header)}; "
        f"{hint.removeprefix('; ') or 'name it with --date_column'}"
    )


def _header_hint(head: list[str], line: int, date_column: str | None = None) -> str:
    """A hint at where the header seems to be, if not in `line`."""
    names = (date_column.lower(),) if date_column else (*DATE_COLUMNS, *PERIOD_COLUMNS)
    for row, text in enumerate(head[line:], line):
        if _has_date_name(text, names):
            return f"; the header seems to be in line {row + 1}: skip the lines above it with --skip_rows {row}"
    return ""


def read_headerless(path: Path, spec: DatasetSpec, date_column: str | None, columns: Sequence[str]) -> CsvTable:
    """Read the value columns of a file without header and dates."""
    if date_column is not None:
        raise InputError(f"{spec.name} has no date column, so --date_column {date_column} does not apply")
    assert spec.columns is not None
    if unknown := [name for name in columns if name not in spec.columns]:
        raise InputError(f"{spec.name} has no column {unknown[0]!r} among {', '.join(spec.columns)}")
    cells = load(path, header=None)
    if cells.shape[1] != len(spec.columns):
        raise InputError(f"{path} has {cells.shape[1]} columns, but {spec.name} has {len(spec.columns)}")
    cells = cells.set_axis(list(spec.columns), axis=1)
    return CsvTable(path, spec.date_column, tuple(columns), cells, cells.index.to_numpy() + 1)


def shortened(names: Sequence[str], limit: int = 12) -> str:
    """Names for a message, those beyond `limit` counted."""
    rest = f", ... ({len(names)} in all)" if len(names) > limit else ""
    # an unclosed quote turns several lines into one name
    return " ".join(", ".join(map(str, names[:limit])).split()) + rest


def as_numbers(cells: pd.Series) -> pd.Series:
    """The cells as numbers: NaN for text, infinite for an integer too large for a float."""

    def one(cell):
        try:
            return float(pd.to_numeric(cell, errors="coerce"))
        except OverflowError:
            return np.inf

    try:
        return pd.to_numeric(cells, errors="coerce")
    except OverflowError:
        return cells.map(one).astype(np.float64)


def parse_values(table: CsvTable, missing: str) -> np.ndarray:
    """The values [rows, C] float64, with NaN for missing cells.

    Raises InputError for text, infinities and forbidden gaps; warns about a value that seems to mean "no value".
    """
    if missing not in ("error", "mask"):
        raise InputError(f"missing must be error or mask, got {missing!r}")
    cells = table.cells[list(table.columns)]
    values = np.empty(cells.shape)
    for column, name in enumerate(table.columns):
        values[:, column] = as_numbers(cells[name])
        if pd.api.types.is_numeric_dtype(cells[name]):
            continue
        text = np.flatnonzero(np.isnan(values[:, column]) & cells[name].notna())
        if text.size:
            cell = cells[name].iloc[text[0]]
            raise InputError(f"{table.where(text[0], name)}: {cell!r} is not a number{_number_hint(str(cell))}")
    infinite = np.argwhere(np.isinf(values))
    if infinite.size:
        row, column = infinite[0]
        raise InputError(f"{table.where(row, table.columns[column])}: the value is infinite")
    empty = np.isnan(values)
    if missing == "error" and empty.any():
        row, column = np.argwhere(empty)[0]
        raise InputError(
            f"{table.where(row, table.columns[column])}: the value is missing, the first of {empty.sum()}; "
            "to mask missing values, give --missing mask"
        )
    if empty.all(axis=0).any():
        raise InputError(f"{table.path}, column {table.columns[empty.all(axis=0).argmax()]!r}: every value is missing")
    for column, name in enumerate(table.columns):
        if (sentinel := _sentinel(values[~empty[:, column], column])) is not None:
            value, count = sentinel
            warnings.warn(
                f"{table.path}, column {name!r}: {value:g} appears {count} times, far from every other value; if it "
                f"marks a missing value, give --na_values {value:g} --missing mask",
                InputWarning,
                stacklevel=3,
            )
    return values


def _number_hint(cell: str) -> str:
    if not re.search("[0-9]", cell):
        return f"; if it marks a missing value, give --na_values {cell!r} --missing mask" if cell else ""
    if "," in cell:
        return "; write decimals with a point and thousands without a separator, 1234.5"
    return "; write only the number, 1234.5" if re.search(r"[%$€£\s]", cell) else ""


def _sentinel(values: np.ndarray) -> tuple[float, int] | None:
    """A value that seems to mark missing ones, with its count: the smallest or largest, far from all others, and either
    repeated often or a usual choice.
    """
    for extreme in (values.min(), values.max()):
        others = values[values != extreme]
        count = len(values) - len(others)
        if len(others) < 10 or not (count > 1 or extreme in _SENTINELS):
            continue
        low, high = others.min(), others.max()
        distance = low - extreme if extreme < low else extreme - high
        known = extreme in _SENTINELS and extreme < 0 <= low
        if count <= len(others) and distance > (high - low) * (0.5 if known else 5) and high > low:
            return float(extreme), count
    return None


def stacked_by(table: CsvTable, dates: pd.Index) -> tuple[str, ...]:
    """The columns that identify several series stacked in one table with the same `dates`; () if there are none."""
    others = [name for name in table.cells.columns if name != table.date_column]
    candidates = [name for name in others if _may_be_id(table.cells[name])]
    for names in (*((name,) for name in candidates), *combinations(candidates[:6], 2)):
        keys = pd.DataFrame({name: table.cells[name].to_numpy() for name in names})
        if not keys.assign(**{"": dates}).duplicated().any() and len(keys.drop_duplicates()) * 2 <= len(keys):
            return names
    return ()


def _may_be_id(cells: pd.Series) -> bool:
    if cells.isna().any():
        return False
    return not pd.api.types.is_float_dtype(cells) or bool((cells == cells.round()).all())
