"""The paper's protocols: every model on every window, a row a run in a CSV, and a table made from it.

    python -m llata_fast benchmark long_term --datasets ETTh1 --seeds 2021 2022 2023
    python -m llata_fast benchmark few_shot --datasets ETTh1 --percents 5 10
    python -m llata_fast benchmark zero_shot --datasets ETTh1 --targets ETTm1 ETTm2
    python -m llata_fast benchmark short_term --datasets Hourly

Rows that the CSV holds are not done again, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import json
import os
import platform
from functools import lru_cache
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..data import DATASETS, Splits, TimeSeries, evaluation_windows, get_dataset, read_series, split_windows
from ..data.m4 import M4_SPECS, read_m4
from ..errors import InputError
from ..evaluation import m4_scores as m4_scoring
from ..evaluation.baselines import score, seasonal_naive
from ..evaluation.cost_picture import plot_costs
from ..evaluation.protocols import BASELINES, HORIZONS, PROTOCOLS, REFERENCE_NOTE, Results, Run, markdown, plan
from ..experiment import forecast_of, train_on
from ..forecasting.pictures import HAS_MATPLOTLIB
from ..linear import LeastSquares
from ..modeling import LlataForPrediction
from ..settings import ABLATIONS, RECIPES
from ..training.arguments import parse_arguments
from ..training.m4 import train_on_m4
from ..training.run import check_can_be_made

# of the paper's long-term, few-shot and zero-shot tables, whatever a data set's preset prefers
CONTEXT_LENGTH = 96

# the recipe without one of the options that the paper does not have
_WITHOUT = {
    # at the rate at which it does best then
    "no_skip": "--linear_skip false --skip_per_channel false --skip_level 0 --zero_head false "
    "--learning_rate 0.001 --projection_learning_rate 0.001",
    "shared_skip": "--skip_per_channel false",
    "no_level": "--skip_level 0",
    "random_head": "--zero_head false",
    "no_average": "--average_decay 0",
}
_MODELS = ("llata", *(name for name in ABLATIONS if name != "none"), *_WITHOUT, *BASELINES)
_PROTOCOL_BASELINES = {
    "long_term": BASELINES[:4],
    "few_shot": BASELINES[:4],
    # a map of a channel is none of another series
    "zero_shot": BASELINES[:3],
    "short_term": ("naive2", *BASELINES[:3]),
}


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("protocol", choices=PROTOCOLS, help=f"one of {', '.join(PROTOCOLS)}", metavar="PROTOCOL")
    parser.add_argument("--datasets", nargs="+", help="names; default all of the registry, or every M4 frequency")
    parser.add_argument("--targets", nargs="+", help="zero_shot: data sets to score")
    parser.add_argument("--horizons", nargs="+", type=int, default=HORIZONS, help="steps that are forecast")
    parser.add_argument("--percents", nargs="+", type=float, default=[5.0, 10.0], help="few_shot: shares of training")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=_MODELS,
        metavar="MODEL",
        help=f"of {', '.join(_MODELS)}; default llata and the protocol's baselines",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[2021, 2022, 2023], help="a run of every model that is trained for each"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="tuned", help="the data sets' presets, ours or published")
    parser.add_argument("--reference_protocol", action="store_true", help="drop the last smaller test batch, as it did")
    parser.add_argument("--data_dir", help="folder that holds the data sets' files")
    parser.add_argument("--out", default="bench/results/quality", help="folder of results.csv and the table")
    parser.add_argument("--runs", default="runs/benchmark", help="folder of the runs' folders")


def run(options: argparse.Namespace):
    check_can_be_made(Path(options.out))
    results = Results(Path(options.out, "results.csv"), options.reference_protocol)
    todo = [item for item in _plan(options) if item not in results]
    for item in tqdm(todo, desc=options.protocol, unit="run"):
        results.add(item, **_measure(item, options), machine=_machine(), command=_command(item, options))
    if results.path.exists():
        Path(options.out, "RESULTS.md").write_text(markdown(results.path))
        if HAS_MATPLOTLIB:
            plot_costs(Path(options.out, "costs.png"), results.path)
    print(f"{len(todo)} runs done, {len(results.done)} in {results.path}")


def _plan(options: argparse.Namespace) -> list[Run]:
    short_term = options.protocol == "short_term"
    known = M4_SPECS if short_term else DATASETS
    datasets = options.datasets or list(known)
    if short_term and (unknown := [name for name in datasets if name not in M4_SPECS]):
        raise InputError(f"M4 has no frequency {unknown[0]!r}, only {', '.join(M4_SPECS)}")
    if not short_term:
        datasets = [get_dataset(name).name for name in datasets]
    targets = [get_dataset(name).name for name in options.targets or []]
    if options.protocol == "zero_shot" and not targets:
        raise InputError("zero_shot needs --targets, the data sets to score")
    if options.protocol != "zero_shot" and targets:
        raise InputError(f"--targets is for zero_shot, {options.protocol} scores what it trains on")
    if min(options.horizons) < 1:
        raise InputError(f"--horizons must be at least 1, got {min(options.horizons)}")
    if wrong := [percent for percent in options.percents if not 0 < percent <= 100]:
        raise InputError(f"--percents must be above 0 and at most 100, got {wrong[0]:g}")
    baselines = _PROTOCOL_BASELINES[options.protocol]
    models = options.models or ["llata", *baselines]
    if wrong := [name for name in models if name in BASELINES and name not in baselines]:
        raise InputError(f"{wrong[0]} is no baseline of {options.protocol}")
    runs = plan(
        options.protocol,
        datasets,
        horizons=[0] if short_term else options.horizons,
        models=models,
        seeds=options.seeds,
        recipe=options.recipe,
        percents=options.percents if options.protocol == "few_shot" else [None],
        targets=targets or None,
    )
    if short_term:
        runs = [Run(**vars(item) | {"horizon": M4_SPECS[item.dataset].prediction_length}) for item in runs]
    return runs


def _flags(run: Run) -> list[str]:
    """What `train.py` is told for a run, but for its folders."""
    dataset = f"M4-{run.dataset}" if run.protocol == "short_term" else run.dataset
    flags = ["--dataset", dataset, "--recipe", run.recipe, "--prediction_length", str(run.horizon)]
    short_term = run.protocol == "short_term"
    flags += ["--context_length", str(M4_SPECS[run.dataset].context_length if short_term else CONTEXT_LENGTH)]
    flags += ["--seed", str(run.seed), "--ablation", run.model if run.model in ABLATIONS else "none"]
    flags += _WITHOUT.get(run.model, "").split()
    return flags + ([] if run.percent is None else ["--few_shot_percent", f"{run.percent:g}"])


def _command(run: Run, options: argparse.Namespace) -> str:
    if run.model not in BASELINES and run.protocol in ("long_term", "few_shot"):
        return " ".join(["python train.py", *_flags(run)])
    command = ["python -m llata_fast benchmark", run.protocol, "--datasets", run.dataset, "--models", run.model]
    command += [] if run.protocol == "short_term" else ["--horizons", str(run.horizon)]
    command += ["--targets", run.target] if run.protocol == "zero_shot" else []
    command += [] if run.percent is None else ["--percents", f"{run.percent:g}"]
    command += [] if run.seed is None else ["--recipe", run.recipe, "--seeds", str(run.seed)]
    return " ".join(command + (["--reference_protocol"] if options.reference_protocol else []))


def _measure(run: Run, options: argparse.Namespace) -> dict:
    if run.protocol == "short_term":
        return _measure_m4(run, options)
    series = _series(run.dataset, options.data_dir)
    context_length = CONTEXT_LENGTH
    try:
        splits = split_windows(series, context_length, run.horizon, few_shot_percent=run.percent)
    except InputError as error:
        return {"note": f"not trainable: {error}"}
    scored = splits.test
    if run.target != run.dataset:
        scored, _ = evaluation_windows(_series(run.target, options.data_dir), context_length, run.horizon)
    if run.model in BASELINES:
        forecast, measures = _baseline(run, _series(run.target, options.data_dir), splits), {}
    else:
        forecast, measures = _trained(run, options, series, splits)
    columns = _series(run.target, options.data_dir).columns
    windows, note = len(scored), ""
    batch_size = 1024
    if options.reference_protocol:
        batch_size = parse_arguments(["--dataset", run.dataset, "--recipe", "paper"])[2].batch_size
        windows = windows // batch_size * batch_size
        note = f"{REFERENCE_NOTE}: {len(scored) - windows} windows left out"
    scores = score(forecast, scored, columns, batch_size, drop_last=options.reference_protocol)
    return measures | {"mse": scores["mse"], "mae": scores["mae"], "windows": windows, "note": note}


def _baseline(run: Run, target: TimeSeries, splits: Splits):
    if run.model == "seasonal_naive":
        return seasonal_naive(target.seasonality, run.horizon)
    return LeastSquares(run.model == "linear_per_channel", centred=run.model != "dlinear").fit(splits.train)


def _trained(run: Run, options: argparse.Namespace, series: TimeSeries, splits: Splits):
    """The run's forecast and its costs; a run whose folder is finished is read, not trained again."""
    folder = Path(options.runs, run.folder)
    finished = folder / "metrics.json"
    if finished.exists():
        model, metrics = LlataForPrediction.from_pretrained(folder), json.loads(finished.read_text())
    else:
        model, metrics = train_on(series, splits, *_arguments(run, options, folder))
    return forecast_of(model.eval()), _costs(metrics)


def _arguments(run: Run, options: argparse.Namespace, folder: Path):
    flags = [*_flags(run), "--output_dir", str(folder), "--overwrite_output_dir", "true"]
    flags += ["--disable_tqdm", "true", "--report_to", "none"]
    return parse_arguments(flags + ([] if options.data_dir is None else ["--data_dir", options.data_dir]))


def _costs(metrics: dict) -> dict:
    counts, trained = metrics["parameters"], metrics["train"]
    return {
        "trained_parameters": counts["trained"],
        "frozen_parameters": counts.get("frozen", 0),
        "seconds": round(trained["seconds"], 1),
        "validation_mse": trained.get("best_mse"),
    }


def _measure_m4(run: Run, options: argparse.Namespace) -> dict:
    m4 = read_m4(run.dataset, options.data_dir)
    measures = {"windows": len(m4.names)}
    if run.model not in BASELINES:
        metrics = train_on_m4(m4, *_arguments(run, options, Path(options.runs, f"M4-{run.folder}")))
        return measures | _costs(metrics) | metrics["test"]
    forecasts = {
        "naive2": m4_scoring.naive2_forecasts,
        "seasonal_naive": m4_scoring.seasonal_naive_forecasts,
        "linear": lambda m4: m4_scoring.linear_forecasts(m4, centred=True),
        "dlinear": lambda m4: m4_scoring.linear_forecasts(m4, centred=False),
    }
    return measures | m4_scoring.m4_scores(forecasts[run.model](m4), m4)


@lru_cache(maxsize=4)
def _series(name: str, data_dir: str | None) -> TimeSeries:
    return read_series(name, data_dir=data_dir)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
