"""Series in, windows out: the registry of named data sets, CSV reading, splits and scaling. Knows nothing of models."""

from llata_fast.data.registry import DATASETS, DatasetSpec, find_dataset, get_dataset
from llata_fast.data.series import TimeSeries, read_csv, read_series
from llata_fast.data.sources import cache_dir, locate
from llata_fast.data.windows import (
    Splits,
    StandardScaler,
    WindowDataset,
    collate,
    evaluation_windows,
    last_window,
    split_windows,
)

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "Splits",
    "StandardScaler",
    "TimeSeries",
    "WindowDataset",
    "cache_dir",
    "collate",
    "evaluation_windows",
    "find_dataset",
    "get_dataset",
    "last_window",
    "locate",
    "read_csv",
    "read_series",
    "split_windows",
]
