"""Split-conformal calibration: how far the truth lay from a forecast on windows that it was not trained on.

For every quantile level q, horizon step and channel, what is added to the forecast of that quantile is the q-quantile,
with the finite-sample correction, of (truth - forecast) / deviation of the window (Romano et al., arXiv 1905.03222,
one side at a time). Without a quantile head the forecast of every quantile is the point forecast.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.units import Outputs, WindowUnits, run_windows
from ..errors import InputError

LEVELS = (0.005, 0.01, 0.025, *(round(0.05 * step, 2) for step in range(1, 20)), 0.975, 0.99, 0.995)
"""Levels that are calibrated; between two of them offsets are interpolated."""

MAX_SCORES = 2**26
"""Scores that are kept at a time: of more windows, evenly spaced ones are taken."""


def between_levels(known: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Weights [known, wanted] that interpolate quantiles linearly in the normal distribution's scale, and go on beyond.

    A single known level is what is had of every other.
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
    """Quantiles [B, H, C, wanted] before calibration: of the head, else the point forecast as every one of them."""
    if head_levels:
        return outputs[1] @ between_levels(head_levels, wanted).to(outputs[1].device)
    return outputs[0][..., None].expand(*outputs[0].shape, len(wanted))


@dataclass
class Calibration:
    """What is added to the quantiles of a forecast, in deviations of the window."""

    offsets: Tensor
    """[H, C, len(LEVELS)] float32, NaN where there was nothing to calibrate on."""
    num_windows: int

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
    ) -> "Calibration":
        """Calibrate on windows as `llata_fast.data` makes them; on several ranks every one calls it."""
        scores, count = [], 0
        for past, future in evenly_spaced(windows, batch_size):
            units, outputs = run_windows(model, past, ~past.isnan(), reads_level=reads_level)
            # nothing is measured by a constant window
            truth = (future - units.level) / torch.where(units.scale > 0, units.scale, torch.nan)
            levels = LEVELS if head_levels else LEVELS[:1]
            scores.append((truth[..., None] - base_quantiles(outputs, head_levels, levels)).float().cpu())
            count += len(past)
        errors = torch.cat(scores).sort(0).values.numpy()  # [N, H, C, levels or 1], NaN last
        known = (~np.isnan(errors)).sum(0)
        offsets = np.stack([_order_statistic(errors, known, place, level) for place, level in enumerate(LEVELS)], -1)
        return cls(torch.from_numpy(offsets).float(), count)

    def at(self, levels: Sequence[float], num_channels: int) -> Tensor:
        """Offsets [H, C, levels], float64; a series of other channels gets the mean of those that were calibrated."""
        offsets = self.offsets.double()
        # a channel, or a step, that could not be calibrated
        mean = offsets.nanmean(1, keepdim=True).nan_to_num(nan=0.0)
        offsets = torch.where(offsets.isnan(), mean, offsets)
        if offsets.shape[1] != num_channels:
            offsets = mean.expand(-1, num_channels, -1)
        inner = [min(max(level, LEVELS[0]), LEVELS[-1]) for level in levels]
        return offsets @ between_levels(LEVELS, inner)

    def save(self, path: str | Path):
        np.savez_compressed(path, offsets=self.offsets.numpy(), levels=np.array(LEVELS), num_windows=self.num_windows)

    @classmethod
    def load(cls, path: str | Path) -> "Calibration":
        """Raises InputError where the file is damaged."""
        try:
            with np.load(path) as arrays:
                levels, offsets = arrays["levels"].tolist(), torch.from_numpy(arrays["offsets"])
                num_windows = int(arrays["num_windows"])
            if levels != list(LEVELS) or offsets.ndim != 3 or offsets.shape[-1] != len(levels):
                raise ValueError("it is of another version")
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged: {error}; calibrate anew") from None
        return cls(offsets, num_windows)


def evenly_spaced(windows: Any, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Past and future of all windows, or of evenly spaced ones where their scores would not fit the memory."""
    _, future = windows.stretches([0])
    room = max(64, MAX_SCORES // (future.numel() * len(LEVELS)))
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(room, len(windows))).round().astype(np.int64))
    for start in range(0, len(chosen), batch_size):
        yield windows.stretches(chosen[start : start + batch_size].tolist())


def _order_statistic(errors: np.ndarray, known: np.ndarray, place: int, level: float) -> np.ndarray:
    """[H, C]: of n sorted errors the one that a new error lies below with probability `level` at least."""
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
    """How good quantiles are on windows, a mean over channels: {"coverage_80", "interval_score_80", "wql", "mase"}.

    Args:
        mean, scale: [C], of the standardised values that windows hold; WQL is of the series' own units.
        naive_error: [C], mean absolute seasonal step of the training rows, standardised: MASE's unit.

    The interval score (Gneiting and Raftery 2007) is of standardised data; WQL is over the levels 0.1 to 0.9.
    """
    levels = [round(0.1 * step, 1) for step in range(1, 10)]
    sums: Any = 0.0
    for past, future in evenly_spaced(windows, batch_size):
        units, outputs = run_windows(model, past, ~past.isnan(), reads_level=reads_level)
        quantiles = calibrated_quantiles(units, outputs, head_levels, calibration, levels).cpu()
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
    outputs: tuple[Tensor, ...],
    head_levels: Sequence[float] | None,
    calibration: Calibration | None,
    levels: Sequence[float],
) -> Tensor:
    """Quantiles [B, H, C, levels] in the windows' own units, which rise with their level."""
    levels, places = zip(*sorted((level, place) for place, level in enumerate(levels)), strict=True)
    quantiles = base_quantiles(outputs, head_levels, levels)
    if calibration is not None:
        quantiles = quantiles + calibration.at(levels, quantiles.shape[2]).to(quantiles.device)
    back = torch.tensor(places, device=quantiles.device).argsort()
    return units.restore(quantiles.sort(-1).values[..., back])
