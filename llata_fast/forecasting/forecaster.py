"""A trained run as a forecaster for tables and arrays, in their own units."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from ..data import TimeSeries
from ..data.panel import Panel
from ..errors import InputError, InputWarning
from ..hub_access import is_hub_id
from ..modeling import LlataForPrediction
from ..preprocessor import Preprocessor
from ..run_folder import RunFolder
from ..setting_values import check_quantile_levels
from ..settings import COVARIATES
from .backtests import backtest, score_backtest
from .calibration import Calibration
from .panel_forecasts import POINTS, PanelForecaster, forecast_panel, long_frame
from .panel_inputs import panel_for_run, panel_of_arrays
from .wide import WideForecaster


class Forecaster:
    """Forecasts with the temporal branch only, merged into its backbone in place: `model` cannot be trained afterwards.

    >>> f = Forecaster.from_pretrained("runs/x")
    >>> f.predict_df(df, id_column="item_id", timestamp_column="timestamp", target="target")

    `**columns` in a method stands for `id_column`, `timestamp_column`, `target`, `freq` and `missing`, as in
    `Panel.from_df`; the run's are the default, and a `Panel` needs none.
    """

    def __init__(
        self,
        model: LlataForPrediction,
        info: Preprocessor,
        calibration: Calibration | None = None,
        settings: dict[str, Any] | None = None,
        source: str | Path | None = None,
    ):
        self.model, self.info, self.settings = model.merge(), info, settings or {}
        self.calibration = calibration
        # location of the model as it was before merging
        self.source = source

    @classmethod
    def fit(
        cls,
        panel: Panel,
        *,
        prediction_length: int,
        context_length: int,
        quantile_levels: Sequence[float] | None = None,
        output_dir: str | Path | None = None,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> "Forecaster":
        """Train on a panel, calibrate on its validation windows, and load the run.

        Args:
            prediction_length: H, time steps to forecast.
            context_length: L, time steps of the lookback.
            quantile_levels: levels of a quantile head; without one, quantiles come from the calibration alone.
            output_dir: the run's folder; default: a new one under runs.
            **settings: options of `train.py` by name, such as `backbone` and `max_steps`.

        Raises:
            InputError: an unknown setting, a value out of range, no item long enough to train on, or a folder that
                already holds a run.
        """
        # it imports the Trainer, which a forecast does without
        from ..experiment import train_on_panel

        given = {"prediction_length": prediction_length, "context_length": context_length, "output_dir": output_dir}
        # if not given, an `init` run's quantile levels apply
        given |= ({} if quantile_levels is None else {"quantile_levels": list(quantile_levels)}) | settings
        if output_dir is not None:
            given["output_dir"] = str(output_dir)
        return cls.from_pretrained(train_on_panel(_as_panel(panel), **given).folder.path, device=device)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, device: str | torch.device | None = None, backbone: str | None = None
    ) -> "Forecaster":
        """Load a run, a folder written by `save_pretrained`, or a hub id; `device` defaults to the GPU if there is one.

        `backbone` is the new location of the frozen base if it has moved.

        Raises:
            InputError: not a finished run, or damaged; or its backbone is missing or a different one.
        """
        if is_hub_id(str(source)):
            try:
                source = snapshot_download(str(source))
            except (OSError, ValueError) as error:
                raise InputError(f"no run at {source}: not a folder, and not on the hub ({error})") from None
        folder = RunFolder(source)
        folder.check_finished()
        info = folder.read_preprocessor()
        try:
            model = LlataForPrediction.from_pretrained(source, **({"backbone": backbone} if backbone else {}))
        except InputError:
            raise
        # transformers and safetensors raise these for damaged files
        except (OSError, ValueError) as error:
            raise InputError(f"{source} is damaged: {error}") from error
        calibration = Calibration.load(folder.calibration) if folder.calibration.is_file() else None
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model.to(device), info, calibration, folder.read_settings(), folder.path)

    def save_pretrained(self, folder: str | Path):
        """Write a folder that `from_pretrained` loads, with backbone and calibration included."""
        target = RunFolder(folder)
        target.path.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(target.path)
        target.write_settings(self.settings)
        target.write_preprocessor(self.info)
        target.calibration.unlink(missing_ok=True)
        if self.calibration is not None:
            self.calibration.save(target.calibration)
        target.finish()

    def predict_df(
        self,
        df: Any,
        *,
        future_df: Any = None,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        batch_size: int | None = None,
        nonnegative: bool = False,
        **columns: Any,
    ) -> pd.DataFrame:
        """Forecast what follows each item of a long table or `Panel`: id, timestamp, target_name, predictions, "0.1",
        ...

        Args:
            future_df: id, timestamp and known covariates for each item's next `prediction_length` steps, if the run has
                known covariates besides the calendar. Past covariates beyond the trained horizon count as missing.
            prediction_length: default: the run's; a longer one is forecast recursively, with a warning.
            quantile_levels: default: those of the run's head; [] for none.
            batch_size: items per batch, by default bounded by tokens; results do not depend on it.
            nonnegative: replace points and quantiles below 0 by 0, which keeps the quantiles' order.

        Raises:
            InputError: the message names the item, column and row that cannot be forecast.
        """
        tables = list(
            self.stream_df(
                df,
                future_df=future_df,
                prediction_length=prediction_length,
                quantile_levels=quantile_levels,
                batch_size=batch_size,
                nonnegative=nonnegative,
                **columns,
            )
        )
        return pd.concat(tables, ignore_index=True)

    def stream_df(
        self,
        df: Any,
        *,
        future_df: Any = None,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        batch_size: int | None = None,
        nonnegative: bool = False,
        share: tuple[int, int] = (0, 1),
        **columns: Any,
    ) -> Iterator[pd.DataFrame]:
        """`predict_df` batch by batch, in memory that does not grow with the number of items.

        `share` (k, n) selects every n-th batch, starting with batch k, for n ranks that divide the work.
        """
        levels, horizon = self._levels(quantile_levels), self._horizon(prediction_length)
        panel = self._panel_ahead(df, future_df, horizon, columns)
        tables = self._frames(panel, horizon, levels, batch_size, share)
        return map(_without_negatives, tables) if nonnegative else tables

    def _frames(
        self, panel: Panel, horizon: int, levels: list[float], batch_size: int | None, share: tuple[int, int]
    ) -> Iterator[pd.DataFrame]:
        unknown: list = []
        for items, points, quantiles in forecast_panel(self.core, panel, horizon, levels, batch_size, share):
            unknown += panel.ids[items[np.isnan(points).any((1, 2))]].tolist()
            yield long_frame(panel, items, points, quantiles, levels)
        _warn_of_unknown(panel, unknown)

    def predict(
        self,
        arrays: Sequence[Any],
        *,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        batch_size: int | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
        """Forecast what follows each array [steps] or [steps, C], NaN for missing: points [H, C], quantiles [H, C, Q].

        Quantiles are None if the run has none and none are requested. Arguments as in `predict_df`.

        Raises:
            InputError: arrays with different C, without rows, or not numeric.
        """
        if isinstance(arrays, (pd.DataFrame, Panel, TimeSeries)):
            raise InputError("predict takes a list of arrays; for tables use predict_df: predict_df(read_csv(path))")
        if self.info.covariates is not None:
            raise InputError("this run was trained with covariates, which arrays lack: use predict_df with tables")
        panel = panel_of_arrays(arrays, self.info)
        levels = self._levels(quantile_levels)
        points: list[np.ndarray] = []
        quantiles: list[np.ndarray] = []
        for _, values, spread in forecast_panel(self.core, panel, self._horizon(prediction_length), levels, batch_size):
            points += list(values)
            quantiles += [] if spread is None else list(spread)
        return points, quantiles if levels else None

    def cross_validation(
        self,
        df: Any,
        *,
        n_windows: int = 3,
        step_size: int | None = None,
        refit: bool = False,
        prediction_length: int | None = None,
        quantile_levels: Sequence[float] | None = None,
        batch_size: int | None = None,
        **columns: Any,
    ) -> pd.DataFrame:
        """Forecast the last `n_windows` windows of every item, `step_size` steps apart (default: the horizon).

        A row has id, timestamp, cutoff (the last timestamp seen), target_name, the observed value (in a column named
        after the target, or "target" if there are several), predictions and quantiles. `refit` trains again for each
        window with the run's settings, only on the rows before it.
        """
        panel = self.panel_of(df, **columns)
        refitted = (lambda before: self._refitted(before)) if refit else None
        horizon = self._horizon(prediction_length)
        levels = self._levels(quantile_levels)
        return backtest(self.core, panel, horizon, levels, n_windows, step_size or horizon, batch_size, refitted)

    def evaluate(
        self,
        df: Any,
        *,
        metrics: Sequence[str] = ("MASE", "WQL"),
        n_windows: int = 1,
        step_size: int | None = None,
        baselines: Sequence[str] | None = None,
        prediction_length: int | None = None,
        batch_size: int | None = None,
        **columns: Any,
    ) -> pd.DataFrame:
        """Scores of the model and of baselines on the last `n_windows` windows: one row each, one column per metric.

        Args:
            metrics: any of MASE, WQL, sMAPE, coverage (of the interval between levels 0.1 and 0.9), MSE and MAE.
            baselines: any of seasonal_naive, linear, exponential_smoothing and ridge_covariates; default: all
            available.

        Raises:
            InputError: an unknown metric, or too few rows for the windows.
        """
        panel = self.panel_of(df, **columns)
        horizon = self._horizon(prediction_length)
        return score_backtest(
            self.core, panel, horizon, metrics, n_windows, step_size or horizon, baselines, batch_size=batch_size
        )

    def calibrate(self, df: Any, *, n_windows: int = 10, step_size: int | None = None, **columns: Any) -> "Forecaster":
        """Calibrate quantiles on the last `n_windows` windows of every item, which must not have been trained on.

        Errors of all items and windows are pooled, by horizon step and target; `save_pretrained` saves the result.
        """
        panel = self.panel_of(df, **columns)
        from .backtests import window_cuts

        horizon = self.model.config.prediction_length
        windows = window_cuts(self.core, panel, horizon, n_windows, step_size or horizon)
        config = self.model.config
        self.calibration = Calibration.of(
            self.core.outputs, windows, config.quantile_levels, reads_level=self.model.reads_level
        )
        return self

    def export_onnx(self, path: str | Path, quantile_levels: Sequence[float] | None = None) -> Path:
        """Export points and calibrated quantiles to ONNX (see `adapters.onnx_file.export_onnx`); returns the path.

        If the run forecasts any series, the file takes windows of one channel.
        """
        from ..adapters.onnx_file import export_onnx

        channels = 1 if self.info.any_series else len(self.info.columns)
        return export_onnx(self.model, path, channels, self.calibration, self._levels(quantile_levels) or None)

    def export_adapter(self, folder: str | Path) -> Path:
        """Write what training changed in the backbone as a PEFT adapter; returns its folder.

        Raises:
            InputError: PEFT is not installed, or the run that this was loaded from has no LoRA or no longer exists.
        """
        from ..adapters.peft_adapter import export_adapter

        if self.source is None:
            raise InputError("only a forecaster loaded from a run can be exported as an adapter: use from_pretrained")
        # the base may have moved
        model = LlataForPrediction.from_pretrained(self.source, backbone=self.model.config.backbone)
        return export_adapter(model, folder)

    @property
    def core(self) -> PanelForecaster:
        """The model with its calibration."""
        return PanelForecaster(self.model, self.calibration, self.info.encoding)

    def _panel_ahead(self, df: Any, future_df: Any, horizon: int, columns: dict[str, Any]) -> Panel:
        """The panel to forecast, with known covariates for the next `horizon` steps."""
        panel, encoding = self.panel_of(df, **columns), self.info.encoding
        if encoding is None:
            if future_df is not None:
                raise InputError("future_df: this run was trained without known covariates and cannot use it")
            return panel
        return panel.ahead(horizon, future_df)

    @property
    def wide(self) -> WideForecaster:
        """Forecasts of wide series, with one column per channel."""
        return WideForecaster(self.model, self.info)

    def __call__(self, past_values: Tensor, observed: Tensor | None = None) -> Tensor:
        """As `WideForecaster.__call__`."""
        return self.wide(past_values, observed)

    def panel_of(self, df: Any, **columns: Any) -> Panel:
        """Read the panel in a long table, by default with the run's columns.

        Raises InputError if its targets, covariates or step differ from the run's.
        """
        return panel_for_run(df, self.info, columns)

    def _horizon(self, given: int | None) -> int:
        trained = self.model.config.prediction_length
        if given is None:
            return trained
        if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
            raise InputError(f"prediction_length must be at least 1, got {given!r}")
        if given > trained:
            warnings.warn(
                f"prediction_length {given} is longer than the run's {trained}: later forecasts build on earlier ones",
                InputWarning,
                stacklevel=3,
            )
        return int(given)

    def _levels(self, given: Sequence[float] | None) -> list[float]:
        if given is None:
            return list(self.model.config.quantile_levels or [])
        levels = [float(level) for level in given]
        if levels:
            check_quantile_levels(levels)
            if not self.core.has_quantiles:
                raise InputError("this run has neither a quantile head nor a calibration: calibrate it first")
        return levels

    def _refitted(self, panel: Panel) -> PanelForecaster:
        import tempfile

        own = {name: value for name, value in self.settings.items() if name not in _OF_THE_PANEL}
        with tempfile.TemporaryDirectory(prefix="llata_fast_") as folder:
            return Forecaster.fit(panel, output_dir=Path(folder, "run"), device=self.model.device, **own).core


_OF_THE_PANEL = (
    *("dataset", "id_column", "target", "columns", "date_column", "data_dir", "missing", "output_dir"),
    *COVARIATES,
)


def _as_panel(panel: Any) -> Panel:
    if isinstance(panel, TimeSeries):
        return Panel.of_series(panel)
    if not isinstance(panel, Panel):
        raise InputError(f"fit takes a Panel, got {type(panel).__name__}: make one with Panel.from_df(df, ...)")
    return panel


def _without_negatives(table: pd.DataFrame) -> pd.DataFrame:
    """The forecasts, points and quantiles, with values below 0 replaced by 0."""
    numbers = list(table.columns[table.columns.get_loc(POINTS) :])
    return table.assign(**{name: table[name].clip(lower=0) for name in numbers})


def _warn_of_unknown(panel: Panel, unknown: list):
    if unknown:
        names = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        warnings.warn(
            f"{panel.name}: no forecast for {len(unknown)} item{'s' if len(unknown) > 1 else ''}, because the context "
            f"has no observed value of a target: {names}",
            InputWarning,
            stacklevel=4,
        )
