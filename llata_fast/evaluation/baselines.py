"""Baselines, scored on the same windows and in the same units as a forecaster."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.windows import Windows
from ..linear import fill_with_mean
from ..metrics import ForecastMetrics

ForecastFunction = Callable[..., Tensor]
"""past values [B, L, C] and their observed mask -> forecast [B, H, C]"""


def seasonal_naive(seasonality: int, prediction_length: int) -> ForecastFunction:
    """Repeat the last `seasonality` steps; missing values are replaced by the window's mean."""

    def forecast(past: Tensor, observed: Tensor) -> Tensor:
        period = min(seasonality, past.shape[1])
        filled = fill_with_mean(past, observed)
        steps = torch.arange(prediction_length, device=past.device) % period
        return filled[:, past.shape[1] - period + steps]

    return forecast


@torch.no_grad()
def score(
    forecast: ForecastFunction,
    windows: Windows,
    columns: Sequence[str],
    batch_size: int = 1024,
    drop_last: bool = False,
) -> dict:
    """{"mse", "mae", "per_channel"} of a forecast over every window; `drop_last` omits a partial last batch.

    A forecast that `takes_covariates` also gets those of the windows, by name.
    """
    metrics = ForecastMetrics(columns)
    takes_covariates = getattr(forecast, "takes_covariates", False)
    for number, (past, observed, future) in enumerate(windows.batches(batch_size)):
        if drop_last and len(past) < batch_size:
            break
        first = number * batch_size
        covariates = windows.covariates(range(first, first + len(past))) if takes_covariates else {}
        metrics.update(forecast(past, observed, **covariates), future)
    return {**metrics.compute(), "per_channel": metrics.per_channel}
