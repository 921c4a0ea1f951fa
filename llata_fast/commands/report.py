"""Write a run's report: one HTML page with scores, losses, errors, forecasts, features and settings.

The page is self-contained and needs no network. It is made from new forecasts of the run's test windows.
"""

import argparse
from pathlib import Path

from .inputs import check_writable


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--output", help="HTML file to write; default: report.html in the run's folder")


def main(options: argparse.Namespace):
    from ..report.page import write_report
    from ..run_folder import RunFolder

    output = options.output or str(Path(options.run, "report.html"))
    RunFolder(options.run).check_finished(weights=False)
    check_writable(output, source=options.run)
    print(f"report: {write_report(options.run, output)}")
