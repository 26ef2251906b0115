"""Slices of a gradient that repeat something smaller, made where they are added alone."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from maskedgrad.masking.tracing import is_compiled_by_xla

# The place of each slice along the axes that number slices: int64 vectors.
Places: TypeAlias = list[tf.Tensor]

REPEATING, RESHAPING = {"BroadcastTo", "Tile"}, {"Reshape", "Sum"}
ELEMENTWISE = {
    *("AddN", "AddV2", "Cast", "Identity", "Mul", "Neg", "RealDiv", "SelectV2", "Sub"),
    "ZerosLike",
}
# How many operations, one before the other, are looked into, each by a call in a call.
LONGEST_CHAIN = 100


class Made(NamedTuple):
    """A tensor and what it is made of; what is taken as it stands is made of nothing.

    Its first `num_axes` axes number slices.
    """

    tensor: tf.Tensor
    num_axes: int = 0
    inputs: tuple["Made", ...] = ()


def sum_by_segment(
    values: tf.Tensor, segments: tf.Tensor, num_segments: int | tf.Tensor, is_on_gpu: bool = False
) -> tf.Tensor:
    """Returns the sums of slices by segment, without slices whose segment is negative.

    Equivalent to `tf.math.unsorted_segment_sum`. In a graph, where slices repeat
    something smaller, as in the gradient of a mean over texts, only those are
    made that are added.

    Args:
        values: a tensor of shape `(T, ...)`.
        segments: int64 of shape `(T,)`.
        num_segments: int or a scalar.
        is_on_gpu: whether a GPU adds them. It repeats slices sooner than it would tell
            the host how many are added, so all are made there.

    Example:

    >>> sum_by_segment(tf.constant([1.0, 2.0, 4.0]), tf.constant([0, -1, 0]), 2).numpy().tolist()
    [5.0, 0.0]
    """

    def sum_all(values: tf.Tensor) -> tf.Tensor:
        return tf.math.unsorted_segment_sum(values, segments, num_segments)

    # XLA lets no shape depend on how many slices are added, and stores no slice that it repeats.
    makes_all = is_on_gpu or not tf.is_symbolic_tensor(values) or is_compiled_by_xla()
    made = None if makes_all else _parts_made_of_less(values)
    if made is None:
        return sum_all(values)

    def sum_added() -> tf.Tensor:
        added = tf.where(segments >= 0)[:, 0]
        of_added = _slices_of_parts(made, added), tf.gather(segments, added)
        return tf.math.unsorted_segment_sum(*of_added, num_segments)

    # If a size is unknown, only a step can tell whether the forward pass broadcasts there.
    reduced = [tf.size(axes) for part in made for axes in _axes_reduced(part)]
    if not reduced:
        total = sum_added()
    else:
        total = tf.cond(
            tf.add_n(reduced) > 0,
            lambda: sum_all(tf.concat([_whole(part) for part in made], axis=0)),
            sum_added,
        )
    total.set_shape([None, *values.shape[1:]])
    return total


def _parts_made_of_less(values: tf.Tensor) -> list[Made] | None:
    """Returns what the slices of each lookup are made of; `None` if something is as large."""
    op, seen = values.op, set[str]()
    are_joined = op.type == "ConcatV2" and tf.get_static_value(op.inputs[-1]) == 0
    joined = op.inputs[:-1] if are_joined else [values]
    parts = [_made_of_less(each, 1, seen, LONGEST_CHAIN) for each in joined]
    return None if None in parts else [part for part in parts if part]


def _made_of_less(tensor: tf.Tensor, num_axes: int, seen: set[str], num_left: int) -> Made | None:
    """Returns what a tensor is made of; `None` if some of that is as large as the tensor.

    Also `None` where no operations are left to look into, and at one that was `seen` before: if
    several share one, it would be made again for each of them, and so would all those before it.
    """
    op, rank = tensor.op, tensor.shape.rank
    is_here = tensor.graph is tf.compat.v1.get_default_graph()
    if rank is None or not is_here or not num_left or op.name in seen:
        return None
    seen.add(op.name)
    inputs: list[Made | None] = [Made(each) for each in op.inputs]
    if op.type in REPEATING:
        repeated = op.inputs[0]
        if repeated.shape.rank != rank:
            return None
        inputs[0] = Made(repeated, num_axes)
    elif op.type == "Reshape":
        inputs[0] = _reshaped(tensor, num_axes, seen, num_left - 1)
    elif op.type in ELEMENTWISE:
        inputs = [_input(each, tensor, num_axes, seen, num_left - 1) for each in op.inputs]
    else:
        return None
    return None if None in inputs else Made(tensor, num_axes, tuple(filter(None, inputs)))


def _reshaped(tensor: tf.Tensor, num_axes: int, *args: Any) -> Made | None:
    """Returns the tensor before a reshape that keeps slices and numbers them by other axes."""
    value, kept = tensor.op.inputs[0], tensor.shape[num_axes:]
    # The gradient of what a forward pass may have broadcast, where a size is unknown.
    is_sum = value.op.type == "Sum" and value.op.inputs[1].op.type == "BroadcastGradientArgs"
    summed = value.op.inputs[0] if is_sum else value
    num_before = (summed.shape.rank or 0) - len(kept)
    if num_before < 1 or not kept.is_fully_defined() or summed.shape[num_before:] != kept:
        return None
    # A shape that others ask for may leave a size to be found out, as -1.
    is_told = num_axes == 1 or tensor.op.inputs[1].op.type == "Shape"
    if not is_told and not tensor.shape.is_fully_defined():
        return None
    made = _made_of_less(summed, num_before, *args)
    return Made(value, num_before, (made, Made(value.op.inputs[1]))) if made and is_sum else made


def _input(tensor: tf.Tensor, output: tf.Tensor, num_axes: int, *args: Any) -> Made | None:
    """An input of an elementwise operation, of which shapes are aligned at their ends."""
    if tensor.shape.rank is None:
        return None
    num_more = output.shape.rank - tensor.shape.rank
    num_axes = max(0, num_axes - num_more)
    sizes = zip(tensor.shape, output.shape[num_more:], strict=True)
    if num_more or any(one == 1 != other for one, other in sizes):
        return Made(tensor, num_axes)
    return _made_of_less(tensor, num_axes, *args)


def _slices_of_parts(parts: Sequence[Made], places: tf.Tensor) -> tf.Tensor:
    """The slices at ascending places in all parts, one part after the other."""
    slices, places_left = [], places
    for made in parts[:-1]:
        size = _size(made, 0)
        is_here = places_left < size
        slices.append(_slices(made, [tf.boolean_mask(places_left, is_here)]))
        places_left = tf.boolean_mask(places_left, ~is_here) - size
    return tf.concat([*slices, _slices(parts[-1], [places_left])], axis=0)


def _slices(made: Made, places: Places) -> tf.Tensor:
    """The slices at these places, of shape `(n, ...)`."""
    if not made.num_axes:
        return made.tensor
    if not made.inputs:
        return tf.gather_nd(made.tensor, tf.stack(_wrapped(places, made), axis=1))
    op, first = made.tensor.op, made.inputs[0]
    if op.type == "Reshape":
        places = _unraveled(_raveled(_wrapped(places, made), made), first)
    if op.type in REPEATING:
        return _repeated(_slices(first, places), made)
    if op.type in RESHAPING:
        return _slices(first, places)
    return like(op, [_slices(each, places[-each.num_axes :]) for each in made.inputs])


def _repeated(slices: tf.Tensor, made: Made) -> tf.Tensor:
    """The slices, repeated along their own axes as `made` is, where that may do anything."""
    op, sizes = made.tensor.op, made.tensor.shape[made.num_axes :]
    if sizes.is_fully_defined() and slices.shape[1:] == sizes:
        return slices
    repeats = op.inputs[1]
    of_slices = 1 if op.type == "Tile" else tf.shape(slices)[0]
    along_first = tf.cast(of_slices, repeats.dtype)[None]
    return like(op, [slices, tf.concat([along_first, repeats[made.num_axes :]], axis=0)])


def _wrapped(places: Places, made: Made) -> Places:
    """The places of slices that others repeat."""
    return [place % _size(made, axis) for axis, place in enumerate(places)]


def _raveled(places: Places, made: Made) -> tf.Tensor:
    """The places along one axis that stands for the first axes."""
    raveled, *others = places
    for axis, place in enumerate(others, start=1):
        raveled = raveled * _size(made, axis) + place
    return raveled


def _unraveled(raveled: tf.Tensor, made: Made) -> Places:
    places: Places = []
    for axis in reversed(range(1, made.num_axes)):
        size = _size(made, axis)
        places, raveled = [raveled % size, *places], raveled // size
    return [raveled, *places]


def _size(made: Made, axis: int) -> int | tf.Tensor:
    """The size of an axis. Where it is unknown, an operation that makes the tensor tells it."""
    if made.tensor.shape[axis] is not None:
        return made.tensor.shape[axis]
    if not made.inputs:
        return tf.shape(made.tensor, tf.int64)[axis]
    op, first = made.tensor.op, made.inputs[0]
    if op.type == "Reshape" and made.num_axes == 1:
        return math.prod(_size(first, each) for each in range(first.num_axes))
    if op.type in {"BroadcastTo", "Reshape"}:
        return tf.cast(op.inputs[1][axis], tf.int64)
    if op.type == "Tile":
        return _size(first, axis) * tf.cast(op.inputs[1][axis], tf.int64)
    aligned = [(each, axis - made.num_axes + each.num_axes) for each in made.inputs]
    sizes = [tf.cast(_size(*each), tf.int64) for each in aligned if each[1] >= 0]
    # Sizes of 1 are broadcast to any other.
    return functools.reduce(lambda size, other: tf.where(size == 1, other, size), sizes)


def _whole(made: Made) -> tf.Tensor:
    """The tensor, made again where it is asked for."""
    return like(made.tensor.op, [*map(_whole, made.inputs)]) if made.inputs else made.tensor


def _axes_reduced(made: Made) -> Iterator[tf.Tensor]:
    """Yields the axes of each sum over sizes that a forward pass may have broadcast."""
    if made.inputs and made.tensor.op.type == "Sum":
        yield made.tensor.op.inputs[1]
    for each in made.inputs:
        yield from _axes_reduced(each)


def like(op: tf.Operation, inputs: list[tf.Tensor]) -> tf.Tensor:
    """The output of an operation as another, of other inputs."""
    attributes = {each.name: op.node_def.attr[each.name] for each in op.op_def.attr}
    graph = tf.compat.v1.get_default_graph()
    return graph.create_op(op.type, inputs, [op.outputs[0].dtype], attrs=attributes).outputs[0]
