"""Train some rows of a pretrained table in Keras; every other row keeps its bits.

Pages, recipes and examples are in the documentation; `COMMAND --help` tells of a command.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from maskedgrad.version import __version__, check_tensorflow

# Each is a module of this package with `add_arguments` and `run`. Only `run` imports TensorFlow, so
# that help is there at once.
COMMANDS = {
    "demo": "watch new symbols learn while every other word keeps its vector",
    "bench": "measure the ways to train some rows, on this machine",
    "verify": "check that a saved model's frozen rows are those of its source",
    "patch": "show, compare, apply and export row patches",
}

FAILED = 2  # the exit status, as that of `diff` and of `argparse`
STDERR = 2  # the descriptor, which C++ writes to


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command that `arguments` name, and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    program = "maskedgrad" if Path(sys.argv[0]).stem == "maskedgrad" else "python -m maskedgrad"
    try:
        with interrupts_kept():
            parser = _parser(program, arguments)
        options = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
        if options.command is None:
            parser.print_help()
            return 0
        return _run(program, options)
    except KeyboardInterrupt:
        return _failed(program, "interrupted", 130)


def _run(program: str, options: argparse.Namespace) -> int:
    try:
        with interrupts_kept(), _quiet_import():
            check_tensorflow()
            # Keras loads what is registered with it.
            importlib.import_module("maskedgrad.model")
        return options.run(options)
    except (ImportError, OSError, ValueError) as error:
        # An extra, a file or a value is the user's to mend, and needs no traceback.
        return _failed(program, f"{options.command}: {error}", FAILED)
    except Exception:
        # Python would end with 1, which says "a row differs" of `verify` and of `patch diff`.
        traceback.print_exc()
        return FAILED


def _parser(program: str, arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--version", action="version", version=f"maskedgrad {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name in arguments:
            module = importlib.import_module(f"maskedgrad.cli.{name}")
            command.description = module.__doc__
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


@contextlib.contextmanager
def interrupts_kept() -> Iterator[None]:
    """Raises a `KeyboardInterrupt` at its end, where what ran inside has swallowed one.

    Of the many modules that are imported with TensorFlow some catch whatever is raised. A command
    would go on then, as if nobody had pressed Ctrl-C, or tell of an import that failed.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or (
        threading.current_thread() is not threading.main_thread()
    ):
        yield  # whoever runs this sees to interrupts
        return
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps what TensorFlow logs as it is imported out of what a command prints.

    It logs from C++ before it asks for the level (seen with 2.21), which 0 leaves alone.
    """
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "0":
        yield
        return
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(STDERR)
        os.dup2(nowhere.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, STDERR)
            os.close(stderr)


def _failed(program: str, message: str, status: int) -> int:
    print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
    return status
