"""Forecasts of one wide series, by date and channel: after its last row, or after each of its rows."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..data import StandardScaler, TimeSeries
from ..data.csv_files import shortened
from ..data.units import forecast_windows
from ..data.windows import own_scaler
from ..errors import InputError, InputWarning
from ..modeling import LlataForPrediction
from ..preprocessor import Preprocessor
from .batches import windows_at_once

ORIGIN = "origin"


class WideForecaster:
    """A run's model, for series with its channels."""

    def __init__(self, model: LlataForPrediction, info: Preprocessor):
        self.model, self.info = model, info

    def predict(self, series: TimeSeries) -> pd.DataFrame:
        """Forecast the H rows after the last row of `series`, in its units: a date column and one column per channel.

        Channels are selected by the run's names, in the run's order; others are ignored. A series without all of these
        names must have the same number of channels, which are then taken in order.

        Raises:
            InputError: the channels differ from the run's, or there are fewer rows than the context needs.
        """
        series = self._channels_of(series)
        windows = self._lookbacks(series)
        forecast = windows.scaler.inverse_transform(self(*windows.ending_at(np.array([len(series) - 1]))).cpu().numpy())
        _warn_of_empty(series, np.isnan(forecast).all((0, 1)))
        table = pd.DataFrame(forecast[0], columns=list(series.columns))
        table.insert(0, series.date_column, series.future_dates(self.model.config.prediction_length))
        return table

    def stream(self, series: TimeSeries, every: int = 1, batch_size: int | None = None) -> Iterator[pd.DataFrame]:
        """Forecast after every `every`-th row, including the last one, as tables of up to `batch_size` forecasts.

        A table has H rows per forecast, in order: "origin" (the date of the last row seen), then the columns of
        `predict`. Memory does not grow with the number of forecasts nor, as `windows_at_once` bounds a batch by its
        tokens, with that of channels. The next batch is computed while the caller handles the current one.

        Raises:
            InputError: as in `predict`, or if a channel is called "origin".
        """
        config = self.model.config
        series = self._channels_of(series)
        if ORIGIN in (*series.columns, series.date_column):
            raise InputError(f"{series.name} has a column called {ORIGIN}, the name of the column of origin dates")
        windows = self._lookbacks(series)
        dates = series.dates.append(series.future_dates(config.prediction_length))
        steps = np.arange(1, config.prediction_length + 1)
        origins = np.arange(len(series) - 1, self._first_origin - 1, -every)[::-1]
        at_once = windows_at_once(config, len(series.columns))
        batch_size = min(batch_size or at_once, at_once)
        chunks = [origins[start : start + batch_size] for start in range(0, len(origins), batch_size)]
        empty = np.zeros(len(series.columns), dtype=bool)
        for rows, forecasts in _one_ahead(chunks, lambda rows: self(*windows.ending_at(rows))):
            values = windows.scaler.inverse_transform(forecasts.numpy())  # [B, H, C]
            empty |= np.isnan(values).any((0, 1))
            table = pd.DataFrame(values.reshape(-1, values.shape[-1]), columns=list(series.columns))
            table.insert(0, ORIGIN, np.repeat(series.dates[rows], len(steps)))
            table.insert(1, series.date_column, dates[(rows[:, None] + steps).ravel()])
            yield table
        _warn_of_empty(series, empty)

    def num_forecasts(self, series: TimeSeries, every: int = 1) -> int:
        """Number of forecasts that `stream` makes."""
        return max(0, -(-(len(series) - self._first_origin) // every))

    @property
    def _first_origin(self) -> int:
        """The first row after which a forecast is possible."""
        return 0 if self.info.any_series else self.model.config.context_length - 1

    def _channels_of(self, series: TimeSeries) -> TimeSeries:
        expected = self.info.columns
        if self.info.any_series:
            return series
        if set(expected) <= set(series.columns):
            return series.select(expected)
        if len(series.columns) != len(expected):
            raise InputError(
                f"{series.name} has {len(series.columns)} channels ({shortened(series.columns)}), "
                f"but the run was trained on {len(expected)} ({shortened(expected)})"
            )
        return series

    def _lookbacks(self, series: TimeSeries) -> "_Lookbacks":
        config = self.model.config
        scaler = own_scaler(series) if self.model.reads_level else StandardScaler.identity(len(series.columns))
        return _Lookbacks(series, config.context_length, scaler, self.model.device, padded=self.info.any_series)

    @torch.inference_mode()
    def __call__(self, past_values: Tensor, observed: Tensor | None = None) -> Tensor:
        """Lookbacks [B, L, C] -> forecasts [B, H, C] in their units, float64, on the model's device.

        `observed` [B, L, C] (bool) marks the values that are present; default: all. Any unit and level is allowed,
        except for a run that returns to a level (`reads_level`), which needs standardised values.
        """
        return forecast_windows(
            lambda inputs: self.model(**inputs).prediction_outputs,
            past_values.to(self.model.device),
            (torch.ones_like(past_values, dtype=torch.bool) if observed is None else observed).to(self.model.device),
            reads_level=self.model.reads_level,
        )


def _warn_of_empty(series: TimeSeries, empty: np.ndarray):
    """Warn once, with the names of the channels that are `empty` [C]."""
    if empty.any():
        names = ", ".join(repr(column) for column, lacks in zip(series.columns, empty, strict=True) if lacks)
        warnings.warn(
            f"{series.name}: no value in the context of {names}, so it is not forecast", InputWarning, stacklevel=3
        )


class _Lookbacks:
    """All lookbacks of a series in units of `scaler`: one overlapping view of its values [rows, C] on a device."""

    def __init__(
        self,
        series: TimeSeries,
        context_length: int,
        scaler: StandardScaler,
        device: torch.device,
        padded: bool = False,
    ):
        """With `padded`, rows before the first one count as missing instead of being an error."""
        before = context_length - 1 if padded else 0
        if len(series) + before < context_length:
            raise InputError(f"{series.name} has {len(series)} rows, but the context needs {context_length}")
        self.scaler = scaler
        # offset from a row to the first row of its lookback
        self._shift = before - context_length + 1
        values = torch.from_numpy(scaler.transform(series.values)).to(device)
        values = torch.nn.functional.pad(values, (0, 0, before, 0), value=torch.nan)
        self.windows = values.unfold(0, context_length, 1)  # [rows - L + 1, C, L]

    def ending_at(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Lookbacks [B, L, C] whose last rows are `rows` [B], and their observed mask."""
        starts = torch.from_numpy(rows + self._shift).to(self.windows.device, non_blocking=True)
        past = self.windows.index_select(0, starts).transpose(1, 2).contiguous()
        return past, ~past.isnan()


def _one_ahead(chunks: list, compute: Callable[[Any], Tensor]) -> Iterator[tuple[Any, Tensor]]:
    """(chunk, its result on the host) for every chunk; a GPU gets the next chunk before the current one is awaited."""
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
