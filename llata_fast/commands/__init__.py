"""`python -m llata_fast COMMAND`: a module each.

A command's module holds its help as docstring, `add_arguments(parser)` and `run(options)`; the module's name is the
command's. To add one, write the module and list it here, in the order of the help. What takes long to import is
imported in `run`: help answers at once.
"""

import ast
from importlib import import_module
from pathlib import Path
from types import ModuleType

COMMANDS = (
    "fit",
    "predict",
    "backtest",
    "evaluate",
    "report",
    "export",
    "push",
    "benchmark",
    "gift_eval",
    "bundle",
    "corpus",
    "plan",
    "reshard",
    "replay",
    "doctor",
)


def command(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"{__name__}.{name}")


def summary(name: str) -> str:
    """The first line of a command's help, read from its module's file, which is not imported."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")
