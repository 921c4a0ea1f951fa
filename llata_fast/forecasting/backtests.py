"""Backtests: forecast the last windows of a panel's items, and score them beside baselines.

Metrics are those of utilsforecast (Nixtla, Apache-2.0); exponential smoothing is statsmodels' (BSD-3).
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..covariate_tokens import COVARIATE_INPUTS
from ..data.covariate_encoding import CovariateEncoding, WindowCovariates
from ..data.panel import Panel
from ..data.panel_windows import PanelWindows
from ..data.ranges import ranges
from ..data.units import run_windows
from ..errors import InputError
from ..linear import LeastSquares
from ..linear_covariates import RIDGE_BASELINE, RidgeOnResiduals
from ..settings import DECILES
from .calibration import Calibration, calibrated_quantiles
from .panel_forecasts import PanelForecaster, forecast_panel, last_rows, long_frame

CUTOFF = "cutoff"
BACKTEST_METRICS = ("MASE", "WQL", "sMAPE", "coverage", "MSE", "MAE")
BACKTEST_BASELINES = ("seasonal_naive", "linear", "exponential_smoothing", RIDGE_BASELINE)
"""Levels of WQL; the first and last are the interval of coverage."""

# a longer season would need one parameter per row
_LONGEST_SEASON = 24

_PanelForecastFunction = Callable[[Panel], tuple[np.ndarray, np.ndarray]]
"""Panel that ends at a cutoff -> points [items, H, C] and quantiles [items, H, C, DECILES]."""


def _before(panel: Panel, horizon: int, n_windows: int, step_size: int) -> Iterator[tuple[Panel, Panel]]:
    """(known part, whole panel) of each window, the earliest first; items too short for all windows are left out."""
    for name, value in (("n_windows", n_windows), ("step_size", step_size)):
        if isinstance(value, bool) or value < 1:
            raise InputError(f"{name} must be at least 1, got {value!r}")
    longest = horizon + (n_windows - 1) * step_size
    long_enough = np.flatnonzero(panel.lengths >= longest + 2)
    if not long_enough.size:
        raise InputError(
            f"{panel.name}: no item has the {longest + 2} rows that {n_windows} windows of {horizon} steps need"
        )
    panel = panel.at(long_enough)
    for window in reversed(range(n_windows)):
        yield panel.until(horizon + window * step_size), panel.until(window * step_size)


def backtest(
    forecaster: PanelForecaster,
    panel: Panel,
    horizon: int,
    levels: Sequence[float],
    n_windows: int,
    step_size: int,
    batch_size: int | None = None,
    refitted: Callable[[Panel], PanelForecaster] | None = None,
) -> pd.DataFrame:
    """As `Forecaster.cross_validation`; `refitted` builds each window's forecaster from the rows before it."""
    tables = []
    for known, whole in _before(panel, horizon, n_windows, step_size):
        one = forecaster if refitted is None else refitted(known)
        for items, points, quantiles in forecast_panel(one, known, horizon, levels, batch_size):
            tables.append(
                _with_truth(long_frame(known, items, points, quantiles, levels), known, whole, items, horizon)
            )
    return pd.concat(tables, ignore_index=True)


def _with_truth(frame: pd.DataFrame, known: Panel, whole: Panel, items: np.ndarray, horizon: int) -> pd.DataFrame:
    rows = whole.offsets[items + 1][:, None] - horizon + np.arange(horizon)
    channels = len(known.targets)
    cutoffs = known.dates(items, known.lengths[items] - 1)
    frame.insert(2, CUTOFF, cutoffs.repeat(horizon * channels).to_numpy())
    frame.insert(4, truth_column(known), whole.values[rows].transpose(0, 2, 1).ravel())
    return frame


def truth_column(panel: Panel) -> str:
    """Name of the column of observed values: the target's name if there is only one."""
    return panel.targets[0] if len(panel.targets) == 1 else "target"


def window_cuts(
    forecaster: PanelForecaster, panel: Panel, horizon: int, n_windows: int, step_size: int
) -> PanelWindows:
    """The last `n_windows` windows of every item long enough for them, as `Calibration.of` takes them."""
    windows = list(_before(panel, horizon, n_windows, step_size))
    _, last = windows[-1]
    cuts = np.concatenate([known.lengths for known, _ in windows])
    items = np.tile(np.arange(len(last)), n_windows)
    none = np.zeros((len(last), len(panel.targets)))
    covariates = None if forecaster.encoding is None else WindowCovariates(last, forecaster.encoding)
    return PanelWindows(last, items, cuts, none, forecaster.model.config.context_length, horizon, covariates)


def score_backtest(
    forecaster: PanelForecaster,
    panel: Panel,
    horizon: int,
    metrics: Sequence[str],
    n_windows: int,
    step_size: int,
    baselines: Sequence[str] | None = None,
    *,
    batch_size: int | None = None,
) -> pd.DataFrame:
    """As `Forecaster.evaluate`."""
    names = {name.lower(): name for name in BACKTEST_METRICS}
    if unknown := [name for name in metrics if name.lower() not in names]:
        raise InputError(f"unknown metric {unknown[0]!r}: choose from {', '.join(BACKTEST_METRICS)}")
    has_covariates = panel.covariates is not None and bool(panel.covariates.columns)
    baselines = available_baselines(has_covariates) if baselines is None else tuple(baselines)
    if unknown := [name for name in baselines if name not in BACKTEST_BASELINES]:
        raise InputError(f"unknown baseline {unknown[0]!r}: choose from {', '.join(BACKTEST_BASELINES)}")
    if RIDGE_BASELINE in baselines and not has_covariates:
        raise InputError(
            f"the baseline {RIDGE_BASELINE} needs covariates that vary over time, and {panel.name} has none"
        )
    levels = DECILES if forecaster.has_quantiles else ()
    splits = list(_before(panel, horizon, n_windows, step_size))
    models: dict[str, _PanelForecastFunction] = {
        "llata": lambda known: _of_model(forecaster, known, horizon, levels, batch_size)
    }
    models |= {name: _MAKERS[name](splits[0][0], horizon, panel.seasonality) for name in baselines}
    frame, train = _long_for_metrics(splits, horizon, models)
    result = _score(frame, train, list(models), [names[name.lower()] for name in metrics], panel.seasonality)
    return result


def available_baselines(has_covariates: bool = False) -> tuple[str, ...]:
    """The baselines whose packages and inputs are available."""
    absent = set() if has_covariates else {RIDGE_BASELINE}
    if importlib.util.find_spec("statsmodels") is None:
        absent.add("exponential_smoothing")
    return tuple(name for name in BACKTEST_BASELINES if name not in absent)


def _of_model(
    forecaster: PanelForecaster, panel: Panel, horizon: int, levels: Sequence[float], batch_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    parts = list(forecast_panel(forecaster, panel, horizon, levels, batch_size))
    points = np.concatenate([part[1] for part in parts])
    if not levels:
        return points, np.repeat(points[..., None], len(DECILES), -1)
    return points, np.concatenate([part[2] for part in parts])


def seasonal_naive_quantiles(
    values: np.ndarray, horizon: int, seasonality: int, levels: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Repeat the last season of a series [rows, C]: points [horizon, C] and quantiles [horizon, C, levels].

    Quantiles are those of its errors within the series, by seasons ahead; NaN where nothing is known.
    """
    values = pd.DataFrame(values).ffill().to_numpy()
    period = min(seasonality, len(values))
    points = values[len(values) - period + np.arange(horizon) % period]
    errors = values[period:] - values[:-period] if len(values) > period else np.zeros((1, values.shape[1]))
    spread = np.nanquantile(np.nan_to_num(errors), levels, axis=0)
    ahead = np.sqrt(np.arange(horizon) // seasonality + 1)[:, None]
    return points, points[..., None] + ahead[..., None] * spread.T[None]


def _naive(known: Panel, horizon: int, seasonality: int) -> _PanelForecastFunction:
    def forecast(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        items = (panel.item(item) for item in range(len(panel)))
        parts = [seasonal_naive_quantiles(values, horizon, seasonality, DECILES) for values in items]
        points, quantiles = zip(*parts, strict=True)
        return np.stack(points), np.stack(quantiles)

    return forecast


def _linear(known: Panel, horizon: int, seasonality: int) -> _PanelForecastFunction:
    """A least-squares map of the lookback, fitted and calibrated on all rows before the first cutoff."""
    windows = _windows_of(known, horizon, seasonality)
    return _calibrated(LeastSquares().fit(windows), windows, None)


def _ridge(known: Panel, horizon: int, seasonality: int) -> _PanelForecastFunction:
    """A least-squares map plus a ridge regression of its residuals on covariates, validated on a tenth of the rows."""
    encoding = CovariateEncoding.fit(known, known.lengths)
    covariates = WindowCovariates(known, encoding)
    windows = _windows_of(known, horizon, seasonality, covariates)
    train, validation = windows.apart(0.9)
    return _calibrated(RidgeOnResiduals(encoding.sizes, train, validation), windows, encoding)


def _windows_of(
    known: Panel, horizon: int, seasonality: int, covariates: WindowCovariates | None = None
) -> PanelWindows:
    """All windows before the first cutoff, with a lookback of suitable length for a linear map."""
    context = int(min(max(2 * seasonality, 3 * horizon), max(known.lengths.max() // 3, 2)))
    first = np.minimum(context, np.maximum(known.lengths - horizon, 0))
    counts = np.maximum(known.lengths - horizon - first + 1, 0)
    items = np.repeat(np.arange(len(known)), counts)
    cuts = ranges(first, counts)
    none = np.zeros((len(known), len(known.targets)))
    return PanelWindows(known, items[cuts > 1], cuts[cuts > 1], none, context, horizon, covariates)


def _calibrated(
    fitted: LeastSquares | RidgeOnResiduals, windows: PanelWindows, encoding: CovariateEncoding | None
) -> _PanelForecastFunction:
    """Turn a fitted forecast of windows into one of panels, with quantiles calibrated on its training windows."""
    context, horizon = windows.context_length, windows.prediction_length

    def outputs(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        past, mask = inputs["past_values"].double(), inputs.get("past_observed_mask")
        beside = {name: inputs[name] for name in COVARIATE_INPUTS if name in inputs}
        return (fitted(past, torch.ones_like(past, dtype=torch.bool) if mask is None else mask, **beside),)

    calibration = Calibration.of(outputs, windows, None)

    def forecast(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        items = np.arange(len(panel))
        past = torch.from_numpy(last_rows(panel, items, context))
        covariates = {}
        if encoding is not None:
            ends = torch.from_numpy(panel.lengths)
            covariates = WindowCovariates(panel, encoding).of(torch.from_numpy(items), ends, context, horizon)
        units, result = run_windows(outputs, past, ~past.isnan(), covariates=covariates)
        quantiles = calibrated_quantiles(units, past, result, None, calibration, DECILES)
        return units.restore(result[0]).numpy(), quantiles.numpy()

    return forecast


def _exponential_smoothing(known: Panel, horizon: int, seasonality: int) -> _PanelForecastFunction:
    """Additive exponential smoothing of each item (with a season if it is short enough), with normal quantiles."""
    if importlib.util.find_spec("statsmodels") is None:
        raise InputError("exponential_smoothing needs statsmodels: pip install llata-fast[backtest]")

    def forecast(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            [_smoothed(channel, horizon, seasonality) for channel in panel.item(item).T] for item in range(len(panel))
        ]
        points = np.array([[mean for mean, _ in item] for item in parts]).transpose(0, 2, 1)
        deviation = np.array([[spread for _, spread in item] for item in parts]).transpose(0, 2, 1)
        normal = torch.special.ndtri(torch.tensor(DECILES, dtype=torch.float64)).numpy()
        return points, points[..., None] + deviation[..., None] * normal

    return forecast


def _smoothed(values: np.ndarray, horizon: int, seasonality: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [horizon] of the forecast of one series [rows]."""
    import warnings

    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    values = pd.Series(values).interpolate(limit_direction="both").to_numpy()
    if np.isnan(values).all() or np.ptp(values) == 0 or len(values) < 4:
        return np.full(horizon, values[-1]), np.zeros(horizon)
    season = "add" if 1 < seasonality <= _LONGEST_SEASON and len(values) >= 2 * seasonality + 4 else None
    scale = values.std()
    with warnings.catch_warnings():
        # warnings that an item has not converged, or has few rows
        warnings.simplefilter("ignore")
        model = ETSModel(
            pd.Series(values / scale), error="add", seasonal=season, seasonal_periods=seasonality if season else None
        )
        prediction = model.fit(disp=False).get_prediction(len(values), len(values) + horizon - 1)
    return scale * np.asarray(prediction.predicted_mean), scale * np.sqrt(np.asarray(prediction.forecast_variance))


_MAKERS: dict[str, Callable[[Panel, int, int], _PanelForecastFunction]] = {
    "seasonal_naive": _naive,
    "linear": _linear,
    "exponential_smoothing": _exponential_smoothing,
    RIDGE_BASELINE: _ridge,
}


def _long_for_metrics(
    splits: list[tuple[Panel, Panel]], horizon: int, models: dict[str, _PanelForecastFunction]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """utilsforecast's input: a row for every item, target, cutoff and step; and the rows before the first cutoff."""
    frames = []
    for number, (known, whole) in enumerate(splits):
        rows = whole.offsets[1:][:, None] - horizon + np.arange(horizon)
        truth = whole.values[rows].transpose(0, 2, 1)  # [items, C, H]
        frame = pd.DataFrame(
            {
                "unique_id": np.repeat(np.arange(truth.shape[0] * truth.shape[1]), horizon),
                "cutoff": number,
                "ds": np.tile(np.arange(horizon), truth.shape[0] * truth.shape[1]),
                "y": truth.ravel(),
            }
        )
        columns: dict[str, Any] = {}
        for name, forecast in models.items():
            points, quantiles = forecast(known)
            columns[name] = points.transpose(0, 2, 1).ravel()
            for place, level in enumerate(DECILES):
                columns[f"{name} {level}"] = quantiles[..., place].transpose(0, 2, 1).ravel()
        frames.append(frame.assign(**columns))
    first = splits[0][0]
    items = np.repeat(np.arange(len(first)), first.lengths)
    channels = len(first.targets)
    train = pd.DataFrame(
        {
            "unique_id": (items[:, None] * channels + np.arange(channels)).T.ravel(),
            "ds": np.tile(np.arange(len(items)), channels),
            "y": first.values.T.ravel(),
        }
    ).sort_values(["unique_id", "ds"])
    return pd.concat(frames, ignore_index=True).dropna(subset="y"), train


def _score(
    frame: pd.DataFrame, train: pd.DataFrame, models: list[str], metrics: list[str], seasonality: int
) -> pd.DataFrame:
    """A row per model and a column per metric: means over items and cutoffs, and WQL over all values together."""
    from utilsforecast import losses

    quantile_columns = {name: [f"{name} {level}" for level in DECILES] for name in models}
    intervals = frame.rename(
        columns={f"{name} {DECILES[0]}": f"{name}-lo-80" for name in models}
        | {f"{name} {DECILES[-1]}": f"{name}-hi-80" for name in models}
    )
    together = frame.assign(unique_id=0).drop(columns="cutoff")
    each = frame.drop(columns="cutoff")
    table: dict[str, pd.Series] = {}
    for metric in metrics:
        if metric == "MASE":
            lengths = train.groupby("unique_id")["y"].transform("size")
            usable = train[lengths > seasonality].dropna(subset="y")
            scores = losses.mase(each[each["unique_id"].isin(usable["unique_id"])], models, seasonality, usable)
            # an item without seasonal changes has no scale
            table[metric] = scores[models].replace(np.inf, np.nan).mean()
        elif metric == "WQL":
            table[metric] = losses.scaled_crps(together, quantile_columns, np.array(DECILES))[models].iloc[0]
        elif metric == "coverage":
            table[metric] = losses.coverage(intervals.drop(columns="cutoff"), models, 80)[models].mean()
        elif metric == "sMAPE":
            # utilsforecast's sMAPE ranges from 0 to 1
            table[metric] = 200 * losses.smape(each, models)[models].mean()
        else:
            table[metric] = getattr(losses, metric.lower())(each, models)[models].mean()
    return pd.DataFrame(table).rename_axis("model")
