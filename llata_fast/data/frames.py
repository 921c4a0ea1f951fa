"""Read long tables from files into frames."""

import os
from pathlib import Path

import pandas as pd

from ..errors import InputError, in_one_line
from .csv_files import check_row_lengths, load
from .memory import free_memory


def is_parquet(path: str | os.PathLike) -> bool:
    """Whether the file's extension says Parquet."""
    return Path(path).suffix.lower() in (".parquet", ".pq")


def csv_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a CSV; raises InputError if there is none, or a row's length differs from the header's."""
    # text stays text until a column's meaning is known, so that ids keep leading zeros
    table = load(Path(path))
    check_row_lengths(Path(path), table)
    return table


def parquet_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a Parquet file; raises InputError if there is none or pyarrow is not installed."""
    try:
        # not of a folder of them
        if os.path.isfile(path):
            _check_rows(path)
        return pd.read_parquet(path)
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install llata-fast[parquet]") from None
    except InputError:
        raise
    except Exception as error:  # reading a damaged file can raise anything
        raise InputError(f"{path} can't be read as Parquet: {in_one_line(error)}") from None


def _check_rows(path: str | os.PathLike):
    """Raise InputError if a Parquet file's rows do not fit into free memory; a few bytes may hold many rows."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        needed = 8 * file.metadata.num_rows * file.metadata.num_columns
    free = free_memory()
    if needed > free:
        gib = f"at least {needed / 2**30:.1f} GiB, more than the {free / 2**30:.1f} GiB of free memory"
        raise InputError(f"{path} can't be read as Parquet: it takes {gib}")


def file_frame(path: str | os.PathLike) -> pd.DataFrame:
    """`parquet_frame` for a .parquet file, otherwise `csv_frame`."""
    return parquet_frame(path) if is_parquet(path) else csv_frame(path)
