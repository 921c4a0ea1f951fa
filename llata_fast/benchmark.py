"""Runs a benchmark protocol: each trial becomes one row of the CSV from which the tables are made."""

import argparse
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .data import DATASETS, Splits, TimeSeries, evaluation_windows, get_dataset, read_series, split_windows
from .data.m4 import M4_SPECS, read_m4
from .durable import write_text
from .errors import InputError
from .evaluation.baselines import ForecastFunction, score, seasonal_naive
from .evaluation.cost_picture import plot_costs
from .evaluation.m4_scores import m4_scores
from .evaluation.protocols import BENCHMARK_BASELINES, REFERENCE_NOTE, WITHOUT, Results, Trial, markdown, trials
from .evaluation.tasks import M4_BASELINES
from .experiment import Outcome, forecast_of, run_experiment
from .forecasting.pictures import HAS_MATPLOTLIB
from .linear import LeastSquares
from .linear_start import choose_start
from .modeling import LlataForPrediction
from .run_folder import METRICS, RunFolder
from .settings import ABLATIONS
from .training.arguments import choose_settings

# lookback of the paper's long-term, few-shot and zero-shot tables; it overrides a dataset's preset
CONTEXT_LENGTH = 96

_PROTOCOL_BASELINES = {
    "long_term": ("seasonal_naive", "linear", "dlinear", "linear_per_channel", "linear_start"),
    "few_shot": ("seasonal_naive", "linear", "dlinear", "linear_per_channel", "linear_start"),
    # per-channel maps do not transfer to another series
    "zero_shot": ("seasonal_naive", "linear", "dlinear"),
    "short_term": tuple(M4_BASELINES),
}


def run_benchmark(options: argparse.Namespace) -> tuple[int, Results]:
    """Run what the CSV lacks; returns the number of trials done and all results.

    Raises:
        InputError: options that contradict each other, or data that cannot be read.
    """
    RunFolder(options.out).check_can_be_made()
    results = Results(Path(options.out, "results.csv"), options.reference_protocol)
    todo = [item for item in _trials(options) if item not in results]
    for item in tqdm(todo, desc=options.protocol, unit="trial"):
        results.add(item, **_measure(item, options), machine=_machine(), command=_command(item, options))
    if results.path.exists():
        write_text(Path(options.out, "RESULTS.md"), markdown(results.path))
        if HAS_MATPLOTLIB:
            plot_costs(Path(options.out, "costs.png"), results.path)
    return len(todo), results


def _trials(options: argparse.Namespace) -> list[Trial]:
    short_term = options.protocol == "short_term"
    known = M4_SPECS if short_term else DATASETS
    datasets = options.datasets or list(known)
    if short_term and (unknown := [name for name in datasets if name not in M4_SPECS]):
        raise InputError(f"M4 has no frequency {unknown[0]!r}, only {', '.join(M4_SPECS)}")
    if not short_term:
        datasets = [get_dataset(name).name for name in datasets]
    targets = [get_dataset(name).name for name in options.targets or []]
    if options.protocol == "zero_shot" and not targets:
        raise InputError("zero_shot needs --targets, the datasets to score")
    if options.protocol != "zero_shot" and targets:
        raise InputError(f"--targets is for zero_shot only: {options.protocol} scores the dataset that it trains on")
    if min(options.horizons) < 1:
        raise InputError(f"--horizons must be at least 1, got {min(options.horizons)}")
    if wrong := [percent for percent in options.percents if not 0 < percent <= 100]:
        raise InputError(f"--percents must be above 0 and at most 100, got {wrong[0]:g}")
    baselines = _PROTOCOL_BASELINES[options.protocol]
    models = options.models or ["llata", *baselines]
    if wrong := [name for name in models if name in BENCHMARK_BASELINES and name not in baselines]:
        raise InputError(f"{wrong[0]} is no baseline of {options.protocol}")
    found = trials(
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
        found = [Trial(**vars(item) | {"horizon": M4_SPECS[item.dataset].prediction_length}) for item in found]
    return found


def _settings(trial: Trial) -> dict[str, Any]:
    """The trial's settings, keyed by the names of `train.py`'s options, without folders."""
    short_term = trial.protocol == "short_term"
    settings = {
        "dataset": f"M4-{trial.dataset}" if short_term else trial.dataset,
        "recipe": trial.recipe,
        "prediction_length": trial.horizon,
        "context_length": M4_SPECS[trial.dataset].context_length if short_term else CONTEXT_LENGTH,
    }
    ablation = trial.model if trial.model in ABLATIONS else "none"
    settings |= {"seed": trial.seed, "ablation": ablation} | WITHOUT.get(trial.model, {})
    return settings if trial.percent is None else settings | {"few_shot_percent": trial.percent}


def _command(trial: Trial, options: argparse.Namespace) -> str:
    """The command that reproduces the trial, for people to read."""
    if trial.model not in BENCHMARK_BASELINES and trial.protocol != "zero_shot":
        return " ".join(
            ["python train.py", *(f"--{name} {_in_words(value)}" for name, value in _settings(trial).items())]
        )
    command = ["python -m llata_fast benchmark", trial.protocol, "--datasets", trial.dataset, "--models", trial.model]
    command += [] if trial.protocol == "short_term" else ["--horizons", str(trial.horizon)]
    command += ["--targets", trial.target] if trial.protocol == "zero_shot" else []
    command += [] if trial.percent is None else ["--percents", f"{trial.percent:g}"]
    command += [] if trial.seed is None else ["--recipe", trial.recipe, "--seeds", str(trial.seed)]
    return " ".join(command + (["--reference_protocol"] if options.reference_protocol else []))


def _in_words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _measure(trial: Trial, options: argparse.Namespace) -> dict[str, Any]:
    if trial.protocol == "short_term":
        return _measure_m4(trial, options)
    series, target = (_series(name, options.data_dir) for name in (trial.dataset, trial.target))
    try:
        splits = split_windows(series, CONTEXT_LENGTH, trial.horizon, few_shot_percent=trial.percent)
    except InputError as error:
        return {"note": f"not trainable: {error}"}
    scored = splits.test
    if trial.target != trial.dataset:
        scored, _ = evaluation_windows(target, CONTEXT_LENGTH, trial.horizon)
    windows, note, batch_size = len(scored), "", 1024
    if options.reference_protocol:
        _, _, paper = choose_settings({"dataset": trial.dataset, "recipe": "paper"})
        batch_size = paper.batch_size
        windows = windows // batch_size * batch_size
        note = f"{REFERENCE_NOTE}: {len(scored) - windows} windows left out"
    if trial.model in BENCHMARK_BASELINES:
        forecast, measures, scores = _baseline(trial, target, splits), {}, None
    else:
        outcome = _trained(trial, options)
        forecast, measures = forecast_of(outcome.model.eval()), _costs(outcome.metrics)
        # only a trial on its own dataset and protocol can reuse the scores in its metrics.json
        own = trial.target == trial.dataset and not options.reference_protocol
        scores = outcome.metrics["test"] if own else None
    if scores is None:
        scores = score(forecast, scored, target.columns, batch_size, drop_last=options.reference_protocol)
    return measures | {"mse": scores["mse"], "mae": scores["mae"], "windows": windows, "note": note}


def _baseline(trial: Trial, target: TimeSeries, splits: Splits) -> ForecastFunction:
    if trial.model == "seasonal_naive":
        return seasonal_naive(target.seasonality, trial.horizon)
    if trial.model == "linear_start":
        # what a run of ours starts from, and its whole forecast if validation keeps nothing that was learned
        return choose_start(splits.train, splits.val, own=True, seasonality=target.seasonality)
    return LeastSquares(trial.model == "linear_per_channel", centred=trial.model != "dlinear").fit(splits.train)


def _trained(trial: Trial, options: argparse.Namespace) -> Outcome:
    """A finished run; a complete folder is read instead of trained again."""
    m4 = "M4-" if trial.protocol == "short_term" else ""
    folder = RunFolder(Path(options.runs, f"{m4}{trial.folder}"))
    if (folder / METRICS).exists():
        folder.check_finished()
        return Outcome(folder, folder.read_metrics(), LlataForPrediction.from_pretrained(folder.path), None)
    places = {"output_dir": str(folder), "data_dir": options.data_dir}
    quiet = {"overwrite_output_dir": True, "disable_tqdm": True, "report_to": "none"}
    return run_experiment(*choose_settings(_settings(trial) | places | quiet))


def _costs(metrics: dict[str, Any]) -> dict[str, Any]:
    counts, validation = metrics["parameters"], metrics["validation"]
    return {
        "trained_parameters": counts["trained"],
        "frozen_parameters": counts.get("frozen", 0),
        "seconds": round(metrics["training"]["seconds"], 1),
        "validation_mse": validation and validation["mse"],
    }


def _measure_m4(trial: Trial, options: argparse.Namespace) -> dict[str, Any]:
    m4 = read_m4(trial.dataset, options.data_dir)
    measures = {"windows": len(m4.names)}
    if trial.model in BENCHMARK_BASELINES:
        return measures | m4_scores(M4_BASELINES[trial.model](m4), m4)
    metrics = _trained(trial, options).metrics
    return measures | _costs(metrics) | metrics["test"]


@lru_cache(maxsize=4)
def _series(name: str, data_dir: str | None) -> TimeSeries:
    return read_series(name, data_dir=data_dir)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores, {platform.machine()}"
