"""Forecast what follows the last row of a CSV, or every S-th row, in the units of the input."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .inputs import (
    add_panel_arguments,
    add_run_arguments,
    check_writable,
    how_to_read,
    load_settings,
    panel_columns,
)

if TYPE_CHECKING:
    import pandas as pd

    from ..data import TimeSeries
    from ..forecasting.forecaster import Forecaster
    from ..preprocessor import Preprocessor

IMPORTS = ("forecasting.forecaster",)


def add_arguments(parser: argparse.ArgumentParser):
    add_run_arguments(parser)
    parser.add_argument(
        "--input", required=True, help="CSV with a date column and the run's channels, or a long table (CSV, .parquet)"
    )
    add_panel_arguments(parser)
    parser.add_argument(
        "--future", help="CSV or .parquet with known covariates of every item for the forecast's steps, by id and time"
    )
    parser.add_argument(
        "--output", required=True, help="file to write: CSV, CSV with gzip (.gz), or .parquet if pyarrow is installed"
    )
    parser.add_argument(
        "--every", type=int, metavar="S", help="forecast after every S-th row instead, each with the date of its origin"
    )
    parser.add_argument(
        "--batch_size", type=int, help="forecasts per batch, capped at 8,192 tokens; results do not depend on it"
    )
    parser.add_argument(
        "--quantile_levels", type=float, nargs="+", metavar="LEVEL", help="between 0 and 1; output is a long table"
    )
    parser.add_argument("--prediction_length", type=int, metavar="H", help="time steps to forecast; default: the run's")
    parser.add_argument("--nonnegative", action="store_true", help="replace forecasts below 0 by 0")
    parser.add_argument("--plot", action="store_true", help="also draw a PNG beside the output")


def main(options: argparse.Namespace):
    import pandas as pd

    from ..data import read_wide_csv
    from ..forecasting.forecaster import Forecaster
    from ..forecasting.pictures import check_matplotlib, plot_forecast
    from ..forecasting.table_files import check_table_format, open_table

    check_writable(options.output, source=options.input)
    check_table_format(options.output)
    for name in ("every", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    if options.every and options.plot:
        raise InputError("--plot draws the forecast after the last row, not those of --every")
    picture = Path(options.output).with_suffix(".png")
    if options.plot:
        check_matplotlib()
        if picture == Path(options.output):
            raise InputError(f"--plot would overwrite the output {picture}: give the output another extension")
    settings, info = load_settings(options.run)
    if options.id_column or info.id_column or options.quantile_levels or options.prediction_length or options.future:
        return _predict_long(options, settings, info)
    how = how_to_read(options, settings, info.dataset)
    how["columns"] = options.columns or info.columns or None
    series = read_wide_csv(options.input, **how, frequency=info.frequency or None)
    forecaster = Forecaster.from_pretrained(options.run, backbone=options.backbone)
    if options.every:
        return _predict_all(forecaster, series, options)
    forecast = _bounded(forecaster.wide.predict(series), series, options)
    with open_table(options.output, series.date_format) as write:
        write(forecast)
    print(f"{len(forecast)} rows, {forecast.iloc[0, 0]} to {forecast.iloc[-1, 0]}, written to {options.output}")
    if options.plot:
        drawn = plot_forecast(
            picture,
            history=pd.DataFrame(series.values, index=series.dates, columns=series.columns).iloc[-3 * len(forecast) :],
            forecasts={"forecast": forecast.set_index(series.date_column)},
            title=f"{Path(options.input).name}: {len(forecast)} steps ahead",
        )
        print(f"picture written to {picture}" if drawn else "no picture")


def _bounded(table: "pd.DataFrame", series: "TimeSeries", options: argparse.Namespace) -> "pd.DataFrame":
    """The forecasts, with none below 0 if the options ask for that."""
    from ..forecasting.wide import ORIGIN

    if options.nonnegative:
        channels = [name for name in table.columns if name not in (ORIGIN, series.date_column)]
        table[channels] = table[channels].clip(lower=0)
    return table


def _predict_all(forecaster: "Forecaster", series: "TimeSeries", options: argparse.Namespace):
    from tqdm import tqdm

    from ..forecasting.table_files import open_table
    from ..forecasting.wide import ORIGIN

    count = forecaster.wide.num_forecasts(series, options.every)
    with (
        open_table(options.output, series.date_format) as write,
        tqdm(total=count, unit="forecast", disable=None) as progress,
    ):
        for table in forecaster.wide.stream(series, options.every, options.batch_size):
            write(_bounded(table, series, options))
            progress.update(table[ORIGIN].nunique())
    print(f"{count} forecasts of {forecaster.model.config.prediction_length} rows, written to {options.output}")


def _predict_long(options: argparse.Namespace, settings: dict, info: "Preprocessor"):
    """Write a row for each item, target and step; the ranks of a launcher share the items."""
    import os

    from tqdm import tqdm

    from ..data.frames import file_frame
    from ..data.panel import Panel, read_csv, read_panel
    from ..forecasting.forecaster import Forecaster
    from ..forecasting.table_files import open_table
    from ..ranks import join_ranks, on_rank_0

    for name in ("every", "plot"):
        if getattr(options, name):
            raise InputError(f"--{name} is for the point forecasts of one wide series")
    rank, ranks = join_ranks()
    if options.id_column or info.id_column:
        panel: Panel = read_panel(options.input, **panel_columns(options, info))
    else:
        how = how_to_read(options, settings, info.dataset)
        how["columns"] = options.columns or info.columns
        panel = read_csv(options.input, **how, frequency=info.frequency)
    device = f"cuda:{os.environ['LOCAL_RANK']}" if ranks > 1 and _has_cuda() else None
    forecaster = Forecaster.from_pretrained(options.run, device=device, backbone=options.backbone)
    frames = forecaster.stream_df(
        panel,
        future_df=None if options.future is None else file_frame(options.future),
        prediction_length=options.prediction_length,
        quantile_levels=options.quantile_levels,
        batch_size=options.batch_size,
        nonnegative=options.nonnegative,
        share=(rank, ranks),
    )
    if rank:
        for frame in frames:
            on_rank_0(frame)
        return
    rows = 0
    with (
        open_table(options.output, panel.date_format) as write,
        tqdm(total=len(panel), unit="item", disable=None) as progress,
    ):
        for frame in frames:
            for part in on_rank_0(frame) or []:
                if not len(part):
                    continue
                write(part)
                rows += len(part)
                progress.update(part[panel.id_column].nunique())
    print(f"{rows} rows of {len(panel)} items, written to {options.output}")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()
