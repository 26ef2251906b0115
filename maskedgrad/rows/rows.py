"""`Rows`: a set of row ids of a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from maskedgrad.messages import capitalized, shorten
from maskedgrad.messages.grid import Grid, cut, html_of
from maskedgrad.rows.ids import checked_array, checked_range, checked_slice
from maskedgrad.rows.text import (
    Runs,
    range_from_text,
    range_to_text,
    runs_from_text,
    runs_of,
    slice_from_text,
    slice_to_text,
)
from maskedgrad.rows.vocabulary import ids_by_word, row_ids


class Rows:
    """An immutable set of row ids of a table, sorted and unique, with set operators.

    Equivalent to the ids that `numpy.arange(num_rows)[rows]` selects, for any
    `rows` that names every row at most once.

    Args:
        rows: the selected rows. Ids (a list, tuple, NumPy integer array or
            tensor of shape `(K,)`), a boolean mask of shape `(num_rows,)`, a
            `range`, a `slice`, or another `Rows`.
        num_rows: int, the number of rows of the table, V.

    Raises:
        TypeError: `rows` are not integers or booleans.
        ValueError: an id is negative, out of range or repeated; the array is
            not of rank 1; or a mask or `Rows` is of another length.

    Example:

    >>> special = Rows([7, 2], num_rows=10)
    >>> special
    Rows('2,7', num_rows=10)
    >>> ~special | special == Rows(slice(None), num_rows=10)
    True
    >>> special - Rows([2], num_rows=10), special & Rows([2], num_rows=10)
    (Rows('7', num_rows=10), Rows('2', num_rows=10))
    """

    def __init__(self, rows: "RowsLike", num_rows: int):
        _check_num_rows(num_rows)
        self._selected = _selected(canonical(rows), int(num_rows))
        self._num_rows = int(num_rows)

    @classmethod
    def last(cls, n: int, num_rows: int) -> "Rows":
        """The last `n` rows of a table.

        Example:

        >>> Rows.last(3, num_rows=10)
        Rows('7:10', num_rows=10)
        """
        _check_num_rows(num_rows)
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 0 <= n <= num_rows:
            raise ValueError(f"`n` must be an int from 0 to {num_rows}. Received: n={n!r}")
        return cls(slice(num_rows - int(n), None), num_rows)

    @classmethod
    def all_but(cls, rows: "RowsLike", num_rows: int) -> "Rows":
        """All rows of a table but `rows`, which are what `Rows` takes.

        Example:

        >>> Rows.all_but([0, 3], num_rows=5)
        Rows('1:3,4', num_rows=5)
        """
        return cls(rows, num_rows).complement()

    @classmethod
    def of_words(cls, words: Sequence[str], vocabulary: Any) -> "Rows":
        """The rows of words in the table of a vocabulary, as `row_ids` takes them.

        The table has a row more than the largest id of the vocabulary.

        Example:

        >>> Rows.of_words(["<city>"], ["", "the", "<city>"])
        Rows('2', num_rows=3)
        """
        num_rows = max(ids_by_word(vocabulary).values(), default=-1) + 1
        return cls(row_ids(words, vocabulary), num_rows)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The row ids: a read-only, ascending int64 array of shape `(K,)`."""
        # A config may claim more rows than any table has: runs become ids when they are used.
        if isinstance(self._selected, Runs):
            self._selected = self._selected.ids()
        self._selected.setflags(write=False)
        return self._selected

    @property
    def num_rows(self) -> int:
        """The number of rows of the table, V."""
        return self._num_rows

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """A boolean array of shape `(num_rows,)`, true at the ids."""
        mask = np.zeros(self._num_rows, dtype=bool)
        mask[self.ids] = True
        return mask

    def complement(self) -> "Rows":
        """All the other rows of the table."""
        return Rows(~self.mask, self._num_rows)

    def union(self, other: "Rows") -> "Rows":
        """The rows of either set. Both must speak of tables of one length."""
        return self._combined(np.union1d, other)

    def intersection(self, other: "Rows") -> "Rows":
        """The rows of both sets. Both must speak of tables of one length."""
        return self._combined(np.intersect1d, other)

    def difference(self, other: "Rows") -> "Rows":
        """The rows of this set that are not in the other. Both must be of one length."""
        return self._combined(np.setdiff1d, other)

    def _combined(self, combine: Callable[..., np.ndarray], other: "Rows") -> "Rows":
        if not isinstance(other, Rows):
            raise TypeError(
                f"Rows must be combined with a `Rows`. Received: {shorten(other)}. "
                f"`Rows(ids, {self._num_rows})` makes one of ids."
            )
        _check_length("a `Rows`", other.num_rows, self._num_rows)
        return Rows(combine(self.ids, other.ids), self._num_rows)

    def get_config(self) -> dict[str, Any]:
        """A JSON value: `rows` as text, such as `"2,7,10:20"`, and `num_rows`."""
        return {"rows": self._runs().text(), "num_rows": self._num_rows}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Rows":
        """The inverse of `get_config`. Takes no more memory than `config` does.

        Raises:
            TypeError, ValueError: `config` is not what `get_config` returns.
        """
        _check_config(config, "rows", "num_rows")
        _check_num_rows(config["num_rows"])
        return cls(cast("RowsLike", runs_from_text(config["rows"])), config["num_rows"])

    def _runs(self) -> Runs:
        return self._selected if isinstance(self._selected, Runs) else runs_of(self._selected)

    def __or__(self, other: object) -> "Rows":
        return self.union(other) if isinstance(other, Rows) else NotImplemented

    def __and__(self, other: object) -> "Rows":
        return self.intersection(other) if isinstance(other, Rows) else NotImplemented

    def __sub__(self, other: object) -> "Rows":
        return self.difference(other) if isinstance(other, Rows) else NotImplemented

    def __invert__(self) -> "Rows":
        return self.complement()

    def __len__(self) -> int:
        selected = self._selected
        return selected.num_ids if isinstance(selected, Runs) else len(selected)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids.tolist())

    def __contains__(self, row: int) -> bool:
        index = np.searchsorted(self.ids, row)
        return bool(index < len(self.ids) and self.ids[index] == row)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        return self._num_rows == other._num_rows and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash((self._num_rows, self.ids.tobytes()))

    def __repr__(self) -> str:
        return f"Rows({cut(self._runs().text())!r}, num_rows={self._num_rows})"

    def _repr_html_(self) -> str:
        title = f"{len(self):,} of {self._num_rows:,} rows"
        return html_of(Grid(title, notes=[cut(self._runs().text())]))


class _IdsOrMask(Protocol):
    """What NumPy makes an array of ids or a mask of, such as a tensor or a column of pandas."""

    def __array__(self) -> npt.NDArray[np.integer[Any] | np.bool_]: ...


RowsLike: TypeAlias = Rows | slice | range | Sequence[int | np.integer[Any]] | _IdsOrMask


def canonical(rows: Any) -> "slice | range | np.ndarray | Rows | Runs":
    """`rows` validated as far as that goes without the length of the table.

    Returns:
        A slice, a `Rows`, an ascending `range`, the `Runs` of a config, or an
        array of rank 1 that is boolean (a mask) or int64, ascending and unique
        (ids).
    """
    if isinstance(rows, (Rows, Runs)):
        return rows
    if isinstance(rows, slice):
        return checked_slice(rows)
    if isinstance(rows, range):
        return checked_range(rows)
    return checked_array(rows)


def encode_rows(rows: Any) -> dict[str, Any]:
    """Rows in any form as a JSON value. See `decode_rows`."""
    rows = canonical(rows)
    if isinstance(rows, Rows):
        return rows.get_config()
    if isinstance(rows, slice):
        return {"rows": slice_to_text(rows)}
    if isinstance(rows, range):
        # Not as ids, which may be more than fit into memory.
        return {"rows": range_to_text(rows)}
    if isinstance(rows, Runs):
        return {"rows": rows.text()}
    if rows.dtype == bool:
        return Rows(rows, len(rows)).get_config()
    return {"rows": runs_of(rows).text()}


def decode_rows(config: Mapping[str, Any]) -> Any:
    """The inverse of `encode_rows`.

    Raises:
        TypeError, ValueError: `config` is not what `encode_rows` returns.
    """
    _check_config(config, "rows")
    if "num_rows" in config:
        return Rows.from_config(config)
    text = config["rows"]
    if text.startswith("range("):
        return checked_range(range_from_text(text))
    if text.count(":") == 2 and "," not in text:
        return slice_from_text(text)
    runs = runs_from_text(text)
    return range(runs.starts[0], runs.stops[0]) if len(runs.starts) == 1 else runs


def _check_num_rows(num_rows: Any) -> None:
    if isinstance(num_rows, bool) or not isinstance(num_rows, (int, np.integer)):
        raise TypeError(
            "`num_rows` must be an int, the number of rows of the table. "
            f"Received: num_rows={shorten(num_rows)}"
        )
    if num_rows < 0:
        raise ValueError(f"`num_rows` must not be negative. Received: num_rows={num_rows}")


def _check_config(config: Any, *names: str) -> None:
    is_config = isinstance(config, Mapping) and isinstance(config.get("rows"), str)
    if not is_config or not all(name in config for name in names):
        raise ValueError(
            f"The config of rows must be a mapping that has {' and '.join(names)}, and rows as "
            f"text such as '2,7,10:20'. Received: {shorten(config)}"
        )


def _selected(rows: "slice | range | np.ndarray | Rows | Runs", num_rows: int) -> np.ndarray | Runs:
    if isinstance(rows, slice):
        return np.sort(np.arange(num_rows, dtype=np.int64)[rows])
    if isinstance(rows, range):
        return _ids_of_range(rows, num_rows)
    if isinstance(rows, Rows):
        _check_length("a `Rows`", rows.num_rows, num_rows)
        return rows._selected
    if isinstance(rows, Runs):
        if rows.end > num_rows:
            raise _too_large(rows.text(), num_rows)
        return rows
    if rows.dtype == bool:
        _check_length("a boolean mask", len(rows), num_rows)
        return np.flatnonzero(rows)
    if len(rows) and rows[-1] >= num_rows:
        raise _too_large(rows[rows >= num_rows], num_rows)
    return rows


def _ids_of_range(rows: range, num_rows: int) -> np.ndarray:
    # A range is made into ids only once it is known to be no longer than the table.
    if not rows:
        return np.zeros(0, dtype=np.int64)
    if rows[-1] >= num_rows:
        raise _too_large(rows, num_rows)
    return np.arange(rows[0], rows[-1] + 1, min(rows.step, num_rows), dtype=np.int64)


def _too_large(ids: Any, num_rows: int) -> ValueError:
    return ValueError(
        f"Row ids must be below {num_rows}, the number of rows of the table. "
        f"Received: {shorten(ids)}"
    )


def _check_length(what: str, length: int, num_rows: int) -> None:
    if length != num_rows:
        raise ValueError(
            f"{capitalized(what)} must be of the length of the table, {num_rows}. "
            f"Received: {what} of length {length}"
        )
