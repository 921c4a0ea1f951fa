"""A predictor with the interface of gluonts (https://ts.gluon.ai, Apache-2.0); it does not need gluonts.

>>> predictor = LlataPredictor(Forecaster.from_pretrained("runs/any"), prediction_length=24)
>>> gluonts.model.evaluate_model(predictor, test_data=test_data, metrics=[MASE()])
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..errors import InputError
from ..forecasting.calibration import between_levels
from ..forecasting.forecaster import Forecaster
from ..settings import DECILES
from .arrays import forecast_arrays

DEFAULT_LEVELS = (0.025, *DECILES, 0.975)
"""The levels that GIFT-Eval's metrics use."""

Entry = Mapping[str, Any]
"""{"target": [rows] or [C, rows], NaN if missing, "start": a pandas Period, "item_id": a name}; others are ignored."""


@dataclass
class QuantileForecast:
    """The forecast of one entry, in the form that gluonts' metrics and plots read."""

    points: np.ndarray
    """[H], or [H, C] for an entry with channels."""
    quantiles: np.ndarray
    """[levels, H] or [levels, H, C], rising along the levels."""
    levels: Sequence[float]
    start_date: Any
    """Period of the first forecast step; None if the entry has no start."""
    item_id: str | None = None
    info: dict | None = None

    @property
    def prediction_length(self) -> int:
        return len(self.points)

    @property
    def mean(self) -> np.ndarray:
        """The point forecast."""
        return self.points

    @property
    def median(self) -> np.ndarray:
        return self.quantile(0.5)

    def quantile(self, level: float | str) -> np.ndarray:
        """[H] or [H, C] at a level (0.9, "0.9" or "p90"), interpolated between the two nearest levels."""
        name = str(level)
        number = float(name[1:]) / 100 if name.startswith("p") else float(name)
        weights = between_levels(self.levels, [number]).numpy()
        return np.tensordot(weights[:, 0], self.quantiles, 1)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.points if name == "mean" else self.quantile(name)


@dataclass
class LlataPredictor:
    """A run as a gluonts `Predictor`: yields one forecast per entry, in order."""

    forecaster: Forecaster
    prediction_length: int
    levels: Sequence[float] = DEFAULT_LEVELS
    batch_size: int = 512
    """Entries per batch; results do not depend on it."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {self.batch_size}")

    def predict(self, dataset: Iterable[Entry], **ignored: Any) -> Iterator[QuantileForecast]:
        """Forecast what follows each entry.

        Raises:
            InputError: the number of channels differs from the run's.
        """
        entries = iter(dataset)
        while batch := list(islice(entries, self.batch_size)):
            series = [_rows(entry) for entry in batch]
            points, quantiles = forecast_arrays(self.forecaster, series, self.prediction_length, self.levels)
            for entry, point, spread in zip(batch, points, np.moveaxis(quantiles, -1, 1), strict=True):
                yield _forecast(entry, point, spread, self.levels)


@dataclass
class SeasonalNaivePredictor:
    """The baseline, as on GIFT-Eval's leaderboard: the last season repeated, with normal quantiles.

    Their standard deviation is that of the method's errors in the series; it grows with the root of the seasons ahead.
    """

    prediction_length: int
    seasonality: int
    levels: Sequence[float] = DEFAULT_LEVELS

    def predict(self, dataset: Iterable[Entry], **ignored: Any) -> Iterator[QuantileForecast]:
        """Forecast what follows each entry."""
        normal = torch.special.ndtri(torch.tensor(self.levels, dtype=torch.float64)).numpy()
        for entry in dataset:
            values = pd.DataFrame(_rows(entry)).ffill().to_numpy()
            season, steps = min(self.seasonality, len(values)), np.arange(self.prediction_length)
            points = np.nan_to_num(values[len(values) - season + steps % season])
            errors = np.nan_to_num(values[season:] - values[:-season])
            deviation = np.sqrt(np.square(errors).sum(0) / max(len(errors), 1))
            spread = np.sqrt(steps // season + 1)[:, None] * deviation
            yield _forecast(entry, points, points + normal[:, None, None] * spread, self.levels)


def _rows(entry: Entry) -> np.ndarray:
    """[rows, C]."""
    target = np.asarray(entry["target"], dtype=np.float64)
    return target[:, None] if target.ndim == 1 else target.T


def _forecast(entry: Entry, points: np.ndarray, quantiles: np.ndarray, levels: Sequence[float]) -> QuantileForecast:
    """Match points [H, C] and quantiles [levels, H, C] to the entry's number of dimensions."""
    target, start = np.asarray(entry["target"]), entry.get("start")
    if target.ndim == 1:
        points, quantiles = points[:, 0], quantiles[..., 0]
    first = None if start is None else start + target.shape[-1]
    return QuantileForecast(points, quantiles, levels, first, entry.get("item_id"))
