"""`python -m llata_fast COMMAND`: what is done with a trained run."""

import argparse
import json
import os
from pathlib import Path

import pandas as pd
import yaml

from .data import evaluation_windows, find_dataset, read_csv, read_series
from .errors import InputError
from .evaluation.baselines import score, seasonal_naive
from .evaluation.tables import results_table
from .serving.forecaster import Forecaster, SeriesInfo
from .serving.plots import check_matplotlib, plot_forecast
from .training.arguments import Parser, report_and_exit


def predict(options: argparse.Namespace):
    """Forecast what follows a CSV's last row, in its own units."""
    _check_writable(options.output, source=options.input)
    picture = Path(options.output).with_suffix(".png")
    if options.plot:
        check_matplotlib()
        if picture == Path(options.output):
            raise InputError(f"--plot would draw over the output {picture}: give the output another ending")
    settings, info = _load_settings(options.run)
    spec = find_dataset(info.dataset)
    missing = options.missing or settings["missing"] or (spec.missing if spec else "error")
    series = read_csv(options.input, options.date_column, options.columns, missing)
    forecast = Forecaster.from_run(options.run).predict(series)
    forecast.to_csv(options.output, index=False)
    print(f"{len(forecast)} rows, {forecast.iloc[0, 0]} to {forecast.iloc[-1, 0]}, written to {options.output}")
    if options.plot:
        plot_forecast(
            picture,
            history=pd.DataFrame(series.values, index=series.dates, columns=series.columns).iloc[-3 * len(forecast) :],
            forecasts={"forecast": forecast.set_index(series.date_column)},
            title=f"{Path(options.input).name}: {len(forecast)} steps ahead",
        )
        print(f"picture written to {picture}")


def evaluate(options: argparse.Namespace):
    """Score a run on every test window, of its own series or another."""
    settings, info = _load_settings(options.run)
    own = options.dataset is None
    dataset = info.dataset if own else options.dataset
    if options.batch_size < 1:
        raise InputError(f"--batch_size must be at least 1, got {options.batch_size}")
    if options.output:
        _check_writable(options.output, source=dataset)
    series = read_series(
        dataset,
        data_dir=options.data_dir or settings["data_dir"],
        date_column=settings["date_column"] if own else options.date_column,
        columns=settings["columns"] if own else options.columns,
        missing=options.missing or (settings["missing"] if own else None),
    )
    forecaster = Forecaster.from_run(options.run)
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
        Path(options.output).write_text(json.dumps(scores, indent=2) + "\n")


def _load_settings(run: str) -> tuple[dict, SeriesInfo]:
    """What a run was made with, and what it knows of its series; InputError where this is no finished run."""
    info = SeriesInfo.load(run)
    path = Path(run, "run.yaml")
    try:
        return yaml.safe_load(path.read_text()), info
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the run's settings {path}: {error}") from None


def _check_writable(path: str, source: str):
    """Raise InputError where `path` cannot be written, or is the very file that is read."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: no folder {target.parent}")
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission")
    if target.resolve() == Path(source).resolve():
        raise InputError(f"cannot write {path}: it is the input")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(dataclass_types=(), prog="llata_fast", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(function, arguments: str):
        sub = commands.add_parser(
            function.__name__,
            help=function.__doc__,
            description=function.__doc__,
            dataclass_types=(),
            allow_abbrev=False,
        )
        sub.set_defaults(function=function)
        sub.add_argument("run", help="folder of a finished run")
        sub.add_argument("--date_column", help="default: the first of date, datetime, timestamp, time, ds")
        sub.add_argument("--columns", nargs="+", help="channels, in the order of the run's; default all but the date")
        sub.add_argument("--missing", choices=("error", "mask"), help="missing values; default as the run did")
        return sub

    sub = command(predict, "run")
    sub.add_argument("--input", required=True, help="CSV with a date column and the run's channels")
    sub.add_argument("--output", required=True, help="CSV to write")
    sub.add_argument("--plot", action="store_true", help="also draw a PNG beside the output")
    sub = command(evaluate, "run")
    sub.add_argument("--dataset", help="registry name or CSV of another series; default the run's own")
    sub.add_argument("--data_dir", help="folder that holds the dataset's file")
    sub.add_argument("--batch_size", type=int, default=1024, help="windows at a time; no result depends on it")
    sub.add_argument("--output", help="JSON file for the scores")
    return parser


def main(argv: list[str] | None = None):
    options = _parser().parse_args(argv)
    try:
        options.function(options)
    except InputError as error:
        report_and_exit(error, f"llata_fast {options.command}")


if __name__ == "__main__":
    main()
