"""Write tables piece by piece; a file appears under its name only when it is complete."""

import contextlib
import gzip
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from ..durable import replacing
from ..errors import InputError

PARQUET = ".parquet"
_NOT_WRITTEN = (".bz2", ".xz", ".zip", ".zst", ".xls", ".xlsx", ".ods", ".json", ".feather", ".h5")


def check_table_format(path: str | Path):
    """Raise InputError for an unknown file extension, or if the package for it is not installed."""
    if Path(path).suffix.lower() in _NOT_WRITTEN:
        raise InputError(f"cannot write {path}: give it the extension .csv, .csv.gz or .parquet")
    if Path(path).suffix == PARQUET and importlib.util.find_spec("pyarrow") is None:
        raise InputError(f"{path}: parquet needs pyarrow: pip install llata-fast[parquet], or write a .csv")


@contextlib.contextmanager
def open_table(path: str | Path, date_format: str | None = None) -> Iterator[Callable[[pd.DataFrame], None]]:
    """`write(rows)` appends rows to the table at `path`: Parquet or gzipped CSV by its extension, else CSV.

    `date_format` applies to every date in a CSV (`TimeSeries.date_format`): it is fixed once, since a chunk with only
    midnights would lose its time of day. Dates with a UTC offset always include time and offset.

    Rows go to a temporary file that is renamed at the end; an interruption leaves no partial file, and a table that was
    there before stays unchanged.
    """
    path = Path(path)
    with replacing(path) as partial:
        is_parquet, compressed = path.suffix == PARQUET, path.suffix == ".gz"
        writer = _parquet_writer(partial) if is_parquet else _csv_writer(partial, compressed, date_format)
        with writer as write:
            yield write


@contextlib.contextmanager
def _csv_writer(path: Path, compressed: bool, date_format: str | None) -> Iterator[Callable[[pd.DataFrame], None]]:
    with (gzip.open if compressed else open)(path, "wt", newline="", encoding="utf-8") as file:

        def write(rows: pd.DataFrame):
            zoned = rows.select_dtypes("datetimetz").columns
            rows = rows.assign(**{name: _with_offset(rows[name], date_format) for name in zoned})
            rows.to_csv(file, index=False, header=file.tell() == 0, date_format=date_format)

        yield write


def _with_offset(dates: pd.Series, date_format: str | None) -> pd.Series:
    """Dates with a time zone as text, always with time and UTC offset."""
    if date_format is None or "%H" not in date_format:
        date_format = "%Y-%m-%d %H:%M:%S"
    text = dates.dt.strftime(f"{date_format}%z")
    return text.str[:-2] + ":" + text.str[-2:]


@contextlib.contextmanager
def _parquet_writer(path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with contextlib.ExitStack() as stack:
        writers: list[ParquetWriter] = []

        def write(rows: pd.DataFrame):
            table = pa.Table.from_pandas(rows, preserve_index=False)
            if not writers:
                writers.append(stack.enter_context(ParquetWriter(path, table.schema)))
            writers[0].write_table(table)

        yield write
