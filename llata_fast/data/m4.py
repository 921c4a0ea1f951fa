"""The M4 competition: thousands of short series, each with its last steps to forecast.

Makridakis et al. 2020, doi 10.1016/j.ijforecast.2019.04.014. Each frequency has two files, such as
`m4/Hourly-train.csv` and `m4/Hourly-test.csv`: one series per row, its name first, and empty cells after the last
value.

Letters: N series, B windows, L lookback, H horizon.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..errors import InputError, in_one_line
from .registry import DatasetSpec
from .sources import locate
from .windows import Windows, masked_past


@dataclass(frozen=True)
class M4Spec:
    """The competition's rules for one frequency, and the range of training windows."""

    frequency: str
    prediction_length: int
    seasonality: int
    """m in MASE and Naive2; 1 for no season."""
    last_cuts: int
    """Training windows end within this many of a series' last steps."""
    pandas_frequency: str

    @property
    def context_length(self) -> int:
        return 2 * self.prediction_length


def _spec(frequency: str, horizon: int, seasonality: int, horizons_back: float, pandas_frequency: str) -> M4Spec:
    return M4Spec(frequency, horizon, seasonality, int(horizons_back * horizon), pandas_frequency)


M4_SPECS = {
    spec.frequency: spec
    for spec in (
        _spec("Yearly", 6, 1, 1.5, "YE"),
        _spec("Quarterly", 8, 4, 1.5, "QE"),
        _spec("Monthly", 18, 12, 1.5, "ME"),
        _spec("Weekly", 13, 1, 10, "W"),
        _spec("Daily", 14, 1, 10, "D"),
        _spec("Hourly", 48, 24, 10, "h"),
    )
}


def m4_spec(dataset: str) -> M4Spec | None:
    """The frequency in a dataset's name such as `M4-Hourly`; None for any other name."""
    return next((spec for name, spec in M4_SPECS.items() if dataset.lower() == f"m4-{name.lower()}"), None)


@dataclass(frozen=True, eq=False)
class M4Set:
    """All series of one frequency."""

    spec: M4Spec
    names: tuple[str, ...]
    insample: tuple[np.ndarray, ...]
    """N float64 arrays of different lengths."""
    future: np.ndarray
    """[N, H], the values to forecast."""


def read_m4(frequency: str, data_dir: str | os.PathLike | None = None) -> M4Set:
    """Read the series of Yearly, Quarterly, Monthly, Weekly, Daily or Hourly, from where named datasets are stored.

    Raises InputError for another frequency, missing files, and files that do not match each other.
    """
    if frequency not in M4_SPECS:
        raise InputError(f"M4 has no frequency {frequency!r}, only {', '.join(M4_SPECS)}")
    spec = M4_SPECS[frequency]
    train, test = (_read_rows(_file_spec(spec, part), data_dir) for part in ("train", "test"))
    horizons = {len(values) for values in test.values()}
    if horizons != {spec.prediction_length}:
        raise InputError(f"M4 {frequency}: test rows hold {sorted(horizons)} values, not {spec.prediction_length}")
    if list(train) != list(test):
        raise InputError(f"M4 {frequency}: the series of the training and test files differ")
    short = next((name for name, values in train.items() if len(values) < spec.prediction_length + 2), None)
    if short is not None:
        raise InputError(f"M4 {frequency}: series {short} has only {len(train[short])} values")
    return M4Set(spec, tuple(train), tuple(train.values()), np.stack(list(test.values())))


def _file_spec(spec: M4Spec, part: str) -> DatasetSpec:
    return DatasetSpec(
        name=f"M4 {spec.frequency}",
        file=f"m4/{spec.frequency}-{part}.csv",
        frequency=spec.pandas_frequency,
        seasonality=spec.seasonality,
        licence="none stated; published for research by the competition",
        source="https://github.com/Mcompetitions/M4-methods/tree/master/Dataset",
    )


def _read_rows(spec: DatasetSpec, data_dir: str | os.PathLike | None) -> dict[str, np.ndarray]:
    path = locate(spec, data_dir)
    try:
        table = pd.read_csv(path, index_col=0, low_memory=False).astype(np.float64)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} can't be read as a file of M4: {in_one_line(error)}") from None
    rows = {}
    for name, row in zip(table.index, table.to_numpy(), strict=True):
        length = np.flatnonzero(~np.isnan(row))[-1] + 1 if not np.isnan(row).all() else 0
        if not length or np.isnan(row[:length]).any() or np.isinf(row[:length]).any():
            raise InputError(f"{path}: series {name} is empty, infinite or has a gap")
        rows[str(name)] = row[:length]
    return rows


def insample_scale(values: np.ndarray, seasonality: int) -> float:
    """The denominator of MASE: mean absolute difference over `seasonality` rows; 1 for a constant series."""
    if len(values) <= seasonality:
        return 1.0
    return float(np.abs(values[seasonality:] - values[:-seasonality]).mean()) or 1.0


class M4Windows(Windows):
    """Windows of many series: the values before a cut and the H steps after it.

    A batch is {"past_values" [B, L, 1], "past_observed_mask", "future_values" [B, H, 1] with NaN after a series' end,
    "insample_scale" [B, 1]}. With `last_cuts`, every access draws a cut among each series' last ones. Without, window k
    of a series forecasts its last H steps shifted back by k, and series too short for that are left out.
    """

    def __init__(self, series: Sequence[np.ndarray], spec: M4Spec, *, last_cuts: int = 0, windows_per_series: int = 1):
        self.spec, self.last_cuts, self.windows_per_series = spec, last_cuts, windows_per_series
        L, H = spec.context_length, spec.prediction_length
        # one long row of values, padded before every series for a lookback and after it for a horizon
        padded = [np.concatenate((np.full(L, np.nan), values, np.full(H, np.nan))) for values in series]
        self.values = torch.from_numpy(np.concatenate(padded).astype(np.float32))
        self.lengths = torch.tensor([len(values) for values in series])
        self.starts = torch.tensor([0, *np.cumsum([len(values) for values in padded])[:-1]])
        scales = [
            insample_scale(values[: len(values) - (0 if last_cuts else H)], spec.seasonality) for values in series
        ]
        self.scales = torch.tensor(scales, dtype=torch.float32)[:, None]

    def __len__(self) -> int:
        return len(self.lengths) * self.windows_per_series

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        index = torch.as_tensor(indices, device=self.values.device)
        series = index % len(self.lengths)
        L, H = self.spec.context_length, self.spec.prediction_length
        lengths = self.lengths[series]
        cuts = lengths - H - index // len(self.lengths)
        if self.last_cuts:
            first = (lengths - self.last_cuts).clamp(min=1)
            # drawn on the CPU, as a resumed run restores its generator
            draw = torch.rand(len(series)).to(first.device)
            cuts = first + (draw * (lengths - first)).long()
        steps = torch.arange(L + H, device=self.values.device)
        rows = self.values[self.starts[series, None] + cuts.clamp(min=0)[:, None] + steps][..., None]
        past, future = rows.split((L, H), 1)
        # without any value before the cut, there is nothing to learn
        future = future.masked_fill((cuts < 1)[:, None, None], torch.nan)
        return {**masked_past(past), "future_values": future, "insample_scale": self.scales[series]}

    def to(self, device: torch.device | str) -> "M4Windows":
        """The same windows on `device`."""
        for name in ("values", "lengths", "starts", "scales"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def last_lookbacks(series: Sequence[np.ndarray], context_length: int) -> dict[str, Tensor]:
    """The model's inputs to forecast what follows each series: {"past_values" [N, L, 1], "past_observed_mask"}."""
    rows = np.full((len(series), context_length), np.nan, dtype=np.float32)
    for row, values in zip(rows, series, strict=True):
        known = values[-context_length:]
        row[-len(known) :] = known
    return masked_past(torch.from_numpy(rows)[..., None])
