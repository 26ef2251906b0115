"""The commands: `python -m maskedgrad demo`, `bench`, `verify` and `patch`."""

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "watch special symbols learn in real text, five ways",
    "bench": "measure the ways to train some rows, on this machine",
    "verify": "check that a saved model's frozen rows are those of its source",
    "patch": "show, compare, apply and export row patches",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` name, and returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m maskedgrad", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = importlib.import_module(f"maskedgrad.cli.{name}")
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    try:
        return options.run(options)
    except (ImportError, OSError) as error:
        # A missing extra or file is the user's to mend, and needs no traceback.
        parser.exit(1, f"{parser.prog}: {error}\n")
