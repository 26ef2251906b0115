"""What somebody may give for `trainable_rows` by mistake, and what NumPy would make of it."""

import array
import re

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from maskedgrad import AlongAxis, Rows

ids = st.integers(-2, 8)
huge = st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), 10**12, 10**400])
scalars = st.one_of(
    st.none(), st.booleans(), ids, huge, st.floats(), st.complex_numbers(), st.text(), st.binary()
)
bounds = st.one_of(st.none(), ids, ids, huge, st.sampled_from([1.5, "2", True, np.int64(3)]))
ranges = st.builds(
    range, st.one_of(ids, huge), st.one_of(ids, huge), st.sampled_from([1, 2, -1, -3, 10**12])
)
arrays = st_numpy.arrays(
    dtype=st.one_of(
        st_numpy.scalar_dtypes(),
        st_numpy.integer_dtypes(endianness="?"),
        st_numpy.unsigned_integer_dtypes(),
        st_numpy.array_dtypes(),
        st.just(np.dtype(object)),
    ),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=8),
)
id_arrays = st.builds(
    np.array,
    st.lists(st.integers(0, 6), unique=True),
    dtype=st.sampled_from(["int8", ">i4", "uint8", "uint64", "float32", "O", "m8[s]", "U3", "?"]),
)


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value: list = [1]
    for _ in range(depth):
        value = [value]
    return value


def symbolic_tensor() -> tf.Tensor:
    """A tensor without a value, as there are in a function that is being traced."""
    with tf.Graph().as_default():
        return tf.compat.v1.placeholder(tf.int32, [2])


class BrokenArray:
    """What fails when it is turned into an array."""

    def __array__(self, dtype=None, copy=None):
        raise NotImplementedError("no array")


class OnAnotherDevice:
    """What PyTorch keeps on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")


strange_objects = st.sampled_from(
    [
        lambda: iter([1, 2]),
        lambda: (row for row in [1, 2]),
        lambda: {1, 2},
        lambda: frozenset([1]),
        lambda: {1: 2},
        lambda: map(int, "12"),
        lambda: array.array("i", [1, 2]),
        lambda: memoryview(b"\1\2"),
        lambda: bytearray(b"\1\2"),
        lambda: np.ma.array([1, 2], mask=[True, False]),
        lambda: np.array([(1, 2.0)], dtype="i4,f4"),
        lambda: np.array([1, 2]).view("M8[s]"),
        lambda: nested(5000),
        lambda: tf.constant([1, 2], tf.uint8),
        lambda: tf.constant([1.0]),
        lambda: tf.constant(["1"]),
        lambda: tf.constant([[1, 2]]),
        lambda: tf.Variable([1, 2]),
        lambda: tf.ragged.constant([[1], [2, 3]]),
        lambda: tf.ragged.constant([[1], [2]]),
        lambda: tf.sparse.from_dense([0, 1]),
        lambda: tf.IndexedSlices(tf.constant([1]), tf.constant([1])),
        lambda: keras.Variable([1, 2], dtype="int32"),
        lambda: keras.KerasTensor((2,), dtype="int32"),
        symbolic_tensor,
        lambda: tf.TensorSpec([2]),
        lambda: tf.data.Dataset.range(2),
        BrokenArray,
        OnAnotherDevice,
        lambda: [1.0, float("nan")],
        lambda: [True, None, False, False, False],
        lambda: [[1], [2]],
        lambda: {0.5: [1]},
        lambda: ...,
        object,
        lambda: len,
        lambda: Rows,
        keras.layers.Flatten,
    ]
).map(lambda make: make())


def rows() -> st.SearchStrategy:
    """Rows and nonsense, for a table of some five rows."""
    flat = st.one_of(st.lists(st.one_of(ids, scalars), max_size=4), st.lists(ids, max_size=4))
    return st.one_of(
        st.lists(st.integers(0, 4), min_size=1, unique=True),
        scalars,
        flat,
        st.lists(flat, max_size=3),
        st.lists(st.booleans(), max_size=8),
        st.builds(slice, bounds, bounds, bounds),
        ranges,
        id_arrays,
        arrays,
        st.builds(Rows, st.lists(st.integers(0, 2), unique=True), st.integers(3, 8)),
        strange_objects,
    )


def selected(given_rows, num_rows: int) -> list[int]:
    """The ids that NumPy indexing selects, ascending; its error where it refuses."""
    if isinstance(given_rows, Rows):
        assert given_rows.num_rows == num_rows
        return given_rows.ids.tolist()
    index = given_rows
    if not isinstance(index, slice):
        index = np.asarray(index)
        index = index if index.size else index.astype(int)
    return sorted(np.arange(num_rows)[index].tolist())


patterns = st.one_of(
    st.text(alphabet="wordstag/.*+?()[]{}|\\0^$", max_size=8),
    st.sampled_from(
        [
            ".*",
            ".*/embeddings",
            "(words|tags)/.*",
            "(?i)WORDS/.*",
            "(",
            "a{99999999999}",
            "(" * 5000 + ")" * 5000,
            "[z-a]",
            "\\",
            "(?P<a>.)(?P<a>.)",
            "words/embeddings/",
            "",
        ]
    ),
)


def targets(layers: dict[str, keras.Layer]) -> st.SearchStrategy:
    """What makes a target, or fails at it: of a model's layers, or nonsense."""
    unbuilt = keras.layers.Embedding(5, 2, name="words")
    stranger = keras.layers.Embedding(5, 2, name="words")
    stranger.build()
    everyone = {**layers, "unbuilt": unbuilt, "stranger": stranger}
    paths = [variable.path for layer in layers.values() for variable in layer.weights]
    names = st.one_of(
        st.sampled_from(sorted(everyone)).map(lambda name: everyone[name]),
        st.sampled_from(paths),
        patterns,
    )
    axes = st.one_of(st.integers(-3, 3), huge, st.sampled_from([True, 1.0, "0", None, np.int64(0)]))
    nonsense = st.one_of(
        st.integers(), st.floats(), st.none(), st.binary(), st.tuples(names), st.frozensets(ids)
    )
    reference = layers["words"].embeddings.value.ref()
    objects = st.sampled_from([object(), len, keras.layers.Embedding, id(unbuilt), reference])
    return st.one_of(
        names.map(lambda name: lambda: name),
        st.builds(lambda *pair: lambda: AlongAxis(*pair), st.one_of(names, nonsense), axes),
        st.one_of(nonsense, objects).map(lambda target: lambda: target),
    )


def mappings(layers: dict[str, keras.Layer], values: st.SearchStrategy) -> st.SearchStrategy:
    """What makes a mapping from target to values, or fails at it, or is none at all."""
    pairs = st.lists(st.tuples(targets(layers), values), min_size=1, max_size=2)
    return st.one_of(
        values.map(lambda value: lambda: {layers["words"]: value}),
        values.map(lambda value: lambda: {layers["tags"]: value}),
        values.map(lambda value: lambda: {"words/embeddings": value}),
        pairs.map(lambda pairs: lambda: {make(): value for make, value in pairs}),
        pairs.map(lambda pairs: lambda: [(make(), value) for make, value in pairs]),
        st.one_of(scalars, arrays, st.just({}), strange_objects).map(lambda value: lambda: value),
    )


def tables_named(trainable_rows, variables) -> dict[tuple[str, int], list[int]]:
    """For each table that is named, by path and axis, the rows that NumPy indexing selects."""
    found = {}
    for target, given_rows in trainable_rows.items():
        for variable, axis in _variables_named(target, variables):
            assert (variable.path, axis) not in found
            found[variable.path, axis] = selected(given_rows, variable.shape[axis])
    return found


def _variables_named(target, variables):
    axis = 0
    if isinstance(target, AlongAxis):
        target, axis = target.target, target.axis
    if isinstance(target, keras.Layer):
        named = target.trainable_variables
    else:
        named = [v for v in variables if v.path == target]
        named = named or [v for v in variables if re.fullmatch(target, v.path)]
    return [(variable, range(len(variable.shape))[axis]) for variable in named]
