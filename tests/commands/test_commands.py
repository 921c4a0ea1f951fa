"""Every module of `commands/` is a command with a one-line summary."""

from pathlib import Path

from llata_fast import commands

NO_COMMAND = {"__init__", "inputs"}


def test_every_module_is_a_command():
    modules = {path.stem for path in Path(commands.__file__).parent.glob("*.py")} - NO_COMMAND
    assert modules == set(commands.COMMANDS)


def test_every_command_has_a_summary():
    assert all(commands.summary(name) for name in commands.COMMANDS)
