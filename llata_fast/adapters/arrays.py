"""Shared by the adapters: plain series in; points and quantiles without gaps out."""

from collections.abc import Sequence

import numpy as np

from ..forecasting.forecaster import Forecaster


def forecast_arrays(
    forecaster: Forecaster,
    series: Sequence[np.ndarray],
    horizon: int,
    levels: Sequence[float] = (),
    batch_size: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Forecast each series [rows, C]: points [n, horizon, C] and quantiles [n, horizon, C, levels].

    NaN is a missing value. If a run has no quantiles, every level equals the point forecast. The libraries accept no
    gaps, so a channel without a value in the context continues at its last known value, or at 0 if it has none at all.

    Raises:
        InputError: the number of channels differs from the run's.
    """
    order = np.argsort(levels)
    wanted = [float(levels[place]) for place in order] if forecaster.core.has_quantiles else []
    found = forecaster.predict(series, prediction_length=horizon, quantile_levels=wanted, batch_size=batch_size)
    points = np.stack(found[0])
    quantiles = np.repeat(points[..., None], len(levels), -1)
    if wanted:
        quantiles[..., order] = np.stack(found[1] or [])
    for place in np.flatnonzero(np.isnan(points).any((1, 2))).tolist():
        last = np.array([_last_known(channel) for channel in series[place].T])
        points[place] = np.where(np.isnan(points[place]), last, points[place])
        quantiles[place] = np.where(np.isnan(quantiles[place]), last[:, None], quantiles[place])
    return points, quantiles


def _last_known(channel: np.ndarray) -> float:
    known = channel[~np.isnan(channel)]
    return known[-1] if len(known) else 0.0
