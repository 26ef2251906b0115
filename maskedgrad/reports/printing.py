"""Printing as Keras prints: to a terminal in colours, to a notebook, or to a log."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

import keras
import rich.console
from typing_extensions import override

# Keras ends its summary with four lines, of which this is the first; colours may stand before it.
CLOSING = re.compile(r"^(?:\x1b\[[\d;]*m)* Total params: ", re.MULTILINE)


def print_text(text: str) -> None:
    """Prints a text, or logs it where Keras logs."""
    if keras.config.is_interactive_logging_enabled():
        print(text, end="")
    else:
        logging.getLogger("absl").info(text)


def print_with_closing(print_keras_summary: Callable[[], Any], closing: str) -> None:
    """Prints what Keras prints, in its colours, with other lines in the place of its last ones."""
    if rich.console.Console().is_jupyter:
        _show_in_notebook(print_keras_summary)
        print(closing, end="")
        return
    recorder = _Recorder()
    with contextlib.redirect_stdout(recorder):
        print_keras_summary()
    print(without_closing(recorder.getvalue()), end=closing)


def without_closing(text: str) -> str:
    """A summary of Keras without its last lines."""
    return CLOSING.split(text)[0]


def _show_in_notebook(print_keras_summary: Callable[[], Any]) -> None:
    from IPython.utils.capture import capture_output  # there, in a notebook

    with capture_output() as captured:
        print_keras_summary()
    outputs: list[Any] = captured.outputs
    for output in outputs:
        if CLOSING.match(output.data["text/plain"]):
            break
        output.display()


class _Recorder(io.StringIO):
    """Keeps what is written, and says of itself what standard output says of itself.

    So what is written has the colours and the characters that it would have there.
    """

    encoding = ""  # as a class attribute, since that of `StringIO` cannot be set

    def __init__(self) -> None:
        super().__init__()
        self._target = sys.stdout
        self.encoding = getattr(sys.stdout, "encoding", None) or "utf-8"

    @override
    def isatty(self) -> bool:
        return self._target.isatty()
