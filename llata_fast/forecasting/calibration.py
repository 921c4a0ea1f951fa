"""Split-conformal calibration: quantiles from a forecast's errors on windows that it was not trained on.

For every quantile level q, horizon step and channel, the forecast of that quantile is shifted by the q-quantile, with
the finite-sample correction, of (truth - forecast) / unit of the window (Romano et al., arXiv 1905.03222, one side at a
time). Without a quantile head, every quantile's forecast is the point forecast.

Validation is a single stretch of time, and often harder or easier than the future. For a forecast from a linear start,
its errors at the other origins also count, with equal weight, and choose the unit: the window's deviation, its typical
change over a season, or their geometric mean, whichever lets intervals from all other origins best cover the windows of
each origin.
"""

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.memory import free_memory
from ..data.units import Outputs, WindowUnits, run_windows
from ..errors import InputError, in_one_line
from ..linear_start import Behind
from ..settings import DECILES

CALIBRATED_LEVELS = (0.005, 0.01, 0.025, *(round(0.05 * step, 2) for step in range(1, 20)), 0.975, 0.99, 0.995)
"""Calibrated levels; offsets in between are interpolated."""

MAX_SCORES = 2**26
"""Number of scores held at a time; beyond that, windows are subsampled evenly."""

_POWERS = (0.0, 0.5, 1.0)
_LEAST_RATIO = 0.05


def between_levels(known: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Weights [known, wanted] that interpolate quantiles linearly on the normal distribution's scale, and extrapolate.

    A single known level stands for all others.
    """
    z_known, z = (torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)) for levels in (known, wanted))
    if len(known) == 1:
        return torch.ones(1, len(wanted), dtype=torch.float64)
    right = torch.searchsorted(z_known, z).clamp(1, len(known) - 1)
    share = (z - z_known[right - 1]) / (z_known[right] - z_known[right - 1])
    weights = torch.zeros(len(known), len(wanted), dtype=torch.float64)
    columns = torch.arange(len(wanted))
    weights[right - 1, columns] = 1 - share
    weights[right, columns] += share
    return weights


def base_quantiles(outputs: tuple[Tensor, ...], head_levels: Sequence[float] | None, wanted: Sequence[float]) -> Tensor:
    """Quantiles [B, H, C, wanted] before calibration: the head's, or else the point forecast for every level."""
    if head_levels:
        return outputs[1] @ between_levels(head_levels, wanted).to(outputs[1].device)
    return outputs[0][..., None].expand(*outputs[0].shape, len(wanted))


@dataclass
class Calibration:
    """Offsets of a forecast's quantiles, in standard deviations of the window."""

    offsets: Tensor
    """[H, C, len(CALIBRATED_LEVELS)] float32, NaN where nothing could be calibrated."""
    num_windows: int
    season: int = 1
    power: float = 0.0
    """Exponent of `season_ratio` in the unit: 0 for the deviation alone, 1 for the seasonal change alone."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: Outputs,
        windows: Any,
        head_levels: Sequence[float] | None,
        *,
        reads_level: bool = False,
        batch_size: int = 256,
        behind: Sequence[Behind] = (),
        season: int = 1,
    ) -> "Calibration":
        """Calibrate on windows made by `llata_fast.data`; every rank calls it.

        Args:
            behind: errors at other origins, for a forecast without a quantile head; as many windows are used of each.
            season: number of steps over which a window's changes may be its unit.
        """
        scores: list[Tensor] = []
        ratios: list[Tensor] = []
        most = sum(len(part.past) for part in behind) or len(windows)
        for past, future, covariates in evenly_spaced(windows, batch_size, most):
            units, outputs = run_windows(model, past, ~past.isnan(), reads_level=reads_level, covariates=covariates)
            # a constant window has no unit
            truth = (future - units.level) / torch.where(units.scale > 0, units.scale, torch.nan)
            levels = CALIBRATED_LEVELS if head_levels else CALIBRATED_LEVELS[:1]
            scores.append((truth[..., None] - base_quantiles(outputs, head_levels, levels)).float().cpu())
            if behind:
                ratios.append(season_ratio(units.remove(past), ~past.isnan(), season).cpu())
        errors, power = torch.cat(scores), 0.0
        if behind:
            witnesses = [_Witness(errors[..., 0], torch.cat(ratios))]
            witnesses += [_witness(part, errors.shape[1], season) for part in behind]
            power = _best_power(witnesses) if 1 < season < behind[0].past.shape[1] else 0.0
            errors = torch.cat([part.errors / part.ratios**power for part in witnesses])[..., None]
        ordered = errors.sort(0).values.numpy()  # [N, H, C, levels or 1], NaN last
        known = (~np.isnan(ordered)).sum(0)
        offsets = np.stack(
            [_order_statistic(ordered, known, place, level) for place, level in enumerate(CALIBRATED_LEVELS)], -1
        )
        return cls(torch.from_numpy(offsets).float(), len(ordered), season, power)

    def unit(self, past: Tensor, observed: Tensor) -> Tensor | float:
        """Factor of the offsets for lookbacks [B, L, C] in any unit, besides the deviation: [B, 1, C]."""
        return season_ratio(past, observed, self.season) ** self.power if self.power else 1.0

    def at(self, levels: Sequence[float], num_channels: int) -> Tensor:
        """Offsets [H, C, levels], float64; a series with other channels gets the mean over the calibrated ones."""
        offsets = self.offsets.double()
        # for a channel or a step that could not be calibrated
        mean = offsets.nanmean(1, keepdim=True).nan_to_num(nan=0.0)
        offsets = torch.where(offsets.isnan(), mean, offsets)
        if offsets.shape[1] != num_channels:
            offsets = mean.expand(-1, num_channels, -1)
        inner = [min(max(level, CALIBRATED_LEVELS[0]), CALIBRATED_LEVELS[-1]) for level in levels]
        return offsets @ between_levels(CALIBRATED_LEVELS, inner)

    def save(self, path: str | Path):
        np.savez_compressed(
            path,
            offsets=self.offsets.numpy(),
            levels=np.array(CALIBRATED_LEVELS),
            num_windows=self.num_windows,
            season=self.season,
            power=self.power,
        )

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Raises InputError if the file is damaged."""
        try:
            with zipfile.ZipFile(path) as packed:
                if sum(entry.file_size for entry in packed.infolist()) > free_memory():
                    raise ValueError("it is larger than memory")
            with np.load(path) as arrays:
                levels, offsets = arrays["levels"].tolist(), torch.from_numpy(arrays["offsets"])
                num_windows, season, power = int(arrays["num_windows"]), int(arrays["season"]), float(arrays["power"])
            if levels != list(CALIBRATED_LEVELS) or offsets.ndim != 3 or offsets.shape[-1] != len(levels):
                raise ValueError("it is of another version")
            if num_windows < 0 or season < 1 or not math.isfinite(power):
                raise ValueError("its numbers make no sense")
        except Exception as error:  # reading a damaged archive can raise anything
            raise InputError(f"{path} is damaged: {in_one_line(error)}; calibrate again") from None
        return cls(offsets, num_windows, season, power)


def season_ratio(past: Tensor, observed: Tensor, season: int) -> Tensor:
    """Root mean square change of lookbacks [B, L, C] over `season` steps, in units of their deviation: [B, 1, C].

    At least 0.05, as one exactly repeated season does not guarantee the next; 1 where it is unknown.
    """
    count = observed.sum(1, keepdim=True).clamp(min=1)
    past = torch.where(observed, past, 0.0)
    moves = torch.where(observed, past - past.sum(1, keepdim=True) / count, 0.0)
    deviation = (moves.square().sum(1, keepdim=True) / count).sqrt()
    both = observed[:, season:] & observed[:, :-season]
    steps = torch.where(both, moves[:, season:] - moves[:, :-season], 0.0).square().sum(1, keepdim=True)
    size = (steps / both.sum(1, keepdim=True).clamp(min=1)).sqrt()
    ratio = size / torch.where(deviation > 0, deviation, 1.0)
    return torch.where((deviation > 0) & both.any(1, keepdim=True), ratio.clamp(min=_LEAST_RATIO), 1.0)


class _Witness(NamedTuple):
    """Errors [N, H, C] in standard deviations of their windows, and the windows' `season_ratio` [N, 1, C]."""

    errors: Tensor
    ratios: Tensor


def _witness(part: Behind, horizon: int, season: int) -> _Witness:
    units = WindowUnits.of(part.past)
    errors = part.errors / torch.where(units.scale > 0, units.scale, torch.nan)
    # for each step, the nearest fitted one
    nearest = (torch.arange(horizon)[:, None] - part.steps.cpu()).abs().argmin(1)
    ratios = season_ratio(units.remove(part.past), ~part.past.isnan(), season)
    return _Witness(errors.float().cpu()[:, nearest], ratios.cpu())


def _best_power(witnesses: list[_Witness]) -> float:
    """The exponent with the best coverage of 80 % intervals, each origin covered by all the others."""
    steps = np.linspace(0, witnesses[0].errors.shape[1] - 1, 24).round().astype(np.int64)

    def distance(power: float) -> float:
        parts = [(part.errors / part.ratios**power).numpy()[:, np.unique(steps)] for part in witnesses]
        away = []
        for place, part in enumerate(parts):
            others = np.concatenate([*parts[:place], *parts[place + 1 :]])
            with warnings.catch_warnings():
                # a step or a channel without any value
                warnings.simplefilter("ignore", RuntimeWarning)
                low, high = np.nanquantile(others, (0.1, 0.9), axis=0)
            covered = (part >= low) & (part <= high)
            away.append(abs(covered[~np.isnan(part)].mean() - 0.8))
        return float(np.nanmean(away))

    return min(_POWERS, key=distance)


def evenly_spaced(
    windows: Any, batch_size: int, most: int | None = None
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Past, future and covariates of all windows, or of evenly spaced ones: `most`, or as many as memory allows."""
    _, future = windows.stretches([0])
    room = min(max(64, MAX_SCORES // (future.numel() * len(CALIBRATED_LEVELS))), most or len(windows))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(room, len(windows))).round().astype(np.int64))
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size].tolist()
        yield *windows.stretches(indices), windows.covariates(indices)


def _order_statistic(errors: np.ndarray, known: np.ndarray, place: int, level: float) -> np.ndarray:
    """[H, C]: the sorted error that a new error stays below with probability at least `level`."""
    rank = np.ceil((known + 1) * level) if level >= 0.5 else np.floor((known + 1) * level)
    index = np.clip(rank, 1, np.maximum(known, 1)).astype(np.int64) - 1
    column = errors[..., place if errors.shape[-1] > 1 else 0]
    return np.where(known[..., 0] > 0, np.take_along_axis(column, index[None, ..., 0], 0)[0], np.nan)


def interval_scores(
    model: Outputs,
    windows: Any,
    calibration: Calibration,
    head_levels: Sequence[float] | None,
    *,
    mean: np.ndarray,
    scale: np.ndarray,
    naive_error: np.ndarray,
    reads_level: bool = False,
    batch_size: int = 256,
) -> dict[str, float]:
    """Quality of quantiles on windows, averaged over channels: {"coverage_80", "interval_score_80", "wql", "mase"}.

    Args:
        mean, scale: [C], of the standardisation of the windows; WQL is in the series' own units.
        naive_error: [C], mean absolute seasonal change of the standardised training rows: the unit of MASE.

    The interval score (Gneiting and Raftery 2007) is on standardised data; WQL covers the levels 0.1 to 0.9.
    """
    levels = list(DECILES)
    sums: Any = 0.0
    for past, future, covariates in evenly_spaced(windows, batch_size):
        units, outputs = run_windows(model, past, ~past.isnan(), reads_level=reads_level, covariates=covariates)
        quantiles = calibrated_quantiles(units, past, outputs, head_levels, calibration, levels).cpu()
        points, truth = units.restore(outputs[0]).cpu(), future.cpu()
        seen = ~truth.isnan() & ~points.isnan()
        error = truth[..., None] - quantiles
        level = torch.tensor(levels, dtype=torch.float64)
        pinball = 2 * torch.maximum(level * error, (level - 1) * error).mean(-1)
        low, high = quantiles[..., 0], quantiles[..., -1]
        outside = (low - truth).clamp(min=0) + (truth - high).clamp(min=0)
        terms = (
            (truth >= low) & (truth <= high),
            high - low + 2 / 0.2 * outside,
            pinball * torch.from_numpy(scale),
            (truth * torch.from_numpy(scale) + torch.from_numpy(mean)).abs(),
            (truth - points).abs(),
            seen,
        )
        sums = sums + torch.stack([torch.where(seen, term.double(), 0.0).sum((0, 1)) for term in terms])
    covered, interval, pinball, size, absolute, count = sums
    return {
        "coverage_80": (covered / count).nanmean().item(),
        "interval_score_80": (interval / count).nanmean().item(),
        "wql": (pinball / size).nanmean().item(),
        "mase": (absolute / count / torch.from_numpy(naive_error)).nanmean().item(),
    }


def calibrated_quantiles(
    units: WindowUnits,
    past: Tensor,
    outputs: tuple[Tensor, ...],
    head_levels: Sequence[float] | None,
    calibration: Calibration | None,
    levels: Sequence[float],
) -> Tensor:
    """Quantiles [B, H, C, levels] in the windows' own units, increasing with their level.

    `units` belong to past [B, L, C], NaN where missing; `outputs` are the model's, in these units.
    """
    levels, places = zip(*sorted((level, place) for place, level in enumerate(levels)), strict=True)
    quantiles = base_quantiles(outputs, head_levels, levels)
    if calibration is not None:
        unit = calibration.unit(units.remove(past), ~past.isnan())
        unit = unit[..., None] if isinstance(unit, Tensor) else unit
        quantiles = quantiles + calibration.at(levels, quantiles.shape[2]).to(quantiles.device) * unit
    back = torch.tensor(places, device=quantiles.device).argsort()
    return units.restore(quantiles.sort(-1).values[..., back])
