"""Forecast what follows a CSV's last row, in its own units."""

import argparse
from pathlib import Path

import pandas as pd

from ..data import find_dataset, read_csv
from ..errors import InputError
from ..serving.forecaster import Forecaster
from ..serving.plots import check_matplotlib, plot_forecast
from .inputs import add_run_arguments, check_writable, load_settings


def add_arguments(parser: argparse.ArgumentParser):
    add_run_arguments(parser)
    parser.add_argument("--input", required=True, help="CSV with a date column and the run's channels")
    parser.add_argument("--output", required=True, help="CSV to write")
    parser.add_argument("--plot", action="store_true", help="also draw a PNG beside the output")


def run(options: argparse.Namespace):
    check_writable(options.output, source=options.input)
    picture = Path(options.output).with_suffix(".png")
    if options.plot:
        check_matplotlib()
        if picture == Path(options.output):
            raise InputError(f"--plot would draw over the output {picture}: give the output another ending")
    settings, info = load_settings(options.run)
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
