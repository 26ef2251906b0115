"""Values of options, as `argparse` reads them."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

MINILM = "minilm"
FIGURES = (".png", ".svg", ".pdf")
# What messages name that are meant for Python too.
OPTION_OF = {
    "strict=False": "--no-strict",
    "allow_nonfinite=True": "--allow-nonfinite",
    "`vocabulary`": "--vocabulary",
    "Leave these rows out by `rows=`, or give": "Give",
    "Leave these rows out by `rows=`, or write": "Write",
    "Leave it out by `rows=`, give it a word, or write": "Write",
}


def path_in_directory(text: str) -> Path:
    """The path of a file that can be written, or is there."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(
            f"Expected the path of a file, in a directory that exists. Received: {text}"
        )
    return path


def path_of_figure(text: str) -> Path:
    """The path of a figure that can be written: its suffix names a format."""
    path = path_in_directory(text)
    if path.suffix not in FIGURES:
        raise argparse.ArgumentTypeError(
            f"Expected a path that ends in {' or '.join(FIGURES)}. Received: {text}"
        )
    return path


def check_absent(paths: Iterable[Path | None], replace: bool) -> None:
    """Raises a `FileExistsError` if a file is there that would be overwritten unasked."""
    existing = [str(path) for path in paths if path is not None and path.exists()]
    if existing and not replace:
        raise FileExistsError(
            f"What is written must not exist. Received: {', '.join(existing)}, which "
            f"{'does' if len(existing) == 1 else 'do'}. Give another name, or say that it "
            "may be replaced (--replace)."
        )


def read_words(vocabulary: Path) -> list[str]:
    """The words of a file, one a line, in the order of their rows."""
    from maskedgrad.rows.vocabulary import is_unknown  # not before Keras is needed

    try:
        # Without the mark that some editors begin a file with.
        words = vocabulary.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"--vocabulary must be a file of UTF-8. Received: {vocabulary}, of which byte "
            f"{error.start} is not. Write it anew: iconv -t UTF-8"
        ) from error
    if not any(words):
        raise ValueError(
            f"--vocabulary must hold a word a line. Received: {vocabulary}, which has none"
        )
    line_of: dict[str, int] = {}
    for line, word in enumerate(words, start=1):
        if line_of.setdefault(word, line) != line and not is_unknown(word):
            raise ValueError(
                "--vocabulary must hold each word once, on the line of its row. Received: "
                f"{vocabulary}, with {word!r} on lines {line_of[word]} and {line}"
            )
    return words


def without_python(message: str) -> str:
    """A message without the clauses that tell what to write in Python.

    Example:

    >>> without_python("It has none of the words. `fallbacks=[str.lower]` finds more.")
    'It has none of the words.'
    """
    clauses = re.split(r"(?<=[.;:]) ", message)
    return " ".join(clause for clause in clauses if "`" not in clause).rstrip(";: ")


def in_a_shell(error: Exception) -> str:
    """What an error says, in one line, with the options of a command in the place of Python's.

    Example:

    >>> in_a_shell(ValueError("They differ.\\nApply it all the same by strict=False."))
    'They differ. Apply it all the same by --no-strict.'
    """
    message = " ".join(str(error).split())
    for argument, option in OPTION_OF.items():
        message = message.replace(argument, option)
    return message


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"Expected a whole number above 0. Received: {text}")
    return int(text)
