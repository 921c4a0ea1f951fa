"""A forecaster with sktime's interface: https://www.sktime.net (BSD-3).

    >>> forecaster = LlataForecaster(settings={"backbone": "backbone", "max_steps": 200})
    >>> forecaster.fit(y, fh=[1, 2, 3])
    >>> forecaster.predict(), forecaster.predict_interval(coverage=0.8)

Handles univariate and multivariate series, panels and hierarchies; one model is trained on all series of a panel.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sktime.forecasting.base import BaseForecaster

from ..data.panel import Panel
from ..errors import InputError
from ..forecasting.forecaster import Forecaster
from .arrays import forecast_arrays


class LlataForecaster(BaseForecaster):
    """LLaTA in sktime: `fit` trains a run, or loads a finished one.

    Args:
        run: folder or hub id of a finished run, which forecasts series that it was not trained on; None trains in
        `fit`.
        context_length: rows of the lookback; default three horizons, or fewer for short series. A run has its own.
        quantile_levels: levels of a quantile head; without one, intervals come from the calibration alone.
        settings: options of `train.py` by name, such as `backbone` and `max_steps`; not with a `run`.
        device: default: the GPU if there is one.

    Examples:
        >>> from llata_fast.adapters.sktime import LlataForecaster
        >>> LlataForecaster(context_length=24, settings={"max_steps": 200}).get_params()["context_length"]
        24
    """

    _tags = {
        "authors": ["llata_fast developers"],
        "maintainers": ["llata_fast developers"],
        "capability:multivariate": True,
        "capability:exogenous": False,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:missing_values": True,
        "capability:update": True,
        "y_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "X_inner_mtype": ["pd.DataFrame", "pd-multiindex", "pd_multiindex_hier"],
        "requires-fh-in-fit": True,
    }
    # the forecaster keeps the data itself, so sktime need not
    _config = {"remember_data": False}

    def __init__(
        self,
        run: str | None = None,
        context_length: int | None = None,
        quantile_levels: list[float] | None = None,
        settings: dict[str, Any] | None = None,
        device: str | None = None,
    ):
        self.run = run
        self.context_length = context_length
        self.quantile_levels = quantile_levels
        self.settings = settings
        self.device = device
        super().__init__()
        # where sktime stores the data if its user asks for that
        self._y = self._X = None
        if run is not None:
            # the run has its own horizon
            self.set_tags(**{"requires-fh-in-fit": False})

    def _fit(self, y: pd.DataFrame, X: Any = None, fh: Any = None) -> "LlataForecaster":
        self.y_ = y
        if self.run is not None:
            if given := [name for name in ("context_length", "quantile_levels", "settings") if getattr(self, name)]:
                raise InputError(f"{given[0]}: a finished run has its own")
            self.forecaster_ = Forecaster.from_pretrained(self.run, device=self.device)
            return self
        horizon = int(max(fh.to_relative(self.cutoff).to_numpy()))
        longest = max(len(series) for series in _series(y).values())
        context = self.context_length or max(2, min(3 * horizon, longest - horizon))
        with tempfile.TemporaryDirectory(prefix="llata_fast_") as folder:
            self.forecaster_ = Forecaster.fit(
                _panel(y),
                prediction_length=horizon,
                context_length=context,
                quantile_levels=self.quantile_levels,
                output_dir=Path(folder, "run"),
                device=self.device,
                **({"report_to": "none", "disable_tqdm": True} | (self.settings or {})),
            )
        return self

    def _update(self, y: pd.DataFrame, X: Any = None, update_params: bool = True) -> "LlataForecaster":
        """Use the new rows in later forecasts; the weights stay unchanged."""
        rows = pd.concat([self.y_, y])
        self.y_ = rows[~rows.index.duplicated(keep="last")].sort_index()
        return self

    def _predict(self, fh: Any, X: Any = None) -> pd.DataFrame:
        points, _ = self._forecast(fh, [])
        return pd.DataFrame(points.reshape(-1, points.shape[-1]), self._index(fh), self.y_.columns)

    def _predict_quantiles(self, fh: Any, X: Any, alpha: list[float]) -> pd.DataFrame:
        if not self.forecaster_.core.has_quantiles:
            raise InputError(f"{self.run or 'this run'} has neither a quantile head nor a calibration")
        _, quantiles = self._forecast(fh, alpha)  # [items, steps, C, levels]
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.DataFrame(quantiles.reshape(-1, len(columns)), self._index(fh), columns)

    def _forecast(self, fh: Any, levels: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """Points [items, steps, C] and quantiles [items, steps, C, levels] at the steps of `fh`."""
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int)
        series = list(_series(self.y_).values())
        results = forecast_arrays(self.forecaster_, series, int(steps.max()), levels)
        points, quantiles = (values[:, steps - 1] for values in results)
        return points, quantiles

    def _index(self, fh: Any) -> pd.Index:
        if not isinstance(self.y_.index, pd.MultiIndex):
            return fh.to_absolute_index(self.cutoff)
        # sktime infers the step of a panel's dates only if they carry a frequency
        panel = _panel(self.y_)
        last = self.y_.index.droplevel(-1).factorize()[0][self.y_.index.get_level_values(-1).argmax()]
        steps = fh.to_relative(self.cutoff).to_numpy().astype(int)
        dates = panel.dates(np.full(len(steps), last), panel.lengths[last] - 1 + steps)
        rows = [(*_tuple(item), date) for item in _series(self.y_) for date in dates]
        return pd.MultiIndex.from_tuples(rows, names=self.y_.index.names)

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Short trainings (a second each) around a random decoder, whose configuration is written for them."""
        from transformers import LlamaConfig

        folder = Path(tempfile.gettempdir(), "llata_fast_sktime")
        sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 20}
        LlamaConfig(num_hidden_layers=1, **sizes).save_pretrained(folder)
        tiny = {
            "backbone": f"random:{folder / 'config.json'}",
            "num_layers": 1,
            "num_prototypes": 4,
            "intermediate_size": 8,
            "max_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "precision": "fp32",
        }
        return [
            {"context_length": 6, "settings": tiny},
            {"context_length": 4, "quantile_levels": [0.1, 0.5, 0.9], "settings": tiny | {"seed": 1}},
        ]


def _tuple(item: Any) -> tuple:
    return item if isinstance(item, tuple) else (item,)


def _series(y: pd.DataFrame) -> dict[Any, np.ndarray]:
    """Item -> values [rows, C] on the panel's dates up to the item's last one, NaN where it has none."""
    if not isinstance(y.index, pd.MultiIndex):
        return {None: y.to_numpy(dtype=np.float64)}
    dates = y.index.get_level_values(-1).unique().sort_values()
    above = list(range(y.index.nlevels - 1))
    found = {}
    for item, rows in y.groupby(level=above if len(above) > 1 else 0, sort=False):
        rows = rows.droplevel(above)
        found[item] = rows.reindex(dates[dates >= rows.index.min()]).to_numpy(dtype=np.float64)
    return found


def _panel(y: pd.DataFrame) -> Panel:
    """The series as a panel on their own dates; items are numbered, and channels are named by position."""
    targets = [f"channel_{place}" for place in range(y.shape[1])]
    table = y.set_axis(targets, axis=1)
    items: Any = 0
    if isinstance(y.index, pd.MultiIndex):
        items = y.index.droplevel(-1).factorize()[0]
    table = table.assign(item_id=items, timestamp=y.index.get_level_values(-1)).reset_index(drop=True)
    return Panel.from_df(table, "item_id", "timestamp", targets, name="sktime")
