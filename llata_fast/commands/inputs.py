"""Arguments and checks that several commands share."""

import argparse
import os
from pathlib import Path

from ..errors import InputError
from ..preprocessor import Preprocessor
from ..run_folder import RunFolder
from ..settings import COVARIATE_ROLES, READING


def add_run_arguments(parser: argparse.ArgumentParser):
    """The run, and how to read a series for it."""
    parser.add_argument("run", help="folder of a finished run")
    add_backbone_argument(parser)
    parser.add_argument(
        "--date_column", help="default: as in the run, else the first of date, datetime, timestamp, time, ds"
    )
    parser.add_argument("--columns", nargs="+", help="channels, in the run's order; default: the run's, by name")
    add_reading_arguments(parser, default="as in the run")


def add_panel_arguments(parser: argparse.ArgumentParser):
    """The columns of a long table, besides its date column."""
    parser.add_argument("--id_column", help="column with the item ids of a long table; default: the run's")
    parser.add_argument("--target", nargs="+", help="columns of a long table to forecast; default: the run's")
    for name in COVARIATE_ROLES:
        parser.add_argument(f"--{name}", nargs="+", help="columns of a long table; default: the run's")


def panel_columns(options: argparse.Namespace, info: Preprocessor, own_columns: bool = True) -> dict:
    """A long table's columns by the command line, else by the run, as keywords of `Panel.from_df`.

    Without `own_columns`, the run's id, timestamp and target columns are not used.
    """
    own: dict = {}
    if info.id_column is not None and own_columns:
        own = {"id_column": info.id_column, "timestamp_column": info.date_column, "target": info.columns}
    said = {
        "id_column": options.id_column,
        "timestamp_column": options.date_column,
        "target": options.target,
        "missing": options.missing,
        **{name: getattr(options, name) for name in COVARIATE_ROLES},
    }
    own |= info.covariate_roles
    return own | {name: value for name, value in said.items() if value is not None}


def add_backbone_argument(parser: argparse.ArgumentParser):
    """The new location of the run's frozen base."""
    parser.add_argument("--backbone", help="new location of the run's language model; a different model is refused")


def add_reading_arguments(parser: argparse.ArgumentParser, default: str):
    """How to read a CSV, besides its columns."""
    parser.add_argument("--missing", choices=("error", "mask"), help=f"missing values; default: {default}")
    parser.add_argument("--skip_rows", type=int, help=f"lines above the header; default: {default}")
    parser.add_argument("--na_values", nargs="+", help=f"markers of a missing value; default: {default}")
    parser.add_argument(
        "--trust_rows", action="store_true", default=None, help=f"treat rows as evenly spaced; default: {default}"
    )


def how_to_read(options: argparse.Namespace, settings: dict, dataset: str) -> dict:
    """How to read a CSV: by the command line, else by the run, else by the registry's entry of `dataset`."""
    from ..data import find_dataset

    spec = find_dataset(dataset)
    said = {name: getattr(options, name) for name in READING if getattr(options, name, None) is not None}
    done = {name: settings[name] for name in READING if settings.get(name) not in (None, False)}
    return ({"missing": spec.missing} if spec else {}) | done | said


def load_settings(run: str) -> tuple[dict, Preprocessor]:
    """A run's settings and what it knows about its series; raises InputError if this is not a finished run."""
    folder = RunFolder(run)
    # loading the weights checks them
    folder.check_finished(weights=False)
    return folder.read_settings(), folder.read_preprocessor()


def check_writable(path: str, source: str):
    """Raise InputError if `path` cannot be written or is the input file itself."""
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {target.parent}")
    if target.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not os.access(target if target.exists() else target.parent, os.W_OK):
        raise InputError(f"cannot write {path}: no permission")
    if target.resolve() == Path(source).resolve():
        raise InputError(f"cannot write {path}: it is the input")
