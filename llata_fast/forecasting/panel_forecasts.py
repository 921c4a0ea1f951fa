"""Forecast a panel's items, in batches bounded by tokens, at any horizon: points, and quantiles on request."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..config import TOKENS_AT_ONCE, LlataConfig
from ..data.covariate_encoding import CovariateEncoding, WindowCovariates
from ..data.panel import Panel
from ..data.units import WindowUnits, run_windows
from ..errors import InputError
from ..modeling import LlataForPrediction
from .batches import windows_at_once
from .calibration import Calibration, calibrated_quantiles

PATH_LEVELS = tuple(round(0.05 + 0.1 * step, 2) for step in range(10))
"""Beyond the trained horizon, forecasts continue from each of these quantiles, a tenth of the distribution each."""

POINTS, TARGET_NAME = "predictions", "target_name"

Ahead = Callable[[int], dict[str, Tensor]]
"""Steps ahead -> covariates of windows that start forecasting there, by the names of the model's inputs."""


@dataclass(frozen=True)
class PanelForecaster:
    """A model, its calibration, and the encoding of its covariates."""

    model: LlataForPrediction
    calibration: Calibration | None
    encoding: CovariateEncoding | None = None

    @property
    def has_quantiles(self) -> bool:
        return self.calibration is not None or bool(self.model.config.quantile_levels)

    def batch_size(self, num_channels: int, horizon: int) -> int:
        """Items at a time, bounded by tokens and by values."""
        paths = len(PATH_LEVELS) if horizon > self.model.config.prediction_length else 1
        return windows_at_once(self.model.config, num_channels, horizon, paths)

    @torch.inference_mode()
    def __call__(
        self,
        past: Tensor,
        horizon: int,
        levels: Sequence[float],
        own: tuple[Tensor, Tensor] | None = None,
        covariates: Ahead = lambda steps: {},
    ) -> tuple[Tensor, Tensor | None]:
        """Points [B, horizon, C] and quantiles [B, horizon, C, levels] of windows [B, L, C], float64, NaN for missing.

        `own` are level and deviation [B, 1, C] of each series' own rows, which standardise a run that returns to a
        level. Beyond the trained horizon, forecasts serve as the past: points continue from points, and quantiles from
        each of PATH_LEVELS, over all of whose outcomes they are taken.
        """
        if own is not None:
            past = (past - own[0]) / own[1]
        points, quantiles = self._unrolled(past.to(self.model.device), horizon, levels, covariates)
        if own is None:
            return points, quantiles
        level, scale = (part.to(points.device) for part in own)
        if quantiles is not None:
            quantiles = level[..., None] + scale[..., None] * quantiles
        return level + scale * points, quantiles

    def _unrolled(
        self, past: Tensor, horizon: int, levels: Sequence[float], covariates: Ahead
    ) -> tuple[Tensor, Tensor | None]:
        L, H = past.shape[1], self.model.config.prediction_length
        units, outputs = self._run(past, covariates(0))
        points: list[Tensor] = [units.restore(outputs[0])]
        quantiles: list[Tensor] = []
        paths: Tensor | None = None
        if levels:
            spread = self._quantiles(past, units, outputs, [*levels, *PATH_LEVELS] if horizon > H else levels)
            quantiles.append(spread[..., : len(levels)])
            paths = spread[..., len(levels) :]
        known, branches = past, past[:, None].expand(-1, len(PATH_LEVELS), -1, -1)
        for ahead in range(H, horizon, H):
            known = torch.cat((known, points[-1]), 1)[:, -L:]
            beside = covariates(ahead)
            units, outputs = self._run(known, beside)
            points.append(units.restore(outputs[0]))
            if paths is not None:
                branches = torch.cat((branches, paths.permute(0, 3, 1, 2)), 2)[:, :, -L:]
                beside = {name: values.repeat_interleave(len(PATH_LEVELS), 0) for name, values in beside.items()}
                pasts = branches.flatten(0, 1)
                spread = self._quantiles(pasts, *self._run(pasts, beside), PATH_LEVELS)  # [B * paths, H, C, paths]
                outcomes = spread.unflatten(0, branches.shape[:2]).permute(0, 2, 3, 1, 4).flatten(3)
                wanted = torch.tensor([*levels, *PATH_LEVELS], dtype=outcomes.dtype, device=outcomes.device)
                spread = torch.quantile(outcomes, wanted, dim=-1).permute(1, 2, 3, 0)
                quantiles.append(spread[..., : len(levels)])
                paths = spread[..., len(levels) :]
        return torch.cat(points, 1)[:, :horizon], torch.cat(quantiles, 1)[:, :horizon] if levels else None

    def outputs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The model's forecasts [B, H, C] and, with a quantile head, quantiles [B, H, C, Q]."""
        config, device = self.model.config, self.model.device
        moved = {name: value.to(device) for name, value in inputs.items()}
        count, _, channels = inputs["past_values"].shape
        # the paths of a single window may exceed a batch
        at_once = max(1, TOKENS_AT_ONCE // config.tokens_per_window(channels))
        parts = []
        with torch.inference_mode():
            for start in range(0, count, at_once):
                rows = slice(start, start + at_once)
                output = self.model(**{name: value[rows] for name, value in moved.items()})
                both = (output.prediction_outputs, output.quantile_outputs)
                parts.append(both if config.quantile_levels else both[:1])
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def _run(self, past: Tensor, covariates: dict[str, Tensor]) -> tuple[WindowUnits, tuple[Tensor, ...]]:
        reads_level = self.model.reads_level
        return run_windows(self.outputs, past, ~past.isnan(), reads_level=reads_level, covariates=covariates)

    def _quantiles(
        self, past: Tensor, units: WindowUnits, outputs: tuple[Tensor, ...], levels: Sequence[float]
    ) -> Tensor:
        head_levels = self.model.config.quantile_levels
        return calibrated_quantiles(units, past, outputs, head_levels, self.calibration, levels)


def forecast_panel(
    forecaster: PanelForecaster,
    panel: Panel,
    horizon: int,
    levels: Sequence[float],
    batch_size: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(items [n], points [n, horizon, C], quantiles [n, horizon, C, levels] or None) for all items, in order.

    Memory does not grow with the number of items. `share` (k, n) selects every n-th batch, starting with batch k; all
    shares have the same number of batches, if necessary with empty ones at the end. Raises InputError for quantiles of
    a run without any, and for covariates that differ from the run's.
    """
    if levels and not forecaster.has_quantiles:
        raise InputError("this run has neither a quantile head nor a calibration: calibrate it on a panel first")
    batch_size = batch_size or forecaster.batch_size(len(panel.targets), horizon)
    reads_level = forecaster.model.reads_level
    covariates = None if forecaster.encoding is None else WindowCovariates(panel, forecaster.encoding)
    config = forecaster.model.config
    rank, ranks = share
    rounds = -(-len(panel) // (batch_size * ranks))
    for start in range(rank * batch_size, rounds * ranks * batch_size, ranks * batch_size):
        items = np.arange(start, max(start, min(start + batch_size, len(panel))))
        if not len(items):
            channels = len(panel.targets)
            yield items, np.zeros((0, horizon, channels)), np.zeros((0, horizon, channels, len(levels)))
            continue
        past = torch.from_numpy(last_rows(panel, items, config.context_length))
        own = own_levels(panel, items) if reads_level else None
        ahead = _ahead(covariates, panel, items, config)
        points, quantiles = forecaster(past, horizon, levels, own, ahead)
        yield items, points.cpu().numpy(), None if quantiles is None else quantiles.cpu().numpy()


def _ahead(covariates: WindowCovariates | None, panel: Panel, items: np.ndarray, config: LlataConfig) -> Ahead:
    """Covariates for the steps after the last rows of `items`."""
    if covariates is None:
        return lambda steps: {}
    places, ends = torch.from_numpy(items), torch.from_numpy(panel.lengths[items])
    lengths = (config.context_length, config.prediction_length)
    return lambda steps: covariates.of(places, ends + steps, *lengths, seen=ends)


def last_rows(panel: Panel, items: np.ndarray, count: int) -> np.ndarray:
    """The last `count` rows [items, count, C] of each item, NaN before its first row."""
    rows = panel.offsets[items + 1][:, None] + np.arange(-count, 0)
    inside = rows >= panel.offsets[items][:, None]
    values = panel.values[np.maximum(rows, 0)]
    return np.where(inside[..., None], values, np.nan)


def own_levels(panel: Panel, items: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and deviation [items, 1, C] of the first 70 percent of each item's rows, as in `evaluate`.

    If these have no value, all rows are used; a constant channel has deviation 1.
    """
    levels, scales = [], []
    for item in items:
        values = panel.item(item)
        rows = values[: int(len(values) * 0.7)]
        if not len(rows) or np.isnan(rows).all(0).any():
            rows = values
        rows = np.where(np.isnan(rows).all(0), 0.0, rows)
        deviation = np.nanstd(rows, 0)
        levels.append(np.nanmean(rows, 0))
        scales.append(np.where(np.nanmin(rows, 0) == np.nanmax(rows, 0), 1.0, deviation))
    level, scale = (torch.from_numpy(np.stack(parts))[:, None] for parts in (levels, scales))
    return level, scale


def long_frame(
    panel: Panel, items: np.ndarray, points: np.ndarray, quantiles: np.ndarray | None, levels: Sequence[float]
) -> pd.DataFrame:
    """Forecasts as a long table with the caller's names: id, timestamp, target_name, predictions, "0.1", ..."""
    count, horizon, channels = points.shape
    rows = np.repeat(items, channels * horizon)
    steps = np.tile(np.arange(horizon), count * channels)
    frame = pd.DataFrame(
        {
            panel.id_column: panel.ids[rows],
            panel.timestamp_column: panel.dates(rows, panel.lengths[rows] + steps),
            TARGET_NAME: np.tile(np.repeat(np.asarray(panel.targets, dtype=object), horizon), count),
            POINTS: points.transpose(0, 2, 1).ravel(),
        }
    )
    if quantiles is not None:
        columns = quantiles.transpose(0, 2, 1, 3).reshape(len(frame), len(levels))
        frame = frame.assign(**{f"{level:g}": columns[:, place] for place, level in enumerate(levels)})
    return frame
