"""`pretrained_embedding`: a stock `Embedding` around a matrix, in the memory of one table."""

import os
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from maskedgrad.masking.tables import write_rows
from maskedgrad.masking.variables import read_sparsely
from maskedgrad.messages import shorten
from maskedgrad.rows.chunks import rows_a_chunk

SAID_BY_MATRIX = "input_dim", "output_dim", "embeddings_initializer", "weights"


def pretrained_embedding(matrix: npt.NDArray[Any], **options: Any) -> keras.layers.Embedding:
    """A stock `keras.layers.Embedding` that starts from a pretrained matrix.

    Equivalent to `keras.layers.Embedding(*matrix.shape, weights=[matrix],
    **options)`, which draws random numbers first and then copies the matrix
    several times. Here the table is filled in place, a few megabytes at a
    time, and the matrix may be larger than what is left of the memory.

    Args:
        matrix: numbers of shape `(V, D)`: an array, or a file that is mapped
            into memory: `numpy.load(path, mmap_mode="r")`. It is not changed,
            and the layer does not hold on to it.
        **options: as for `keras.layers.Embedding`, such as `mask_zero`,
            `trainable`, `name` and `dtype`.

    Returns:
        The layer, built.

    Raises:
        TypeError: `matrix` is not a NumPy array of real numbers.
        ValueError: `matrix` is not of rank 2; an option says otherwise than
            it what the table is; or the table would not be of floats.

    Example:

    >>> matrix = np.arange(6.0).reshape(3, 2)
    >>> words = pretrained_embedding(matrix, mask_zero=True, name="words")
    >>> words.get_weights()[0].tolist()
    [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    """
    _check_matrix(matrix)
    if said_twice := [name for name in SAID_BY_MATRIX if name in options]:
        raise ValueError(
            "`matrix` says how many rows the table has and what they hold, so no option may. "
            f"Received: {said_twice[0]}={shorten(options[said_twice[0]])}. Leave it out."
        )
    layer = keras.layers.Embedding(*matrix.shape, embeddings_initializer="zeros", **options)
    layer.build()
    table = layer.weights[0]
    dtype = keras.backend.standardize_dtype(table.dtype)
    if "float" not in dtype:  # in which fractions would be cut off
        raise ValueError(
            f"The table must be of floats. Received: dtype={shorten(options.get('dtype'))}, with "
            f"which it is of {dtype}. To quantize it: `layer.quantize('int8')` of what comes back."
        )
    # A table that was written by rows is copied whole by every dense read.
    read_sparsely(table)
    _fill(table, matrix)
    return layer


def _fill(table: keras.Variable, matrix: np.ndarray) -> None:
    step = rows_a_chunk(matrix[:1].nbytes)
    for start in range(0, len(matrix), step):
        values = matrix[start : start + step]
        write_rows(table, np.arange(start, start + len(values)), values)


def _advice_for(matrix: Any) -> str:
    if isinstance(matrix, tuple):
        return "`load_vectors` returns two things: `matrix, report = load_vectors(...)`."
    if isinstance(matrix, (str, os.PathLike)):
        return "A file is mapped by `numpy.load(path, mmap_mode='r')`."
    return "Numbers become one by `numpy.asarray(matrix, dtype='float32')`."


def _check_matrix(matrix: Any) -> None:
    if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiu":
        is_array = isinstance(matrix, np.ndarray)
        received = f"an array of dtype {matrix.dtype}" if is_array else shorten(matrix)
        raise TypeError(
            "`matrix` must be a NumPy array of real numbers, or a file of them mapped into "
            f"memory. Received: {received}. {_advice_for(matrix)}"
        )
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(
            "`matrix` must be of shape (V, D): a row for each word. "
            f"Received: an array of shape {matrix.shape}"
        )
