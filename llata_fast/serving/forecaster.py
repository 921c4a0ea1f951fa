"""A trained run as a forecaster of series in their own units."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..data import StandardScaler, TimeSeries, last_window
from ..errors import InputError
from ..modeling import LlataForPrediction

_FILE = "series.json"


@dataclass
class SeriesInfo:
    """What a run knows of the series it was trained on; `series.json` in its folder."""

    dataset: str
    columns: list[str]
    date_column: str
    frequency: str
    seasonality: int
    mean: list[float]
    scale: list[float]

    @classmethod
    def of(cls, dataset: str, series: TimeSeries, scaler: StandardScaler) -> "SeriesInfo":
        return cls(
            dataset,
            list(series.columns),
            series.date_column,
            series.frequency,
            series.seasonality,
            **scaler.to_dict(),
        )

    @property
    def scaler(self) -> StandardScaler:
        return StandardScaler.from_dict({"mean": self.mean, "scale": self.scale})

    def save(self, run: str | Path):
        Path(run, _FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, run: str | Path) -> "SeriesInfo":
        """Raises InputError where `run` is no finished run, or its file is damaged."""
        path = Path(run, _FILE)
        if not path.is_file():
            raise InputError(f"{run} is not the folder of a finished run: it holds no {_FILE}")
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: {error}") from None


class Forecaster:
    """Forecasts with the temporal branch alone, merged into its backbone.

    >>> forecaster = Forecaster.from_run("runs/Metro-336-96")
    >>> forecaster.predict(read_csv("my.csv"))  # a DataFrame of H rows after the last one, in the file's units
    """

    def __init__(self, model: LlataForPrediction, info: SeriesInfo):
        self.model, self.info = model.merge(), info

    @classmethod
    def from_run(cls, run: str | Path, device: str | torch.device | None = None) -> "Forecaster":
        """Load a run's folder; `device` defaults to the GPU where there is one.

        Raises:
            InputError: not a finished run, a damaged one, or its backbone is not to be had.
        """
        info = SeriesInfo.load(run)
        try:
            model = LlataForPrediction.from_pretrained(run)
        except InputError:
            raise
        # what transformers and safetensors make of damaged files
        except (OSError, ValueError) as error:
            raise InputError(f"{run} is damaged: {error}") from error
        return cls(model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), info)

    def predict(self, series: TimeSeries) -> pd.DataFrame:
        """The H rows after the last one of `series`, in its units: a date column and one column a channel.

        Raises:
            InputError: other channels than the run's, or fewer rows than its context.
        """
        info, config = self.info, self.model.config
        if len(series.columns) != len(info.columns):
            raise InputError(
                f"{series.name} has {len(series.columns)} channels ({', '.join(series.columns)}), "
                f"the run was trained on {len(info.columns)} ({', '.join(info.columns)})"
            )
        inputs = last_window(series, config.context_length, info.scaler)
        (forecast,) = self(**inputs).cpu().double().numpy()
        table = pd.DataFrame(info.scaler.inverse_transform(forecast), columns=list(series.columns))
        table.insert(0, series.date_column, series.future_dates(config.prediction_length))
        return table

    @torch.inference_mode()
    def __call__(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> Tensor:
        """Standardised lookbacks [B, L, C] -> standardised forecasts [B, H, C], on the model's device."""
        device = self.model.device
        mask = None if past_observed_mask is None else past_observed_mask.to(device)
        return self.model(past_values.to(device), past_observed_mask=mask).prediction_outputs
