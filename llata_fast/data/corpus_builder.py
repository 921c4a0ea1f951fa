"""Build a corpus from several sources."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError
from .corpora import OPTIONAL
from .corpus_sources import SourceOptions, read_source
from .corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards

_log = logging.getLogger(__name__)


def build_corpus(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    multivariate: bool = False,
    options: SourceOptions | None = None,
    progress: bool = False,
) -> int:
    """Write the series of all `sources` to the folder `output`; returns the number of rows written.

    A source of C channels becomes C rows, named "item/channel", or with `multivariate` one row [C, T]. Series without
    any value are left out and counted in the log. A covariate is kept only if every source has it.

    Raises:
        InputError: a source cannot be read, `output` exists, or no series is left; nothing is written then.
    """
    if not sources:
        raise InputError("a corpus needs at least one source")
    options = options or SourceOptions()
    opened = [read_source(source, options) for source in sources]
    # only with undivided series: after a split, every channel would repeat all covariates
    kept = [name for name in OPTIONAL if all(name in covariates for _, covariates in opened)] if multivariate else []
    layout = CorpusLayout(multivariate, tuple(kept))
    empty = 0

    def rows() -> Iterator[CorpusSeries]:
        nonlocal empty
        for series, _ in opened:
            for one in series:
                for row in [one] if multivariate else _channels(one):
                    if np.isnan(row.target).all():
                        empty += 1
                    else:
                        yield row

    with new_corpus(output, layout) as folder:
        total = write_shards(folder, "data", tqdm(rows(), unit="series", disable=not progress), layout)
    if empty:
        _log.warning("%s: left out %s series without a value", output, f"{empty:,}")
    return total


def _channels(series: CorpusSeries) -> Iterator[CorpusSeries]:
    for channel, values in enumerate(series.target):
        name = series.item_id
        if series.channel_names or len(series.target) > 1:
            name += f"/{series.channel_names[channel] if series.channel_names else channel}"
        yield replace(series, item_id=name, target=values[None])
