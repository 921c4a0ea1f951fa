"""Long tables from their files, as frames."""

import os
from pathlib import Path

import pandas as pd

from ..errors import InputError, in_one_line
from .csv_files import check_row_lengths, load


def is_parquet(path: str | os.PathLike) -> bool:
    """Whether a file's ending says so."""
    return Path(path).suffix.lower() in (".parquet", ".pq")


def csv_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a CSV; raises InputError where there is none, or a row is longer or shorter than the header."""
    # text stays text until a column's meaning is known: ids keep their zeros
    table = load(Path(path))
    check_row_lengths(Path(path), table)
    return table


def parquet_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a Parquet file; raises InputError where there is none, or pyarrow is not installed."""
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install llata-fast[parquet]") from None
    except Exception as error:  # a damaged file raises whatever its readers trip over
        raise InputError(f"{path} can't be read as Parquet: {in_one_line(error)}") from None


def file_frame(path: str | os.PathLike) -> pd.DataFrame:
    """`parquet_frame` for a file of that ending, else `csv_frame`."""
    return parquet_frame(path) if is_parquet(path) else csv_frame(path)
