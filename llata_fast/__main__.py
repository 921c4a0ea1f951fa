"""`python -m llata_fast COMMAND`: what is done beside training (`commands/`)."""

import argparse

from .commands import COMMANDS
from .errors import InputError
from .training.arguments import INTERRUPTED, Parser, report_and_exit


def _parser() -> argparse.ArgumentParser:
    parser = Parser(dataclass_types=(), prog="llata_fast", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        name, doc = module.__name__.rsplit(".", 1)[-1], module.__doc__
        # argparse formats both, and takes % for a variable
        summary = doc.splitlines()[0].rstrip(".").replace("%", "%%")
        sub = commands.add_parser(
            name, help=summary, description=doc.replace("%", "%%"), dataclass_types=(), allow_abbrev=False
        )
        sub.set_defaults(run_command=module.run)
        module.add_arguments(sub)
    return parser


def main(argv: list[str] | None = None):
    options = _parser().parse_args(argv)
    # help needs no torch
    from .ranks import leaving_in_order

    try:
        with leaving_in_order():
            options.run_command(options)
    except InputError as error:
        report_and_exit(error, f"llata_fast {options.command}")
    # what only shows when a file is written: no permission after all, a full disk
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        report_and_exit(f"{where}{error.strerror or error}", f"llata_fast {options.command}")
    except KeyboardInterrupt:
        report_and_exit("interrupted", f"llata_fast {options.command}", status=INTERRUPTED)


if __name__ == "__main__":
    main()
