"""Plot a page of a corpus's series, to inspect before training."""

from pathlib import Path

import numpy as np

from ..errors import InputError
from .corpora import Corpus
from .mixture import evenly


def draw_series(corpus: Corpus, path: str | Path, *, rows: int = 8, columns: int = 4, steps: int = 1024):
    """Write a PNG of rows * columns channels, evenly spaced in the corpus, with the first `steps` of each.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("a picture needs matplotlib: pip install llata-fast[plot]") from None
    chosen = evenly(np.arange(len(corpus)), rows * columns)
    names, frequencies = corpus.column("item_id"), corpus.frequencies()
    figure = Figure(figsize=(3.2 * columns, 1.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    for axis, series in zip(axes, chosen, strict=False):
        row = corpus.first_row[series]
        values = corpus.gather(row[None], np.zeros(1, np.int64), int(min(steps, corpus.lengths[row])))[0]
        axis.plot(values, linewidth=0.7)
        # a series name may look like mathtext
        axis.set_title(f"{names[series].as_py()}, {frequencies[series]}", fontsize=7, parse_math=False)
        axis.tick_params(labelsize=5)
        axis.margins(x=0)
    figure.savefig(path, dpi=100, format="png")
