"""Windows of corpora as a Trainer takes them: an endless mixture cut into batches, and the last windows of every set.

A window is measured by its own level and deviation, in float64, and so is its target: no scaler exists over a corpus,
and a series of large values does not rule the loss.
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
    """Windows as a model is fed with them.

    {"past_values" [B, L, C], "past_observed_mask", "future_values" [B, H, C]}, in units of each window's past. Targets
    of a channel whose past is constant or missing are NaN: it has no unit, and nothing can be learned from it.
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
    """The windows of `num_batches` global batches, in the order in which they are trained on.

    Window i stands in batch i // batch_size, of which only what is asked for is read.
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
        """Returns itself: batches are read into the host's memory."""
        return self


class LastWindows(Windows):
    """The last window of each of a set's series, which training never sees the end of."""

    def __init__(self, corpus: Corpus, sizes: WindowSizes, max_windows: int, *, joint: bool = False):
        """At most `max_windows`, of series that are evenly spread; without `joint` of a channel each.

        A shorter series keeps a quarter of its steps for the horizon; behind them targets are NaN. With `joint` only
        series of the first one's number of channels.
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
        """[windows] steps of each series' season"""

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
    """Windows of several sets, one after the other."""

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
        # several ranks are evened out with windows that they have had: sets alternate
        order = np.argsort(owners, kind="stable")
        parts = []
        for owner in np.unique(owners):
            first = self._ends[owner - 1] if owner else 0
            parts.append(self.sets[owner].__getitems__(chosen[owners == owner] - first))
        back = torch.from_numpy(np.argsort(order))
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def to(self, device: torch.device | str) -> "JoinedWindows":
        return self
