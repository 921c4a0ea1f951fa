"""Train on a long table of many series; for one wide CSV use train.py.

The last tenth of every item is used for validation and for calibrating quantiles. Nothing is held out for a test; use
`backtest` for that. Any option of train.py may follow.
"""

import argparse
from pathlib import Path

from ..cli import add_settings
from ..errors import InputError
from ..settings import COVARIATES, GROUPS

_READ_HERE = ("dataset", "id_column", "target", "date_column", "missing", "data_dir", *COVARIATES)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("input", help="CSV or .parquet with a row for each item and time, or a dataset's name: EIA")
    for kind in GROUPS:
        add_settings(parser, kind)
    for action in parser._actions:
        if action.dest not in ("input", "help"):
            # an option that is not given falls back to the preset or the default
            action.default = argparse.SUPPRESS


def main(options: argparse.Namespace):
    from ..data.panel import read_panel
    from ..evaluation.tables import results_table
    from ..experiment import train_on_panel
    from ..training.stopping import stopping_on_sigterm

    given = vars(options)
    given.pop("run_command", None)
    source = given.pop("input")
    if "dataset" in given or "columns" in given:
        raise InputError("fit takes its table as the first argument, and the columns to forecast by --target")
    how = {name: given.pop(name) for name in _READ_HERE if name in given}
    panel = read_panel(
        str(Path(source).resolve()) if Path(source).is_file() else source,
        data_dir=how.get("data_dir"),
        id_column=how.get("id_column"),
        timestamp_column=how.get("date_column"),
        target=how.get("target"),
        missing=how.get("missing"),
        **{name: how[name] for name in COVARIATES if name in how},
    )
    with stopping_on_sigterm():
        outcome = train_on_panel(panel, **given)
    if not outcome.metrics:
        # only the first rank reports
        return
    scores = outcome.metrics["test"] | (outcome.metrics["intervals"] or {})
    print(results_table({"llata": scores, **outcome.metrics["baselines"]}))
    future = " --future FUTURE" if how.get("known_covariates") else ""
    print(f"to forecast: python -m llata_fast predict {outcome.folder} --input {source}{future} --output forecast.csv")
