"""A trained run as a forecaster of series in their own units."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import StandardScaler, TimeSeries, last_window
from ..data.windows import masked_past, standardise
from ..errors import InputError
from ..modeling import LlataForPrediction
from ..run_folder import Preprocessor, RunFolder

ORIGIN = "origin"


class Forecaster:
    """Forecasts with the temporal branch alone, merged into its backbone.

    >>> forecaster = Forecaster.from_run("runs/Metro-336-96")
    >>> forecaster.predict(read_csv("my.csv"))  # a DataFrame of H rows after the last one, in the file's units
    """

    def __init__(self, model: LlataForPrediction, info: Preprocessor):
        self.model, self.info = model.merge(), info

    @classmethod
    def from_run(cls, run: str | Path, device: str | torch.device | None = None) -> "Forecaster":
        """Load a run's folder; `device` defaults to the GPU where there is one.

        Raises:
            InputError: not a finished run, a damaged one, or its backbone is not to be had.
        """
        folder = RunFolder(run)
        folder.check_finished()
        info = folder.read_preprocessor()
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

        Channels are the run's by their names, in the run's order, whatever else the series has. A series without all
        of these names must have as many channels, and they are taken in their order.

        Raises:
            InputError: other channels than the run's, or fewer rows than its context.
        """
        info, config = self.info, self.model.config
        series = self._channels_of(series)
        inputs = last_window(series, config.context_length, info.scaler)
        (forecast,) = self(**inputs).cpu().double().numpy()
        table = pd.DataFrame(info.scaler.inverse_transform(forecast), columns=list(series.columns))
        table.insert(0, series.date_column, series.future_dates(config.prediction_length))
        return table

    def stream(self, series: TimeSeries, every: int = 1, batch_size: int = 1024) -> Iterator[pd.DataFrame]:
        """Forecasts after every `every`-th row, the last row among them, as tables of up to `batch_size` forecasts.

        A table has H rows for each forecast, in order: "origin", the date of the last row seen, then what `predict`
        gives. Memory does not grow with their number, and the next batch is computed while one is handed out.

        Raises:
            InputError: as `predict`; a channel that is called "origin".
        """
        info, config = self.info, self.model.config
        series = self._channels_of(series)
        if ORIGIN in (*series.columns, series.date_column):
            raise InputError(f"{series.name} has a column called {ORIGIN}, which is where the origin's date goes")
        windows = _Lookbacks(series, config.context_length, info.scaler, self.model.device)
        dates = series.dates.append(series.future_dates(config.prediction_length))
        steps = np.arange(1, config.prediction_length + 1)
        origins = np.arange(len(series) - 1, config.context_length - 2, -every)[::-1]
        chunks = [origins[start : start + batch_size] for start in range(0, len(origins), batch_size)]
        for rows, forecasts in _one_ahead(chunks, lambda rows: self(**windows.ending_at(rows))):
            values = info.scaler.inverse_transform(forecasts.double().numpy())  # [B, H, C]
            table = pd.DataFrame(values.reshape(-1, values.shape[-1]), columns=list(series.columns))
            table.insert(0, ORIGIN, np.repeat(series.dates[rows], len(steps)))
            table.insert(1, series.date_column, dates[(rows[:, None] + steps).ravel()])
            yield table

    def num_forecasts(self, series: TimeSeries, every: int = 1) -> int:
        """How many forecasts `stream` makes."""
        return max(0, -(-(len(series) - self.model.config.context_length + 1) // every))

    def _channels_of(self, series: TimeSeries) -> TimeSeries:
        expected = self.info.columns
        if set(expected) <= set(series.columns):
            return series.select(expected)
        if len(series.columns) != len(expected):
            raise InputError(
                f"{series.name} has {len(series.columns)} channels ({', '.join(series.columns)}), "
                f"the run was trained on {len(expected)} ({', '.join(expected)})"
            )
        return series

    @torch.inference_mode()
    def __call__(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> Tensor:
        """Standardised lookbacks [B, L, C] -> standardised forecasts [B, H, C], on the model's device."""
        device = self.model.device
        mask = None if past_observed_mask is None else past_observed_mask.to(device)
        return self.model(past_values.to(device), past_observed_mask=mask).prediction_outputs


class _Lookbacks:
    """Every lookback of a series, one overlapping view of its standardised values [rows, C] on a device."""

    def __init__(self, series: TimeSeries, context_length: int, scaler: StandardScaler, device: torch.device):
        # says what is wrong with a series that is too short
        last_window(series, context_length, scaler)
        values = standardise(series, scaler).to(device)
        self.has_missing = bool(values.isnan().any())
        self.context_length = context_length
        self.windows = values.unfold(0, context_length, 1)  # [rows - L + 1, C, L]

    def ending_at(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The model's inputs for the lookbacks whose last rows are `rows` [B]."""
        starts = torch.from_numpy(rows - self.context_length + 1).to(self.windows.device, non_blocking=True)
        past = self.windows.index_select(0, starts).transpose(1, 2).contiguous()
        return masked_past(past) if self.has_missing else {"past_values": past}


def _one_ahead(chunks: list, compute: Callable[[Any], Tensor]) -> Iterator[tuple[Any, Tensor]]:
    """(chunk, its result on the host) for every chunk; a GPU is given the next one before one is waited for."""
    pending = None
    for chunk in chunks:
        result = compute(chunk)
        host, copied = result, None
        if result.is_cuda:
            host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
            host.copy_(result, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        if pending is not None:
            yield _settled(*pending)
        pending = chunk, host, copied
    if pending is not None:
        yield _settled(*pending)


def _settled(chunk: Any, host: Tensor, copied: torch.cuda.Event | None) -> tuple[Any, Tensor]:
    if copied is not None:
        copied.synchronize()
    return chunk, host
