"""Selecting the trainable rows of a gradient: by selection, never by multiplication."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from maskedgrad.masking.targets import Target, resolve_targets

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices | None"


def compact_gradient(
    gradient: Gradient, ids: tf.Tensor, positions: tf.Tensor, axis: int = 0
) -> tf.Tensor | None:
    """The trainable rows of a table's gradient.

    Equivalent to `tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)`,
    without ever making the dense gradient of `IndexedSlices` for axis 0.

    Args:
        gradient: the table's gradient: a tensor of shape `(V, ...)`,
            `IndexedSlices` of it, which may repeat ids, or `None`.
        ids: integers of shape `(K,)`, the trainable ids, ascending.
        positions: integers of shape `(V,)`, for each row its index in `ids`,
            or -1 for a frozen row.
        axis: int, the axis that the rows lie along.

    Returns:
        A tensor of shape `(K, ...)`, with K in the place of `axis`, or `None`.
    """
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices) and axis == 0:
        # Slices whose segment id is negative are dropped: that is the mask.
        return tf.math.unsorted_segment_sum(
            gradient.values, tf.gather(positions, gradient.indices), ids.shape[0]
        )
    return tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)


def mask_gradients(
    gradients: Sequence[Gradient],
    variables: Sequence[Any],
    trainable_rows: Mapping[Any, Any],
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
        ValueError: `gradients` and `variables` differ in length, or as
            `MaskedOptimizer` does for `trainable_rows`.
        TypeError: as `MaskedOptimizer` does for `trainable_rows`.

    Example:

    >>> table = keras.Variable([[1.0], [2.0], [3.0]], name="table")
    >>> gradient = tf.constant([[float("inf")], [5.0], [6.0]])
    >>> masked, = mask_gradients([gradient], [table], {"table": [1]})
    >>> masked.numpy().tolist()
    [[0.0], [5.0], [0.0]]
    """
    if len(gradients) != len(variables):
        raise ValueError(
            "`gradients` and `variables` must be of one length. "
            f"Received: {len(gradients)} gradients and {len(variables)} variables"
        )
    targets = {id(target.variable): target for target in resolve_targets(trainable_rows, variables)}
    return [
        _masked(gradient, targets[id(variable)]) if id(variable) in targets else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def _masked(gradient: Gradient, target: Target) -> Gradient:
    if gradient is None:
        return None
    mask = tf.constant(target.rows.mask)
    if not isinstance(gradient, tf.IndexedSlices):
        return _where(mask, gradient, target.axis)
    values, indices = gradient.values, gradient.indices
    if target.axis:
        return tf.IndexedSlices(_where(mask, values, target.axis), indices, gradient.dense_shape)
    kept = tf.gather(mask, indices)
    return tf.IndexedSlices(
        tf.boolean_mask(values, kept), tf.boolean_mask(indices, kept), gradient.dense_shape
    )


def _where(mask: tf.Tensor, values: tf.Tensor, axis: int) -> tf.Tensor:
    """`values` where `mask`, which lies along `axis`, is true, and zeros elsewhere."""
    mask = tf.reshape(mask, [-1] + [1] * (len(values.shape) - 1 - axis))
    return tf.where(mask, values, tf.zeros_like(values))
