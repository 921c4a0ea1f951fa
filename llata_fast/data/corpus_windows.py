"""Windows of corpora for the Trainer: batches of an endless mixture, and the last windows of every dataset.

Each window and its target are standardised by the window's own mean and deviation, in float64: no scaler exists for a
whole corpus, and series with large values must not dominate the loss.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .corpora import Corpus
from .mixture import Mixture, RawWindows, WindowSizes, evenly, training_lengths
from .steps import parse_step
from .units import WindowUnits
from .windows import Windows


def in_own_units(raw: RawWindows) -> dict[str, Tensor]:
    """Standardise windows for a model.

    Returns {"past_values" [B, L, C], "past_observed_mask", "future_values" [B, H, C]}, in units of each window's past.
    If a channel's past is constant or missing, its targets are NaN: it has no unit, so nothing can be learned from it.
    """
    past, future = torch.from_numpy(raw.past).double(), torch.from_numpy(raw.future).double()
    units = WindowUnits.of(past)
    moves = (future - units.level) / torch.where(units.scale > 0, units.scale, torch.nan)
    return {
        "past_values": units.remove(past),
        "past_observed_mask": ~past.isnan(),
        "future_values": moves.float(),
    }


class MixtureWindows(Windows):
    """The windows of `num_batches` global batches, in training order.

    Window i belongs to batch i // batch_size; only the requested windows of a batch are read.
    """

    in_order = True

    def __init__(self, mixture: Mixture, batch_size: int, num_batches: int):
        self.mixture, self.batch_size, self.num_batches = mixture, batch_size, num_batches
        self.context_length, self.prediction_length = mixture.sizes.context, mixture.sizes.horizon

    def __len__(self) -> int:
        return self.batch_size * self.num_batches

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(indices)
        numbers = chosen // self.batch_size
        parts = [
            self.mixture.batch(int(number), self.batch_size, chosen[numbers == number] % self.batch_size)
            for number in np.unique(numbers)
        ]
        back = np.argsort(np.argsort(numbers, kind="stable"))
        return in_own_units(RawWindows(*(np.concatenate(values)[back] for values in zip(*parts, strict=True))))

    def to(self, device: torch.device | str) -> "MixtureWindows":
        """Returns itself: batches are read into host memory."""
        return self


class LastWindows(Windows):
    """The last window of each series in a dataset; training never sees its targets."""

    def __init__(self, corpus: Corpus, sizes: WindowSizes, max_windows: int, *, joint: bool = False):
        """Take at most `max_windows` evenly spaced series; without `joint`, one channel of each.

        A series that is too short gives a quarter of its steps to the horizon, and targets beyond its end are NaN. With
        `joint`, only series with as many channels as the first one are used.
        """
        self.name, self.sizes = Path(corpus.name).name, sizes
        self.context_length, self.prediction_length = sizes.context, sizes.horizon
        lengths = corpus.series_lengths
        usable = training_lengths(lengths, sizes.horizon)
        series = np.flatnonzero((usable >= 1) & (usable < lengths))
        if joint and len(series):
            series = series[corpus.num_channels[series] == corpus.num_channels[series[0]]]
        series = evenly(series, max_windows)
        first = corpus.first_row[series]
        self.num_channels = int(corpus.num_channels[series[0]]) if joint and len(series) else 1
        self._corpus, self._rows = corpus, first[:, None] + np.arange(self.num_channels)
        self._origins = usable[series]
        words = corpus.frequencies()[series]
        self.seasons = np.array([parse_step(str(word)).seasonality for word in words], dtype=np.int64)
        """[windows]: steps per season of each series"""

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return in_own_units(self.raw(indices))

    def raw(self, indices: Sequence[int]) -> RawWindows:
        """Windows in the units of their series."""
        (L, H, _), chosen = self.sizes, np.asarray(indices)
        rows = self._rows[chosen]
        starts = np.repeat(self._origins[chosen] - L, rows.shape[1])
        values = self._corpus.gather(rows.ravel(), starts, L + H).reshape(*rows.shape, L + H).transpose(0, 2, 1)
        return RawWindows(np.ascontiguousarray(values[:, :L]), np.ascontiguousarray(values[:, L:]))

    def to(self, device: torch.device | str) -> "LastWindows":
        return self


class JoinedWindows(Windows):
    """Windows of several datasets, one after the other."""

    def __init__(self, sets: Sequence[LastWindows]):
        self.sets = [windows for windows in sets if len(windows)]
        self._ends = np.cumsum([len(windows) for windows in self.sets])
        self.context_length, self.prediction_length = sets[0].context_length, sets[0].prediction_length

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[0] for name, values in self.__getitems__([range(len(self))[index]]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        chosen = np.asarray(indices)
        owners = np.searchsorted(self._ends, chosen, side="right")
        # alternate the datasets, as several ranks are padded with windows from the start
        order = np.argsort(owners, kind="stable")
        parts = []
        for owner in np.unique(owners):
            first = self._ends[owner - 1] if owner else 0
            parts.append(self.sets[owner].__getitems__(chosen[owners == owner] - first))
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def to(self, device: torch.device | str) -> "JoinedWindows":
        return self
