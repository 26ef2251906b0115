"""First values for rows that have no vector of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from maskedgrad.messages import shorten

Initializer: TypeAlias = (
    "str | Mapping[str, np.ndarray] | keras.initializers.Initializer | Callable[..., Any]"
)

CHUNK = 4096
OF_MOMENTS = "zeros", "mean", "normal"
EXPECTED = (
    "`initializer` must be 'zeros', 'mean' or 'normal', a mapping from new words to what describes "
    "them, one of `keras.initializers`, or a function of the words and the table"
)


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
            the words that it lacks are drawn as by `"normal"`; an initializer
            of Keras or its name, called for the shape `(K, D)`; or a function
            of `words` and `table` that returns an array of shape `(K, D)`.
        words: the new words, K of them.
        table: float32 of shape `(V, D)`.
        known_ids: int64, the ids of the rows of `table` that hold vectors.
            Those that are zero, as padding and reserved rows are, count for
            no mean and no deviation.
        noise: float, the deviation of normal noise around zeros, means and
            centers, in units of the deviation of each column of the known
            rows.
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
    if not words or (isinstance(initializer, str) and initializer == "zeros" and not noise):
        return np.zeros(shape, dtype=np.float32)
    if not isinstance(initializer, Mapping) and initializer not in OF_MOMENTS:
        return _made_rows(initializer, list(words), table, seed)
    mean, deviation = column_moments(table, _ids_with_vector(table, known_ids))
    centers = initializer if isinstance(initializer, Mapping) else {}
    default = np.zeros_like(mean) if initializer == "zeros" else mean
    center = np.stack([centers.get(word, default) for word in words])
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
        if initializer not in OF_MOMENTS and _of_keras(initializer) is None:
            raise ValueError(f"{EXPECTED}. Received: initializer={initializer!r}")
    elif not isinstance(initializer, Mapping) and not callable(initializer):
        raise TypeError(f"{EXPECTED}. Received: initializer={shorten(initializer)}")
    if isinstance(noise, bool) or not isinstance(noise, (int, float)) or not 0 <= noise < np.inf:
        raise ValueError(
            f"`noise` must be a number that is not negative. Received: noise={noise!r}"
        )
    if noise and not isinstance(initializer, Mapping) and initializer not in ("zeros", "mean"):
        raise ValueError(
            "`noise` is added to zeros, means and centers, and not to what is drawn or made "
            f"otherwise. Received: noise={noise}, initializer={initializer!r}. "
            "Use 'mean' or 'zeros', or no noise."
        )


def _of_keras(initializer: Any) -> keras.initializers.Initializer | None:
    """The initializer of Keras that an instance, a class or a name stands for."""
    if isinstance(initializer, keras.initializers.Initializer):
        return initializer
    found = initializer
    if isinstance(initializer, str):
        # `keras.initializers.get` cannot make all of them from their names: "constant" is one.
        found = getattr(keras.initializers, initializer, None)
    if isinstance(found, type) and issubclass(found, keras.initializers.Initializer):
        return found()
    return None


def _made_rows(initializer: Any, words: list[str], table: np.ndarray, seed: Any) -> np.ndarray:
    shape = len(words), table.shape[1]
    of_keras = _of_keras(initializer)
    if of_keras is None:
        readable = table.view()
        readable.setflags(write=False)  # the rows of known words are what they are
        return _checked_rows(initializer(words, readable), shape)
    config = of_keras.get_config()
    if of_keras is not initializer and seed is not None and "seed" in config:
        of_keras = of_keras.from_config({**config, "seed": seed})
    try:
        rows = keras.ops.convert_to_numpy(of_keras(shape, dtype="float32"))
    except Exception as error:  # of whatever an initializer is made of
        raise ValueError(
            f"`initializer` must make numbers of shape {shape}, a row for each of the words. "
            f"Received: {type(of_keras).__name__}, which raises: {error}"
        ) from error
    return _checked_rows(rows, shape)


def _ids_with_vector(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids whose row is not zero, or all of them if there is no other row."""
    is_zero = [~rows.any(axis=1) for rows in _pieces(table, ids)]
    with_vector = ids[~np.concatenate(is_zero)] if is_zero else ids
    return with_vector if len(with_vector) else ids


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
    given = np.asarray(rows)
    try:
        made = given.astype(
            np.float32, casting="same_kind" if given.dtype.kind == "c" else "unsafe"
        )
    except (TypeError, ValueError):
        made = np.full((), np.nan, np.float32)
    if made.shape != shape or not np.isfinite(made).all():
        raise ValueError(
            f"The `initializer` function must return finite numbers of shape {shape}, a row for "
            f"each of the words it is given. Received: an array of shape {given.shape} and dtype "
            f"{given.dtype}."
        )
    return made
