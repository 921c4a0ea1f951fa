"""The command line: options generated from settings, one-line errors, exit codes. Nothing heavy is imported here."""

import argparse
import atexit
import contextlib
import copy
import difflib
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, get_args, get_type_hints

from .errors import InputError, InputWarning, RankInputError
from .settings import GROUPS, RENAMED

FAILED = 2
"""Exit code of a command that rejects its input."""
INTERRUPTED = 130
"""Exit code of a command stopped by Ctrl-C, as shells define it."""


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows informative defaults only, keeps the layout of docstrings, and lists one of an option's two spellings."""

    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, **{"max_help_position": 36} | kwargs)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.nargs == 0
        return action.help if silent else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if "-" not in name[2:]]
        if names:
            action = copy.copy(action)
            action.option_strings = names
        return super()._format_action_invocation(action)


_PARSING: dict[str, Any] = {"formatter_class": _HelpFormatter, "allow_abbrev": False}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and suggest the nearest option; options cannot be abbreviated."""

    # what is being parsed; a prefix of every message
    source = ""

    def __init__(self, **kwargs: Any):
        super().__init__(**_PARSING | kwargs)

    # argparse reports missing options first, even when the real cause is a misspelt one
    _given: tuple[str, ...] | list[str] = ()

    def parse_args(self, args=None, namespace=None):
        self._given = list(sys.argv[1:] if args is None else args)
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(unknown_option(unknown[0], self.option_names()))
        return options

    def option_names(self) -> list[str]:
        """Every option's names, without leading dashes."""
        return [name[2:] for name in self._option_string_actions if name.startswith("--")]

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            options = (word for word in self._given if word.startswith("--") and word != "--")
            unknown = [word for word in options if word.partition("=")[0] not in self._option_string_actions]
            message = unknown_option(unknown[0], self.option_names()) if unknown else message
        # Python 3.14 writes the choices without quotes
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            near = difflib.get_close_matches(choice[1], re.split(r"\W*, \W*", choice[2].strip("'")), n=1)
            message = f"{message[: choice.end(1) + 1]}: did you mean {near[0]}?" if near else message
        report_and_exit(self.source + message, self.prog)


def unknown_option(name: str, known: Iterable[str]) -> str:
    """The message for an unknown option or key of a file, with the nearest known one."""
    stem = name.lstrip("-").partition("=")[0]
    stem = stem.replace("-", "_")
    near = [RENAMED[stem]] if stem in RENAMED else difflib.get_close_matches(stem, sorted(known), n=1)
    dashes = "--" if name.startswith("-") else ""
    return f"unknown option {name}" + (f": did you mean {dashes}{near[0]}?" if near else "")


def report_and_exit(
    message: str | Exception, program: str | None = None, every_rank: bool = False, status: int = FAILED
) -> NoReturn:
    """Print one line on stderr and exit with `status`; only the first local rank prints unless `every_rank`."""
    if every_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        line = " ".join(str(message).split())
        print(f"{program or Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    sys.exit(status)


def _unfreeze():
    # Triton would report objects that stay frozen as leaks; the collection at interpreter exit is enough
    gc.disable()
    gc.unfreeze()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import slow modules in this block, with garbage collection off.

    Modules create many objects that stay alive; scanning them repeatedly takes a sixth of a forecast's CPU time.
    """
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # once per process, as freezing again would also keep the garbage of a longer-lived caller
        if not gc.get_freeze_count():
            gc.freeze()
            atexit.register(_unfreeze)
        if collected:
            gc.enable()


def show_warnings_in_one_line():
    """From here on, show each warning about input as one line on stderr, from the first local rank only."""
    show = warnings.showwarning

    def show_in_one_line(message, category, *where):
        if not issubclass(category, InputWarning):
            show(message, category, *where)
        elif os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show_in_one_line


class _Shown(logging.Handler):
    """Prints the package's log: progress on stdout, around progress bars, and problems on stderr, one line each."""

    def emit(self, record: logging.LogRecord):
        message = record.getMessage()
        if record.levelno < logging.WARNING:
            from tqdm import tqdm

            tqdm.write(message)
            sys.stdout.flush()
        else:
            print(f"{record.levelname.lower()}: {message}", file=sys.stderr, flush=True)


def show_log():
    """From here on, show the package's log; library callers configure `logging` themselves."""
    log = logging.getLogger(__package__)
    log.setLevel(logging.INFO)
    if not any(isinstance(handler, _Shown) for handler in log.handlers):
        log.addHandler(_Shown())


@contextlib.contextmanager
def one_line_errors(
    program: str | None = None, interrupted: Callable[[], str] = lambda: "interrupted"
) -> Iterator[None]:
    """Turn errors that a user can fix (wrong input, a full disk, Ctrl-C) into one line and an exit code."""
    try:
        yield
    except InputError as error:
        report_and_exit(error, program, every_rank=isinstance(error, RankInputError))
    # what only shows when a file is written: no permission after all, a full disk
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        report_and_exit(f"{where}{error.strerror or error}", program)
    except KeyboardInterrupt:
        report_and_exit(interrupted(), program, status=INTERRUPTED)


def training_parser(**kwargs: Any) -> Parser:
    """Our own training options, in titled groups; the Trainer's come with `training.arguments`."""
    parser = Parser(usage="%(prog)s [--OPTION VALUE ...]", **kwargs)
    parser.add_argument("--help-all", action="store_true", help="also list the Trainer's own options")
    parser.add_argument("--config", metavar="FILE", help="YAML file of any of these options; command-line flags win")
    for kind in GROUPS:
        add_settings(parser, kind)
    return parser


def add_settings(parser: argparse.ArgumentParser, kind: type):
    """Add an option for every field of a settings class, under its group's title."""
    hints = get_type_hints(kind)
    groups = {group.title: group for group in parser._action_groups}
    for item in fields(kind):
        title = item.metadata["group"]
        if title is not None and title not in groups:
            groups[title] = parser.add_argument_group(title)
        target = parser if title is None else groups[title]
        names = dict.fromkeys((f"--{item.name}", f"--{item.name.replace('_', '-')}"))
        text = argparse.SUPPRESS if title is None else item.metadata["help"].replace("%", "%%")
        target.add_argument(*names, default=item.default, help=text, **_conversion(hints[item.name], item.metadata))


def _conversion(hint: Any, metadata: Any) -> dict:
    """How argparse reads a value of this type: `type`, `nargs`, `choices` and `metavar`, which names the unit."""
    kinds = [kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,)) if kind is not type(None)]
    kind = str if str in kinds else kinds[0]
    unit = metadata["unit"].upper().replace(" ", "_") if metadata["unit"] else None
    if kind is bool:
        return {"type": _truth, "nargs": "?", "const": True, "metavar": "true|false"}
    if kind == list[float]:
        return {"type": float, "nargs": "+", "metavar": "LEVEL"}
    if kind == list[str]:
        return {"type": str, "nargs": "*" if metadata["may_be_empty"] else "+", "metavar": "NAME"}
    if metadata["choices"]:
        return {"choices": metadata["choices"]} | ({"metavar": "NAME"} if len(metadata["choices"]) > 5 else {})
    return {"type": kind, "metavar": unit or {int: "N", float: "X"}.get(kind, "TEXT")}


def _truth(value: str) -> bool:
    """Parse the spellings of true and false that YAML and people use."""
    spellings = {"true": True, "yes": True, "t": True, "y": True, "1": True}
    spellings |= {"false": False, "no": False, "f": False, "n": False, "0": False}
    if value.lower() not in spellings:
        raise argparse.ArgumentTypeError(f"expected true or false, got {value!r}")
    return spellings[value.lower()]
