"""Score a run on every test window, of its own series or another."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..run_folder import finite_or_null
from .inputs import add_backbone_argument, add_reading_arguments, check_writable, how_to_read, load_settings

if TYPE_CHECKING:
    from ..data import TimeSeries
    from ..data.m4 import M4Set
    from ..forecasting.forecaster import Forecaster

IMPORTS = ("forecasting.forecaster",)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    add_backbone_argument(parser)
    parser.add_argument("--date_column", help="default: as in the run; for another series, as in train.py")
    parser.add_argument("--columns", nargs="+", help="channels to score; default: the run's")
    add_reading_arguments(parser, default="as for the date column")
    parser.add_argument("--dataset", help="registry name or CSV of another series; default: the run's own")
    parser.add_argument("--data_dir", help="folder that holds the dataset's file")
    parser.add_argument(
        "--batch_size", type=int, help="windows per batch, capped at 8,192 tokens; results do not depend on it"
    )
    parser.add_argument("--output", help="JSON file for the scores; null for a score that is not a number")


def main(options: argparse.Namespace):
    from ..data.m4 import m4_spec, read_m4
    from ..durable import write_text
    from ..evaluation.tables import results_table
    from ..forecasting.forecaster import Forecaster

    settings, info = load_settings(options.run)
    if info.id_column is not None:
        raise InputError(f"{options.run} was trained on a panel: score it with llata-fast backtest {options.run}")
    dataset = info.dataset if options.dataset is None else options.dataset
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {options.batch_size}")
    if options.output:
        check_writable(options.output, source=dataset)
    spec = m4_spec(dataset)
    if spec is None:
        series = _read(options, settings, dataset)
        scores = _score_series(
            Forecaster.from_pretrained(options.run, backbone=options.backbone), series, options.batch_size
        )
    else:
        m4 = read_m4(spec.frequency, options.data_dir or settings.get("data_dir"))
        scores = _score_m4(Forecaster.from_pretrained(options.run, backbone=options.backbone), m4)
    print(results_table(scores))
    if options.output:
        write_text(options.output, json.dumps(finite_or_null(scores), indent=2, allow_nan=False) + "\n")


def _read(options: argparse.Namespace, settings: dict[str, Any], dataset: str) -> "TimeSeries":
    from ..data import find_dataset, read_series

    if options.dataset is None and not find_dataset(dataset) and not Path(dataset).exists():
        raise InputError(f"{dataset}, the run's own series, is not there: give its location by --dataset")
    how = how_to_read(options, settings if options.dataset is None else {}, dataset)
    how["columns"] = options.columns or settings.get("columns")
    return read_series(dataset, data_dir=options.data_dir or settings.get("data_dir"), **how)


def _score_series(forecaster: "Forecaster", series: "TimeSeries", batch_size: int | None) -> dict[str, dict[str, Any]]:
    from ..data import evaluation_windows
    from ..evaluation.baselines import score, seasonal_naive
    from ..forecasting.batches import windows_at_once

    config = forecaster.model.config
    windows, _ = evaluation_windows(series, config.context_length, config.prediction_length)
    windows = windows.to(forecaster.model.device)
    print(f"{series.name}: {len(windows)} test windows, standardised by the training rows of {series.name}")
    naive = seasonal_naive(series.seasonality, config.prediction_length)
    at_once = windows_at_once(config, len(series.columns))
    return {
        "llata": score(forecaster, windows, series.columns, min(batch_size or at_once, at_once)),
        "seasonal_naive": score(naive, windows, series.columns),
    }


def _score_m4(forecaster: "Forecaster", m4: "M4Set") -> dict[str, dict[str, Any]]:
    from ..evaluation.m4_scores import m4_scores
    from ..evaluation.tasks import M4_BASELINES, M4Task

    config, spec = forecaster.model.config, m4.spec
    lengths = (spec.context_length, spec.prediction_length)
    if (config.context_length, config.prediction_length) != lengths:
        raise InputError(f"M4 {spec.frequency} takes lookback {lengths[0]}, horizon {lengths[1]}: the run has others")
    print(f"M4 {spec.frequency}: {len(m4.names)} series")
    baselines = {name: m4_scores(forecast(m4), m4) for name, forecast in M4_BASELINES.items()}
    return {"llata": M4Task(m4).test(SimpleNamespace(forecast=forecaster))} | baselines
