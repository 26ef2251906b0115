"""What the demo and the benchmark print: on a terminal of any width, or into a file."""

from collections.abc import Iterator, Sequence
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
    """Prints a table, in parts one below the other where it does not fit.

    Each part has the names of the rows. Where they do not fit beside any other
    column, the cells of each row are listed.

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
    parts = list(_parts(console, headings, rows))
    if title:
        console.print(title, soft_wrap=True)
    if all(parts):
        for columns in parts:
            console.print(_table(headings, rows, columns))
        return
    for name, *cells in rows:
        console.print(name, soft_wrap=True)
        for heading, cell in zip(headings[1:], cells, strict=True):
            console.print(f"  {' '.join(heading.split())}: {cell}", soft_wrap=True)


def _parts(
    console: Any, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[Sequence[int]]:
    """Columns that fit beside the first one, as many as do; an empty part last if none does."""
    from rich.measure import Measurement

    widest = console.options.update(max_width=10_000)
    rest = range(1, len(headings))
    while rest:
        width_of = {
            count: Measurement.get(console, widest, _table(headings, rows, rest[:count])).maximum
            for count in range(1, len(rest) + 1)
        }
        most = max((count for count in width_of if width_of[count] <= console.width), default=0)
        yield rest[:most]
        rest = rest[most:] if most else range(0)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> Any:
    """A `rich` table of the names of the rows and some other columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (0, *columns):
        table.add_column(headings[column], justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(row[column] for column in (0, *columns)))
    return table
