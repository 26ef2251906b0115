"""Whether gradients fit the variables that they are of."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def check_number(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Raises a `ValueError` unless there are as many gradients as variables."""
    if len(gradients) != len(variables):
        raise ValueError(
            "`gradients` and `variables` must be of one length, with a gradient or None for each "
            f"variable. Received: {len(gradients)} gradients and {len(variables)} variables. "
            "`tape.gradient(loss, variables)` gives them."
        )


def check_shape(gradient: Any, table: keras.Variable) -> None:
    """Raises a `ValueError` if a gradient is not of the shape of its table, as far as is known."""
    is_sliced = isinstance(gradient, tf.IndexedSlices)
    received = tf.TensorShape(getattr(gradient, "shape", None))
    of_rows = gradient.values.shape[1:] if is_sliced else received[1:]
    expected = tf.TensorShape(table.shape)
    if not (received.is_compatible_with(expected) and of_rows.is_compatible_with(expected[1:])):
        rows = f", of rows of shape {of_rows}" if is_sliced else ""
        raise ValueError(
            f"The gradient of {table.path!r} must be of the shape of the table, {expected}. "
            f"Received: a gradient of shape {received}{rows}. Gradients stand in the order of the "
            "variables, and those of a table hold all its rows, frozen ones too."
        )
