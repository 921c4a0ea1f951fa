"""The M4 competition's scores and its benchmark forecast, Naive2.

As the organisers define them (github.com/Mcompetitions/M4-methods): sMAPE and MASE are means over every forecast value
of every series, OWA is the mean of both, each relative to Naive2's.

Letters: N series, H horizon, m seasonality.
"""

from collections.abc import Sequence

import numpy as np

from ..data.m4 import M4Set, insample_scale

# one-sided 90 %
_CRITICAL = 1.645


def smape(forecast: np.ndarray, actual: np.ndarray) -> float:
    """Symmetric mean absolute percentage error of [N, H] against [N, H], in percent; 0 where both are 0."""
    size = np.abs(forecast) + np.abs(actual)
    return float(200 * np.mean(np.abs(forecast - actual) / np.where(size > 0, size, 1)))


def mase(forecast: np.ndarray, actual: np.ndarray, insample: Sequence[np.ndarray], seasonality: int) -> float:
    """Mean absolute error of [N, H], each series' over that of the seasonal-naive forecast inside its sample."""
    scales = np.array([insample_scale(values, seasonality) for values in insample])
    return float(np.mean(np.abs(forecast - actual).mean(1) / scales))


def is_seasonal(values: np.ndarray, seasonality: int) -> bool:
    """Whether the autocorrelation at lag m is beyond what lower lags explain (90 %); never in under 3 m values."""
    n = len(values)
    # R's acf stops at lag 10 log10(n), and a lag that it does not give is no evidence
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
    """Classical multiplicative decomposition: the factor [m] of every position, 1 on average."""
    m = seasonality
    weights = np.ones(m) / m if m % 2 else np.concatenate(([0.5], np.ones(m - 1), [0.5])) / m
    trend = np.convolve(values, weights, mode="valid")
    first = (len(weights) - 1) // 2
    ratios = np.full(len(values), np.nan)
    ratios[first : first + len(trend)] = values[first : first + len(trend)] / trend
    factors = np.array([np.nanmean(ratios[position::m]) for position in range(m)])
    return factors / factors.mean()


def naive2(values: np.ndarray, prediction_length: int, seasonality: int) -> np.ndarray:
    """Repeat the last value [H], seasonally adjusted where the series is seasonal."""
    if not is_seasonal(values, seasonality):
        return np.full(prediction_length, values[-1])
    factors = seasonal_indices(values, seasonality)
    n = len(values)
    steps = np.arange(n, n + prediction_length) % seasonality
    return values[-1] / factors[(n - 1) % seasonality] * factors[steps]


def naive2_forecasts(m4: M4Set) -> np.ndarray:
    """[N, H]"""
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


def linear_forecasts(m4: M4Set, centred: bool, ridge: float = 1e-3) -> np.ndarray:
    """One linear map for all series [N, H], least squares over every training cut; lookbacks in units of their mean.

    `centred`: the map sees what a lookback leaves of its mean, and has no constant. Otherwise it sees the lookback and
    a constant: DLinear, as `LinearBaseline` explains.
    """
    L, H = m4.spec.context_length, m4.spec.prediction_length
    width = L + (not centred)
    gram, moment = ridge * np.eye(width), np.zeros((width, H))

    def inputs(past: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        level = past.mean(1, keepdims=True)
        unit = np.where(level == 0, 1, np.abs(level))
        if centred:
            return (past - level) / unit, level, unit
        return np.concatenate((past, np.ones_like(level)), 1) / unit, np.zeros_like(level), unit

    for values in m4.insample:
        # a lookback longer than the series is filled with its first value
        padded = np.concatenate((np.full(max(L + H - len(values), 0), values[0]), values))
        windows = np.lib.stride_tricks.sliding_window_view(padded, L + H)[-m4.spec.last_cuts :]
        x, level, unit = inputs(windows[:, :L])
        gram += x.T @ x
        moment += x.T @ ((windows[:, L:] - level) / unit)
    weight = np.linalg.solve(gram, moment)
    last = np.stack([np.concatenate((np.full(max(L - len(v), 0), v[0]), v[-L:])) for v in m4.insample])
    x, level, unit = inputs(last)
    return x @ weight * unit + level
