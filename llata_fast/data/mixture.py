"""Windows drawn from several corpora by weight: batch b depends only on the seed, b and the global batch size.

There is no index of windows and no state between batches. So any number of ranks, each taking its slice, sees the same
sequence, and a resumed training continues with the next batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from ..errors import InputError, in_one_line
from .corpus_cache import open_any_corpus

Sample = Literal["uniform", "proportional"]

_TAIL_SHARE = 4
"""A series keeps its last H steps for validation, but at most this share of its length."""


@dataclass(frozen=True)
class MixtureEntry:
    """One corpus of a mixture."""

    path: str
    """Folder of the corpus; in a YAML file, relative to the file's folder."""
    weight: float = 1.0
    """Share of the windows, after all weights are normalised; 0 holds the corpus out of training."""
    sample: Sample = "proportional"
    """proportional: every window is equally likely; uniform: every series is."""
    max_series: int | None = None
    """Use at most this many of its series, evenly spaced."""

    def __post_init__(self):
        if not isinstance(self.path, str) or not self.path:
            raise InputError(f"path must be a folder, got {self.path!r}")
        number = not isinstance(self.weight, bool) and isinstance(self.weight, int | float)
        if not number or not 0 <= self.weight < float("inf"):
            raise InputError(f"weight must be a number of at least 0, got {self.weight!r}")
        if self.sample not in ("uniform", "proportional"):
            raise InputError(f"sample must be uniform or proportional, got {self.sample!r}")
        whole = not isinstance(self.max_series, bool) and isinstance(self.max_series, int)
        if self.max_series is not None and not (whole and self.max_series >= 1):
            raise InputError(f"max_series must be a number of at least 1, got {self.max_series!r}")


def read_mixture(path: str | Path) -> list[MixtureEntry]:
    """The entries of a mixture.yaml: a list of mappings with the fields of `MixtureEntry`.

    A folder or a Parquet file counts as a mixture of that corpus alone. Raises InputError that names the wrong entry.
    """
    file = Path(path).expanduser()
    if file.is_dir() or file.suffix == ".parquet":
        return [MixtureEntry(str(file))]
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the mixture {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {in_one_line(error)}") from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} must be a list of entries, each with a path")
    known = {item.name for item in fields(MixtureEntry)}
    mixture = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or "path" not in entry:
            raise InputError(f"{where} is not a mapping with a path")
        if unknown := [str(name) for name in entry if name not in known]:
            raise InputError(f"{where}: unknown key {unknown[0]}; known keys are {', '.join(sorted(known))}")
        try:
            read = MixtureEntry(**entry)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        folder = file.parent / Path(read.path).expanduser()
        mixture.append(MixtureEntry(str(folder), read.weight, read.sample, read.max_series))
    return mixture


class WindowSizes(NamedTuple):
    """The sizes of a window, in time steps."""

    context: int
    """L"""
    horizon: int
    """H"""
    shortest_context: int
    """The minimum length of a shortened context."""


class RawWindows(NamedTuple):
    """Windows in the units of their series; missing, padded or hidden values are NaN."""

    past: np.ndarray
    """[B, L, C] float32"""
    future: np.ndarray
    """[B, H, C] float32"""


class _Picks(NamedTuple):
    """The windows of one global batch, before any value is read."""

    corpus: np.ndarray
    """[B]: index of the corpus"""
    rows: np.ndarray
    """[B, C]: rows of the corpus"""
    origins: np.ndarray
    """[B]: first time step to forecast"""
    contexts: np.ndarray
    """[B]: number of lookback steps that are visible"""


@dataclass(frozen=True, eq=False)
class _Stratum:
    """Series of one corpus that may appear in the same batch."""

    corpus: int
    series: np.ndarray
    """[n]"""
    cumulative: np.ndarray
    """[n] up to 1: cumulative probabilities of the series"""
    weight: float
    num_channels: int | None
    """C of each series if its channels stay together; None if one of its channels is drawn."""


class Mixture:
    """Open corpora, and the distribution from which windows are drawn."""

    def __init__(self, entries: Sequence[MixtureEntry], sizes: WindowSizes, *, seed: int, joint: bool = False):
        """`joint`: a window has all channels of its series, and all windows in a batch have as many; else one channel.

        Raises:
            InputError: a corpus cannot be opened, none has a weight above 0, or one to train on has no long enough
                series.
        """
        self.entries, self.sizes, self.seed, self.joint = list(entries), sizes, seed, joint
        self.corpora = [open_any_corpus(entry.path) for entry in self.entries]
        self._strata = [
            stratum
            for number, entry in enumerate(self.entries)
            if entry.weight > 0
            for stratum in self._strata_of(number, entry)
        ]
        if not self._strata:
            raise InputError("the mixture holds every corpus out of training: give one a weight above 0")
        counts = [stratum.num_channels or 1 for stratum in self._strata]
        self._groups = {count: [s for s, c in zip(self._strata, counts, strict=True) if c == count] for count in counts}

    def description(self) -> list[dict[str, Any]]:
        """What batches depend on besides the seed, with one entry per corpus, independent of where it is stored."""
        return [
            {
                "corpus": Path(entry.path).name,
                "weight": float(entry.weight),
                "sample": entry.sample,
                "max_series": entry.max_series,
                "fingerprint": corpus.fingerprint(),
            }
            for entry, corpus in zip(self.entries, self.corpora, strict=True)
        ]

    def batch(self, number: int, size: int, part: slice | np.ndarray = slice(None)) -> RawWindows:
        """Read the windows `part` (slice or positions) of global batch `number`, whose size is `size`."""
        picks = self._pick(number, size)
        return self._read(_Picks(*(column[part] for column in picks)))

    def _pick(self, number: int, size: int) -> _Picks:
        draws = np.random.Generator(np.random.Philox(key=[self.seed, number])).random((size + 1, 6))
        strata = self._choose_group(draws[-1, 0])
        weights = np.cumsum([stratum.weight for stratum in strata])
        chosen = np.searchsorted(weights / weights[-1], draws[:-1, 0], side="right").clip(max=len(strata) - 1)
        num_channels = strata[0].num_channels or 1
        picks = _Picks(
            np.zeros(size, np.int64), np.zeros((size, num_channels), np.int64), *np.zeros((2, size), np.int64)
        )
        for index, stratum in enumerate(strata):
            at = np.flatnonzero(chosen == index)
            if len(at):
                self._fill(picks, at, stratum, draws[at])
        return picks

    def _choose_group(self, draw: float) -> list[_Stratum]:
        """The strata with one number of channels, drawn by weight."""
        groups = [self._groups[count] for count in sorted(self._groups)]
        weights = np.cumsum([sum(stratum.weight for stratum in group) for group in groups])
        return groups[min(int(np.searchsorted(weights / weights[-1], draw, side="right")), len(groups) - 1)]

    def _fill(self, picks: _Picks, at: np.ndarray, stratum: _Stratum, draws: np.ndarray):
        corpus = self.corpora[stratum.corpus]
        picked = np.searchsorted(stratum.cumulative, draws[:, 1], side="right").clip(max=len(stratum.series) - 1)
        series = stratum.series[picked]
        first = corpus.first_row[series]
        if stratum.num_channels is None:
            rows = (first + _below(draws[:, 2], corpus.first_row[series + 1] - first))[:, None]
        else:
            rows = first[:, None] + np.arange(stratum.num_channels)
        lowest, highest = _origins(training_lengths(corpus.series_lengths[series], self.sizes.horizon), self.sizes)
        origins = lowest + _below(draws[:, 3], highest - lowest + 1)
        L, shortest = self.sizes.context, min(self.sizes.shortest_context, self.sizes.context)
        shortened = shortest + _below(draws[:, 5], np.full(len(at), L - shortest + 1))
        picks.corpus[at], picks.rows[at], picks.origins[at] = stratum.corpus, rows, origins
        # half of the contexts are shortened, so that a forecaster sees both kinds
        picks.contexts[at] = np.where(draws[:, 4] < 0.5, L, shortened)

    def _read(self, picks: _Picks) -> RawWindows:
        (L, H, _), (B, C) = self.sizes, picks.rows.shape
        values = np.empty((B * C, L + H), np.float32)
        ends = np.empty(B, np.int64)
        by_row = np.repeat(picks.corpus, C)
        rows, starts = picks.rows.ravel(), np.repeat(picks.origins - L, C)
        for number in np.unique(picks.corpus):
            corpus, at = self.corpora[number], by_row == number
            values[at] = corpus.gather(rows[at], starts[at], L + H)
            mine = picks.corpus == number
            ends[mine] = training_lengths(corpus.lengths[picks.rows[mine, 0]], H)
        values = values.reshape(B, C, L + H)
        steps = np.arange(L + H)
        hidden = (steps < L - picks.contexts[:, None]) | (steps >= (ends - picks.origins + L)[:, None])
        np.copyto(values, np.nan, where=hidden[:, None])
        values = values.transpose(0, 2, 1)
        return RawWindows(np.ascontiguousarray(values[:, :L]), np.ascontiguousarray(values[:, L:]))

    def _strata_of(self, number: int, entry: MixtureEntry) -> list[_Stratum]:
        corpus = self.corpora[number]
        lengths = training_lengths(corpus.series_lengths, self.sizes.horizon)
        series = np.flatnonzero(lengths >= 2)
        series = evenly(series, entry.max_series)
        if not len(series):
            raise InputError(f"{corpus.name} holds no series long enough to train on")
        lowest, highest = _origins(lengths[series], self.sizes)
        shares = (highest - lowest + 1).astype(float) if entry.sample == "proportional" else np.ones(len(series))
        if not self.joint:
            return [_Stratum(number, series, np.cumsum(shares) / shares.sum(), entry.weight, None)]
        counts = corpus.num_channels[series]
        strata = []
        for count in np.unique(counts):
            mine, weight = counts == count, entry.weight * shares[counts == count].sum() / shares.sum()
            cumulative = np.cumsum(shares[mine]) / shares[mine].sum()
            strata.append(_Stratum(number, series[mine], cumulative, weight, int(count)))
        return strata


def training_lengths(lengths: np.ndarray, horizon: int) -> np.ndarray:
    """Number of steps that training may see; validation forecasts the rest: H steps, or a quarter of a short series."""
    return lengths - np.minimum(horizon, lengths // _TAIL_SHARE)


def _origins(lengths: np.ndarray, sizes: WindowSizes) -> tuple[np.ndarray, np.ndarray]:
    """The first and last step that may follow a context, for series of the given lengths.

    Long series give complete windows; short ones give shorter contexts, and at least half a horizon.
    """
    highest = np.maximum(np.maximum(lengths - sizes.horizon, lengths // 2), 1)
    lowest = np.minimum(sizes.context, np.maximum(highest // 2, 1))
    return lowest, highest


def _below(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Map draws from [0, 1) to integers below `counts`."""
    return np.minimum((draws * counts).astype(np.int64), counts - 1)


def evenly(series: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of the series, evenly spaced."""
    if limit is None or len(series) <= limit:
        return series
    return series[np.linspace(0, len(series) - 1, limit).round().astype(np.int64)]
