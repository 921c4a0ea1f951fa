"""What several commands ask of a run, a path and the command line."""

import argparse
import os
from pathlib import Path

from ..errors import InputError
from ..run_folder import Preprocessor, RunFolder
from ..settings import COVARIATES, READING

ROLES = COVARIATES[:-1]
"""Options that name columns; a calendar has none."""


def add_run_arguments(parser: argparse.ArgumentParser):
    """The run, and how a series is read for it."""
    parser.add_argument("run", help="folder of a finished run")
    add_backbone_argument(parser)
    parser.add_argument(
        "--date_column", help="default: as the run did, else the first of date, datetime, timestamp, time, ds"
    )
    parser.add_argument("--columns", nargs="+", help="channels, in the order of the run's; default its own, by name")
    add_reading_arguments(parser, default="as the run did")


def add_panel_arguments(parser: argparse.ArgumentParser):
    """A long table's columns, beside its date column."""
    parser.add_argument("--id_column", help="of a long table, which tells its items apart; default the run's")
    parser.add_argument("--target", nargs="+", help="of a long table: what is forecast; default the run's")
    for name in ROLES:
        parser.add_argument(f"--{name}", nargs="+", help="columns of a long table; default the run's")


def panel_columns(options: argparse.Namespace, info: Preprocessor, own_columns: bool = True) -> dict:
    """What the command line, else the run, says of a long table, as keywords of `Panel.from_df`.

    Without `own_columns` id, timestamp and target are not the run's.
    """
    own: dict = {}
    if info.id_column is not None and own_columns:
        own = {"id_column": info.id_column, "timestamp_column": info.date_column, "target": info.columns}
    said = {
        "id_column": options.id_column,
        "timestamp_column": options.date_column,
        "target": options.target,
        "missing": options.missing,
        **{name: getattr(options, name) for name in ROLES},
    }
    own |= info.covariate_roles
    return own | {name: value for name, value in said.items() if value is not None}


def add_backbone_argument(parser: argparse.ArgumentParser):
    """Where the run's frozen base lies if it has moved."""
    parser.add_argument("--backbone", help="where the run's language model is, if it has moved; others are refused")


def add_reading_arguments(parser: argparse.ArgumentParser, default: str):
    """How a CSV is read, beside its columns."""
    parser.add_argument("--missing", choices=("error", "mask"), help=f"missing values; default {default}")
    parser.add_argument("--skip_rows", type=int, help=f"lines above the header; default {default}")
    parser.add_argument("--na_values", nargs="+", help=f"what stands in a cell without a value; default {default}")
    parser.add_argument(
        "--trust_rows", action="store_true", default=None, help=f"take the rows as evenly spaced; default {default}"
    )


def how_to_read(options: argparse.Namespace, settings: dict, dataset: str) -> dict:
    """The options of `read_csv`: what the command line says, else the run, else the registry's entry of `dataset`."""
    from ..data import find_dataset

    spec = find_dataset(dataset)
    said = {name: getattr(options, name) for name in READING if getattr(options, name, None) is not None}
    done = {name: settings[name] for name in READING if settings.get(name) not in (None, False)}
    return ({"missing": spec.missing} if spec else {}) | done | said


def load_settings(run: str) -> tuple[dict, Preprocessor]:
    """What a run was made with, and what it knows of its series; InputError where this is no finished run."""
    folder = RunFolder(run)
    # the weights are checked where they are loaded
    folder.check_finished(weights=False)
    return folder.read_settings(), folder.read_preprocessor()


def check_writable(path: str, source: str):
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
