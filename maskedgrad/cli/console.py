"""What the demo and the benchmark print: on a terminal of any width, or into a file."""

from collections.abc import Sequence
from typing import Any

WIDTH_OF_FILES = 130  # as wide as the widest table

TIMES_MASK_NOTE = (
    "'gradient times mask' changes no frozen row under Adam, which makes no step where the "
    "gradient was always zero, and every one under AdamW, which decays all weights, whatever their "
    "gradient."
)


def make_console(**options: Any) -> Any:
    """A `rich` console that breaks lines between words on a terminal, and in files not at all.

    Files are as wide as the widest table.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False, **options)
    if not console.is_terminal:
        console.soft_wrap = True
        console.width = WIDTH_OF_FILES
    return console


def print_table(
    console: Any, headings: Sequence[str], rows: Sequence[Sequence[str]], title: str | None = None
) -> None:
    """Prints a table; or its rows one below the other, where it does not fit.

    Args:
        console: a `rich` console.
        headings: what each column is called; the first names the rows.
        rows: the cells of each row.
        title: what stands above.

    Example:

    >>> from rich.console import Console
    >>> headings, rows = ["way", "frozen rows\\nchanged"], [["maskedgrad", "0"]]
    >>> print_table(Console(width=20), headings, rows)
    maskedgrad
      frozen rows changed: 0
    """
    from rich.box import SIMPLE_HEAD
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    widest = console.options.update(max_width=10_000)
    if Measurement.get(console, widest, table).maximum <= console.width:
        console.print(table)
        return
    if title:
        console.print(title, soft_wrap=True)
    for name, *cells in rows:
        console.print(name, soft_wrap=True)
        for heading, cell in zip(headings[1:], cells, strict=True):
            console.print(f"  {' '.join(heading.split())}: {cell}", soft_wrap=True)
