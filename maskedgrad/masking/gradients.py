"""Selecting the trainable rows of a gradient: by selection, never by multiplication."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from maskedgrad.masking.tracing import is_compiled_by_xla
from maskedgrad.rows.aliases import TrainableRows
from maskedgrad.rows.targets import MaskedTable, named, resolve

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices | None"


def compact_gradient(gradient: Gradient, ids: tf.Tensor, axis: int = 0) -> tf.Tensor | None:
    """The trainable rows of a table's gradient.

    Equivalent to `tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)`,
    without ever making the dense gradient of `IndexedSlices` for axis 0. Slices
    of ids that the table does not have are dropped.

    Args:
        gradient: a tensor of shape `(V, ...)`, `IndexedSlices`, which may repeat
            ids, or `None`.
        ids: int64 of shape `(K,)`, the trainable ids, ascending.
        axis: int, the axis that the rows lie along.

    Example:

    >>> slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([3, 0, 3]))
    >>> compact_gradient(slices, tf.constant([1, 3], tf.int64)).numpy().tolist()
    [[0.0], [5.0]]
    """
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices) and axis == 0:
        looked_up = tf.cast(gradient.indices, ids.dtype)
        num_ids = tf.shape(ids)[0]
        places = tf.minimum(_places(looked_up, ids), num_ids - 1)
        # Slices whose segment id is negative are dropped: that is the mask.
        segments = tf.where(tf.gather(ids, places) == looked_up, places, -1)
        return tf.math.unsorted_segment_sum(gradient.values, segments, num_ids)
    return tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)


def _places(looked_up: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """For each id that is looked up, how many of `ids` are smaller: int32."""
    # A search: a table of V places would take 4 V bytes, and cross to a GPU in each step.
    if not is_compiled_by_xla():
        return tf.searchsorted(ids, looked_up)
    num_ids = tf.shape(ids)[0]

    def by_halving() -> tf.Tensor:
        first, last = tf.zeros_like(looked_up, tf.int32), tf.fill(tf.shape(looked_up), num_ids)
        for _ in range(32):
            middle = (first + last) // 2
            is_less = (first < last) & (tf.gather(ids, tf.minimum(middle, num_ids - 1)) < looked_up)
            first, last = tf.where(is_less, middle + 1, first), tf.where(is_less, last, middle)
        return first

    # XLA compares each with all `ids`: that takes half a second for 6,400 among 200,000.
    return tf.cond(num_ids <= 512, lambda: tf.searchsorted(ids, looked_up), by_halving)


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
    tables = {id(table.variable): table for table in resolve(named(trainable_rows), variables)}
    return [
        _masked(gradient, tables[id(variable)]) if id(variable) in tables else gradient
        for gradient, variable in zip(gradients, variables, strict=True)
    ]


def _masked(gradient: Gradient, table: MaskedTable) -> Gradient:
    if gradient is None:
        return None
    mask = tf.constant(table.rows.mask)
    if not isinstance(gradient, tf.IndexedSlices):
        return _where(mask, gradient, table.axis)
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
