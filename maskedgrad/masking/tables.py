"""Rows of a table: reading, writing, digesting and comparing them."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.variables import on_first_device, share_reads, strategy_of
from maskedgrad.rows.chunks import rows_a_chunk


def bits(value: Any) -> np.ndarray:
    """The bits of an array, a tensor or a variable, as unsigned integers.

    Tells apart what `==` does not, such as 0 and -0, and takes a NaN for equal
    to itself.

    Example:

    >>> bits(np.float32([1.0, -0.0])).tolist()
    [1065353216, 2147483648]
    """
    array = np.asarray(value)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def same_bits(array: Any, other: Any) -> bool:
    """Whether two arrays have the same shape and the same bits.

    Example:

    >>> same_bits(np.float32([np.nan]), np.float32([np.nan])), same_bits([0.0], [-0.0])
    (True, False)
    """
    array, other = np.asarray(array), np.asarray(other)
    return array.dtype == other.dtype and np.array_equal(bits(array), bits(other))


def row_reader(variable: keras.Variable, axis: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Reads rows of a table by their ids, bit for bit: arrays of shape `(n, ...)`.

    No other row is read, where rows lie along the first axis; else the table is
    read as a whole, now. Of a mirrored table, the copy on the first device.
    """
    table = on_first_device(variable)
    if axis:
        rows = np.moveaxis(np.asarray(table.read_value()), axis, 0)
        return lambda ids: rows[ids]

    def read(ids: np.ndarray) -> np.ndarray:
        # `sparse_read`, since TensorFlow may copy a whole table that is read densely.
        rows = np.array(table.sparse_read(tf.constant(ids)))
        share_reads(table)
        return rows

    return read


def read_rows(variable: keras.Variable, ids: np.ndarray, axis: int = 0) -> np.ndarray:
    """Rows of a table, bit for bit: an array of shape `(n, ...)`.

    Example:

    >>> read_rows(keras.Variable([[1.0], [2.0], [3.0]]), np.array([2, 0])).tolist()
    [[3.0], [1.0]]
    """
    return row_reader(variable, axis)(ids)


def write_rows(variable: keras.Variable, ids: np.ndarray, values: np.ndarray) -> None:
    """Overwrites rows of a table with others, in place, on every device.

    Example:

    >>> table = keras.Variable([[1.0], [2.0], [3.0]])
    >>> write_rows(table, np.array([1]), np.float32([[9.0]]))
    >>> table.numpy().tolist()
    [[1.0], [9.0], [3.0]]
    """
    strategy = strategy_of(variable)
    slices = tf.IndexedSlices(tf.cast(values, variable.value.dtype), tf.constant(ids))

    def write(table: tf.Variable, slices: tf.IndexedSlices) -> Any:
        # Unlike `assign`, this needs no second table's worth of memory.
        table.scatter_update(slices)
        return share_reads(table)

    with strategy.scope():
        strategy.extended.update(variable.value, write, args=(slices,), group=False)


def chunks_of_rows(variable: keras.Variable, ids: Any = None) -> Iterator[tuple[int, np.ndarray]]:
    """A table, or rows of it, some megabytes at a time, each with the place of its first row."""
    num_rows, *row_shape = variable.shape
    places = range(num_rows) if ids is None else ids
    step = rows_a_chunk(int(np.prod(row_shape)) * tf.as_dtype(variable.dtype).size)
    read = row_reader(variable)
    for start in range(0, len(places), step):
        yield start, read(np.asarray(places[start : start + step]))


def digest_of_rows(chunks: Iterable[tuple[int, np.ndarray]], mask: np.ndarray) -> str:
    """The SHA-256 of the bytes of some rows, in the order of their ids.

    Equivalent to `hashlib.sha256(table[mask].tobytes()).hexdigest()`, for a table
    in the chunks of `chunks_of_rows` and a mask of shape `(V,)`.

    Example:

    >>> table = keras.Variable([[1.0], [2.0], [3.0]])
    >>> digest = digest_of_rows(chunks_of_rows(table), np.array([True, False, True]))
    >>> digest == hashlib.sha256(np.float32([[1.0], [3.0]]).tobytes()).hexdigest()
    True
    """
    digest = hashlib.sha256()
    for start, rows in chunks:
        digest.update(rows[mask[start : start + len(rows)]].tobytes())
    return digest.hexdigest()
