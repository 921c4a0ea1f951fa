"""`python -m llata_fast COMMAND`: every command except training (`commands/`)."""

import argparse
from importlib import import_module

from .cli import Parser, importing, one_line_errors, show_log, show_warnings_in_one_line
from .commands import COMMANDS, command, summary

_NAME = "llata_fast"


def command_parser(name: str) -> Parser:
    """The options of one command."""
    module = command(name)
    # argparse formats the description, so a bare % would be read as a placeholder
    parser = Parser(prog=f"{_NAME} {name}", description=(module.__doc__ or "").replace("%", "%%"))
    module.add_arguments(parser)
    return parser


def _parser() -> Parser:
    width = max(map(len, COMMANDS))
    listed = "\n".join(f"  {name:<{width}}  {summary(name)}" for name in COMMANDS)
    parser = Parser(prog=_NAME, usage="%(prog)s COMMAND ...", description=f"commands:\n{listed}".replace("%", "%%"))
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of these; see COMMAND --help")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None):
    """Run one command; an error ends the program with one line on stderr and an exit code."""
    chosen = _parser().parse_args(argv)
    options = command_parser(chosen.command).parse_args(chosen.rest)
    show_warnings_in_one_line()
    show_log()
    module = command(chosen.command)
    with one_line_errors(f"{_NAME} {chosen.command}"):
        # --help has ended the program by here, so it never imports torch
        with importing():
            from .ranks import leaving_in_order

            for name in getattr(module, "IMPORTS", ()):
                import_module(f".{name}", __package__)
        with leaving_in_order():
            module.main(options)


if __name__ == "__main__":
    main()
