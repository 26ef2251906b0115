"""What is shown as a table: the same rows as text for a terminal and as HTML for a notebook."""

import html
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

MOST_ROWS = 20
LONGEST_CELL = 40
SHORTEST_CELL = 8
INDENT, GAP = "  ", "  "

is_number = re.compile(r"[+-]?[\d,.]*(e[+-]?\d+)?%?").fullmatch


class Grid(NamedTuple):
    """A table for readers: what stands above it, its columns and rows, and what stands below.

    Rows after the first `MOST_ROWS` are counted and not shown, and cells are
    cut, so that the text of a grid stays short whatever it is of.
    """

    title: str
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    @property
    def below(self) -> list[str]:
        """The notes, after how many rows are not shown."""
        more = len(self.rows) - MOST_ROWS
        return [*([f"... and {more:,} more"] if more > 0 else []), *self.notes]


def text_of(*grids: Grid, width: int | None = None) -> str:
    """Grids as lines of text, in which columns are aligned.

    Args:
        grids: what is shown.
        width: how many columns of a terminal a line may take; any number if left
            out. Words are cut then, and titles and notes go on in another line.
            Numbers stay whole.

    Example:

    >>> print(text_of(Grid("Two words", ["word", "moved"], [["cat", "1.5"], ["mouse", "10.0"]])))
    Two words
      word   moved
      cat      1.5
      mouse   10.0
    """
    return "\n\n".join("\n".join(_lines_of(grid, width)) for grid in grids)


def html_of(*grids: Grid) -> str:
    """Grids as HTML, in which every text is escaped.

    Example:

    >>> html_of(Grid("One", ["word"], [["<city>"]]))
    '<p>One</p><table><tr><th>word</th></tr><tr><td>&lt;city&gt;</td></tr></table>'
    """
    return "".join(map(_html_of, grids))


def listed(words: Sequence[str], most: int = 5) -> str:
    """Words as a short list: the first few, and how many more there are.

    Example:

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = len(words) - most
    shown = ", ".join(map(cut, words[:most]))
    return f"{shown} and {more:,} more" if more > 0 else shown


def cut(text: str) -> str:
    """A text on one line, of at most `LONGEST_CELL` characters."""
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


def _lines_of(grid: Grid, width: int | None) -> list[str]:
    cells = [list(map(cut, row)) for row in grid.rows[:MOST_ROWS]]
    table = [list(grid.columns), *cells] if grid.columns else cells
    widths = [max(map(_width, column)) for column in zip(*table, strict=True)]
    right = [all(map(is_number, column)) for column in zip(*cells, strict=True)]
    if width is not None and cells:
        widths = _narrowed(widths, right, width - len(INDENT) - len(GAP) * (len(widths) - 1))
    lines = [
        GAP.join(
            _padded(_shortened(cell, room), room, is_right)
            for cell, room, is_right in zip(row, widths, right, strict=True)
        )
        for row in (table if cells else [])
    ]
    return [
        *_wrapped(grid.title, width, ""),
        *(f"{INDENT}{line}".rstrip() for line in lines),
        *(line for note in grid.below for line in _wrapped(note, width, INDENT)),
    ]


def _narrowed(widths: Sequence[int], right: Sequence[bool], room: int) -> list[int]:
    """The widths of columns that share some room: those of words become narrower, down to a few."""
    narrowed = list(widths)
    words = [place for place, is_right in enumerate(right) if not is_right]
    while sum(narrowed) > room and any(narrowed[place] > SHORTEST_CELL for place in words):
        narrowed[max(words, key=narrowed.__getitem__)] -= 1
    return narrowed


def _shortened(text: str, width: int) -> str:
    """A text that takes at most so many columns of a terminal."""
    if _width(text) <= width:
        return text
    return next(
        short for end in range(len(text), -1, -1) if _width(short := f"{text[:end]}...") <= width
    )


def _wrapped(text: str, width: int | None, indent: str) -> list[str]:
    if width is None:
        return [f"{indent}{text}".rstrip()]
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}{INDENT}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _html_of(grid: Grid) -> str:
    cells = [list(map(cut, row)) for row in grid.rows[:MOST_ROWS]]
    table = [_html_row("th", grid.columns)] if grid.columns else []
    table += [_html_row("td", row) for row in cells]
    below = "".join(f"<p>{html.escape(note)}</p>" for note in grid.below)
    rows = f"<table>{''.join(table)}</table>" if cells else ""
    return f"<p>{html.escape(grid.title)}</p>{rows}{below}"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _padded(cell: str, width: int, is_right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if is_right else cell + space


def _width(text: str) -> int:
    """How many columns of a terminal a text takes: two for each wide character of East Asia."""
    return sum(
        0 if unicodedata.combining(each) else 1 + (unicodedata.east_asian_width(each) in "FW")
        for each in text
    )
