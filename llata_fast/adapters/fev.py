"""A model for fev, the evaluation library behind fev-bench: https://github.com/autogluon/fev (Apache-2.0).

>>> model = LlataModel(run="runs/any")                       # zero-shot, with a run for any series
>>> model = LlataModel(settings={"backbone": "backbone"})    # trained on the data before the first window
>>> task.evaluation_summary(model.fit_predict(task), model_name="llata", inference_time_s=model.inference_time)
"""

import tempfile
from pathlib import Path
from typing import Any

import fev
import numpy as np
from datasets import Dataset, DatasetDict

from ..data.panel import Panel
from ..errors import InputError
from ..forecasting.forecaster import Forecaster
from .arrays import forecast_arrays

# metrics minimised by the mean; all others are minimised by the median
_OF_THE_MEAN = ("MSE", "RMSE", "RMSSE")


class LlataModel(fev.ForecastingModel):
    """LLaTA for fev: `fit_predict` forecasts every window of a task.

    Args:
        run: folder or hub id of a finished run for the task's targets or for any series; None trains on each task.
        context_length: rows of the lookback; default three horizons. A finished run has its own.
        settings: options of `train.py` by name, if there is no `run`.
        batch_size: series per batch; results do not depend on it.
    """

    model_name = "llata"

    def __init__(
        self,
        run: str | None = None,
        context_length: int | None = None,
        settings: dict[str, Any] | None = None,
        batch_size: int | None = None,
    ):
        super().__init__()
        if run is not None and (context_length or settings):
            raise InputError("a finished run has its own settings and context_length")
        self.run, self.context_length, self.settings, self.batch_size = run, context_length, settings, batch_size
        self._loaded: Forecaster | None = None

    def _fit_predict(self, task: fev.Task) -> list[DatasetDict]:
        forecaster = None
        predictions = []
        for window in task.iter_windows():
            past, _ = window.get_input_data()
            series = [
                np.stack([np.asarray(row[name], dtype=np.float64) for name in task.target_columns], -1) for row in past
            ]
            if forecaster is None:
                forecaster = self._forecaster(task, past, series)
            levels = sorted({*task.quantile_levels, 0.5})
            with self._record_inference_time():
                points, quantiles = forecast_arrays(forecaster, series, task.horizon, levels, self.batch_size)
            if _metric(task) not in _OF_THE_MEAN:
                points = quantiles[..., levels.index(0.5)]
            predictions.append(
                _as_datasets(
                    task, points, {level: quantiles[..., levels.index(level)] for level in task.quantile_levels}
                )
            )
        return predictions

    def _forecaster(self, task: fev.Task, past: Dataset, series: list[np.ndarray]) -> Forecaster:
        if self.run is not None:
            # the weights are the same for every task, so load them once
            self._loaded = self._loaded or Forecaster.from_pretrained(self.run)
            return self._loaded
        longest = max(map(len, series))
        context = self.context_length or max(2, min(3 * task.horizon, longest - task.horizon))
        settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True} | (self.settings or {})
        with tempfile.TemporaryDirectory(prefix="llata_fast_") as folder, self._record_training_time():
            return Forecaster.fit(
                _panel(task, past, series),
                prediction_length=task.horizon,
                context_length=context,
                output_dir=Path(folder, "run"),
                **settings,
            )


def _metric(task: fev.Task) -> str:
    return task.eval_metric if isinstance(task.eval_metric, str) else task.eval_metric["name"]


def _panel(task: fev.Task, past: Dataset, series: list[np.ndarray]) -> Panel:
    import pandas as pd

    lengths = [len(values) for values in series]
    table = pd.DataFrame(np.concatenate(series), columns=task.target_columns)
    table.insert(0, "item", np.repeat(np.asarray(past[task.id_column]), lengths))
    table.insert(1, "time", np.concatenate([np.asarray(row[task.timestamp_column]) for row in past]))
    return Panel.from_df(table, "item", "time", task.target_columns, name=str(task.task_name))


def _as_datasets(task: fev.Task, points: np.ndarray, quantiles: dict[float, np.ndarray]) -> DatasetDict:
    """Convert points and each level's quantiles [n, H, C] to fev's format: one dataset per target."""
    return DatasetDict(
        {
            name: Dataset.from_dict(
                {"predictions": points[..., place].tolist()}
                | {str(level): values[..., place].tolist() for level, values in quantiles.items()}
            )
            for place, name in enumerate(task.target_columns)
        }
    )
