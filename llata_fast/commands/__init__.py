"""`python -m llata_fast COMMAND`: one module per command.

A command's module holds its help as the docstring, `add_arguments(parser)` and `main(options)`; its name is the
command's name. To add a command, write the module and list it here, in the order of the help. Slow imports belong in
`main`, or in `IMPORTS`, which `__main__` imports before `main`, so that help stays instant.
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
    """The first line of a command's help, read from its file without importing it."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].rstrip(".")
