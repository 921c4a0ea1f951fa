"""The report's pictures as SVG text: inlined in the page, nothing fetched, no label parsed as markup."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from .measures import Errors, Example, Features

_MAX_CHANNELS = 8
_STYLE = {
    "text.parse_math": False,
    # letters stay letters: smaller, and found by a page's search
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}


@contextlib.contextmanager
def _figure(width: float, height: float, svg: list[str]) -> Iterator[Any]:
    """A figure in inches, appended to `svg` as text at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # what stands before belongs to a file of its own
    svg.append(text[text.index("<svg") :])


def losses(records: list[dict[str, Any]]) -> str | None:
    """Loss terms over steps, and the validation's MSE; None where nothing was logged."""
    names = {"loss": "loss", "task_loss": "task", "consistency_loss": "consistency", "alignment_loss": "alignment"}
    lines = {label: _points(records, name) for name, label in names.items()}
    lines["validation MSE"] = _points(records, "eval_mse")
    lines = {label: points for label, points in lines.items() if len(points)}
    if not lines:
        return None
    svg: list[str] = []
    with _figure(8, 3.4, svg) as figure:
        axis = figure.subplots()
        for label, points in lines.items():
            mark = "o-" if label == "validation MSE" else "-"
            axis.plot(points[:, 0], points[:, 1], mark, label=label, linewidth=1.4, markersize=4)
        # a term that is exactly 0 at first has no place on it
        axis.set_yscale("log", nonpositive="mask")
        axis.set(xlabel="step", ylabel="loss")
        figure.legend(loc="outside upper center", ncols=len(lines), frameon=False)
    return svg[0]


def _points(records: list[dict[str, Any]], name: str) -> np.ndarray:
    pairs = [(record["step"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def error_by_step(errors: Errors, columns: list[str]) -> str:
    """Mean absolute error over the horizon, a line a channel and one for all."""
    svg: list[str] = []
    with _figure(8, 3.4, svg) as figure:
        axis = figure.subplots()
        steps = np.arange(1, len(errors.by_step) + 1)
        for channel, name in enumerate(columns[:_MAX_CHANNELS]):
            axis.plot(steps, errors.by_step[:, channel], linewidth=1, label=name)
        axis.plot(steps, np.nanmean(errors.by_step, 1), color="0.1", linewidth=2, label="all channels")
        axis.set(xlabel="step of the horizon", ylabel="mean absolute error")
        axis.set_ylim(bottom=0)
        figure.legend(loc="outside right upper", frameon=False)
    return svg[0]


def error_by_channel(errors: Errors, columns: list[str]) -> str:
    """Mean absolute error of every channel, the worst first; of many the first thirty."""
    means = np.nanmean(errors.by_step, 0)
    order = np.argsort(-np.nan_to_num(means))[:30]
    svg: list[str] = []
    with _figure(8, 0.9 + 0.26 * len(order), svg) as figure:
        axis = figure.subplots()
        axis.barh(range(len(order)), means[order], color="#5b8db8", height=0.7)
        axis.set_yticks(range(len(order)), [columns[channel] for channel in order])
        axis.invert_yaxis()
        axis.set(xlabel="mean absolute error")
        axis.grid(axis="y", visible=False)
    return svg[0]


def example(window: Example, columns: list[str]) -> str:
    """A window's channels below one another: what was seen, what came, what was forecast."""
    shown = columns[:_MAX_CHANNELS]
    before = min(len(window.history), 3 * len(window.truth))
    past, ahead = np.arange(-before, 0), np.arange(len(window.truth))
    svg: list[str] = []
    with _figure(8, 0.8 + 1.5 * len(shown), svg) as figure:
        axes = np.atleast_1d(figure.subplots(len(shown), sharex=True))
        for channel, (axis, name) in enumerate(zip(axes, shown, strict=True)):
            axis.plot(past, window.history[-before:, channel], color="0.55", linewidth=1)
            axis.plot(ahead, window.truth[:, channel], color="0.1", linewidth=1.2, label="observed")
            axis.plot(ahead, window.forecast[:, channel], color="#d1495b", linewidth=1.8, label="forecast")
            axis.set_ylabel(name)
        axes[-1].set_xlabel("steps from the forecast's first")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    return svg[0]


def branches(features: Features) -> str:
    """How far apart both branches are at every depth, and their last features on a plane, before and after."""
    svg: list[str] = []
    with _figure(8, 3.4, svg) as figure:
        left, *planes = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
        for name, values in features.distance.items():
            left.plot(range(len(values)), values, "o-", label=name, markersize=4)
        left.set(xlabel="depth", ylabel="distance / length", title="distance of the branches")
        left.set_ylim(bottom=0)
        left.legend(frameon=False)
        for axis, (name, (time, text)) in zip(planes, features.plane.items(), strict=True):
            axis.scatter(*time.T, s=8, color="#c26a1a", label="temporal")
            axis.scatter(*text.T, s=8, color="#2c6fa6", label="textual")
            axis.set(title=f"last depth, {name}", xticks=[], yticks=[])
        handles, labels = planes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return svg[0]
