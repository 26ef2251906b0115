"""Rows of a tensor, selected from what the tensor is made of."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from maskedgrad.masking.expansion import like, sum_by_segment
from maskedgrad.masking.tracing import is_compiled_by_xla
from maskedgrad.masking.variables import gather_rows, is_on_gpu, num_rows_of

Axes: TypeAlias = "list[int | None] | None"
# How many operations are passed on the way back, each a call in a call.
MOST_SELECTED = 200


def selected_rows(
    tensor: tf.Tensor, ids: tf.Variable, axis: int = 0, length: int | None = None, made: Any = None
) -> tf.Tensor:
    """Rows of a tensor, made without the tensor where the operations before it allow.

    Equivalent to `tf.gather(tensor, ids, axis=axis)`, except that a matrix product
    of fewer rows may add in another order. A graph runs only what something needs:
    of a gradient of shape `(V, D)` of which some rows are needed, it makes these.

    Args:
        tensor: a tensor.
        ids: an int64 variable of shape `(K,)`, ascending.
        axis: int, the axis that the rows lie along.
        length: K, where the rows are to have it as a part of their shape.
        made: the rows that were selected on the way here, by tensor and axis.

    Example:

    >>> ids = tf.Variable([1], dtype=tf.int64)
    >>> rows = tf.function(lambda a, b: selected_rows(tf.matmul(a, b), ids))
    >>> rows(tf.constant([[1.0], [2.0]]), tf.constant([[5.0, 6.0]])).numpy().tolist()
    [[10.0, 12.0]]
    """
    made = {} if made is None else made

    def select(tensor: tf.Tensor, axis: int) -> tf.Tensor:
        # Once, or each operation that two others share would double what is before it.
        key = tensor.ref(), axis
        if key not in made:
            made[key] = None  # counts from now on
            made[key] = selected_rows(tensor, ids, axis, length, made)
        return made[key]

    # What an eager step or another graph has made is there already.
    is_here = tf.is_symbolic_tensor(tensor) and tensor.graph is tf.compat.v1.get_default_graph()
    if is_here and len(made) < MOST_SELECTED:
        op = tensor.op
        if op.type == "UnsortedSegmentSum" and axis == 0 and op.inputs[1].shape.rank == 1:
            return rows_of_slices(tf.IndexedSlices(*op.inputs[:2]), ids, length)
        if op.type == "Reshape" and (rows := _before_reshape(op, axis, select)) is not None:
            # Rows keep all sizes but their number.
            sizes = enumerate(tensor.shape)
            return tf.reshape(rows, [-1 if each == axis else size for each, size in sizes])
        are_ranks_known = all(each.shape.rank is not None for each in [tensor, *op.inputs])
        rule = AXES_OF_INPUTS.get(op.type) if are_ranks_known else None
        if tensor.shape.rank and rule and (axes := rule(op, axis)):
            inputs = zip(op.inputs, axes, strict=True)
            return like(op, [each if at is None else select(each, at) for each, at in inputs])
    return tf.gather(tensor, tf.ensure_shape(tf.convert_to_tensor(ids), [length]), axis=axis)


def rows_of_slices(
    slices: tf.IndexedSlices, ids: tf.Variable, length: int | None = None
) -> tf.Tensor:
    """Rows along the first axis of what slices add up to, which is not made.

    The arguments are those of `selected_rows`. Slices of other ids are dropped.
    """
    looked_up = tf.cast(slices.indices, ids.dtype)
    # XLA would compare each id with each.
    places, is_among = (search if is_compiled_by_xla() else _search_whole)(ids, looked_up)
    num_ids = num_rows_of(ids) if length is None else length
    segments = tf.where(is_among, places, -1)
    return sum_by_segment(slices.values, segments, num_ids, is_on_gpu(ids))


def _search_whole(ids: tf.Variable, looked_up: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As `search`, in one operation that is given all ids."""
    read = ids.read_value()
    above = tf.raw_ops.UpperBound(
        sorted_inputs=read[None], values=looked_up[None], out_type=tf.int64
    )
    places = tf.maximum(above[0] - 1, 0)
    return places, tf.gather(read, places) == looked_up


def search(ids: tf.Variable, looked_up: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For each id that is looked up its place among `ids`, int64, and whether it is there.

    Reads those ids alone that it compares.
    """
    num_ids = num_rows_of(ids)

    def halve(num_left: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        half = num_left // 2
        further = places + tf.cast(half, places.dtype)
        is_further = gather_rows(ids, further) <= looked_up
        return num_left - half, tf.where(is_further, further, places)

    num_left, places = num_ids, tf.zeros_like(looked_up)
    if is_compiled_by_xla():
        # Not a loop, in which a GPU waits for the host. XLA drops the steps that halve nothing.
        for _ in range(num_ids.dtype.max.bit_length()):
            num_left, places = halve(num_left, places)
    else:
        last = tf.cast(num_ids - 1, ids.dtype)
        lowest, highest = gather_rows(ids, 0), gather_rows(ids, last)
        # Ids that are a range need no search.
        places = tf.cond(
            highest - lowest == last,
            lambda: tf.clip_by_value(looked_up - lowest, 0, last),
            lambda: tf.while_loop(lambda left, _: left > 1, halve, [num_left, places])[1],
        )
    return places, gather_rows(ids, places) == looked_up


def _before_reshape(op: tf.Operation, axis: int, select: Callable[..., Any]) -> Any:
    """The rows before they are reshaped; `None` where no axis is theirs."""
    value, shape = op.inputs[0], op.outputs[0].shape
    if not shape.is_fully_defined():
        return None
    if value.op.type == "Sum" and value.op.inputs[1].op.type == "BroadcastGradientArgs":
        summed, along = value.op.inputs  # over what the forward pass has broadcast
        place = (summed.shape.rank or 0) - shape.rank + axis
        if place >= 0 and summed.shape[place] == shape[axis] > 1:
            return like(value.op, [select(summed, place), along])
    elif value.shape.is_fully_defined():
        for place, size in enumerate(value.shape):
            if size == shape[axis] and math.prod(value.shape[:place]) == math.prod(shape[:axis]):
                return select(value, place)
    return None


def _axis_of_all(op: tf.Operation, axis: int) -> Axes:
    return [axis] * len(op.inputs)


def _axes_broadcast(op: tf.Operation, axis: int) -> Axes:
    shape, from_end = op.outputs[0].shape, axis - op.outputs[0].shape.rank
    axes: list[int | None] = []
    for each in (value.shape for value in op.inputs):
        is_broadcast = each.rank < -from_end or each[from_end] == 1
        if shape[axis] in {None, 1} or not (is_broadcast or each[from_end] == shape[axis]):
            return None
        axes.append(None if is_broadcast else each.rank + from_end)
    return axes


def _axes_transposed(op: tf.Operation, axis: int) -> Axes:
    # The gradient of a transpose inverts its order by an operation.
    is_inverse = op.inputs[1].op.type == "InvertPermutation"
    order = tf.get_static_value(op.inputs[1].op.inputs[0] if is_inverse else op.inputs[1])
    if order is None:
        return None
    return [int((np.argsort(order) if is_inverse else order)[axis]), None]


def _axes_of_product(op: tf.Operation, axis: int) -> Axes:
    is_second = axis == op.outputs[0].shape.rank - 1
    if axis < op.outputs[0].shape.rank - 2:
        return None
    names = ["transpose_a", "transpose_b"] if op.type == "MatMul" else ["adj_x", "adj_y"]
    is_last = is_second != op.get_attr(names[is_second])
    place = op.inputs[is_second].shape.rank - (1 if is_last else 2)
    return [None, place] if is_second else [place, None]


def _axes_by_label(op: tf.Operation, axis: int) -> Axes:
    inputs, output = op.get_attr("equation").decode().split("->")
    # A label that is repeated names a diagonal.
    if "." in inputs or any(len({*each}) < len(each) for each in [output, *inputs.split(",")]):
        return None
    return [each.find(output[axis]) if output[axis] in each else None for each in inputs.split(",")]


# For an operation and an axis of its output, the axis of each input that rows along it are made of:
# `None` for an input that is needed whole, and `None` in all if that cannot be told.
AXES_OF_INPUTS: dict[str, Callable[[tf.Operation, int], Axes]] = {
    **dict.fromkeys(["AddN", "Cast", "Identity", "Neg", "ZerosLike"], _axis_of_all),
    **dict.fromkeys(["AddV2", "Mul", "RealDiv", "SelectV2", "Sub"], _axes_broadcast),
    **dict.fromkeys(["MatMul", "BatchMatMulV2"], _axes_of_product),
    "Transpose": _axes_transposed,
    "Einsum": _axes_by_label,
}
