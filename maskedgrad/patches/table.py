"""`TablePatch`: the trained rows of one table, and whether they fit a table in memory."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from maskedgrad.masking.tables import chunks_of_rows, digest_of_rows
from maskedgrad.messages import shorten
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.saved import SavedTable, find_saved


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TablePatch:
    """The trained rows of one table.

    Args:
        path: string, the path of the table's variable.
        rows: a `Rows`, the K trained rows of V.
        values: array of shape `(K, ...)` and of the table's dtype: the rows
            after training, in the order of `rows.ids`. It is copied.
        original: `None`, or an array of the shape and dtype of `values`: the
            rows before training. It is copied.
        digest: string, `frozen_digest` of the table.
        words: `None`, or the K words of the rows.
        anchors: `None`, or digests of some frozen rows, by their words.

    Raises:
        TypeError: a word is no string.
        ValueError: there is no row; a word is there twice; or `values`, `words` or `original` does
            not fit the rest.

    Example:

    >>> table = TablePatch("words/embeddings", Rows([3], 9), np.ones((1, 2)), None, "0" * 64)
    >>> table.dtype, table.values.flags.writeable
    ('float64', False)
    """

    path: str
    rows: Rows
    values: np.ndarray
    original: np.ndarray | None
    digest: str
    words: tuple[str, ...] | None = None
    anchors: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", _read_only(self.values))
        if not len(self.rows):
            raise ValueError(
                f"A patch of {self.path!r} must hold at least one row. Received: {self.rows}. "
                "Leave the table out."
            )
        if self.values.shape[:1] != (len(self.rows),):
            raise ValueError(
                f"The values of {self.path!r} must be of shape ({len(self.rows)}, ...), a row for "
                f"each id. Received: values of shape {self.values.shape}"
            )
        if self.words is not None and len(self.words) != len(self.rows):
            raise ValueError(
                f"The words of {self.path!r} must be {len(self.rows)}, one for each row. "
                f"Received: {len(self.words)}"
            )
        if not all(isinstance(word, str) for word in self.words or ()):
            raise TypeError(f"The words of {self.path!r} must be strings. Received: {self.words!r}")
        if len(set(self.words or ())) != len(self.words or ()):
            raise ValueError(
                f"The words of {self.path!r} must differ, since each names one row. "
                f"Received: {shorten(self.words)}"
            )
        if self.original is None:
            return
        object.__setattr__(self, "original", _read_only(self.original))
        if (self.original.shape, self.original.dtype) != (self.values.shape, self.values.dtype):
            raise ValueError(
                f"The original values of {self.path!r} must be of the shape and dtype of the "
                f"values, {self.values.shape} {self.values.dtype}. "
                f"Received: {self.original.shape} {self.original.dtype}"
            )

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """The ids of the trained rows: ascending, int64 of shape `(K,)`."""
        return self.rows.ids

    @property
    def dtype(self) -> str:
        """The name of the dtype of the table."""
        return self.values.dtype.name

    def __repr__(self) -> str:
        return (
            f"TablePatch({self.path!r}, {self.rows}, shape={self.values.shape}, "
            f"dtype={self.dtype!r})"
        )


class InPlace(NamedTuple):
    """A patch that is in a table, and the rows that it took the place of."""

    patch: TablePatch
    overwritten: np.ndarray


def variable_at(path: str, variables: Sequence[keras.Variable]) -> keras.Variable:
    """The one variable of a path, or of that path in a model that was loaded since.

    A subclassed model is called otherwise once it is loaded: the table
    `rec/items/embeddings` is `items/embeddings` then.

    Raises:
        ValueError: none or several can be meant.
    """
    exact = [variable for variable in variables if variable.path == path]
    try:
        (found,) = exact or find_saved(SavedTable(path), variables)
    except ValueError as error:
        paths = [variable.path for variable in variables]
        raise ValueError(
            f"The model must have one variable of the path {path!r}. Received: a model with "
            f"{len(exact)} of them among {paths}. A path is made of names of models and layers: "
            "give them the names that they had, and build the model."
        ) from error
    return found


def check_fits(patch: TablePatch, variable: keras.Variable) -> None:
    """Raises a `ValueError` if a table is of another shape or dtype than a patch is for."""
    expected = (patch.rows.num_rows, *patch.values.shape[1:]), patch.dtype
    received = tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)
    if received != expected:
        raise ValueError(
            f"The table {patch.path!r} must be of the shape and dtype {expected}. "
            f"Received: a model with {received}. A patch fits the table that it was taken from. "
            "One that knows its words goes to a table of other rows too: say `vocabulary`."
        )


def check_apart(found: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if two tables of a patch would go into one.

    Args:
        found: for the path of each table what it was found to be.
    """
    for place in found.values():
        alike = [path for path, its_place in found.items() if its_place == place]
        if len(alike) > 1:
            raise ValueError(
                "Each table of a patch must be a table of its own in the model. Received: a model "
                f"in which {alike} are found to be one. A path is made of names of models and "
                "layers: give them the names that they had when the patch was made."
            )


def check_base(patch: TablePatch, variable: keras.Variable) -> None:
    """Raises a `ValueError` if the frozen rows are not those that the patch was trained over."""
    check_digest(patch, frozen_digest(variable, patch.rows))


def check_digest(patch: TablePatch, digest: str) -> None:
    """Raises a `ValueError` if the digest of a table's frozen rows is not that of a patch."""
    if digest != patch.digest:
        raise ValueError(
            f"The frozen rows of {patch.path!r} must be, bit for bit, those that the patch was "
            f"trained over. Received: a model where their digest is {digest}, not "
            f"{patch.digest}. Load the same pretrained vectors into the table, or apply the patch "
            "over others all the same by strict=False."
        )


def check_finite(patch: TablePatch) -> None:
    """Raises a `ValueError` if a value is infinite or NaN."""
    finite = np.isfinite(patch.values.reshape(len(patch.rows), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"The values of {patch.path!r} must be finite. Received: infinity or NaN in "
            f"{Rows(patch.ids[~finite], patch.rows.num_rows)}. "
            "If that is intended: allow_nonfinite=True."
        )


def frozen_digest(variable: keras.Variable, rows: Rows) -> str:
    """The SHA-256 of the bytes of the frozen rows, in the order of their ids.

    Rows that are patched count as they were before. Equivalent to
    `hashlib.sha256(numpy.delete(table, rows.ids, axis=0).tobytes()).hexdigest()`,
    a chunk at a time.

    Example:

    >>> table = keras.Variable([[1.0], [2.0], [3.0]])
    >>> digest = frozen_digest(table, Rows([1], 3))
    >>> len(digest)
    64
    """
    return digest_of_rows(_base_chunks(variable), ~rows.mask)


def patches_in(variable: keras.Variable) -> tuple[InPlace, ...]:
    """The patches that are applied to a table."""
    # An attribute of the variable, which cannot be the key of a mapping. So its patches are
    # forgotten when it is.
    return getattr(variable, "row_patches", ())


def rows_in_place(variable: keras.Variable) -> set[int]:
    """The ids of the rows of a table that patches are applied to."""
    return {int(id_) for other in patches_in(variable) for id_ in other.patch.ids}


def _base_chunks(variable: keras.Variable) -> Iterator[tuple[int, np.ndarray]]:
    """The table as it was before any patch, some rows at a time, each with its first id."""
    for start, chunk in chunks_of_rows(variable):
        for patch, overwritten in patches_in(variable):
            first, last = np.searchsorted(patch.ids, [start, start + len(chunk)])
            chunk[patch.ids[first:last] - start] = overwritten[first:last]
        yield start, chunk


def _read_only(array: np.ndarray) -> np.ndarray:
    copied = np.array(array, order="C")
    copied.setflags(write=False)
    return copied
