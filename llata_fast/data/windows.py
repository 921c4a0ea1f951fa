"""Splits, standardisation and windows.

A split is a slice of one standardised float64 tensor [rows, C]. A window of L + H rows is a contiguous part of it, so
all windows are one overlapping strided view, and a batch is one gather by start index: without a copy of the data or
worker processes, on CPU and GPU alike.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from .series import TimeSeries
from .units import WindowUnits

LARGEST = 1e15
"""Larger values, in standard deviations from the mean, are refused: sums of their squares approach fp32's limit."""

_CHUNK = 2**22
"""Number of values whose windows are measured at a time."""


@dataclass(frozen=True, eq=False)
class StandardScaler:
    """Per channel, (x - mean) / scale, in float64."""

    mean: np.ndarray
    """[C]"""
    scale: np.ndarray
    """[C], never 0"""

    @classmethod
    def fit(cls, values: np.ndarray, columns: Sequence[str]) -> "StandardScaler":
        """Compute mean and (biased) standard deviation of values [rows, C], ignoring NaN.

        A constant column gets scale 1 and a warning. Raises InputError for a column without values, or with values
        whose squares overflow.
        """
        empty = np.isnan(values).all(axis=0)
        if empty.any():
            raise InputError(f"column {columns[empty.argmax()]!r} has no value in the {len(values)} training rows")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        if not (finite := np.isfinite(mean) & np.isfinite(scale)).all():
            raise InputError(f"column {columns[finite.argmin()]!r}: its values are too large to standardise")
        # not scale == 0: rounding gives a constant 0.1 a tiny scale
        constant = np.nanmin(values, axis=0) == np.nanmax(values, axis=0)
        if constant.any():
            names = ", ".join(repr(columns[int(channel)]) for channel in np.flatnonzero(constant))
            warnings.warn(f"constant in the training rows, scaled by 1: {names}", stacklevel=2)
        return cls(np.where(constant, np.nanmin(values, axis=0), mean), np.where(constant, 1.0, scale))

    @classmethod
    def identity(cls, num_channels: int) -> "StandardScaler":
        """A scaler that leaves values unchanged."""
        return cls(np.zeros(num_channels), np.ones(num_channels))

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Values [..., C] in units of the training rows' standard deviation."""
        return (values - self.mean) / self.scale

    def inverse_transform(self, values: np.ndarray) -> np.ndarray:
        """Standardised values [..., C] in original units."""
        return values * self.scale + self.mean

    def to_dict(self) -> dict[str, list[float]]:
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, state: dict[str, list[float]]) -> "StandardScaler":
        return cls(np.asarray(state["mean"], dtype=np.float64), np.asarray(state["scale"], dtype=np.float64))


class Windows(Dataset):
    """Windows from any source, whose `__getitems__` returns a complete batch."""

    if TYPE_CHECKING:

        def __len__(self) -> int: ...
        def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]: ...
        def to(self, device: torch.device | str) -> Self: ...

    in_order = False
    """Whether training reads them in order, because they are already drawn at random."""

    def covariates(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Covariate inputs of the windows `indices`: `WindowCovariates.of` for a panel with covariates, else {}."""
        return {}

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(past [B, L, C], observed mask, future [B, H, C]) for every window from `first` on, in order."""
        for start in range(first, len(self), batch_size):
            batch = self.__getitems__(range(start, min(start + batch_size, len(self))))
            past = batch["past_values"]
            observed = batch.get("past_observed_mask")
            yield (
                past,
                torch.ones_like(past, dtype=torch.bool) if observed is None else observed,
                batch["future_values"],
            )


class WindowDataset(Windows):
    """All windows of `context_length` (L) plus `prediction_length` (H) rows of values [rows, C].

    An item is a model's input in fp32: {"past_values" [L, C], "window_level" [C], "window_scale" [C], "future_values"
    [H, C]}; a batch (`__getitems__`) has a leading axis B. Past values are in the window's own units (`WindowUnits`),
    which are `window_scale` times those of `values`; future values are in units of `values`, minus the window's level.
    If `values` have gaps (NaN), both also hold "past_observed_mask" (bool, shaped like past_values), and missing past
    values are 0. Missing future values stay NaN, so that the loss leaves them out, and so do those of a channel without
    any past value.
    """

    def __init__(self, values: Tensor, context_length: int, prediction_length: int):
        """`values` [rows, C], on the device of the batches.

        Raises InputError if there is no window, or no value to forecast in any.
        """
        if min(context_length, prediction_length) < 1:
            raise InputError(f"context ({context_length}) and horizon ({prediction_length}) must be at least 1")
        self.values = values.double().contiguous()
        self.context_length = context_length
        self.prediction_length = prediction_length
        self.has_missing = bool(values.isnan().any())
        self._num_windows = len(values) - context_length - prediction_length + 1
        if self._num_windows < 1:
            raise InputError(
                f"{len(values)} rows are too few for context {context_length} + horizon {prediction_length}"
            )
        if self.has_missing and bool(values[context_length:].isnan().all()):
            raise InputError("every value to forecast is missing")

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = range(len(self))[index]
        return {name: values[0] for name, values in self.__getitems__([start]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The windows that start at rows `indices` [B], as one batch; the DataLoader uses it to fetch many at once."""
        index = torch.as_tensor(indices, device=self.values.device)
        level, scale = (part.index_select(0, index) for part in self._units)
        # in place, as copies of float64 values dominate the time of a batch
        moves = self._view(0, self.context_length + self.prediction_length).index_select(0, index).sub_(level)
        past, future = moves.split((self.context_length, self.prediction_length), 1)
        item = {
            "past_values": WindowUnits.divide(past, scale, has_missing=self.has_missing),
            "future_values": future.float(),
            "window_level": level.squeeze(1).nan_to_num(nan=0.0).float(),
            "window_scale": scale.squeeze(1).float(),
        }
        return {**item, "past_observed_mask": ~past.isnan()} if self.has_missing else item

    def stretches(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Past [B, L, C] and future [B, H, C] of the windows that start at rows `indices` [B], from `values`."""
        index = torch.as_tensor(indices, device=self.values.device)
        past = self._view(0, self.context_length).index_select(0, index)
        return past, self._view(self.context_length, self.prediction_length).index_select(0, index)

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `Windows.batches`, float64, in the units of `values`."""
        for start in range(first, len(self), batch_size):
            past, future = self.stretches(range(start, min(start + batch_size, len(self))))
            observed = ~past.isnan()
            # a channel without a past cannot be forecast
            future = future.where(observed.any(1, keepdim=True), torch.nan)
            yield past.masked_fill(~observed, 0), observed, future

    def to(self, device: torch.device | str) -> "WindowDataset":
        """Move windows and batches to `device`, except to Apple's GPUs, which lack float64."""
        if torch.device(device).type == "mps":
            return self
        return WindowDataset(self.values.to(device), self.context_length, self.prediction_length)

    def _view(self, offset: int, length: int) -> Tensor:
        """Rows [offset, offset + length) of every window: a view [windows, length, C]."""
        num_channels = self.values.shape[1]
        return self.values[offset:].as_strided((len(self), length, num_channels), (num_channels, num_channels, 1))

    @functools.cached_property
    def _units(self) -> WindowUnits:
        """Units of every window, [windows, 1, C], measured once because windows overlap."""
        past = self._view(0, self.context_length)
        parts = [WindowUnits.of(chunk) for chunk in past.split(max(1, _CHUNK // past[0].numel()))]
        return WindowUnits(*map(torch.cat, zip(*parts, strict=True)))


def masked_past(past: Tensor) -> dict[str, Tensor]:
    """The model's inputs for past values [..., L, C], NaN where missing: zeros there, and an observed mask."""
    missing = past.isnan()
    return {"past_values": past.masked_fill(missing, 0), "past_observed_mask": ~missing}


def collate(batch: Any) -> dict[str, Tensor]:
    """`collate_fn` for a DataLoader over a WindowDataset, whose `__getitems__` returns no list, but a batch."""
    return batch


Kind = TypeVar("Kind", bound=Windows, covariant=True)


class Splits(NamedTuple, Generic[Kind]):
    """Windows for training, validation and test, and the scaler of a single series (None for others)."""

    train: Kind
    val: Kind
    test: Kind
    scaler: StandardScaler | None


def split_windows(
    series: TimeSeries, context_length: int, prediction_length: int, *, few_shot_percent: float | None = None
) -> Splits[WindowDataset]:
    """Train, validation and test windows with the usual borders.

    The contexts of the first validation and test windows reach back into the previous split; their targets do not.
    `few_shot_percent` keeps the first floor((rows - L) * percent / 100) + L training rows. The scaler still uses all
    training rows, as published few-shot results are in units of the full split. Raises InputError, with the sizes, if a
    split has no window.
    """
    values, scaler, (train_end, val_end, test_end) = _standardised(series)
    train_rows = train_end
    if few_shot_percent is not None:
        if not 0 < few_shot_percent <= 100:
            raise InputError(f"few_shot_percent must be above 0 and at most 100, got {few_shot_percent}")
        train_rows = int((train_end - context_length) * few_shot_percent // 100) + context_length

    def windows(split: str, start: int, end: int) -> WindowDataset:
        return _windows(f"{series.name}, {split} split", values, start, end, context_length, prediction_length)

    return Splits(
        train=windows("train", 0, train_rows),
        val=windows("validation", train_end - context_length, val_end),
        test=windows("test", val_end - context_length, test_end),
        scaler=scaler,
    )


def evaluation_windows(
    series: TimeSeries, context_length: int, prediction_length: int
) -> tuple[WindowDataset, StandardScaler]:
    """The test split, standardised by the series' own training rows, for a model trained on another series."""
    values, scaler, (_, val_end, test_end) = _standardised(series)
    name = f"{series.name}, test split"
    return _windows(name, values, val_end - context_length, test_end, context_length, prediction_length), scaler


def own_scaler(series: TimeSeries) -> StandardScaler:
    """The scaler of a series' own training rows, or of all its rows if a channel has no value there.

    A channel without any value is left unchanged.
    """
    rows = series.values[: _borders(series)[0]]
    if np.isnan(rows).all(axis=0).any():
        rows = series.values
    with warnings.catch_warnings():
        # nothing is trained here, so warnings about constant columns do not matter
        warnings.simplefilter("ignore")
        return StandardScaler.fit(np.where(np.isnan(rows).all(axis=0), 0.0, rows), series.columns)


def standardise(series: TimeSeries, scaler: StandardScaler) -> Tensor:
    """Values [rows, C] of a series in units of `scaler`, float64; InputError if they are too large for fp32."""
    values = scaler.transform(series.values)
    far = np.argwhere(np.abs(values) > LARGEST)
    if far.size:
        row, channel = far[0]
        raise InputError(
            f"{series.name}, {series.dates[row]}, column {series.columns[channel]!r}: {series.values[row, channel]:g} "
            f"is {values[row, channel]:.0e} standard deviations from the training rows' mean"
        )
    return torch.from_numpy(values)


def _standardised(series: TimeSeries) -> tuple[Tensor, StandardScaler, tuple[int, int, int]]:
    """Values [rows, C] in units of the training rows, their scaler, and the end rows of the three splits."""
    borders = _borders(series)
    scaler = StandardScaler.fit(series.values[: borders[0]], series.columns)
    return standardise(series, scaler), scaler, borders


def _borders(series: TimeSeries) -> tuple[int, int, int]:
    """End rows of train, validation and test."""
    rows = len(series)
    if series.split_rows is None:
        train, test = int(rows * 0.7), int(rows * 0.2)
        return train, rows - test, rows
    train, val, test = series.split_rows
    if rows < train + val + test:
        raise InputError(f"{series.name} has {rows} rows, but its splits need {train} + {val} + {test}")
    return train, train + val, train + val + test


def _windows(
    name: str, values: Tensor, start: int, end: int, context_length: int, prediction_length: int
) -> WindowDataset:
    try:
        return WindowDataset(values[max(start, 0) : end], context_length, prediction_length)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
