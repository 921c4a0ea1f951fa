"""The M4 competition's scores and its benchmark forecast, Naive2.

As the organisers define them (github.com/Mcompetitions/M4-methods): sMAPE and MASE are means over all forecast values
of all series; OWA is the mean of both, each relative to Naive2's.

Letters: N series, H horizon, m seasonality.
"""

from collections.abc import Sequence

import numpy as np

from ..data.m4 import M4Set, M4Windows, insample_scale, last_lookbacks
from ..linear import LeastSquares

# one-sided 90 % quantile
_CRITICAL = 1.645


def smape(forecast: np.ndarray, actual: np.ndarray) -> float:
    """Symmetric mean absolute percentage error of [N, H] against [N, H], in percent; 0 where both are 0."""
    size = np.abs(forecast) + np.abs(actual)
    return float(200 * np.mean(np.abs(forecast - actual) / np.where(size > 0, size, 1)))


def mase(forecast: np.ndarray, actual: np.ndarray, insample: Sequence[np.ndarray], seasonality: int) -> float:
    """Mean absolute error of [N, H], each series' divided by its in-sample seasonal-naive error."""
    scales = np.array([insample_scale(values, seasonality) for values in insample])
    return float(np.mean(np.abs(forecast - actual).mean(1) / scales))


def is_seasonal(values: np.ndarray, seasonality: int) -> bool:
    """Whether the autocorrelation at lag m exceeds what lower lags explain (90 %); never with fewer than 3 m values."""
    n = len(values)
    # R's acf stops at lag 10 log10(n), and the reference treats higher lags as not seasonal
    if seasonality < 2 or n < 3 * seasonality or seasonality > int(10 * np.log10(n)):
        return False
    centred = values - values.mean()
    power = centred @ centred
    if power == 0:
        return False
    correlation = np.array([centred[lag:] @ centred[:-lag] for lag in range(1, seasonality + 1)]) / power
    limit = _CRITICAL / np.sqrt(n) * np.sqrt(1 + 2 * np.sum(correlation[:-1] ** 2))
    return bool(abs(correlation[-1]) > limit)


def seasonal_indices(values: np.ndarray, seasonality: int) -> np.ndarray:
    """Classical multiplicative decomposition: the factor [m] of each position in the season, 1 on average."""
    m = seasonality
    weights = np.ones(m) / m if m % 2 else np.concatenate(([0.5], np.ones(m - 1), [0.5])) / m
    trend = np.convolve(values, weights, mode="valid")
    first = (len(weights) - 1) // 2
    ratios = np.full(len(values), np.nan)
    ratios[first : first + len(trend)] = values[first : first + len(trend)] / trend
    factors = np.array([np.nanmean(ratios[position::m]) for position in range(m)])
    return factors / factors.mean()


def naive2(values: np.ndarray, prediction_length: int, seasonality: int) -> np.ndarray:
    """Repeat the last value [H], seasonally adjusted if the series is seasonal."""
    if not is_seasonal(values, seasonality):
        return np.full(prediction_length, values[-1])
    factors = seasonal_indices(values, seasonality)
    n = len(values)
    steps = np.arange(n, n + prediction_length) % seasonality
    return values[-1] / factors[(n - 1) % seasonality] * factors[steps]


def naive2_forecasts(m4: M4Set) -> np.ndarray:
    """Naive2's forecasts [N, H]."""
    H, m = m4.spec.prediction_length, m4.spec.seasonality
    return np.stack([naive2(values, H, m) for values in m4.insample])


def m4_scores(forecast: np.ndarray, m4: M4Set) -> dict[str, float]:
    """{"smape", "mase", "owa"} of forecasts [N, H]; Naive2's own OWA is 1."""
    seasonality = m4.spec.seasonality
    scores, naive = (
        {"smape": smape(values, m4.future), "mase": mase(values, m4.future, m4.insample, seasonality)}
        for values in (forecast, naive2_forecasts(m4))
    )
    return scores | {"owa": (scores["smape"] / naive["smape"] + scores["mase"] / naive["mase"]) / 2}


def seasonal_naive_forecasts(m4: M4Set) -> np.ndarray:
    """Repeat every series' last season: [N, H]."""
    H, m = m4.spec.prediction_length, m4.spec.seasonality
    return np.stack([values[-m:][np.arange(H) % min(m, len(values))] for values in m4.insample])


def linear_forecasts(m4: M4Set, centred: bool) -> np.ndarray:
    """One linear map for all series, fitted by least squares on every training cut: [N, H]; `centred` as in
    `LeastSquares`.
    """
    cuts = M4Windows(m4.insample, m4.spec, windows_per_series=m4.spec.last_cuts)
    # in units of their mean, lookbacks have sums of squares far below the usual penalty
    linear = LeastSquares(centred=centred, unit="level", ridge=1e-3).fit(cuts)
    last = last_lookbacks(m4.insample, m4.spec.context_length)
    return linear(last["past_values"].double(), last["past_observed_mask"])[..., 0].numpy()
