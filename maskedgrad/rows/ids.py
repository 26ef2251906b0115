"""Row ids as users give them, checked as far as that goes without the length of the table."""

from collections.abc import Iterator, Mapping, Set, ValuesView
from typing import Any

import numpy as np

from maskedgrad.messages import shorten

MAX_ID = np.iinfo(np.int64).max

_WORDS_ADVICE = (
    "Words become ids by their place in the vocabulary: `maskedgrad.row_ids(words, vocabulary)`."
)
_MASK_ADVICE = (
    "They are zeros and ones: if they are a mask, a number for each row of the table, make it "
    "boolean by `numpy.asarray(mask).astype(bool)`."
)
_ALL_ROWS_ADVICE = "All rows of a table are `slice(None)`."


def checked_array(rows: Any) -> np.ndarray:
    """A sequence of ids, or a mask, as an array of rank 1.

    Returns:
        A boolean array, which is a mask, or an int64 one, ascending and unique.

    Raises:
        TypeError: it is no sequence of integers or booleans.
        ValueError: it is not of rank 1; or an id is negative, repeated, or too
            large for any table.
    """
    array = _to_array(rows)
    if array.ndim != 1:
        raise ValueError(
            "Rows must be given as a flat sequence of ids or a flat mask (rank 1). "
            f"Received an array of shape {array.shape}: {shorten(rows)}. {_advice_for_shape(array)}"
        )
    if array.dtype == bool:
        return array
    if array.size == 0:
        return np.zeros(0, dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(
            "Row ids must be integers, and a mask must be boolean. "
            f"Received dtype {array.dtype}: {shorten(rows)}. {_advice_for_others(array)}"
        )
    if array.min() < 0:
        raise _negative(array[array < 0])
    if array.max() > MAX_ID:
        raise ValueError(
            f"Row ids must not be above {MAX_ID}, since no table has such rows. "
            f"Received: {shorten(array[array > MAX_ID])}"
        )
    ids, counts = np.unique(array.astype(np.int64), return_counts=True)
    if len(ids) != len(array):
        raise ValueError(
            "Row ids must not be repeated. "
            f"Received more than once: {shorten(ids[counts > 1])}. "
            + (_MASK_ADVICE if _is_mask(array) else "Use `numpy.unique(ids)` if that is intended.")
        )
    return ids


def checked_slice(rows: slice) -> slice:
    """A slice, if it is one of rows.

    Raises:
        TypeError, ValueError: it is of other than whole numbers.
    """
    try:
        rows.indices(0)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"A slice of rows must be of whole numbers or None, and its step not 0. "
            f"Received: {shorten(rows)}"
        ) from error
    return rows


def checked_range(rows: range) -> range:
    """A range of rows, ascending.

    Raises:
        ValueError: one of them is negative.
    """
    ascending = rows if rows.step > 0 else rows[::-1]
    if ascending and ascending[0] < 0:
        raise _negative(rows)
    return ascending


def _negative(ids: Any) -> ValueError:
    return ValueError(
        f"Row ids must not be negative. Received: {shorten(ids)}. "
        "Rows counted from the end of the table are named by a slice: `slice(-3, None)`."
    )


def _is_mask(array: np.ndarray) -> bool:
    """Whether numbers are a mask that lost its dtype: ids would not be so few and so often."""
    return bool(np.isin(array, (0, 1)).all())


def _advice_for_shape(array: np.ndarray) -> str:
    if array.ndim:
        return "Ids of another shape become flat by `numpy.ravel(ids)`."
    if array.dtype.kind in "iu":
        return "A single id goes in a list: `[id]`."
    return _ALL_ROWS_ADVICE


def _advice_for_others(array: np.ndarray) -> str:
    if array.dtype.kind == "f" and _is_mask(array):
        return _MASK_ADVICE
    if array.dtype.kind in "US" or any(isinstance(each, (str, bytes)) for each in array.flat):
        return _WORDS_ADVICE
    if array.dtype.kind == "f" and (array == np.rint(array)).all() and np.isfinite(array).all():
        return "Ids that were read as floats become integers by `ids.astype(int)`."
    return "Leave out what is missing, and what is no whole number."


def _to_array(rows: Any) -> np.ndarray:
    # NumPy makes an array of one object of what has no order or no length.
    if isinstance(rows, (str, bytes, Mapping, Set, ValuesView, Iterator)) or rows is None:
        raise TypeError(
            "Rows must be a sequence of ids, a boolean mask, a `range`, a `slice` or a `Rows`. "
            f"Received: {shorten(rows)}. {_advice_for_no_sequence(rows)}"
        )
    try:
        return np.asarray(rows)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            "Rows must be one flat sequence of numbers, whose values are known now. "
            f"Received: {shorten(rows)}, of which NumPy makes no array: {error}"
        ) from error


def _advice_for_no_sequence(rows: Any) -> str:
    if isinstance(rows, str):
        return f"{_WORDS_ADVICE} {_ALL_ROWS_ADVICE}"
    if isinstance(rows, Mapping):
        return "Learning rates of rows are told apart by `row_learning_rates`."
    if isinstance(rows, (Set, ValuesView, Iterator)):
        return "`sorted(rows)` makes a list of it."
    return f"Name each row by its id. {_ALL_ROWS_ADVICE}"
