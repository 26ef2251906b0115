"""What a row patch holds, and how two differ: as JSON values, and as text."""

import math
from typing import Any

import numpy as np

from maskedgrad.masking.tables import bits, same_bits
from maskedgrad.messages.grid import MOST_ROWS, Grid, listed, text_of
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.table import TablePatch


def description(patch: RowPatch) -> dict[str, Any]:
    """What a patch holds, as a JSON value.

    The norms are those of rows, and of what was added to them in training,
    where the patch knows what they were.

    Example:

    >>> from maskedgrad.patches import TablePatch
    >>> table = TablePatch("words", Rows([3], 9), np.float32([[3, 4]]), None, "ab")
    >>> described = description(RowPatch(table))
    >>> described["tables"][0]["entries"]
    [{'row': 3, 'word': None, 'norm': 5.0, 'moved': None}]
    """
    return {
        "checksum": patch.checksum,
        "tables": [_description_of_table(table) for table in patch.tables.values()],
    }


def comparison(first: RowPatch, second: RowPatch) -> dict[str, Any]:
    """How two patches differ, as a JSON value.

    Rows are compared by their words where both patches know them, else by ids.

    Example:

    >>> from maskedgrad.patches import TablePatch
    >>> one = TablePatch("words", Rows([3], 9), np.float32([[3, 4]]), None, "ab")
    >>> other = TablePatch("words", Rows([3, 5], 9), np.ones((2, 2), "f"), None, "ab")
    >>> (compared,) = comparison(RowPatch(one), RowPatch(other))["tables"]
    >>> [entry["row"] for entry in compared["different"]], compared["only_in_second"]
    ([3], [{'row': 5, 'word': None}])
    """
    paths = list({**first.tables, **second.tables})
    tables = [
        _comparison_of_tables(path, first.tables.get(path), second.tables.get(path))
        for path in paths
    ]
    return {"same": first == second, "tables": tables}


def text_of_description(described: dict[str, Any], width: int | None = None) -> str:
    """A `description` for people: a few rows of each table, in lines of some width."""
    grids = map(_described_grid, described["tables"])
    return text_of(Grid(f"checksum {described['checksum']}"), *grids, width=width)


def text_of_comparison(compared: dict[str, Any], width: int | None = None) -> str:
    """A `comparison` for people: a few rows of each table, in lines of some width."""
    if compared["same"]:
        return "the patches are the same"
    return text_of(*map(_compared_grid, compared["tables"]), width=width)


def _described_grid(table: dict[str, Any]) -> Grid:
    shape, entries = tuple(table["shape"]), table["entries"]
    return Grid(
        f"{_shown(table['path'])}: {len(entries):,} row{'s' * (len(entries) != 1)} "
        f"of a table of shape {shape}, "
        f"{table['dtype']}",
        ["row", "word", "norm", "moved"],
        [
            [*_row_and_word(entry), _number(entry["norm"]), _number(entry["moved"])]
            for entry in entries
        ],
        [f"rows {table['rows']}", f"frozen rows {_shown(table['digest'])}"],
    )


def _compared_grid(table: dict[str, Any]) -> Grid:
    different = table["different"]
    return Grid(
        f"{_shown(table['path'])}: {table['told']}",
        ["row", "word", "difference"] if different else [],
        [[*_row_and_word(entry), _number(entry["difference"])] for entry in different],
        [
            f"only in the {place}: {listed(list(map(_name, entries)), MOST_ROWS)}"
            for place in ("first", "second")
            if (entries := table[f"only_in_{place}"])
        ],
    )


def _description_of_table(table: TablePatch) -> dict[str, Any]:
    values, moved = table.values.astype("float64"), None
    if table.original is not None:
        with np.errstate(invalid="ignore"):
            moved = _norms(values - table.original.astype("float64"))
    norms = _norms(values)
    return {
        "path": table.path,
        "shape": [table.rows.num_rows, *table.values.shape[1:]],
        "dtype": table.dtype,
        "rows": table.rows.get_config()["rows"],
        "digest": table.digest,
        "entries": [
            {
                "row": id_,
                "word": table.words and table.words[place],
                "norm": norms[place],
                "moved": moved and moved[place],
            }
            for place, id_ in enumerate(table.ids.tolist())
        ],
    }


def _comparison_of_tables(
    path: str, first: TablePatch | None, second: TablePatch | None
) -> dict[str, Any]:
    told, ours, theirs = _told(first, second), _places(first, second), _places(second, first)
    common = [key for key in ours if key in theirs] if told is None else []
    different = []
    if first is not None and second is not None and told is None:
        here, there = [ours[key] for key in common], [theirs[key] for key in common]
        told = _base_told(first, second) + _others_told(first, second, here, there)
        different = _different(first, second, here, there)
    alike = set(common)
    entries, others = _entries(first), _entries(second)
    return {
        "path": path,
        "told": told,
        "only_in_first": [entries[place] for key, place in ours.items() if key not in alike],
        "only_in_second": [others[place] for key, place in theirs.items() if key not in alike],
        "same": len(common) - len(different),
        "different": different,
    }


def _told(first: TablePatch | None, second: TablePatch | None) -> str | None:
    """Why the rows of two tables cannot be compared, or `None` if they can be."""
    if first is None or second is None:
        return f"only in the {'second' if first is None else 'first'}"
    kinds = [(table.values.shape[1:], table.dtype) for table in (first, second)]
    if kinds[0] != kinds[1]:
        return f"rows of {kinds[0]} in the first, of {kinds[1]} in the second"
    return None


def _different(
    first: TablePatch, second: TablePatch, here: list[int], there: list[int]
) -> list[dict[str, Any]]:
    """The rows at some places of two tables that differ in a bit, and how far."""
    ours, theirs = _flat(first.values[here]), _flat(second.values[there])
    with np.errstate(invalid="ignore"):
        norms = _norms(ours.astype("float64") - theirs.astype("float64"))
    entries = _entries(first)
    return [
        {**entries[here[place]], "difference": norms[place]}
        for place in np.flatnonzero((bits(ours) != bits(theirs)).any(axis=1)).tolist()
    ]


def _base_told(first: TablePatch, second: TablePatch) -> str:
    """What the digests say of the frozen rows around two patches."""
    if first.rows != second.rows:
        return "over frozen rows that cannot be compared, since other rows train"
    same = first.digest == second.digest
    return "over the same frozen rows" if same else "over other frozen rows"


def _others_told(first: TablePatch, second: TablePatch, ours: list[int], theirs: list[int]) -> str:
    """What differs of two patches of the same values, in the rows at some places."""
    told = ""
    if first.original is None or second.original is None:
        told += "" if first.original is second.original else "; one knows no original values"
    elif not same_bits(first.original[ours], second.original[theirs]):
        told += "; with other original values"
    if first.words is None or second.words is None:
        told += "" if first.words == second.words else "; one knows no words"
    return told


def _entries(table: TablePatch | None) -> list[dict[str, Any]]:
    if table is None:
        return []
    words = table.words or (None,) * len(table.rows)
    return [{"row": id_, "word": word} for id_, word in zip(table.ids.tolist(), words, strict=True)]


def _places(table: TablePatch | None, other: TablePatch | None) -> dict[Any, int]:
    """The place of each row of a table, by its word if both tables know words, else by its id."""
    if table is None:
        return {}
    by_word = table.words is not None and other is not None and other.words is not None
    keys = table.words if by_word else table.ids.tolist()
    return {key: place for place, key in enumerate(keys or ())}


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), math.prod(rows.shape[1:]))


def _norms(rows: np.ndarray) -> list[float | None]:
    """The norm of each row, or `None` where it is no number that JSON has."""
    with np.errstate(all="ignore"):
        norms = np.linalg.norm(_flat(rows), axis=1)
    return [float(norm) if np.isfinite(norm) else None for norm in norms]


def _row_and_word(entry: dict[str, Any]) -> list[str]:
    return [str(entry["row"]), "-" if entry["word"] is None else repr(entry["word"])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _shown(text: str) -> str:
    # A file may come from anywhere, and a terminal obeys some of what is printed to it.
    return text if text.isprintable() else ascii(text)


def _name(entry: dict[str, Any]) -> str:
    return str(entry["row"]) if entry["word"] is None else repr(entry["word"])
