"""Keras variables that are bent: read sparsely, of a length that changes, or in another's place."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.tracing import is_compiled_by_xla, trace_again


class SparselyRead:
    """Mixed into the class of a table's variable: a lookup reads the rows it looks up, no others.

    Once a row has been written, TensorFlow copies a whole variable each time it
    is read densely, and a Keras layer reads its table densely before it gathers.
    `tf.gather` calls `sparse_read` of what it is given, where it has one.
    https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/python/ops/array_ops.py#L4992
    """

    dtype: Any
    _value: Any
    _is_read_whole = False

    def sparse_read(self, indices: Any, name: str | None = None) -> tf.Tensor:
        """Rows of the table, in the dtype that the table has where this is called."""
        table = on_this_replica(self._value)
        # What `tf.vectorized_map` calls a body, in which it can make one gather of many only of a
        # tensor: it has no rule for rows of a variable. XLA copies no table to read it.
        is_mapped = is_compiled_by_xla() and "loop_body" in tf.get_current_name_scope()
        if self._is_read_whole or is_mapped:
            rows = tf.gather(table.read_value(), indices, name=name)
        else:
            rows = table.sparse_read(indices, name=name)
        return tf.cast(rows, self.dtype)


class SparselyReadVariable(SparselyRead, keras.Variable):
    """A `keras.Variable` that is read sparsely."""


def read_sparsely(table: keras.Variable) -> None:
    """Makes every lookup in `table` read the rows it looks up, and no others."""
    # The class changes, and no attribute: so a copy of the variable looks up in itself.
    if type(table) is keras.Variable:
        table.__class__ = SparselyReadVariable
    elif not isinstance(table, SparselyRead):
        table.__class__ = type(type(table).__name__, (SparselyRead, type(table)), {})


def read_whole_if_tied(gradients: Iterable[Any], variables: Iterable[Any]) -> None:
    """Makes lookups in a table with a dense gradient read it whole, as its tied output does.

    TensorFlow has such reads share the memory of the table, but copies it for each
    that follows an access to its rows alone, until `share_reads` is called.
    """
    for gradient, variable in zip(gradients, variables, strict=True):
        is_tied = isinstance(gradient, tf.Tensor) and isinstance(variable, SparselyRead)
        if is_tied and not variable._is_read_whole and not is_compiled_by_xla():
            variable._is_read_whole = True
            trace_again()


def share_reads(variable: tf.Variable) -> None:
    """Lets dense reads share the memory of a variable again, after its rows were written."""
    # Without this, the variable is copied at each dense read ever after.
    # https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/core/framework/resource_var.h#L54
    if not is_compiled_by_xla():  # which has no such mode
        tf.raw_ops.DisableCopyOnRead(resource=variable.handle)


@tf.experimental.dispatch_for_api(tf.nn.embedding_lookup, {"ids": tf.RaggedTensor})
def _embedding_lookup(params: Any, ids: Any, max_norm: Any = None, name: Any = None) -> Any:
    """Looks up ragged ids, as Keras does by this. TensorFlow's own makes the table a tensor."""
    # https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/python/ops/embedding_ops.py#L142
    if max_norm is not None or not isinstance(params, SparselyRead):
        return NotImplemented  # TensorFlow does it
    return tf.ragged.map_flat_values(lambda flat_ids: tf.gather(params, flat_ids, name=name), ids)


class RowVariable(keras.Variable):
    """A variable with an entry for each trainable row along one axis, however many these are.

    Its shape is read from its value, since a checkpoint restores the value and
    tells nobody.
    """

    row_axis = 0
    _value: Any
    _of_length: dict[int | None, tf.Variable]
    _held: tuple[Any, ...] = ()

    @property
    def shape(self) -> tf.TensorShape:
        """The shape now; in a graph, `None` for the rows if their number may change."""
        if not tf.executing_eagerly():
            return self._value.shape
        return tf.TensorShape(tf.raw_ops.VariableShape(input=on_first_device(self).handle).numpy())

    @property
    def fixed_length(self) -> int | None:
        """The number of rows that a graph may rely upon; `None` if it may rely on none."""
        return self._value.shape[self.row_axis]

    def assign_rows(self, values: np.ndarray) -> None:
        """Takes other values, of any number of rows, on every device."""
        if not self._value.shape.is_compatible_with(values.shape):
            self._of_length[self.fixed_length] = self._value
            length = values.shape[self.row_axis]
            if length not in self._of_length:
                self._of_length[length] = self._like_value(values, values.shape)
            # What was traced for this length before finds the same variable again.
            self._value = self._of_length[length]
        self._value.assign(values)

    @contextlib.contextmanager
    def holding(self, value: tf.Variable) -> Iterator[None]:
        """A context in which this is another variable of TensorFlow's."""
        # Replicas are threads that take turns, and all enter before the first one leaves.
        self._held = (*self._held, self._value)
        self._value = value
        try:
            yield
        finally:
            *others, last = self._held
            self._held = tuple(others)
            if not others:
                self._value = last

    def window(self) -> tf.Variable:
        """A variable for any number of these rows, to hold some of them for a step."""
        shape = list(self._value.shape)
        # One row, since workers send each other its first value, and crash over one of no numbers.
        row = np.zeros([1 if place == self.row_axis else size for place, size in enumerate(shape)])
        shape[self.row_axis] = None
        return self._like_value(row.astype(self._value.dtype.as_numpy_dtype), shape)

    def _like_value(self, values: np.ndarray, shape: Any) -> tf.Variable:
        old = self._value
        with beside(self):
            new = tf.Variable(
                values,
                dtype=old.dtype,
                shape=shape,
                trainable=old.trainable,
                name=self.name,
                aggregation=old.aggregation,
                synchronization=old.synchronization,
            )
        _take_id(new, old)
        return new


def _take_id(variable: tf.Variable, other: tf.Variable) -> None:
    """Makes a variable known to optimizers of Keras as another one.

    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/optimizer.py#L87
    """
    components = tf.distribute.get_strategy().experimental_local_results
    for one, its_other in zip(components(variable), components(other), strict=True):
        one._unique_id = its_other._unique_id


def make_row_variable(variable: keras.Variable, axis: int, any_length: bool) -> None:
    """Makes a variable, which others hold, a `RowVariable`, before a function is traced with it.

    Args:
        variable: the variable.
        axis: int, the axis that the rows lie along.
        any_length: whether functions are to be traced for any number of rows.
    """
    if not isinstance(variable, RowVariable):
        variable.__class__ = RowVariable
    variable.row_axis = axis
    variable._of_length = {}
    if any_length:
        values = variable.numpy()
        shape = [None if place == axis else size for place, size in enumerate(values.shape)]
        # https://www.tensorflow.org/api_docs/python/tf/Variable: `shape` may leave sizes open.
        variable._value = variable._like_value(values, shape)


class StandIn(RowVariable):
    """A variable in place of another, to whose name and path it answers.

    Optimizers choose by them what they do with a variable, and by what users
    put on it.

    Args:
        original: the variable that it stands for.
        value: an array of any shape.
        axis: int, the axis that rows lie along.
        dtype: its dtype; that of `original` if not given.
    """

    def __init__(
        self, original: keras.Variable, value: Any, axis: int = 0, dtype: str | None = None
    ):
        self._original_path = original.path
        scope = original.value.name.rpartition("/")[0]
        with tf.name_scope(f"{scope}/" if scope else ""), beside(original):
            super().__init__(
                value,
                dtype=dtype or original.dtype,
                autocast=False,
                aggregation=original.aggregation,
                name=original.name,
            )
            make_row_variable(self, axis, any_length=False)
        _take_id(self._value, original.value)  # since it may hold the original for a while
        self.constraint = original.constraint
        self.overwrite_with_gradient = original.overwrite_with_gradient
        # What users put on it; not what TensorFlow notes there of its checkpoints.
        for name, attribute in vars(original).items():
            if not name.startswith("_self_"):
                self.__dict__.setdefault(name, attribute)

    @property
    def path(self) -> str:
        """The path of the original."""
        return self._original_path


def gather_rows(variable: tf.Variable, ids: Any) -> tf.Tensor:
    """Rows along the first axis of a variable, or of a mirrored one's component on this replica."""
    # A mirrored variable has no `sparse_read`, but its handle is the replica's own here.
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=ids, dtype=variable.dtype)


def num_rows_of(variable: tf.Variable) -> tf.Tensor:
    """How many rows a variable holds when a step runs: an int32 scalar."""
    return tf.raw_ops.VariableShape(input=variable.handle)[0]


def is_on_gpu(variable: tf.Variable) -> bool:
    """Whether a variable lies in the memory of a GPU."""
    return "GPU" in variable.device


def strategy_of(variable: keras.Variable) -> tf.distribute.Strategy:
    """The strategy that a variable was made in."""
    return getattr(variable.value, "distribute_strategy", tf.distribute.get_strategy())


def beside(variable: keras.Variable) -> contextlib.AbstractContextManager[None]:
    """A context in which variables are made on the device that a variable is on."""
    return tf.device(on_first_device(variable).device)


def on_first_device(variable: keras.Variable) -> tf.Variable:
    """A mirrored variable's component on its first device; of any other variable, what it holds."""
    return strategy_of(variable).experimental_local_results(variable.value)[0]


def on_this_replica(variable: tf.Variable) -> tf.Variable:
    """A mirrored variable's component on this replica; any other variable itself."""
    components = tf.distribute.get_strategy().experimental_local_results(variable)
    context = tf.distribute.get_replica_context()
    if len(components) == 1 or context is None:
        return components[0]
    return components[tf.get_static_value(context.replica_id_in_sync_group) % len(components)]
