"""Score a run on every test window, of its own series or another."""

import argparse
import json
from pathlib import Path

from ..errors import InputError
from ..run_folder import finite_or_null
from .inputs import add_backbone_argument, add_reading_arguments, check_writable, how_to_read, load_settings


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    add_backbone_argument(parser)
    parser.add_argument("--date_column", help="default: as the run did, of another series as train.py does")
    parser.add_argument("--columns", nargs="+", help="channels that are scored; default those that the run chose")
    add_reading_arguments(parser, default="as of the date column")
    parser.add_argument("--dataset", help="registry name or CSV of another series; default the run's own")
    parser.add_argument("--data_dir", help="folder that holds the dataset's file")
    parser.add_argument("--batch_size", type=int, default=1024, help="windows at a time; no result depends on it")
    parser.add_argument("--output", help="JSON file for the scores; null for a score that is none")


def run(options: argparse.Namespace):
    from ..data import evaluation_windows, find_dataset, read_series
    from ..evaluation.baselines import score, seasonal_naive
    from ..evaluation.tables import results_table
    from ..forecasting.forecaster import Forecaster

    settings, info = load_settings(options.run)
    if info.id_column is not None:
        raise InputError(f"{options.run} was trained on a panel: llata_fast backtest {options.run} scores it")
    own = options.dataset is None
    dataset = info.dataset if own else options.dataset
    if options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {options.batch_size}")
    if options.output:
        check_writable(options.output, source=dataset)
    if own and not find_dataset(dataset) and not Path(dataset).exists():
        raise InputError(f"{dataset}, the run's own series, is not there: say where it is by --dataset")
    how = how_to_read(options, settings if own else {}, dataset)
    how["columns"] = options.columns or settings.get("columns")
    series = read_series(dataset, data_dir=options.data_dir or settings.get("data_dir"), **how)
    forecaster = Forecaster.from_pretrained(options.run, backbone=options.backbone)
    config = forecaster.model.config
    windows, _ = evaluation_windows(series, config.context_length, config.prediction_length)
    windows = windows.to(forecaster.model.device)
    scores = {
        "llata": score(forecaster, windows, series.columns, options.batch_size),
        "seasonal_naive": score(seasonal_naive(series.seasonality, config.prediction_length), windows, series.columns),
    }
    print(f"{series.name}: {len(windows)} test windows, standardised by the training rows of {series.name}")
    print(results_table(scores))
    if options.output:
        text = json.dumps(finite_or_null(scores), indent=2, allow_nan=False)
        Path(options.output).write_text(text + "\n")
