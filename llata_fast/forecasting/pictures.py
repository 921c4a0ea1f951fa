"""Plots of forecasts."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError, InputWarning

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
_MAX_CHANNELS = 7


def check_matplotlib():
    """Raise InputError if matplotlib is not installed."""
    if not HAS_MATPLOTLIB:
        raise InputError("a picture needs matplotlib: pip install llata-fast[plot]")


def plot_forecast(
    path: str | Path,
    *,
    history: pd.DataFrame,
    forecasts: dict[str, pd.DataFrame],
    truth: pd.DataFrame | None = None,
    fan: list[tuple[pd.DataFrame, pd.DataFrame]] | None = None,
    title: str = "",
) -> bool:
    """Draw one panel per channel: the history, the forecasts, and the truth if it is known.

    Args:
        path: PNG to write.
        history, truth: indexed by date, one column per channel, in the units of the series.
        forecasts: name -> forecast, shaped like `truth`; the first one is emphasised.
        fan: intervals of the first forecast as (lower, upper), each shaped like `truth`, the widest first.

    Returns:
        Whether it was drawn. A failure is only a warning, as the work before it must not be lost.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_matplotlib()
    try:
        _draw(path, history, forecasts, truth, fan or [], title)
    except Exception as error:
        warnings.warn(f"{path} could not be drawn: {type(error).__name__}: {error}", InputWarning, stacklevel=2)
        return False
    return True


def _draw(
    path: str | Path,
    history: pd.DataFrame,
    forecasts: dict[str, pd.DataFrame],
    truth: pd.DataFrame | None,
    fan: list[tuple[pd.DataFrame, pd.DataFrame]],
    title: str,
):
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    columns = list(history.columns)[:_MAX_CHANNELS]
    figure = Figure(figsize=(11, 1.2 + 2.2 * len(columns)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(columns), sharex=True))
    for axis, column in zip(axes, columns, strict=True):
        axis.plot(history.index, history[column], color="0.45", linewidth=1)
        if truth is not None:
            axis.plot(truth.index, truth[column], color="0.1", linewidth=1.2, label="observed")
        for low, high in fan:
            axis.fill_between(low.index, low[column], high[column], color="C0", alpha=0.15, linewidth=0)
        for order, (name, forecast) in enumerate(forecasts.items()):
            axis.plot(forecast.index, forecast[column], label=name, color=f"C{order}", linewidth=1 if order else 1.8)
        axis.axvline(history.index[-1], color="0.8", linewidth=0.8, zorder=0)
        # a column's name may look like mathtext
        axis.set_ylabel(column, parse_math=False)
        axis.margins(x=0.01)
        axis.spines[["top", "right"]].set_visible(False)
    if isinstance(history.index, pd.DatetimeIndex):
        locator = AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    figure.savefig(path, dpi=130)
