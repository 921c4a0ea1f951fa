"""Tasks: what an experiment trains on and is scored on, either one series or a frequency of the M4 competition.

A task provides the Trainer's windows, starts a model's linear skip, and turns forecasts into scores.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..data import Splits, TimeSeries, find_dataset, read_series, split_windows
from ..data.m4 import M4Set, M4Spec, M4Windows, last_lookbacks, m4_spec, read_m4
from ..data.panel import Panel, read_panel
from ..data.series import Missing
from ..data.windows import WindowDataset
from ..errors import InputError
from ..linear import LeastSquares
from ..linear_start import LinearStart, start_linear_part
from ..preprocessor import Preprocessor
from ..settings import OWN_UNITS_LOSSES, DataSettings, ModelSettings
from .baselines import ForecastFunction, score, seasonal_naive
from .corpus_task import CorpusTask
from .m4_scores import linear_forecasts, m4_scores, naive2_forecasts, seasonal_naive_forecasts
from .panel_task import PanelTask

WINDOWS_PER_SERIES = 4
"""Training windows per series of M4 in one epoch."""

_M4_BATCH = 1024


class Predictor(Protocol):
    """What a task scores. Every rank calls these methods with the same inputs."""

    def forecast(self, past_values: Tensor, past_observed_mask: Tensor) -> Tensor:
        """Lookbacks [B, L, C] in the task's units -> forecasts [B, H, C]."""

    def forecast_quantiles(self, past_values: Tensor, past_observed_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Lookbacks in their own units -> forecasts, and quantiles [B, H, C, Q] if the model has them."""

    def test(self, windows: Any) -> dict[str, Any]:
        """{"mse", "mae", "per_channel"} over every window."""


class SeriesTask:
    """All windows of a series, standardised by its training rows."""

    def __init__(self, series: TimeSeries, splits: Splits[WindowDataset]):
        assert splits.scaler is not None, "a single series has a scaler"
        self.series, self.splits, self.scaler = series, splits, splits.scaler
        self.columns = list(series.columns)
        self.season_length: int | None = series.seasonality
        windows = splits.test
        self._baselines: dict[str, Callable[[], ForecastFunction]] = {
            "seasonal_naive": lambda: seasonal_naive(series.seasonality, windows.prediction_length),
            "linear": lambda: LeastSquares().fit(splits.train),
            "linear_per_channel": lambda: LeastSquares(per_channel=True).fit(splits.train),
        }

    def start(self, model: nn.Module) -> LinearStart | None:
        """Choose the model's linear skip, if it has one."""
        return start_linear_part(model, self.splits.train, self.splits.val, seasonality=self.series.seasonality)

    def preprocessor(self, dataset: str) -> Preprocessor:
        return Preprocessor.of(dataset, self.series, self.scaler)

    def test(self, predictor: Predictor) -> dict[str, Any]:
        """Scores over every test window: {"mse", "mae", "per_channel"}."""
        return predictor.test(self.splits.test)

    def intervals(self, score_intervals: Callable[..., dict[str, float]]) -> dict[str, float]:
        """{"coverage_80", "interval_score_80", "wql", "mase"} over the test windows."""
        rows, season = self.splits.train.values, self.series.seasonality
        steps = (rows[season:] - rows[:-season]).abs().nanmean(0).cpu().numpy() if len(rows) > season else np.nan
        scaler = self.scaler
        naive_error = np.where(np.nan_to_num(steps) > 0, steps, np.nan)
        return score_intervals(
            self.splits.test,
            mean=scaler.mean,
            scale=scaler.scale,
            naive_error=np.broadcast_to(naive_error, scaler.mean.shape).copy(),
        )

    def example(self) -> tuple[Tensor, Tensor]:
        """The lookback in the middle of the test split [1, L, C], and its observed mask."""
        past, observed, _ = self._middle()
        return past, observed

    def baselines(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """The forecasts to beat, by name: their scores, and their forecasts of the example."""
        scores, forecasts = {}, {}
        past, observed = self.example()
        for name, fit in self._baselines.items():
            baseline = fit()
            scores[name] = score(baseline, self.splits.test, self.columns)
            forecasts[name] = baseline(past, observed)
        return scores, forecasts

    def picture(self, forecasts: dict[str, Tensor]) -> dict[str, Any]:
        """The example in the series' units, as arguments of `plot_forecast`: history, truth, forecasts and a title."""
        windows = self.splits.test
        start, context, horizon = len(windows) // 2, windows.context_length, windows.prediction_length
        # the values end with the last of the series' splits
        dates = self.series.dates[: sum(self.series.split_rows or (len(self.series),))][-len(windows.values) :]

        def table(values: Tensor, first: int) -> pd.DataFrame:
            rows = self.scaler.inverse_transform(values.double().cpu().numpy())
            return pd.DataFrame(rows, index=dates[first : first + len(rows)], columns=self.columns)

        return {
            "history": table(windows.values[start : start + context], start).iloc[-2 * horizon :],
            "truth": table(self._middle()[2][0], start + context),
            "forecasts": {name: table(forecast[0], start + context) for name, forecast in forecasts.items()},
            "title": f"{self.series.name}: {horizon} steps from the middle of the test split",
        }

    def _middle(self) -> tuple[Tensor, Tensor, Tensor]:
        return next(self.splits.test.batches(1, first=len(self.splits.test) // 2))


class M4Task:
    """One frequency of M4, in its own units: the last H known steps validate, and the steps after them test."""

    def __init__(self, m4: M4Set):
        self.m4 = m4
        self.columns = [m4.spec.frequency]
        # the series' seasons have no place in common
        self.season_length: int | None = None
        self._before = [values[: -m4.spec.prediction_length] for values in m4.insample]
        held_out = M4Windows(m4.insample, m4.spec)
        # the test values are in no window; `m4_scores` compares them with forecasts
        self.splits = Splits(self._drawn(WINDOWS_PER_SERIES), held_out, held_out, None)

    def _drawn(self, windows_per_series: int) -> M4Windows:
        spec = self.m4.spec
        return M4Windows(self._before, spec, last_cuts=spec.last_cuts, windows_per_series=windows_per_series)

    def start(self, model: nn.Module) -> LinearStart | None:
        """Choose the model's linear skip, if it has one, on as many draws as there are cuts."""
        spec = self.m4.spec
        windows = (self._drawn(spec.last_cuts), self.splits.val)
        return start_linear_part(model, *windows, seasonality=spec.seasonality, unit="deviation")

    def preprocessor(self, dataset: str) -> Preprocessor:
        spec = self.m4.spec
        return Preprocessor(dataset, self.columns, "date", spec.pandas_frequency, spec.seasonality, [0.0], [1.0])

    def test(self, predictor: Predictor) -> dict[str, Any]:
        """{"smape", "mase", "owa"} of the forecast of every series."""
        inputs = last_lookbacks(self.m4.insample, self.m4.spec.context_length)
        parts = zip(*(values.split(_M4_BATCH) for values in inputs.values()), strict=True)
        forecasts = [predictor.forecast(past, observed)[..., 0].double().cpu() for past, observed in parts]
        return m4_scores(torch.cat(forecasts).numpy(), self.m4)

    def example(self) -> tuple[Tensor, Tensor]:
        """The first series' lookback [1, L, 1], and its observed mask."""
        inputs = last_lookbacks(self.m4.insample[:1], self.m4.spec.context_length)
        return inputs["past_values"], inputs["past_observed_mask"]

    def baselines(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """The forecasts to beat, by name: their scores, and their forecasts of the example."""
        scores, examples = {}, {}
        for name, forecast in M4_BASELINES.items():
            forecasts = forecast(self.m4)
            scores[name] = m4_scores(forecasts, self.m4)
            examples[name] = torch.from_numpy(forecasts[:1, :, None])
        return scores, examples

    def picture(self, forecasts: dict[str, Tensor]) -> dict[str, Any]:
        """The first series, by step, as arguments of `plot_forecast`."""
        values, horizon = self.m4.insample[0], self.m4.spec.prediction_length

        def table(values: np.ndarray, first: int) -> pd.DataFrame:
            return pd.DataFrame(values, index=range(first, first + len(values)), columns=self.columns)

        last = values[-self.m4.spec.context_length :]
        return {
            "history": table(last, len(values) - len(last)),
            "truth": table(self.m4.future[0], len(values)),
            "forecasts": {
                name: table(forecast[0, :, 0].double().cpu().numpy(), len(values))
                for name, forecast in forecasts.items()
            },
            "title": f"M4 {self.m4.spec.frequency}, {self.m4.names[0]}: {horizon} steps",
        }


Task = SeriesTask | M4Task | CorpusTask | PanelTask


def calibrates(task: Task) -> TypeGuard[SeriesTask | PanelTask]:
    """Whether the task's validation windows, those of its own series, can calibrate quantiles."""
    return isinstance(task, (SeriesTask, PanelTask))


def check_losses(task: Task, model: ModelSettings):
    """Raise InputError for a loss that needs the series' units: only M4's windows keep them."""
    for name in ("task_loss", "consistency_loss"):
        if (kind := getattr(model, name)) in OWN_UNITS_LOSSES and not isinstance(task, M4Task):
            raise InputError(
                f"{name} {kind} is for the M4 datasets, whose windows keep their series' units; here they are "
                "standardised: use l1, smooth_l1 or mse"
            )


M4_BASELINES: dict[str, Callable[[M4Set], np.ndarray]] = {
    "naive2": naive2_forecasts,
    "seasonal_naive": seasonal_naive_forecasts,
    "linear": lambda m4: linear_forecasts(m4, centred=True),
    "dlinear": lambda m4: linear_forecasts(m4, centred=False),
}
"""Name -> forecasts [N, H] of every series."""


def read_task(data: DataSettings, model: ModelSettings) -> Task:
    """The task for a dataset's name (such as `M4-<frequency>`) or a file's path, with windows of the model's lengths.

    Raises InputError for data that is missing or unreadable, too few rows, and lengths that differ from M4's.
    """
    spec = m4_spec(data.dataset)
    if spec is not None:
        return M4Task(_read_m4(spec, data, model))
    if is_panel(data):
        return PanelTask(_read_panel(data), model, with_test=True)
    if given := [*data.covariates, *(["held_out_ids"] if data.held_out_ids else [])]:
        raise InputError(f"{given[0]} is for long tables: to read {data.dataset} as one, give id_column")
    series = read_series(data.dataset, data_dir=data.data_dir, **data.reading)
    lengths = (model.context_length, model.prediction_length)
    splits = split_windows(series, *lengths, few_shot_percent=data.few_shot_percent)
    return SeriesTask(series, splits)


def is_panel(data: DataSettings) -> bool:
    """Whether the settings ask for a long table, by an id column or a dataset's name."""
    named = find_dataset(data.dataset)
    return data.id_column is not None or (named is not None and named.id_column is not None)


def _read_panel(data: DataSettings) -> Panel:
    if data.few_shot_percent is not None or data.columns is not None:
        name = "columns" if data.columns is not None else "few_shot_percent"
        raise InputError(f"{name} does not apply to a panel; --target names the columns to forecast")
    panel = read_panel(
        data.dataset,
        data_dir=data.data_dir,
        id_column=data.id_column,
        timestamp_column=data.date_column,
        target=data.target,
        # DataSettings has validated the choice
        missing=cast(Missing | None, data.missing),
        **data.covariates,
    )
    return panel.without(data.held_out_ids) if data.held_out_ids else panel


def _read_m4(spec: M4Spec, data: DataSettings, model: ModelSettings) -> M4Set:
    for name in ("columns", "date_column", "few_shot_percent"):
        if getattr(data, name) is not None:
            raise InputError(f"{name} does not apply to {data.dataset}, whose series and windows the competition fixes")
    for name in ("prediction_length", "context_length"):
        if getattr(model, name) != getattr(spec, name):
            raise InputError(f"{name} of {data.dataset} is {getattr(spec, name)}, not {getattr(model, name)}")
    return read_m4(spec.frequency, data.data_dir)
