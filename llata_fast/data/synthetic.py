"""Artificial series for pre-training and tests: series n depends only on the seed and n.

There are four kinds: samples of Gaussian processes whose kernels are random sums and products (KernelSynth, arXiv
2403.07815); sums and products of trends, seasons, level shifts and outliers; intermittent counts; and mixtures of
stretches of real series (TSMixup, the same paper).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError
from .corpora import Corpus
from .corpus_cache import open_any_corpus
from .corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from .steps import parse_step

CHUNK = 2_000
"""Series per task of a process, and per file of the corpus."""

# steps whose season fits into a series, each with a second, longer season
_FREQUENCIES = {"15min": 672, "30min": 336, "h": 168, "D": 364, "W": 104, "ME": 48, "QE": 8, "YE": 10}
_START = np.datetime64("2000-01-01")
_FEATURES = 128
"""Number of random frequencies summed in a sample of a Gaussian process."""


@dataclass(frozen=True)
class SyntheticSettings:
    """Which series to generate."""

    num_series: int
    length: int = 1024
    """Time steps per series."""
    seed: int = 0
    kinds: tuple[str, ...] | None = None
    """Names of KINDS, in equal shares; default: all that need no corpus, and mixup if a corpus is given."""
    mix: tuple[str, ...] = ()
    """Corpora from which mixup draws stretches."""

    def __post_init__(self):
        for name, lowest in (("num_series", 1), ("length", 2), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise InputError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if unknown := [kind for kind in self.kinds or () if kind not in KINDS]:
            raise InputError(f"unknown kind of synthetic series {unknown[0]!r}; choose from {', '.join(KINDS)}")
        if self.kinds is not None and not self.kinds:
            raise InputError("kinds must name at least one kind of synthetic series")
        if "mixup" in (self.kinds or ()) and not self.mix:
            raise InputError("mixup combines stretches of real series: give --mix CORPUS")

    @property
    def made(self) -> tuple[str, ...]:
        """The kinds to generate."""
        return self.kinds or tuple(kind for kind in KINDS if kind != "mixup" or self.mix)


def synthesize(settings: SyntheticSettings, output: str | Path, *, jobs: int = 1, progress: bool = False) -> int:
    """Write a corpus of artificial series with `jobs` processes; the result does not depend on their number.

    Raises:
        InputError: `output` exists, or a corpus for mixup cannot be opened.
    """
    starts = range(0, settings.num_series, CHUNK)
    # fail before anything is written
    _open_all(settings.mix)
    with new_corpus(output, CorpusLayout()) as folder:
        write = partial(_write_chunk, settings, folder)
        with tqdm(total=settings.num_series, unit="series", disable=not progress) as bar:
            if jobs == 1:
                for start in starts:
                    bar.update(write(start))
            else:
                with ProcessPoolExecutor(jobs) as pool:
                    for count in pool.map(write, starts):
                        bar.update(count)
    return settings.num_series


def _write_chunk(settings: SyntheticSettings, folder: Path, start: int) -> int:
    numbers = range(start, min(start + CHUNK, settings.num_series))
    series = (make_series(settings, number) for number in numbers)
    return write_shards(folder, f"chunk-{start // CHUNK:06d}", series, CorpusLayout())


def make_series(settings: SyntheticSettings, number: int) -> CorpusSeries:
    """Generate series `number` of the corpus."""
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, number]))
    kind = settings.made[rng.integers(len(settings.made))]
    frequency = str(rng.choice(list(_FREQUENCIES)))
    grid = _Grid(settings.length, parse_step(frequency).seasonality, _FREQUENCIES[frequency])
    if kind == "mixup":
        values, frequency = _mixup(rng, settings.length, _open_all(settings.mix))
    else:
        values = _FROM_NOTHING[kind](rng, grid)
    return CorpusSeries(f"{kind}-{number}", _START, frequency, values.astype(np.float32)[None])


class _Grid(NamedTuple):
    """The time steps of a series to generate."""

    length: int
    season: int
    """Steps per season; 1 for none."""
    long_season: int

    @property
    def steps(self) -> np.ndarray:
        return np.arange(self.length, dtype=np.float64)


class _Term(NamedTuple):
    """x**degree times a Gaussian process: one summand of an expanded kernel.

    The kernel of a product of processes is the product of their kernels, and its spectrum their spectra's convolution:
    each frequency of the product is a sum of one frequency from each (random Fourier features, Rahimi and Recht 2007).
    """

    degree: int
    frequencies: np.ndarray
    """[_FEATURES] radians per step"""
    white: bool = False
    """Independent at every step; its product with anything stationary is, too."""

    def times(self, other: "_Term") -> "_Term":
        frequencies = self.frequencies + other.frequencies
        return _Term(self.degree + other.degree, frequencies, self.white or other.white)


def _gaussian_process(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """A sample of a Gaussian process with up to five kernels, each added to or multiplied with the previous ones."""
    terms = [_kernel(rng, grid)]
    for _ in range(rng.integers(0, 5)):
        kernel = _kernel(rng, grid)
        terms = [*terms, kernel] if rng.random() < 0.5 else [term.times(kernel) for term in terms]
    return _in_units(rng, np.sum([_sample(rng, term, grid.length) for term in terms], axis=0))


def _kernel(rng: np.random.Generator, grid: _Grid) -> _Term:
    """A kernel drawn from the bank."""
    kind = rng.choice(["constant", "white", "linear", "rbf", "rational_quadratic", "periodic", "periodic"])
    at_rest = np.zeros(_FEATURES)
    if kind in ("constant", "linear"):
        return _Term(int(kind == "linear"), at_rest)
    if kind == "white":
        return _Term(0, at_rest, white=True)
    if kind == "periodic":
        return _Term(0, _periodic_frequencies(rng, grid))
    scale = grid.length * 10 ** rng.uniform(-2, 0)
    frequencies = rng.normal(size=_FEATURES) / scale
    if kind == "rational_quadratic":
        # a scale mixture of squared exponentials
        alpha = 10 ** rng.uniform(-1, 1)
        frequencies = frequencies * np.sqrt(rng.gamma(alpha, 1 / alpha, size=_FEATURES))
    return _Term(0, frequencies)


def _periodic_frequencies(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """Frequencies of exp(-2 sin^2(pi t / p) / l^2): harmonics of p, from the kernel's Fourier series."""
    period = float(rng.choice([max(grid.season, 2), grid.long_season, rng.uniform(4, grid.length / 2 + 4)]))
    angles = np.arange(256) * 2 * np.pi / 256
    kernel = np.exp(-2 * np.sin(angles / 2) ** 2 / rng.uniform(0.3, 2) ** 2)
    weights = np.abs(np.fft.rfft(kernel)[:64])
    weights[1:] *= 2
    harmonics = rng.choice(64, size=_FEATURES, p=weights / weights.sum())
    return harmonics * 2 * np.pi / period


def _sample(rng: np.random.Generator, term: _Term, length: int) -> np.ndarray:
    amplitude = rng.normal() if not term.white and not term.frequencies.any() else 1.0
    if term.white:
        values = rng.normal(size=length) * 10 ** rng.uniform(-1.5, 0)
    else:
        # cos(w t + phase) at t = a + rows * b is cos cos - sin sin of two short tables
        rows = int(np.ceil(np.sqrt(length)))
        short = np.outer(term.frequencies, np.arange(rows))
        coarse = np.outer(np.arange(0, length, rows), term.frequencies) + rng.uniform(0, 2 * np.pi, _FEATURES)
        # not one complex product: at this size the library's threads would wait for each other
        waves = np.cos(coarse) @ np.cos(short) - np.sin(coarse) @ np.sin(short)
        values = waves.ravel()[:length] * np.sqrt(2 / _FEATURES)
    if term.degree:
        values = values * np.linspace(-1, 1, length) ** term.degree
    return amplitude * values


def _composed(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """Trend, seasons, level shifts, noise and outliers, added or multiplied."""
    trend, season = _trend(rng, grid), _seasons(rng, grid)
    noise = _noise(rng, grid) * 10 ** rng.uniform(-2.5, -0.2)
    if rng.random() < 0.3:
        values = np.exp(0.5 * trend) * (1 + 0.5 * np.tanh(season)) * (1 + 0.3 * noise)
    else:
        values = trend * rng.uniform(0, 5) + season * rng.uniform(0.2, 2) + noise
    if rng.random() < 0.3:
        values = values + _level_shifts(rng, grid) * values.std()
    if rng.random() < 0.15:
        hit = rng.random(grid.length) < rng.uniform(0.001, 0.01)
        values = values + hit * rng.normal(size=grid.length) * 6 * values.std()
    return _in_units(rng, values)


def _trend(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    time = np.linspace(0, 1, grid.length)
    kind = rng.choice(["none", "linear", "bends", "saturating", "walk"])
    if kind == "none":
        return np.zeros(grid.length)
    if kind == "linear":
        return rng.normal() * time
    if kind == "bends":
        knots = np.sort(rng.uniform(0, 1, rng.integers(1, 5)))
        return rng.normal() * time + sum(rng.normal() * np.maximum(time - knot, 0) for knot in knots)
    if kind == "saturating":
        return rng.normal() * np.tanh((time - rng.uniform(0, 1)) * rng.uniform(2, 20))
    return rng.normal(size=grid.length).cumsum() / np.sqrt(grid.length)


def _seasons(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """One or two seasons with repeating profiles, some with a slowly changing amplitude."""
    values = np.zeros(grid.length)
    for period in {max(grid.season, 2): 1.0, grid.long_season: 0.5}:
        if rng.random() < 0.25:
            continue
        profile = _profile(rng, period)
        strength: float | np.ndarray = 1.0
        if rng.random() < 0.3:
            strength = 1 + 0.5 * np.sin(2 * np.pi * (grid.steps / grid.length * rng.uniform(0.5, 2) + rng.random()))
        values += strength * rng.uniform(0.3, 1) * profile[(grid.steps.astype(int) + rng.integers(period)) % period]
    return values


def _profile(rng: np.random.Generator, period: int) -> np.ndarray:
    """One season: a few harmonics, a smooth random shape, or working hours and days off."""
    time = np.arange(period) / period
    kind = rng.choice(["harmonics", "shape", "hours"])
    if kind == "harmonics" or period < 8:
        orders = np.arange(1, rng.integers(2, 6))
        phases = rng.uniform(0, 2 * np.pi, len(orders))
        profile = (
            np.sin(2 * np.pi * np.outer(time, orders) + phases) / orders**1.5 * rng.normal(size=len(orders))
        ).sum(1)
    elif kind == "shape":
        knots = rng.normal(size=rng.integers(4, 10))
        profile = np.interp(time, np.linspace(0, 1, len(knots) + 1), [*knots, knots[0]])
    else:
        opens, shuts = np.sort(rng.uniform(0, 1, 2))
        profile = ((time >= opens) & (time < shuts)) * (
            1 + 0.3 * np.sin(np.pi * (time - opens) / (shuts - opens + 1e-9))
        )
    spread = profile.std()
    return (profile - profile.mean()) / spread if spread > 1e-9 else profile


def _noise(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    noise = rng.normal(size=grid.length) if rng.random() < 0.7 else rng.standard_t(4, size=grid.length) / np.sqrt(2)
    if rng.random() < 0.4:
        noise = _autoregressive(noise, rng.uniform(0.3, 0.95))
    if rng.random() < 0.2:
        noise = noise * np.exp(np.sin(2 * np.pi * (grid.steps / grid.length * rng.uniform(0.5, 3) + rng.random())))
    return noise


def _autoregressive(noise: np.ndarray, memory: float) -> np.ndarray:
    """x[t] = memory * x[t - 1] + noise[t], with the variance of the noise."""
    kernel = memory ** np.arange(min(len(noise), int(np.ceil(np.log(1e-4) / np.log(memory)))))
    return np.convolve(noise, kernel)[: len(noise)] * np.sqrt(1 - memory**2)


def _level_shifts(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """A few permanent steps up or down."""
    at = rng.integers(0, grid.length, rng.integers(1, 4))
    return sum(rng.normal() * 2 * (grid.steps >= step) for step in at)


def _intermittent(rng: np.random.Generator, grid: _Grid) -> np.ndarray:
    """Mostly zero counts: a demand that follows the season, some of it in bursts."""
    rate = 10 ** rng.uniform(-1.5, 1) * np.exp(0.5 * _seasons(rng, grid) + 0.5 * _trend(rng, grid))
    if rng.random() < 0.5:
        # negative binomial: Poisson with a random rate at every step
        rate = rate * rng.gamma(spread := rng.uniform(0.3, 3), 1 / spread, size=grid.length)
    open_share = rng.uniform(0.1, 1)
    return rng.poisson(np.minimum(rate, 1e6)) * (rng.random(grid.length) < open_share)


def _mixup(
    rng: np.random.Generator, length: int, corpora: Sequence[tuple[Corpus, np.ndarray]]
) -> tuple[np.ndarray, str]:
    """A convex combination of one to three stretches of real series, each divided by its mean absolute value.

    Its frequency is that of the stretch with the largest weight.
    """
    weights = np.sort(rng.dirichlet(np.full(rng.integers(1, 4), 1.5)))
    mixed, frequency = np.zeros(length), ""
    for weight in weights:
        corpus, frequencies = corpora[int(rng.integers(len(corpora)))]
        row = rng.integers(len(corpus.lengths), size=1)
        frequency = str(frequencies[np.searchsorted(corpus.first_row, row[0], side="right") - 1])
        start = rng.integers(0, np.maximum(corpus.lengths[row] - length, 0) + 1)
        stretch = corpus.gather(row, start, length)[0].astype(np.float64)
        size = np.abs(stretch[np.isfinite(stretch)]).mean() if np.isfinite(stretch).any() else 0.0
        mixed += weight * stretch / (size or 1.0)
    return _in_units(rng, mixed), frequency


@cache
def _open_all(paths: tuple[str, ...]) -> list[tuple[Corpus, np.ndarray]]:
    """Open the corpora, with the frequencies of their series."""
    corpora = [open_any_corpus(path) for path in paths]
    return [(corpus, corpus.frequencies()) for corpus in corpora]


def _in_units(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Move the series to a random level and scale, which a window's standardisation removes again."""
    return (values + rng.normal() * 3) * 10 ** rng.uniform(-1, 3)


_FROM_NOTHING: dict[str, Callable[[np.random.Generator, _Grid], np.ndarray]] = {
    "gaussian_process": _gaussian_process,
    "composed": _composed,
    "intermittent": _intermittent,
}
KINDS = (*_FROM_NOTHING, "mixup")
"""The kinds of series that can be generated."""
