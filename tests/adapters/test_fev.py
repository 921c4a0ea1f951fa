"""fev scores the forecasts of a finished run, or of one trained on the rows before the first window."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import random_backbone, tiny_model

from llata_fast.forecasting.calibration import CALIBRATED_LEVELS, Calibration
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor

fev = pytest.importorskip("fev")
pytestmark = pytest.mark.usefixtures("plain_ops")


@pytest.fixture
def table(tmp_path):
    """A long table of three items, each the sum of two waves."""
    hours = np.arange(150)
    frames = []
    for item in range(3):
        waves = {name: 10 * item + np.sin(2 * np.pi * hours / 24 + phase) for phase, name in enumerate(("x", "y"))}
        frames.append(
            pd.DataFrame({"id": f"i{item}", "timestamp": pd.date_range("2024-01-01", periods=150, freq="h")} | waves)
        )
    path = tmp_path / "data.parquet"
    pd.concat(frames).to_parquet(path, index=False)
    return str(path)


def evaluated(task, model):
    return task.evaluation_summary(
        model.fit_predict(task), "llata", training_time_s=model.training_time, inference_time_s=model.inference_time
    )


@pytest.mark.parametrize("target", ["x", ["x", "y"]], ids=["one", "two"])
def test_run_is_scored_as_it_is(tmp_path, table, target):
    from llata_fast.adapters.fev import LlataModel

    info = Preprocessor.of_any_series("mixture")
    offsets = torch.randn(5, 1, len(CALIBRATED_LEVELS)).sort(-1).values
    Forecaster(tiny_model(random_backbone(tmp_path)), info, Calibration(offsets, 9)).save_pretrained(tmp_path / "run")
    task = fev.Task(
        table,
        horizon=5,
        num_windows=2,
        seasonality=24,
        eval_metric="MSE",
        extra_metrics=["WQL"],
        target=target,
        quantile_levels=[0.1, 0.9],
    )
    model = LlataModel(run=str(tmp_path / "run"))
    summary = evaluated(task, model)
    # by hand: the mean squared error over both windows
    columns = task.target_columns
    values = pd.read_parquet(table).groupby("id")[columns].apply(lambda rows: rows.to_numpy())
    errors = []
    for cut in (140, 145):
        points, _ = Forecaster.from_pretrained(tmp_path / "run").predict([rows[:cut] for rows in values])
        errors.append(np.mean([(rows[cut : cut + 5] - point) ** 2 for rows, point in zip(values, points, strict=True)]))
    assert summary["test_error"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert np.isfinite(summary["WQL"]) and summary["training_time_s"] == 0 < summary["inference_time_s"]
    assert fev.ForecastingModel.get_model_cls("llata") is LlataModel


def test_training_beats_the_last_value(tmp_path, table):
    from llata_fast.adapters.fev import LlataModel

    settings = {"backbone": random_backbone(tmp_path), "num_layers": 1, "num_prototypes": 9, "intermediate_size": 20}
    settings |= {"max_steps": 4, "precision": "fp32"}
    task = fev.Task(table, horizon=12, seasonality=24, eval_metric="MASE", target="x", quantile_levels=[0.1, 0.5, 0.9])
    model = LlataModel(context_length=48, settings=settings)
    summary = evaluated(task, model)
    assert summary["training_time_s"] > 0
    past, _ = task.get_window(0).get_input_data()
    naive = [
        {"predictions": [row["x"][-1]] * 12} | {str(q): [row["x"][-1]] * 12 for q in (0.1, 0.5, 0.9)} for row in past
    ]
    assert summary["test_error"] < task.evaluation_summary([naive], "naive")["test_error"]
