"""The paper's protocols: every model on every window, one CSV row per trial, and a table made from the CSV.

    python -m llata_fast benchmark long_term --datasets ETTh1 --seeds 2021 2022 2023
    python -m llata_fast benchmark few_shot --datasets ETTh1 --percents 5 10
    python -m llata_fast benchmark zero_shot --datasets ETTh1 --targets ETTm1 ETTm2
    python -m llata_fast benchmark short_term --datasets Hourly

Rows already in the CSV are not repeated, so an interrupted benchmark continues where it stopped.
"""

import argparse

from ..evaluation.protocols import BENCHMARK_BASELINES, HORIZONS, PROTOCOLS, WITHOUT
from ..settings import ABLATIONS, RECIPES

_MODELS = ("llata", *(name for name in ABLATIONS if name != "none"), *WITHOUT, *BENCHMARK_BASELINES)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("protocol", choices=PROTOCOLS, help=f"one of {', '.join(PROTOCOLS)}", metavar="PROTOCOL")
    parser.add_argument("--datasets", nargs="+", help="names; default: the whole registry, or every M4 frequency")
    parser.add_argument("--targets", nargs="+", help="zero_shot: datasets to score")
    parser.add_argument("--horizons", nargs="+", type=int, default=HORIZONS, help="forecast lengths in time steps")
    parser.add_argument("--percents", nargs="+", type=float, default=[5.0, 10.0], help="few_shot: percent of training")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=_MODELS,
        metavar="MODEL",
        help=f"any of {', '.join(_MODELS)}; default: llata and the protocol's baselines",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[2021, 2022, 2023], help="train each trained model once per seed"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="tuned", help="the datasets' presets: ours or published")
    parser.add_argument("--reference_protocol", action="store_true", help="drop the last partial test batch, as it did")
    parser.add_argument("--data_dir", help="folder with the datasets' files")
    parser.add_argument("--out", default="bench/results/quality", help="folder for results.csv and the table")
    parser.add_argument("--runs", default="runs/benchmark", help="folder that collects the runs' folders")


def main(options: argparse.Namespace):
    from ..benchmark import run_benchmark

    count, results = run_benchmark(options)
    print(f"{count} trials done, {len(results.done)} in {results.path}")
