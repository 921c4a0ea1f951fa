"""Splits, standardisation and windows.

A split is a slice of one standardised float64 tensor [rows, C]. A window of L + H rows is a contiguous stretch of it,
so all windows are one overlapping strided view, and a batch is one gather by start index: no copy of the data, no
worker processes, on the CPU as on a GPU.
"""

import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InputError
from .series import TimeSeries
from .units import WindowUnits

LARGEST = 1e15
"""Standard deviations from the mean that are refused: sums of their squares come near the end of fp32."""

_CHUNK = 2**22
"""Values whose windows are measured at a time."""


@dataclass(frozen=True, eq=False)
class StandardScaler:
    """Per channel, (x - mean) / scale, in float64."""

    mean: np.ndarray
    """[C]"""
    scale: np.ndarray
    """[C], never 0"""

    @classmethod
    def fit(cls, values: np.ndarray, columns: Sequence[str]) -> "StandardScaler":
        """Mean and (biased) standard deviation of values [rows, C], leaving NaN out.

        A constant column gets scale 1 and a warning; one without any value, or of values whose squares overflow,
        raises InputError.
        """
        empty = np.isnan(values).all(axis=0)
        if empty.any():
            raise InputError(f"column {columns[empty.argmax()]!r} has no value in the {len(values)} training rows")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
        if not (finite := np.isfinite(mean) & np.isfinite(scale)).all():
            raise InputError(f"column {columns[finite.argmin()]!r}: its values are too large to standardise")
        # not scale == 0: rounding gives a constant 0.1 a tiny one
        constant = np.nanmin(values, axis=0) == np.nanmax(values, axis=0)
        if constant.any():
            names = ", ".join(repr(columns[int(channel)]) for channel in np.flatnonzero(constant))
            warnings.warn(f"constant in the training rows, scaled by 1: {names}", stacklevel=2)
        return cls(np.where(constant, np.nanmin(values, axis=0), mean), np.where(constant, 1.0, scale))

    @classmethod
    def identity(cls, num_channels: int) -> "StandardScaler":
        """Leaves values as they are."""
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
    """Windows of any source, whose `__getitems__` returns a whole batch."""

    if TYPE_CHECKING:

        def __len__(self) -> int: ...
        def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]: ...
        def to(self, device: torch.device | str) -> Self: ...

    in_order = False
    """Whether training takes them as they come, since they are drawn at random already."""

    def covariates(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """What else a model is fed of the windows `indices`: `WindowCovariates.of` of those of a panel that has any."""
        return {}

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(past [B, L, C], its observed mask, future [B, H, C]) for every window from `first` on, in order."""
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
    """All windows of `context_length` (L) and then `prediction_length` (H) rows of values [rows, C].

    An item is what a model is fed, in fp32: {"past_values" [L, C], "window_level" [C], "window_scale" [C],
    "future_values" [H, C]}, a batch (`__getitems__`) the same with [B, ...] in front. Past values are in the window's
    own units (`WindowUnits`), `window_scale` times of which is what `values` are in; future values are those of
    `values` less the window's level. Where `values` have gaps (NaN) both also hold "past_observed_mask", bool, like
    past_values: there missing past values are 0. Missing future values stay NaN, for the loss to leave out, and so do
    those of a channel that has no value in its past.
    """

    def __init__(self, values: Tensor, context_length: int, prediction_length: int):
        """`values` [rows, C], on the device where batches are wanted.

        Raises InputError without a single window, or without a value to forecast in any.
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
        """The windows that start at rows `indices` [B], as one batch; the DataLoader's way to ask for many at once."""
        index = torch.as_tensor(indices, device=self.values.device)
        level, scale = (part.index_select(0, index) for part in self._units)
        # in place: copies of float64 are what a batch takes its time for
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
        """Past [B, L, C] and future [B, H, C] of the windows that start at rows `indices` [B]: slices of `values`."""
        index = torch.as_tensor(indices, device=self.values.device)
        past = self._view(0, self.context_length).index_select(0, index)
        return past, self._view(self.context_length, self.prediction_length).index_select(0, index)

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `Windows.batches`, float64 and in the units of `values`."""
        for start in range(first, len(self), batch_size):
            past, future = self.stretches(range(start, min(start + batch_size, len(self))))
            observed = ~past.isnan()
            # what has no past is forecast by nobody
            future = future.where(observed.any(1, keepdim=True), torch.nan)
            yield past.masked_fill(~observed, 0), observed, future

    def to(self, device: torch.device | str) -> "WindowDataset":
        """The same windows, their values and batches on `device`; Apple's GPUs know no float64 and leave them."""
        if torch.device(device).type == "mps":
            return self
        return WindowDataset(self.values.to(device), self.context_length, self.prediction_length)

    def _view(self, offset: int, length: int) -> Tensor:
        """Rows [offset, offset + length) of every window: a view [windows, length, C]."""
        num_channels = self.values.shape[1]
        return self.values[offset:].as_strided((len(self), length, num_channels), (num_channels, num_channels, 1))

    @functools.cached_property
    def _units(self) -> WindowUnits:
        """Of every window, [windows, 1, C]: measured once, as windows overlap."""
        past = self._view(0, self.context_length)
        parts = [WindowUnits.of(chunk) for chunk in past.split(max(1, _CHUNK // past[0].numel()))]
        return WindowUnits(*map(torch.cat, zip(*parts, strict=True)))


def masked_past(past: Tensor) -> dict[str, Tensor]:
    """The model's inputs for past values [..., L, C] with NaN where missing: zeros there, and a mask that says so."""
    missing = past.isnan()
    return {"past_values": past.masked_fill(missing, 0), "past_observed_mask": ~missing}


def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """`collate_fn` of a DataLoader over a WindowDataset, whose `__getitems__` returns whole batches."""
    return batch


class Splits(NamedTuple):
    """Windows to train on, to validate and to test by, and the scaler where it is one series', standardised by it."""

    train: Windows
    val: Windows
    test: Windows
    scaler: StandardScaler | None


def split_windows(
    series: TimeSeries, context_length: int, prediction_length: int, *, few_shot_percent: float | None = None
) -> Splits:
    """Train, validation and test windows with the field's borders.

    The contexts of the first validation and test windows reach back into the split before; their targets do not.
    `few_shot_percent` keeps the first floor((rows - L) * percent / 100) + L training rows. The scaler sees all
    training rows even so: published few-shot numbers are in the units of the full split. Raises InputError, with the
    sizes, for a split without a window.
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
    """The test split alone, standardised by the series' own training rows: for a model trained on another series."""
    values, scaler, (_, val_end, test_end) = _standardised(series)
    name = f"{series.name}, test split"
    return _windows(name, values, val_end - context_length, test_end, context_length, prediction_length), scaler


def own_scaler(series: TimeSeries) -> StandardScaler:
    """The scaler of a series' own training rows; of all its rows where a channel has no value in those.

    A channel without any value is left as it is.
    """
    rows = series.values[: _borders(series)[0]]
    if np.isnan(rows).all(axis=0).any():
        rows = series.values
    with warnings.catch_warnings():
        # nothing is trained on what is constant
        warnings.simplefilter("ignore")
        return StandardScaler.fit(np.where(np.isnan(rows).all(axis=0), 0.0, rows), series.columns)


def standardise(series: TimeSeries, scaler: StandardScaler) -> Tensor:
    """Values [rows, C] of a series in units of `scaler`, float64; InputError for what fp32 cannot compute with."""
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
        raise InputError(f"{series.name} has {rows} rows, its splits take {train} + {val} + {test}")
    return train, train + val, train + val + test


def _windows(
    name: str, values: Tensor, start: int, end: int, context_length: int, prediction_length: int
) -> WindowDataset:
    try:
        return WindowDataset(values[max(start, 0) : end], context_length, prediction_length)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
