"""Gradients: whether they fit the variables that they are of, and without their frozen rows."""

from collections.abc import Sequence, Sized
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.messages import shorten
from maskedgrad.rows.aliases import TrainableRows
from maskedgrad.rows.targets import MaskedTable, named, resolve

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices | None"


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
    dense_shape = getattr(gradient, "dense_shape", None)
    if dense_shape is not None and not tf.is_tensor(dense_shape):
        return dense_shape  # a tuple, which Keras's optimizers take too
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


# AutoGraph, which finds nothing to convert here, would print that it cannot read `match`.
@tf.autograph.experimental.do_not_convert
def mask_gradients(
    gradients: Sequence[Gradient],
    variables: Sequence[Any],
    trainable_rows: TrainableRows,
) -> list[Gradient]:
    """The same gradients, with the frozen rows of each table zeroed.

    For training loops written by hand. A zeroed gradient alone does not
    freeze a row: weight decay, momentum and others still move it. Only
    `MaskedOptimizer` freezes.

    Args:
        gradients: one for each variable: a tensor, `tf.IndexedSlices` or `None`.
        variables: the variables, as in `tape.gradient(loss, variables)`.
        trainable_rows: a mapping from target to rows, as `MaskedOptimizer`
            takes it. Give rows as a `Rows` where this is called eagerly.

    Returns:
        A list as long as `gradients`. A dense gradient stays dense, and holds
        zeros in frozen rows whatever it held there, infinity and NaN too.
        `IndexedSlices` stay `IndexedSlices`, with only trainable ids left, in
        their order. `None` stays `None`. A variable that no target names
        keeps its gradient.

    Raises:
        TypeError, ValueError: `gradients` do not fit `variables`, or as `MaskedOptimizer` does
            for `trainable_rows`.

    Example:

    >>> table = keras.Variable([[1.0], [2.0], [3.0]], name="table")
    >>> gradient = tf.constant([[float("inf")], [5.0], [6.0]])
    >>> masked, = mask_gradients([gradient], [table], {"table": [1]})
    >>> masked.numpy().tolist()
    [[0.0], [5.0], [0.0]]
    """
    check_number(gradients, variables)
    tables = {id(table.variable): table for table in resolve(named(trainable_rows), variables)}
    return [
        _masked(gradient, tables[id(variable)]) if id(variable) in tables else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def _masked(gradient: Gradient, table: MaskedTable) -> Gradient:
    if gradient is None:
        return None
    check_shape(gradient, table.variable)
    mask = tf.constant(table.rows.mask)
    if not isinstance(gradient, tf.IndexedSlices):
        return _where(mask, tf.convert_to_tensor(gradient), table.axis)
    values, indices = gradient.values, gradient.indices
    if table.axis:
        return tf.IndexedSlices(_where(mask, values, table.axis), indices, gradient.dense_shape)
    kept = tf.gather(mask, indices)
    return tf.IndexedSlices(
        tf.boolean_mask(values, kept), tf.boolean_mask(indices, kept), gradient.dense_shape
    )


def _where(mask: tf.Tensor, values: tf.Tensor, axis: int) -> tf.Tensor:
    """`values` where `mask`, which lies along `axis`, is true, and zeros elsewhere."""
    mask = tf.reshape(mask, [-1] + [1] * (len(values.shape) - 1 - axis))
    return tf.where(mask, values, tf.zeros_like(values))
