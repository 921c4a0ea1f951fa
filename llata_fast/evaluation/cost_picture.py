"""A plot of a benchmark's results: error against cost."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .protocols import means_over_seeds

_COSTS = {"trained_parameters": "trained parameters", "seconds": "training time, s"}
# points beyond are drawn at the border, with their value beside them
_BORDERS = (0.85, 1.25)


def plot_costs(path: str | Path, results: str | Path):
    """Write a PNG of error against trained parameters and training time for every trained model in a `Results` file.

    Errors are relative to the linear map's in the same table and horizon (for M4: its OWA), so that horizons and
    datasets are comparable. Seeds are averaged to one point. A horizon whose linear map was not scored is left out.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

    rows = errors_over_linear(means_over_seeds(results))
    if rows.empty:
        return
    colours = {table: f"C{index}" for index, table in enumerate(dict.fromkeys(rows["table"]))}
    figure = Figure(figsize=(12, 5), layout="constrained")
    left_axis, right_axis = figure.subplots(1, 2, sharey=True)
    for axis, (column, title) in zip((left_axis, right_axis), _COSTS.items(), strict=True):
        for row in rows.itertuples():
            x, y = getattr(row, column), np.clip(row.relative, *_BORDERS)
            face = colours[row.table] if row.model == "llata" else "none"
            axis.plot(x, y, "o", color=colours[row.table], markerfacecolor=face, markersize=6, clip_on=False)
            # points are too close in size for a label on both axes
            if y != row.relative and axis is right_axis:
                axis.annotate(f"{row.relative:.0%}", (x, y), (5, 5), textcoords="offset points", fontsize=8)
        axis.axhline(1, color="0.6", linewidth=0.8, zorder=0)
        axis.set(xlabel=title, xscale="log", ylim=_BORDERS)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axis.margins(x=0.1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    marks: dict[str, Any] = {"color": "0.4", "marker": "o", "linestyle": ""}
    key = [Line2D([], [], **marks | {"color": colour}, label=table) for table, colour in colours.items()]
    key.append(Line2D([], [], **marks, markerfacecolor="none", label="hollow: an ablation, or without an option"))
    figure.legend(handles=key, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Test error relative to the linear map's, one point per horizon", x=0.01, ha="left", fontsize=11)
    figure.savefig(path, dpi=120)


def errors_over_linear(table: pd.DataFrame) -> pd.DataFrame:
    """The trained rows, with the name of their `table` and `relative`, their error divided by the linear map's."""
    table["error"] = table["mse_mean"].fillna(table["owa_mean"])
    place = ["protocol", "dataset", "target", "percent", "horizon"]
    linear = table.loc[table["model"] == "linear", [*place, "error"]].rename(columns={"error": "linear_error"})
    table = table.merge(linear, on=place).dropna(subset=["error", "seconds"])
    table["relative"] = table["error"] / table["linear_error"]
    table["table"] = [
        f"{row.protocol}: {row.dataset}"
        + (f" to {row.target}" if row.target != row.dataset else "")
        + (f", {row.percent:g} %" if row.percent != "" else "")
        for row in table.itertuples()
    ]
    return table
