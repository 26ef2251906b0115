"""Rows of a tensor, selected from what the tensor is made of."""

import math
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from maskedgrad.masking.variables import gather_rows, num_rows_of

Axes: TypeAlias = "list[int | None] | None"

# Operations on single numbers, which may broadcast.
BY_ELEMENT = {
    *("AddN", "AddV2", "Cast", "Identity", "Mul", "Neg", "RealDiv", "SelectV2", "Sub"),
    "ZerosLike",
}


def selected_rows(
    tensor: tf.Tensor, ids: tf.Variable, axis: int = 0, length: int | None = None
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

    Example:

    >>> ids = tf.Variable([1], dtype=tf.int64)
    >>> rows = tf.function(lambda a, b: selected_rows(tf.matmul(a, b), ids))
    >>> rows(tf.constant([[1.0], [2.0]]), tf.constant([[5.0, 6.0]])).numpy().tolist()
    [[10.0, 12.0]]
    """

    def select(tensor: tf.Tensor, axis: int) -> tf.Tensor:
        return selected_rows(tensor, ids, axis, length)

    # What an eager step or another graph has made is there already.
    if tf.is_symbolic_tensor(tensor) and tensor.graph is tf.compat.v1.get_default_graph():
        op = tensor.op
        if op.type == "UnsortedSegmentSum" and axis == 0:
            return rows_of_slices(tf.IndexedSlices(*op.inputs[:2]), ids, length)
        if op.type == "Reshape" and (before := _before_reshape(op, axis)):
            whole, place = before
            # Rows keep all sizes but their number.
            sizes = [-1 if each == axis else size for each, size in enumerate(tensor.shape)]
            if whole is op.inputs[0]:
                return tf.reshape(select(whole, place), sizes)
            rows = [select(whole, place), op.inputs[0].op.inputs[1]]
            return tf.reshape(_like(op.inputs[0].op, rows), sizes)
        if axes := _axes_of_inputs(op, axis):
            inputs = zip(op.inputs, axes, strict=True)
            return _like(op, [each if at is None else select(each, at) for each, at in inputs])
    return tf.gather(tensor, tf.ensure_shape(tf.convert_to_tensor(ids), [length]), axis=axis)


def rows_of_slices(
    slices: tf.IndexedSlices, ids: tf.Variable, length: int | None = None
) -> tf.Tensor:
    """Rows along the first axis of what slices add up to, which is not made.

    The arguments are those of `selected_rows`. Slices of other ids are dropped.
    """
    places, is_among = search(ids, tf.cast(slices.indices, ids.dtype))
    # Slices whose segment id is negative are dropped: that is the mask.
    segments = tf.where(is_among, places, -1)
    num_ids = num_rows_of(ids) if length is None else length
    return tf.math.unsorted_segment_sum(slices.values, segments, num_ids)


def search(ids: tf.Variable, looked_up: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """For each id that is looked up its place among `ids`, int64, and whether it is there."""
    num_ids = num_rows_of(ids)
    last = tf.cast(num_ids - 1, ids.dtype)
    lowest, highest = gather_rows(ids, 0), gather_rows(ids, last)

    def by_halving() -> tf.Tensor:
        def halve(num_left: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            half = num_left // 2
            further = places + tf.cast(half, places.dtype)
            is_further = gather_rows(ids, further) <= looked_up
            return num_left - half, tf.where(is_further, further, places)

        # Not `tf.searchsorted`: it reads all ids, and XLA compares each with each.
        first = [num_ids, tf.zeros_like(looked_up)]
        return tf.while_loop(lambda num_left, _: num_left > 1, halve, first)[1]

    # Ids that are a range need no search.
    places = tf.cond(
        highest - lowest == last,
        lambda: tf.clip_by_value(looked_up - lowest, 0, last),
        by_halving,
    )
    return places, gather_rows(ids, places) == looked_up


def _like(op: tf.Operation, inputs: list[tf.Tensor]) -> tf.Tensor:
    """The output of an operation as another, of other inputs."""
    attributes = {each.name: op.node_def.attr[each.name] for each in op.op_def.attr}
    return op.graph.create_op(op.type, inputs, [op.outputs[0].dtype], attrs=attributes).outputs[0]


def _axes_of_inputs(op: tf.Operation, axis: int) -> Axes:
    """Along which axis of each input rows of an operation's output are made.

    `None` for an input that they need whole, and at all where no rule tells.
    """
    shapes = [each.shape for each in op.inputs]
    if any(shape.rank is None for shape in shapes):
        return None
    if op.type in BY_ELEMENT:
        return _axes_by_element(shapes, op.outputs[0].shape, axis)
    if op.type == "Transpose":
        order = _order(op.inputs[1])
        return None if order is None else [order[axis], None]
    if op.type in {"MatMul", "BatchMatMulV2"}:
        names = ["transpose_a", "transpose_b"] if op.type == "MatMul" else ["adj_x", "adj_y"]
        first, second = map(op.get_attr, names)
        from_end = axis - op.outputs[0].shape.rank
        a, b = (shape.rank for shape in shapes)
        return {-2: [a - 1 if first else a - 2, None], -1: [None, b - 2 if second else b - 1]}.get(
            from_end
        )
    if op.type == "Einsum":
        return _axes_in_einsum(op.get_attr("equation").decode(), axis)
    return None


def _order(permutation: tf.Tensor) -> list[int] | None:
    # The gradient of a transpose inverts its order by an operation.
    is_inverse = permutation.op.type == "InvertPermutation"
    order = tf.get_static_value(permutation.op.inputs[0] if is_inverse else permutation)
    if order is None:
        return None
    return (np.argsort(order) if is_inverse else order).tolist()


def _axes_by_element(shapes: list[tf.TensorShape], shape: tf.TensorShape, axis: int) -> Axes:
    if shape.rank is None or shape[axis] in {None, 1}:
        return None
    from_end = axis - shape.rank
    axes: list[int | None] = []
    for each in shapes:
        broadcasts = each.rank < -from_end or each[from_end] == 1
        if not broadcasts and each[from_end] != shape[axis]:
            return None
        axes.append(None if broadcasts else each.rank + from_end)
    return axes


def _axes_in_einsum(equation: str, axis: int) -> Axes:
    inputs, output = equation.split("->")
    if "." in equation or any(len(set(each)) < len(each) for each in inputs.split(",")):
        return None
    axes = [each.find(output[axis]) for each in inputs.split(",")]
    return [None if each < 0 else each for each in axes]


def _before_reshape(op: tf.Operation, axis: int) -> tuple[tf.Tensor, int] | None:
    """The tensor that is reshaped, and where in it the rows lie; `None` if no axis is theirs.

    Where it is a sum over what was broadcast, the tensor that is summed.
    """
    value, shape = op.inputs[0], op.outputs[0].shape
    if not shape.is_fully_defined():
        return None
    if value.op.type == "Sum" and value.op.inputs[1].op.type == "BroadcastGradientArgs":
        summed = value.op.inputs[0]
        place = (summed.shape.rank or 0) - shape.rank + axis
        return (summed, place) if place >= 0 and summed.shape[place] == shape[axis] > 1 else None
    if value.shape.is_fully_defined():
        for place, size in enumerate(value.shape):
            if size == shape[axis] and math.prod(value.shape[:place]) == math.prod(shape[:axis]):
                return value, place
    return None
