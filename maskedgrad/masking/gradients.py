"""Selecting the trainable rows of a gradient: by selection, never by multiplication."""

import tensorflow as tf

from maskedgrad.masking.expansion import sum_by_segment
from maskedgrad.masking.selection import rows_of_slices, search, selected_rows
from maskedgrad.masking.variables import gather_rows, is_on_gpu
from maskedgrad.rows.gradients import Gradient


def compact_gradient(
    gradient: Gradient, ids: tf.Variable, axis: int = 0, length: int | None = None
) -> tf.Tensor | None:
    """The trainable rows of a table's gradient.

    Equivalent to `tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)`,
    without ever making the dense gradient of `IndexedSlices` for axis 0, nor, in a
    graph, that of an output tied to the table. Slices of ids that the table does not
    have are dropped.

    Args:
        gradient: a tensor of shape `(V, ...)`, `IndexedSlices`, which may repeat
            ids, or `None`.
        ids: an int64 variable of shape `(K,)`, the trainable ids, ascending.
        axis: int, the axis that the rows lie along.
        length: K, where the gradient is to have it as a part of its shape.

    Example:

    >>> slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([3, 0, 3]))
    >>> compact_gradient(slices, tf.Variable([1, 3], dtype=tf.int64)).numpy().tolist()
    [[0.0], [5.0]]
    """
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices) and axis == 0:
        return rows_of_slices(gradient, ids, length)
    return selected_rows(tf.convert_to_tensor(gradient), ids, axis, length)


def touched_rows(
    gradient: tf.IndexedSlices, ids: tf.Variable
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The trainable rows that a gradient touches, on any replica.

    Nothing of size K or V is made.

    Args:
        gradient: `IndexedSlices`, which may repeat ids.
        ids: an int64 variable of shape `(K,)`, the trainable ids, ascending.

    Returns:
        The gradient of these rows, of shape `(n, ...)`; their ids, int64 of shape `(n,)`; and
        their places among the trainable ids, int64 of shape `(n,)`.

    Example:

    >>> slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([3, 0, 3]))
    >>> gradient, ids, places = touched_rows(slices, tf.Variable([1, 3, 5], dtype=tf.int64))
    >>> gradient.numpy().tolist(), ids.numpy().tolist(), places.numpy().tolist()
    ([[5.0]], [3], [1])
    """
    looked_up = tf.cast(gradient.indices, ids.dtype)
    places, is_trainable = search(ids, looked_up)
    trained = tf.where(is_trainable)[:, 0]
    # All in int64, since int32 is computed on the host where there is a GPU.
    touched, segments = tf.unique(tf.gather(places, trained), tf.int64)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        # The same rows on all replicas, so that their gradients can be added; and one that is no
        # place, since workers crash over what has no numbers.
        of_all = context.all_gather(tf.pad(touched, [[1, 0]], constant_values=-1), axis=0)
        touched = tf.sort(tf.unique(of_all)[0])[1:]
        segments = tf.searchsorted(touched, tf.gather(places, trained), out_type=tf.int64)
    dropped = -tf.ones_like(looked_up)
    segments = tf.tensor_scatter_nd_update(dropped, trained[:, None], segments)
    values = sum_by_segment(gradient.values, segments, tf.size(touched), is_on_gpu(ids))
    return values, gather_rows(ids, touched), touched
