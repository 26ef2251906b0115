"""Whether gradients fit the variables that they are of."""

from collections.abc import Sequence, Sized
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.messages import shorten


def check_number(gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Raises a `ValueError` unless there are as many gradients as variables; a `TypeError` if
    they are no lists.
    """
    if not (isinstance(gradients, Sized) and isinstance(variables, Sized)):
        raise TypeError(
            "`gradients` and `variables` must be lists, with a gradient or None for each variable. "
            f"Received: gradients={shorten(gradients)}, variables={shorten(variables)}. "
            "`tape.gradient(loss, variables)` gives a list for a list."
        )
    if len(gradients) != len(variables):
        raise ValueError(
            "`gradients` and `variables` must be of one length, with a gradient or None for each "
            f"variable. Received: {len(gradients)} gradients and {len(variables)} variables. "
            "`tape.gradient(loss, variables)` gives them."
        )


def _shape_of(gradient: Any) -> Any:
    """The shape of a gradient; `None`, which fits each table, if there is none or it is unknown."""
    if gradient is None or hasattr(gradient, "shape"):
        return getattr(gradient, "shape", None)
    try:
        return np.shape(gradient)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(
            f"A gradient must be a tensor, `tf.IndexedSlices` or None. Received: "
            f"{shorten(gradient)}. Pairs of gradient and variable go to `apply_gradients`."
        ) from error


def check_shape(gradient: Any, table: keras.Variable) -> None:
    """Raises a `ValueError` if a gradient is not of the shape of its table, as far as is known."""
    is_sliced = isinstance(gradient, tf.IndexedSlices)
    received = tf.TensorShape(_shape_of(gradient))
    of_rows = gradient.values.shape[1:] if is_sliced else received[1:]
    expected = tf.TensorShape(table.shape)
    if not (received.is_compatible_with(expected) and of_rows.is_compatible_with(expected[1:])):
        rows = f", of rows of shape {of_rows}" if is_sliced else ""
        raise ValueError(
            f"The gradient of {table.path!r} must be of the shape of the table, {expected}. "
            f"Received: a gradient of shape {received}{rows}. Gradients stand in the order of the "
            "variables, and those of a table hold all its rows, frozen ones too."
        )
