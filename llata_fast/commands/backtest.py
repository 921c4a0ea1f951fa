"""Score a run on the last windows of every item of a table, beside baselines."""

import argparse
from pathlib import Path

from ..errors import InputError
from .inputs import (
    add_panel_arguments,
    add_run_arguments,
    check_writable,
    how_to_read,
    load_settings,
    panel_columns,
)

IMPORTS = ("forecasting.forecaster",)


def add_arguments(parser: argparse.ArgumentParser):
    add_run_arguments(parser)
    parser.add_argument("--input", required=True, help="long table (CSV, .parquet), name of a dataset, or wide CSV")
    add_panel_arguments(parser)
    parser.add_argument("--n_windows", type=int, default=1, metavar="N", help="windows per item")
    parser.add_argument("--step_size", type=int, metavar="S", help="steps between windows; default the horizon")
    parser.add_argument(
        "--metrics", nargs="+", default=["MASE", "WQL", "sMAPE", "coverage"], help="any of these, MSE and MAE"
    )
    parser.add_argument(
        "--baselines", nargs="*", help="any of seasonal_naive, linear, exponential_smoothing, ridge_covariates"
    )
    parser.add_argument("--batch_size", type=int, help="items per batch; results do not depend on it")
    parser.add_argument("--output", help="CSV for the scores, one row per model")
    parser.add_argument("--report", help="HTML file for scores, errors by step and item, calibration and forecasts")
    parser.add_argument("--forecasts", help="CSV or .parquet for the run's forecasts, with their cutoffs")


def main(options: argparse.Namespace):
    from ..data import find_dataset
    from ..data.panel import read_csv, read_panel
    from ..forecasting.forecaster import Forecaster
    from ..forecasting.table_files import check_table_format, open_table

    for path in filter(None, (options.output, options.forecasts)):
        check_table_format(path)
    for path in filter(None, (options.output, options.forecasts, options.report)):
        check_writable(path, source=options.input)
    settings, info = load_settings(options.run)
    named = find_dataset(options.input)
    if options.id_column or info.id_column or (named is not None and named.id_column):
        panel = read_panel(options.input, **panel_columns(options, info, own_columns=named is None))
    else:
        how = how_to_read(options, settings, info.dataset)
        how["columns"] = options.columns or info.columns
        panel = read_csv(options.input, **how, frequency=info.frequency)
    if options.n_windows < 1:
        raise InputError(f"--n_windows must be at least 1, got {options.n_windows}")
    forecaster = Forecaster.from_pretrained(options.run, backbone=options.backbone)
    windows = {"n_windows": options.n_windows, "step_size": options.step_size, "batch_size": options.batch_size}
    scores = forecaster.evaluate(panel, metrics=options.metrics, baselines=options.baselines, **windows)
    print(f"{panel.name}: {options.n_windows} windows of {len(panel)} items")
    print(scores.to_string(float_format=lambda value: f"{value:.4f}"))
    if options.output:
        with open_table(options.output) as write:
            write(scores.reset_index())
    if options.forecasts:
        with open_table(options.forecasts, panel.date_format) as write:
            write(forecaster.cross_validation(panel, **windows))
    if options.report:
        from ..report.page import write_backtest_report

        write_backtest_report(forecaster, panel, scores, options.report, **windows, name=Path(options.run).name)
        print(f"report: {options.report}")
