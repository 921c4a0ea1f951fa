"""The report's figures as SVG text, inlined in the page: nothing is fetched, and no label is parsed as markup."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from .measures import REPORTED_LEVELS, Errors, Example, Features, mean_of_known

# inches, chosen so that text has nearly its own size on a phone and that of the page on a desktop
_WIDTH = 5.4
_MAX_CHANNELS, _MAX_BARS, _MAX_DEPTHS = 8, 30, 4
_FAN = {"80 %": (0.1, 0.9, 0.15), "50 %": (0.25, 0.75, 0.3)}
_STYLE: Any = {
    "text.parse_math": False,
    # text stays text: the file is smaller, and the page's search finds it
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
def _figure(height: float, svg: list[str], width: float = _WIDTH) -> Iterator[Any]:
    """Yield a figure (size in inches), and append its SVG text to `svg` at the end."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    # drop the XML header, which belongs only to stand-alone files
    svg.append(text[text.index("<svg") :])


def losses(records: list[dict[str, Any]]) -> str | None:
    """Loss terms and validation MSE over steps; None if nothing was logged."""
    names = {"loss": "loss"} | {f"{term}_loss": term for term in ("task", "quantile", "consistency", "alignment")}
    lines = {label: _points(records, name) for name, label in names.items()}
    lines["validation MSE"] = _points(records, "eval_mse")
    lines = {label: points for label, points in lines.items() if len(points)}
    if not lines:
        return None
    from matplotlib.ticker import LogFormatter

    svg: list[str] = []
    with _figure(3.2, svg) as figure:
        axis = figure.subplots()
        for label, points in lines.items():
            mark = "o-" if label == "validation MSE" else "-"
            axis.plot(points[:, 0], points[:, 1], mark, label=label, linewidth=1.4, markersize=4)
        # a term that is exactly 0 at first cannot be drawn on a logarithmic axis
        axis.set_yscale("log", nonpositive="mask")
        # the default labels of such an axis are formulas, which this page does not render
        axis.yaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.5, 0.5)))
        _whole_steps(axis)
        axis.set(xlabel="step", ylabel="loss")
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return svg[0]


def _points(records: list[dict[str, Any]], name: str) -> np.ndarray:
    pairs = [(record["step"], record[name]) for record in records if isinstance(record.get(name), (int, float))]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def error_by_step(errors: Errors, columns: list[str]) -> str:
    """Mean absolute error over the horizon: one line per channel, and one for all."""
    svg: list[str] = []
    with _figure(3.2, svg) as figure:
        axis = figure.subplots()
        steps = np.arange(1, len(errors.by_step) + 1)
        if len(columns) > 1:
            for channel, name in enumerate(columns[:_MAX_CHANNELS]):
                axis.plot(steps, errors.by_step[:, channel], linewidth=1, label=name)
        axis.plot(steps, mean_of_known(errors.by_step), color="0.1", linewidth=2, label="all")
        axis.set(xlabel="step of the horizon", ylabel="mean absolute error")
        _whole_steps(axis)
        axis.set_ylim(bottom=0)
        if len(columns) > 1:
            figure.legend(loc="outside upper left", ncols=3, frameon=False)
    return svg[0]


def _whole_steps(axis: Any):
    """Ticks only at whole steps."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def error_by_name(named: list[tuple[str, float]]) -> str:
    """Mean absolute error of each channel or item in the given order, at most thirty."""
    named = named[:_MAX_BARS]
    svg: list[str] = []
    with _figure(0.9 + 0.26 * len(named), svg) as figure:
        axis = figure.subplots()
        axis.barh(range(len(named)), [error for _, error in named], color="#5b8db8", height=0.7)
        axis.set_yticks(range(len(named)), [_cut(name) for name, _ in named])
        axis.invert_yaxis()
        axis.set(xlabel="mean absolute error")
        axis.grid(axis="y", visible=False)
    return svg[0]


def by_channel(errors: Errors, columns: list[str]) -> list[tuple[str, float]]:
    """(channel, error), the worst first."""
    means = mean_of_known(errors.by_step.T)
    order = np.argsort(-np.nan_to_num(means))
    return [(columns[channel], float(means[channel])) for channel in order]


def _cut(name: str, longest: int = 40) -> str:
    """A name, cut so that it leaves room for the plot."""
    return name if len(name) <= longest else name[: longest - 3] + "..."


def calibration(below: np.ndarray) -> str:
    """Share of true values below each quantile, against its level; well calibrated intervals lie on the diagonal."""
    svg: list[str] = []
    with _figure(4.4, svg, 4.4) as figure:
        axis = figure.subplots()
        axis.plot((0, 1), (0, 1), color="0.6", linewidth=1, linestyle="--", label="ideal")
        axis.plot(REPORTED_LEVELS, below, "o-", color="#d1495b", markersize=4, linewidth=1.6, label="on these windows")
        axis.set(xlabel="level of the quantile", ylabel="share of the values below it", xlim=(0, 1), ylim=(0, 1))
        axis.set_aspect("equal")
        axis.legend(frameon=False, loc="upper left")
    return svg[0]


def example(window: Example, columns: list[str]) -> str:
    """A window's channels below each other: lookback, truth, forecast and its interval."""
    shown = columns[:_MAX_CHANNELS]
    before = min(len(window.history), 3 * len(window.truth))
    past, ahead = np.arange(-before, 0), np.arange(len(window.truth))
    svg: list[str] = []
    with _figure(0.8 + 1.4 * len(shown), svg) as figure:
        axes = np.atleast_1d(figure.subplots(len(shown), sharex=True))
        for channel, (axis, name) in enumerate(zip(axes, shown, strict=True)):
            if window.quantiles is not None:
                for share, (low, high, alpha) in _FAN.items():
                    ends = (window.quantiles[:, channel, REPORTED_LEVELS.index(level)] for level in (low, high))
                    axis.fill_between(ahead, *ends, color="#d1495b", alpha=alpha, linewidth=0, label=share)
            axis.plot(past, window.history[-before:, channel], color="0.55", linewidth=1)
            axis.plot(ahead, window.truth[:, channel], color="0.1", linewidth=1.2, label="observed")
            axis.plot(ahead, window.forecast[:, channel], color="#d1495b", linewidth=1.8, label="forecast")
            axis.set_ylabel(_cut(name, 24))
        axes[-1].set_xlabel("steps after the start of the forecast")
        _whole_steps(axes[-1])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False)
    return svg[0]


def distances(features: Features) -> str:
    """The distance between both branches at every depth, before and after training."""
    svg: list[str] = []
    with _figure(2.8, svg) as figure:
        axis = figure.subplots()
        for name, values in features.distance.items():
            axis.plot(range(len(values)), values, "o-", label=f"{name} training", markersize=4)
        axis.set(xlabel="depth", ylabel="distance / length", xticks=range(len(values)))
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False)
    return svg[0]


def planes(features: Features) -> str:
    """Both branches' tokens at several depths, from first to last: one row before training, one after."""
    count = len(features.planes["before"])
    depths = np.unique(np.linspace(0, count - 1, min(count, _MAX_DEPTHS)).round().astype(int))
    svg: list[str] = []
    with _figure(3.2, svg) as figure:
        axes = figure.subplots(2, len(depths), squeeze=False)
        for row, (name, pairs) in zip(axes, features.planes.items(), strict=True):
            for axis, depth in zip(row, depths, strict=True):
                time, text = pairs[depth]
                axis.scatter(*time.T, s=6, color="#c26a1a", label="temporal")
                axis.scatter(*text.T, s=6, color="#2c6fa6", label="textual")
                axis.set(title=f"depth {depth}", xticks=[], yticks=[])
            row[0].set_ylabel(name)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False)
    return svg[0]
