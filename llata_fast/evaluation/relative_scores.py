"""Scores over many datasets: MASE and WQL of each, divided by those of the seasonal-naive forecast.

GIFT-Eval ranks by the geometric mean of such ratios over datasets, which no single dataset's unit or difficulty
dominates.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.corpus_windows import LastWindows
from ..data.units import WindowUnits
from ..settings import DECILES
from .baselines import seasonal_naive

"""Levels that WQL averages over."""

QuantileFunction = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""Lookbacks [B, L, C] in their own units, their mask -> points [B, H, C], and quantiles [B, H, C, DECILES] or None."""


def score_sets(predict: QuantileFunction, sets: Sequence[LastWindows], batch_size: int = 256) -> dict[str, Any]:
    """{"relative_mase", "relative_wql", "per_set"}: geometric means over datasets of scores relative to seasonal
    naive's.

    "per_set" holds each dataset's "windows", "mase", "wql", "naive_mase" and "naive_wql". Without quantiles, the point
    forecast stands for every level, as for seasonal naive. A dataset with undefined scores (constant series, or no
    observed target) is listed, but left out of the means.
    """
    scores = {windows.name: score_set(predict, windows, batch_size) for windows in sets if len(windows)}
    means = {f"relative_{name}": _mean_ratio(list(scores.values()), name) for name in ("mase", "wql")}
    return means | {"per_set": scores}


def score_set(predict: QuantileFunction, windows: LastWindows, batch_size: int = 256) -> dict[str, float]:
    """One dataset's row of `score_sets`; if seasonal naive's error is 0, its ratios are infinite or undefined."""
    sums = {"": _Sums(), "naive_": _Sums()}
    for start in range(0, len(windows), batch_size):
        indices = range(start, min(start + batch_size, len(windows)))
        raw, seasons = windows.raw(indices), windows.seasons[indices.start : indices.stop]
        past, future = torch.from_numpy(raw.past).double(), torch.from_numpy(raw.future).double()
        observed, units = ~past.isnan(), WindowUnits.of(past)
        points, quantiles = predict(units.remove(past), observed)
        points = units.restore(points.cpu())
        if quantiles is not None:
            quantiles = units.level[..., None] + units.scale[..., None] * quantiles.cpu().double()
        scale = naive_errors(past, seasons)
        sums[""].add(points, quantiles, future, scale)
        sums["naive_"].add(seasonal_naive_windows(past, observed, seasons, future.shape[1]), None, future, scale)
    rows = {f"{prefix}{name}": value for prefix, one in sums.items() for name, value in one.result().items()}
    return {"windows": len(windows)} | rows


class _Sums:
    """Running sums of one forecaster on one dataset."""

    def __init__(self):
        self.mase: list[Tensor] = []
        self.loss, self.size = 0.0, 0.0

    def add(self, points: Tensor, quantiles: Tensor | None, future: Tensor, scale: Tensor):
        """points and future [B, H, C], scale [B, C]: the divisor of a channel's errors in MASE."""
        observed = ~future.isnan() & ~points.isnan()
        target = future.where(observed, 0.0)
        errors = (points - target).where(observed, 0.0)
        mase = errors.abs().sum(1) / observed.sum(1) / scale
        self.mase.append(mase[mase.isfinite()])
        self.size += float(target.abs().sum())
        if quantiles is None:
            # the pinball losses of one value at q and 1 - q sum to its absolute error
            self.loss += float(errors.abs().sum())
            return
        levels = torch.tensor(DECILES, dtype=torch.float64)
        below = (target[..., None] - quantiles).where(observed[..., None], 0.0)
        self.loss += float(2 * torch.maximum(levels * below, (levels - 1) * below).sum((0, 1, 2)).mean())

    def result(self) -> dict[str, float]:
        mase = torch.cat(self.mase) if self.mase else torch.zeros(0)
        return {
            "mase": float(mase.mean()) if len(mase) else float("nan"),
            "wql": self.loss / self.size if self.size else float("nan"),
        }


def seasonal_naive_windows(past: Tensor, observed: Tensor, seasons: np.ndarray, horizon: int) -> Tensor:
    """The seasonal-naive forecast [B, horizon, C] of windows [B, L, C] with seasons [B]."""
    forecasts = torch.empty(past.shape[0], horizon, past.shape[2], dtype=past.dtype)
    for season in np.unique(seasons):
        mine = torch.from_numpy(np.flatnonzero(seasons == season))
        forecasts[mine] = seasonal_naive(int(season), horizon)(past[mine].nan_to_num(nan=0.0), observed[mine])
    return forecasts


def naive_errors(past: Tensor, seasons: np.ndarray) -> Tensor:
    """Mean absolute seasonal difference in the lookback [B, C]; NaN if it would be 0 or undefined."""
    errors = torch.empty(past.shape[0], past.shape[2], dtype=past.dtype)
    for season in np.unique(seasons):
        mine = torch.from_numpy(np.flatnonzero(seasons == season))
        lag = int(season) if season < past.shape[1] else 1
        steps = (past[mine, lag:] - past[mine, :-lag]).abs()
        errors[mine] = steps.nanmean(1)
    return errors.where(errors > 0, torch.nan)


def _mean_ratio(scores: Sequence[dict[str, float]], name: str) -> float:
    """The geometric mean of a score relative to seasonal naive's; NaN if no dataset has both."""
    pairs = [(row[name], row[f"naive_{name}"]) for row in scores]
    ratios = [ours / naive for ours, naive in pairs if np.isfinite((ours, naive)).all() and min(ours, naive) > 0]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else float("nan")
