"""Build, describe and synthesize corpora for pre-training.

`corpus build SOURCE... --output DIR` writes the series of tables, Monash .tsf files, gluonts JSON lines, Chronos'
datasets and other corpora into one folder; `corpus info DIR` prints what a corpus holds, and can draw it; `corpus
synthesize` generates artificial series.
"""

import argparse
import json
import os
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data.corpora import CorpusInfo


def add_arguments(parser: argparse.ArgumentParser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", help="what to do")
    build = _action(actions, "build", "write sources as one corpus", _build)
    build.add_argument("sources", nargs="+", metavar="SOURCE", help="file, folder or named dataset")
    build.add_argument("--output", required=True, help="folder to write")
    build.add_argument("--multivariate", action="store_true", help="keep a source's channels together as one series")
    build.add_argument("--id_column", help="id column of long tables; without it, tables are read as wide")
    build.add_argument("--date_column", help="date column of tables; default as in train.py")
    build.add_argument("--columns", nargs="+", help="value columns of tables; default: all but the date")
    build.add_argument("--data_dir", help="folder of named datasets; default $LLATA_DATA, else the cache")
    build.add_argument("--freq", help="time step of sources that state none, for instance h or W-SUN")
    info = _action(actions, "info", "print what a corpus holds", _info)
    info.add_argument("corpora", nargs="+", metavar="CORPUS", help="folder of a corpus")
    info.add_argument("--json", action="store_true", help="print one JSON object per line")
    info.add_argument("--picture", help="PNG file for a plot of the corpus's first series")
    made = _action(actions, "synthesize", "write a corpus of artificial series", _synthesize)
    made.add_argument("--output", required=True, help="folder to write")
    made.add_argument("--num_series", type=int, default=10_000, help="number of series")
    made.add_argument("--length", type=int, default=1024, help="time steps per series")
    made.add_argument("--seed", type=int, default=0, help="series n depends only on the seed and n")
    made.add_argument("--kinds", nargs="+", metavar="KIND", help="kinds, in equal shares; default all possible")
    made.add_argument("--mix", nargs="+", default=[], metavar="CORPUS", help="corpora that mixup draws from")
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of processes; changes no result")


def _action(actions, name: str, doc: str, function) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=doc, description=doc, allow_abbrev=False)
    parser.set_defaults(run_action=function)
    return parser


def main(options: argparse.Namespace):
    options.run_action(options)


def _build(options: argparse.Namespace):
    from ..data.corpus_builder import build_corpus
    from ..data.corpus_sources import SourceOptions

    columns = None if options.columns is None else tuple(options.columns)
    total = build_corpus(
        options.sources,
        options.output,
        multivariate=options.multivariate,
        options=SourceOptions(options.date_column, columns, options.id_column, options.data_dir, options.freq),
        progress=True,
    )
    print(f"{total:,} series: {options.output}")


def _info(options: argparse.Namespace):
    from ..data.corpus_cache import open_any_corpus
    from ..data.corpus_pictures import draw_series
    from .inputs import check_writable

    for path in options.corpora:
        info = open_any_corpus(path).info()
        print(json.dumps({"corpus": str(path)} | asdict(info)) if options.json else f"{path}\n{_text(info)}")

    if options.picture:
        check_writable(options.picture, "")
        draw_series(open_any_corpus(options.corpora[0]), options.picture)
        print(f"picture: {options.picture}")


def _synthesize(options: argparse.Namespace):
    from ..data.synthetic import SyntheticSettings, synthesize

    kinds = None if options.kinds is None else tuple(options.kinds)
    settings = SyntheticSettings(options.num_series, options.length, options.seed, kinds, tuple(options.mix))
    began = time.perf_counter()
    total = synthesize(settings, options.output, jobs=options.jobs, progress=True)
    rate = total / (time.perf_counter() - began)
    print(f"{total:,} series of {options.length:,} steps, {rate:,.0f} a second: {options.output}")


def _text(info: "CorpusInfo") -> str:
    frequencies = ", ".join(f"{name} ({count:,})" for name, count in info.frequencies.items())
    lines = {
        "series": f"{info.series:,} of {info.channels:,} channels"
        + (f", {info.empty_series:,} without a value" if info.empty_series else ""),
        "steps": f"{info.steps:,}, {info.shortest:,} to {info.longest:,} a channel",
        "frequencies": frequencies,
        "missing": f"{info.missing:.2%}",
        "hash": info.hash,
    }
    return "\n".join(f"  {name:<11} {value}" for name, value in lines.items())
