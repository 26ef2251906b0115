"""Values of options, as `argparse` reads them."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

MINILM = "minilm"


def path_in_directory(text: str) -> Path:
    """The path of a file that can be written, or is there."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(
            f"Expected the path of a file, in a directory that exists. Received: {text}"
        )
    return path


def check_absent(paths: Iterable[Path | None], replace: bool) -> None:
    """Raises a `FileExistsError` if a file is there that would be overwritten unasked."""
    existing = [str(path) for path in paths if path is not None and path.exists()]
    if existing and not replace:
        raise FileExistsError(
            f"Expected new files. Received: {', '.join(existing)}, which exist. Name others, or "
            "give --replace."
        )


def without_python(message: str) -> str:
    """A message without the clauses that tell what to write in Python.

    Example:

    >>> without_python("It has none of the words. `fallbacks=[str.lower]` finds more.")
    'It has none of the words.'
    """
    clauses = re.split(r"(?<=[.;:]) ", message)
    return " ".join(clause for clause in clauses if "`" not in clause).rstrip(";: ")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"Expected a whole number above 0. Received: {text}")
    return int(text)
