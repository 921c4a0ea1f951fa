"""A panel as a task: windows of all its items, each in its own units."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..data.covariate_encoding import CovariateEncoding
from ..data.panel import Panel
from ..data.panel_windows import TEST_SHARE, panel_splits
from ..linear import LeastSquares
from ..linear_covariates import RIDGE_BASELINE, RidgeOnResiduals
from ..linear_start import LinearStart, start_linear_part
from ..preprocessor import Preprocessor
from ..settings import ModelSettings
from .baselines import ForecastFunction, score, seasonal_naive


class PanelTask:
    """Windows of a panel's items, split by time within each item.

    Errors are in standard deviations of the window or of its item's training rows, whichever is larger.
    """

    def __init__(self, panel: Panel, model: ModelSettings, *, with_test: bool = False):
        """Without `with_test`, no test split is held out and scores are those of validation."""
        self.panel, self.with_test = panel, with_test
        self.columns = list(panel.targets)
        self.season_length: int | None = None
        share = TEST_SHARE if with_test else 0.0
        self.splits = panel_splits(panel, model.context_length, model.prediction_length, test_share=share)

    @property
    def encoding(self) -> CovariateEncoding | None:
        """How the panel's covariates are encoded for a model."""
        return self.splits.test.encoding

    def start(self, model: nn.Module) -> LinearStart | None:
        """Choose the model's linear skip, if it has one."""
        return start_linear_part(model, self.splits.train, self.splits.val, unit="deviation")

    def preprocessor(self, dataset: str) -> Preprocessor:
        panel = self.panel
        first = {number: int((panel.step_of == number).argmax()) for number in np.unique(panel.step_of)}
        steps = [panel.steps[number].alias(panel.origins[item]) for number, item in first.items()]
        return Preprocessor(
            dataset,
            self.columns,
            panel.timestamp_column,
            panel.frequency,
            panel.seasonality,
            [0.0] * len(self.columns),
            [1.0] * len(self.columns),
            id_column=panel.id_column,
            other_frequencies=[step for step in steps if step != panel.frequency],
            covariates=None if self.encoding is None else self.encoding.to_dict(),
        )

    def test(self, predictor: Any) -> dict[str, Any]:
        """Scores over every test window: {"mse", "mae", "per_channel"}."""
        return predictor.test(self.splits.test)

    def intervals(self, score_intervals: Callable[..., dict[str, float]]) -> dict[str, float]:
        """{"coverage_80", "wql"} over the test windows, in the series' units."""
        one = np.ones(len(self.columns))
        scores = score_intervals(self.splits.test, mean=0 * one, scale=one, naive_error=one)
        return {name: scores[name] for name in ("coverage_80", "wql")}

    def example(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The lookback in the middle of the test split [1, L, C], its observed mask, and its covariates."""
        past, observed, _ = self._middle()
        return past, observed, self.splits.test.covariates([len(self.splits.test) // 2])

    def baselines(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """The forecasts to beat, by name: their scores, and their forecasts of the example."""
        scores, forecasts = {}, {}
        past, observed, covariates = self.example()
        windows = self.splits.test
        baselines: dict[str, ForecastFunction] = {
            "seasonal_naive": seasonal_naive(self.panel.seasonality, windows.prediction_length),
            "linear": LeastSquares(unit="deviation").fit(self.splits.train),
        }
        if self.encoding is not None and "past_covariates" in covariates:
            baselines[RIDGE_BASELINE] = RidgeOnResiduals(self.encoding.sizes, self.splits.train, self.splits.val)
        for name, baseline in baselines.items():
            scores[name] = score(baseline, windows, self.columns)
            forecasts[name] = baseline(past, observed, **(covariates if name == RIDGE_BASELINE else {}))
        return scores, forecasts

    def picture(self, forecasts: dict[str, Tensor]) -> dict[str, Any]:
        """The example in its units, as arguments of `plot_forecast`: history, truth, forecasts and a title."""
        windows, middle = self.splits.test, len(self.splits.test) // 2
        item, cut = int(windows.items[middle]), int(windows.cuts[middle])
        past, _, future = self._middle()
        history = np.arange(max(0, cut - 3 * windows.prediction_length), cut)
        ahead = np.arange(cut, cut + windows.prediction_length)

        def table(values: Tensor, rows: np.ndarray) -> pd.DataFrame:
            index = pd.Index(self.panel.dates(np.full(len(rows), item), rows))
            if pd.api.types.is_string_dtype(index.dtype):
                index = pd.to_datetime(index)
            return pd.DataFrame(values[-len(rows) :].double().cpu().numpy(), index=index, columns=self.columns)

        known = torch.from_numpy(self.panel.item(item)[history])
        units, unit = windows.units_of([middle])
        back = lambda values: (values.cpu() * unit.cpu() + units.level.cpu())[0]
        return {
            "history": table(known, history),
            "truth": table(back(future), ahead),
            "forecasts": {name: table(back(forecast), ahead) for name, forecast in forecasts.items()},
            "title": f"{self.panel.ids[item]}: {windows.prediction_length} steps",
        }

    def _middle(self) -> tuple[Tensor, Tensor, Tensor]:
        return next(self.splits.test.batches(1, first=len(self.splits.test) // 2))
