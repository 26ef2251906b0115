"""Variables by their path, or by a regular expression that paths match."""

import difflib
import re
from collections.abc import Sequence

import keras

from maskedgrad.messages import shorten
from maskedgrad.rows.saved import listing


def of_path(path: str, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """The variables that a path names: the one that has it, or those that it matches.

    Raises:
        ValueError: several variables have this path, or none has it or matches it.
    """
    exact = [v for v in variables if v.path == path]
    if len(exact) > 1:
        raise ValueError(
            f"The path {path!r} must name one variable. Received: {len(exact)} variables of this "
            "path, in layers of one name. Name the layers themselves, "
            "`{layer: rows}`, or give them different names."
        )
    try:
        matches = exact or [v for v in variables if re.fullmatch(path, v.path)]
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{shorten(path)} is neither the path of a variable nor a regular expression "
            f"({error}). {_about_patterns(path)}The paths are{listing(variables)}"
        ) from error
    if not matches:
        raise ValueError(
            f"The target {path!r} matches none of the variables that are trained"
            f"{listing(variables)}{_nearest(path, variables)}{_about_patterns(path)}A variable of "
            "a frozen layer is not among them, nor one that is no `keras.Variable`."
        )
    return matches


def _about_patterns(path: str) -> str:
    """A hint where a path may be meant as a pattern of file names."""
    is_glob = "*" in path and ".*" not in path
    return "In a regular expression `.*` stands for any text. " if is_glob else ""


def _nearest(path: str, variables: Sequence[keras.Variable]) -> str:
    """What may have been meant by a path that no variable has: those in a layer of that name."""
    paths = list(dict.fromkeys(v.path for v in variables))
    inside = [each for each in paths if f"/{path}/" in f"/{each}"]
    found = inside[:3] or difflib.get_close_matches(path, paths, n=3)
    return f"Did you mean {' or '.join(map(repr, found))}? " if found else ""
