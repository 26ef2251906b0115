"""The progress of what takes long, on a terminal."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


def progress_bar(is_shown: bool = True) -> Progress:
    """A `rich.progress.Progress` on standard error, which goes when it is done.

    It is a context. What is no terminal gets nothing. Keras needs rich too, so that it is there.

    Example:

    >>> with progress_bar() as progress:
    ...     sum(progress.track([1, 2, 3], description="Adding"))
    6
    """
    console = Console(file=sys.stderr)
    return Progress(
        TextColumn("{task.description:30}", markup=False),  # names of files may have brackets
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not (is_shown and console.is_terminal),
    )
