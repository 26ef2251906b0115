"""Values of options, as `argparse` reads them."""

import argparse
from pathlib import Path


def path_in_directory(text: str) -> Path:
    """The path of a file that can be written: what is there is replaced, as it is named."""
    path = Path(text)
    if not path.parent.is_dir() or path.is_dir():
        raise argparse.ArgumentTypeError(
            f"Expected the path of a file, in a directory that exists. Received: {text}"
        )
    return path


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"Expected a whole number above 0. Received: {text}")
    return int(text)
