"""Long tables from their files, as frames."""

import os
from pathlib import Path

import pandas as pd

from ..errors import InputError


def is_parquet(path: str | os.PathLike) -> bool:
    """Whether a file's ending says so."""
    return Path(path).suffix.lower() in (".parquet", ".pq")


def csv_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a CSV; raises InputError where there is none."""
    try:
        # text stays text until a column's meaning is known: ids keep their zeros
        return pd.read_csv(path, low_memory=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as a CSV: {' '.join(str(error).split())}") from None


def parquet_frame(path: str | os.PathLike) -> pd.DataFrame:
    """The table in a Parquet file; raises InputError where there is none, or pyarrow is not installed."""
    try:
        return pd.read_parquet(path)
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install llata-fast[parquet]") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read as Parquet: {' '.join(str(error).split())}") from None


def file_frame(path: str | os.PathLike) -> pd.DataFrame:
    """`parquet_frame` for a file of that ending, else `csv_frame`."""
    return parquet_frame(path) if is_parquet(path) else csv_frame(path)
