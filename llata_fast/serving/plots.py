"""Pictures of forecasts."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError

HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
_MAX_CHANNELS = 7


def check_matplotlib():
    """Raise InputError where matplotlib is not installed."""
    if not HAS_MATPLOTLIB:
        raise InputError("a picture needs matplotlib: pip install llata-fast[plot]")


def plot_forecast(
    path: str | Path,
    *,
    history: pd.DataFrame,
    forecasts: dict[str, pd.DataFrame],
    truth: pd.DataFrame | None = None,
    title: str = "",
):
    """One panel a channel: what came before, what was forecast, and what came where it is known.

    Args:
        path: PNG to write.
        history, truth: indexed by date, a column a channel, in the units of the series.
        forecasts: name -> forecast, like `truth`; the first is drawn strongest.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
    from matplotlib.figure import Figure

    columns = list(history.columns)[:_MAX_CHANNELS]
    figure = Figure(figsize=(11, 1.2 + 2.2 * len(columns)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(columns), sharex=True))
    for axis, column in zip(axes, columns, strict=True):
        axis.plot(history.index, history[column], color="0.45", linewidth=1)
        if truth is not None:
            axis.plot(truth.index, truth[column], color="0.1", linewidth=1.2, label="observed")
        for order, (name, forecast) in enumerate(forecasts.items()):
            axis.plot(forecast.index, forecast[column], label=name, color=f"C{order}", linewidth=1 if order else 1.8)
        axis.axvline(history.index[-1], color="0.8", linewidth=0.8, zorder=0)
        axis.set_ylabel(column)
        axis.margins(x=0.01)
        axis.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=130)


def plot_costs(path: str | Path, results: str | Path):
    """A benchmark's `results.csv` as a PNG: every run's error against trained parameters and training time."""
    check_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    table = pd.read_csv(results).dropna(subset=["mse", "seconds"])
    if table.empty:
        return
    table["panel"] = table["protocol"] + " " + table["dataset"]
    panels = list(dict.fromkeys(table["panel"]))
    figure = Figure(figsize=(12, 4 * len(panels)), layout="constrained")
    rows_of_axes = figure.subplots(len(panels), 2, sharey="row", squeeze=False)
    colours = {model: f"C{index}" for index, model in enumerate(dict.fromkeys(table["model"]))}
    markers = dict(zip(sorted(table["horizon"].unique()), "os^Dv<>pP*", strict=False))
    for axes, panel in zip(rows_of_axes, panels, strict=True):
        rows = table[table["panel"] == panel]
        for axis, (column, title) in zip(
            axes, {"trained_parameters": "trained parameters", "seconds": "training time, s"}.items(), strict=True
        ):
            for (model, horizon), group in rows.groupby(["model", "horizon"], sort=False):
                style = {"color": colours[model], "marker": markers.get(horizon, "x")}
                axis.scatter(group[column], group["mse"], s=22, label=f"{model}, horizon {horizon}", **style)
            axis.set(xlabel=title, xscale="log", title=panel)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(EngFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("test MSE")
        axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
