"""First values for rows that have no vector of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

Initializer: TypeAlias = "str | Mapping[str, np.ndarray] | Callable[..., Any]"

CHUNK = 4096


def first_values(
    initializer: Initializer,
    words: Sequence[str],
    table: np.ndarray,
    known_ids: np.ndarray,
    *,
    noise: float = 0.0,
    seed: Any = None,
) -> np.ndarray:
    """First values for the rows of new words.

    Args:
        initializer: `"zeros"`; `"mean"`, the mean of the known rows;
            `"normal"`, drawn with the mean and the variance of each of their
            columns; a mapping from word to a center of shape `(D,)`, where
            the words that it lacks are drawn as by `"normal"`; or a function
            of `words` and `table` that returns an array of shape `(K, D)`.
        words: the new words, K of them.
        table: float32 of shape `(V, D)`.
        known_ids: int64, the ids of the rows of `table` that hold vectors.
        noise: float, the deviation of normal noise around means and centers,
            in units of the deviation of each column of the known rows.
        seed: as for `keras.random.normal`.

    Returns:
        A float32 array of shape `(K, D)`.

    Raises:
        ValueError, TypeError: `initializer` or `noise` is none of these, or
            the function returns something else.

    Example:

    >>> table = np.array([[1.0, 5.0], [3.0, 7.0]], "float32")
    >>> first_values("mean", ["<city>"], table, np.arange(2)).tolist()
    [[2.0, 6.0]]
    """
    check_initializer(initializer, noise)
    shape = len(words), table.shape[1]
    if initializer == "zeros" or not words:
        return np.zeros(shape, dtype=np.float32)
    if callable(initializer):
        return _checked_rows(initializer(list(words), table), shape)
    mean, deviation = column_moments(table, known_ids)
    centers = initializer if isinstance(initializer, Mapping) else {}
    center = np.stack([centers.get(word, mean) for word in words])
    drawn = initializer == "normal" or isinstance(initializer, Mapping)
    scale = np.array([noise if word in centers or not drawn else 1.0 for word in words])
    if scale.any():
        normal = keras.ops.convert_to_numpy(keras.random.normal(shape, seed=seed))
        center = center + scale[:, np.newaxis] * deviation * normal
    largest = np.finfo(np.float32).max
    return np.clip(center, -largest, largest).astype(np.float32)


def check_initializer(initializer: Any, noise: Any) -> None:
    """Raises if `initializer` or `noise` is not what `first_values` takes."""
    if isinstance(initializer, str):
        if initializer not in ("zeros", "mean", "normal"):
            raise ValueError(
                "`initializer` must be 'zeros', 'mean' or 'normal', a mapping from new words to "
                f"what describes them, or a function. Received: initializer={initializer!r}"
            )
    elif not isinstance(initializer, Mapping) and not callable(initializer):
        raise TypeError(
            "`initializer` must be 'zeros', 'mean' or 'normal', a mapping from new words to what "
            "describes them, or a function of the words and the table. "
            f"Received: {type(initializer).__name__}"
        )
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < np.inf:
        raise ValueError(f"`noise` must be a number that is not negative. Received: noise={noise}")


def column_moments(table: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over the rows `ids`, float64 of shape `(D,)`."""
    # In pieces: a selection of rows, in float64, may be larger than the table.
    mean = sum(rows.sum(axis=0) for rows in _pieces(table, ids)) / len(ids)
    squares = sum(np.square(rows - mean).sum(axis=0) for rows in _pieces(table, ids))
    return mean, np.sqrt(squares / len(ids))


def _pieces(table: np.ndarray, ids: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(ids), CHUNK):
        yield table[ids[start : start + CHUNK]].astype(np.float64)


def _checked_rows(rows: Any, shape: tuple[int, int]) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.shape != shape or not np.isfinite(rows).all():
        raise ValueError(
            f"The `initializer` function must return finite numbers of shape {shape}, a row for "
            f"each of the words it is given. Received: an array of shape {rows.shape}."
        )
    return rows
