"""Series in, windows out: named datasets, reading CSV files, splits and scaling. It does not depend on the model."""

from .registry import DATASETS, DatasetSpec, find_dataset, get_dataset
from .series import TimeSeries, read_series, read_wide_csv
from .sources import cache_dir, locate
from .units import WindowUnits
from .windows import (
    Splits,
    StandardScaler,
    WindowDataset,
    collate,
    evaluation_windows,
    split_windows,
)

__all__ = [
    "DATASETS",
    "DatasetSpec",
    "Splits",
    "StandardScaler",
    "TimeSeries",
    "WindowDataset",
    "WindowUnits",
    "cache_dir",
    "collate",
    "evaluation_windows",
    "find_dataset",
    "get_dataset",
    "locate",
    "read_wide_csv",
    "read_series",
    "split_windows",
]
