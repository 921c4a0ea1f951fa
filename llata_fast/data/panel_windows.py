"""Windows of a panel's items, each in its own units: without a global scaler, large items do not dominate."""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .covariate_encoding import CovariateEncoding, WindowCovariates
from .panel import MIN_ROWS, Panel, warn_of_short
from .ranges import ranges
from .units import WindowUnits
from .windows import Splits, Windows

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
"""Share of each item's rows, at its end, for validation; an item gives up at most half of its rows."""


class PanelWindows(Windows):
    """Windows around `cuts`: L rows before a cut, padded as missing before the item's start, and H rows after it.

    Batches are like `WindowDataset`'s except for units: errors are in the window's standard deviation, or in that of
    the item's training rows if it is larger, so that quiet windows do not dominate. A channel that is constant in both
    has no targets; its level is the forecast.
    """

    has_missing = True

    def __init__(
        self,
        panel: Panel,
        items: np.ndarray,
        cuts: np.ndarray,
        deviations: np.ndarray,
        context_length: int,
        prediction_length: int,
        covariates: WindowCovariates | None = None,
    ):
        """`items` and `cuts` [windows]: index of the item, and the first row to forecast; `deviations` [items, C]: of
        the training rows. Raises InputError if there is no window, or no value to forecast in any.
        """
        if min(context_length, prediction_length) < 1:
            raise InputError(f"context ({context_length}) and horizon ({prediction_length}) must be at least 1")
        if not len(items):
            raise InputError("no item has enough rows for a window")
        self.context_length, self.prediction_length = context_length, prediction_length
        self.values = torch.from_numpy(panel.values)
        self.offsets = torch.from_numpy(panel.offsets)
        self.items, self.cuts = torch.from_numpy(items), torch.from_numpy(cuts)
        self.deviations = torch.from_numpy(deviations)
        self._covariates = covariates

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        past, future, units, unit = self._measured(indices)
        return {
            "past_values": units.remove(past),
            "past_observed_mask": ~past.isnan(),
            "future_values": ((future - units.level) / unit).float(),
            "window_level": torch.zeros_like(units.level[:, 0]).float(),
            "window_scale": (units.scale / unit).nan_to_num(nan=0.0)[:, 0].float(),
            **self.covariates(indices),
        }

    @property
    def encoding(self) -> CovariateEncoding | None:
        return None if self._covariates is None else self._covariates.encoding

    def covariates(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        if self._covariates is None:
            return {}
        index = torch.as_tensor(indices, device=self.values.device)
        return self._covariates.of(self.items[index], self.cuts[index], self.context_length, self.prediction_length)

    def _measured(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, WindowUnits, Tensor]:
        """Past and future in the caller's units, the windows' units, and the unit of errors (NaN if it would be 0)."""
        index = torch.as_tensor(indices, device=self.values.device)
        past, future = self.stretches(index)
        units = WindowUnits.of(past)
        unit = torch.maximum(units.scale, self.deviations[self.items[index]][:, None])
        return past, future, units, torch.where(unit > 0, unit, torch.nan)

    def units_of(self, indices: Sequence[int]) -> tuple[WindowUnits, Tensor]:
        """The windows' units, and the unit of their errors [B, 1, C]."""
        return self._measured(indices)[2:]

    def stretches(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Past [B, L, C] and future [B, H, C] in the caller's units, NaN where missing and outside the item."""
        index = torch.as_tensor(indices, device=self.values.device)
        steps = torch.arange(-self.context_length, self.prediction_length, device=self.values.device)
        rows = self.cuts[index, None] + steps
        first, end = self.offsets[self.items[index]], self.offsets[self.items[index] + 1]
        rows = rows + first[:, None]
        inside = (rows >= first[:, None]) & (rows < end[:, None])
        values = self.values[rows.clamp(0, len(self.values) - 1)].masked_fill(~inside[..., None], torch.nan)
        return values[:, : self.context_length], values[:, self.context_length :]

    def batches(self, batch_size: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As `Windows.batches`, float64, minus the windows' levels, in the unit of errors."""
        for start in range(first, len(self), batch_size):
            past, future, units, unit = self._measured(range(start, min(start + batch_size, len(self))))
            observed = ~past.isnan()
            yield ((past - units.level) / unit).nan_to_num(nan=0.0), observed, (future - units.level) / unit

    def apart(self, share: float) -> tuple["PanelWindows", "PanelWindows"]:
        """Split into windows whose targets end within the first `share` of their item's cuts, and later windows.

        If either part would be empty, both are all windows.
        """
        lows, highs = (torch.full((len(self.offsets),), bound, device=self.cuts.device) for bound in (2**62, 0))
        lows = lows.scatter_reduce(0, self.items, self.cuts, "amin")[self.items]
        highs = highs.scatter_reduce(0, self.items, self.cuts, "amax")[self.items]
        border = lows + ((highs - lows) * share).long()
        chosen = (self.cuts + self.prediction_length <= border, self.cuts >= border)
        if not all(part.any() for part in chosen):
            return self, self
        parts = [copy.copy(self), copy.copy(self)]
        for part, mask in zip(parts, chosen, strict=True):
            part.items, part.cuts = self.items[mask], self.cuts[mask]
        return parts[0], parts[1]

    def to(self, device: torch.device | str) -> "PanelWindows":
        """Move the windows to `device`, except to Apple's GPUs, which lack float64."""
        if torch.device(device).type != "mps":
            for name in ("values", "offsets", "items", "cuts", "deviations"):
                setattr(self, name, getattr(self, name).to(device))
            if self._covariates is not None:
                self._covariates.to(device)
        return self


def panel_splits(
    panel: Panel, context_length: int, prediction_length: int, *, test_share: float = 0.0
) -> Splits[PanelWindows]:
    """Windows for training, validation and (with `test_share`) test, split by time within each item.

    An item too short for its own validation or test window is only trained on. Items with fewer than MIN_ROWS rows are
    left out, with a warning that counts and names them. Without `test_share`, the test windows are the validation
    windows. Raises InputError if no item can be trained on.
    """
    warn_of_short(panel)
    lengths, H = panel.lengths, prediction_length
    test_rows = _share(lengths, test_share, H) if test_share else np.zeros_like(lengths)
    val_rows = _share(lengths - test_rows, VALIDATION_SHARE, H)
    train_end = lengths - test_rows - val_rows
    deviations = _deviations(panel, train_end)
    covariates = None
    if panel.covariates is not None:
        encoding = CovariateEncoding.fit(panel, np.where(train_end >= MIN_ROWS, train_end, 0))
        covariates = WindowCovariates(panel, encoding)

    def windows(lows: np.ndarray, highs: np.ndarray) -> PanelWindows:
        """Windows with cuts from low to high, inclusive, for every item; none if high is below low."""
        counts = np.maximum(highs - lows + 1, 0)
        items = np.repeat(np.arange(len(panel)), counts)
        cuts = ranges(lows, counts)
        return PanelWindows(panel, items, cuts, deviations, context_length, prediction_length, covariates)

    def of_rows(begin: np.ndarray, rows: np.ndarray) -> PanelWindows:
        return windows(begin, np.where(rows >= H, begin + rows - H, -1))

    # targets of training windows lie in the training rows, except for items too short for that
    highs = np.where(train_end >= MIN_ROWS, np.clip(train_end - H, (train_end + 1) // 2, train_end - 1), -1)
    lows = np.minimum(context_length, np.maximum(2, highs // 2))
    lows = np.where(train_end - H >= context_length, context_length, lows)
    if not (highs >= lows).any():
        raise InputError(f"{panel.name}: no item has the {MIN_ROWS} rows that training needs")
    until_train = _cut_to(panel, train_end)
    train = windows(lows, highs)
    train.values = torch.from_numpy(until_train)
    if not val_rows.any():
        raise InputError(f"{panel.name}: no item has enough rows for validation, which needs {2 * H + 2}")
    val = of_rows(train_end, val_rows)
    test = of_rows(train_end + val_rows, test_rows) if test_rows.any() else val
    return Splits(train, val, test, None)


def _share(lengths: np.ndarray, share: float, prediction_length: int) -> np.ndarray:
    """Rows [items] at each item's end: its share, but at least a horizon; 0 if too few would remain."""
    rows = np.maximum((lengths * share).astype(np.int64), prediction_length)
    return np.where(lengths - rows >= max(prediction_length, 2) + MIN_ROWS - 1, rows, 0)


def _deviations(panel: Panel, ends: np.ndarray) -> np.ndarray:
    """Standard deviation [items, C] of each item's rows before its end; 0 if it has none."""
    known = _cut_to(panel, ends)
    starts = panel.offsets[:-1]
    observed = ~np.isnan(known)
    counts = np.maximum(np.add.reduceat(observed, starts, axis=0, dtype=np.int64), 1)
    items = np.repeat(np.arange(len(panel)), panel.lengths)
    first = _first_observed(known, starts)
    moves = np.where(observed, known - first[items], 0.0)
    mean = np.add.reduceat(moves, starts, axis=0) / counts
    squares = np.where(observed, moves - mean[items], 0.0) ** 2
    return np.sqrt(np.add.reduceat(squares, starts, axis=0) / counts)


def _first_observed(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """[items, C]: the first observed value of each item; 0 if it has none."""
    rows = np.where(np.isnan(values), len(values), np.arange(len(values))[:, None])
    first = np.minimum.reduceat(rows, starts, axis=0)
    found = np.take_along_axis(values, np.minimum(first, len(values) - 1), axis=0)
    return np.where(first < len(values), found, 0.0)


def _cut_to(panel: Panel, ends: np.ndarray) -> np.ndarray:
    """The panel's values, with NaN from each item's end on."""
    items = np.repeat(np.arange(len(panel)), panel.lengths)
    beyond = np.arange(len(items)) - panel.offsets[items] >= ends[items]
    return np.where(beyond[:, None], np.nan, panel.values)
