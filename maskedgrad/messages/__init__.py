"""How values are shown: in error messages, in a terminal and in a notebook."""

import re
from typing import Any


def capitalized(text: str) -> str:
    """The text as it begins a sentence."""
    return text[0].upper() + text[1:]


def shorten(value: Any) -> str:
    """The `repr` of a value on one line, of at most 80 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        text = f"a value of type {type(value).__name__}"
    text = re.sub(r"\s*\n\s*", " ", text)  # an array is shown in several lines
    return text if len(text) <= 80 else f"{text[:77]}..."
