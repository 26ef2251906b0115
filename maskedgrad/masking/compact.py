"""The compact variable, which stands for the trainable rows of a table."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.gradients import Gradient, compact_gradient
from maskedgrad.masking.targets import Target


class StandIn(keras.Variable):
    """A variable in place of another, to whose name and path it answers.

    Optimizers choose by them what they do with a variable.

    Args:
        original: the variable that it stands for.
        value: a tensor of any shape, of the dtype of `original`.
    """

    def __init__(self, original: keras.Variable, value: tf.Tensor):
        self._original_path = original.path
        scope = original.value.name.rpartition("/")[0]
        with tf.name_scope(f"{scope}/" if scope else ""):
            super().__init__(
                value,
                dtype=original.dtype,
                autocast=False,
                aggregation=original.aggregation,
                name=original.name,
            )
        self.constraint = original.constraint
        self.overwrite_with_gradient = original.overwrite_with_gradient

    @property
    def path(self) -> str:
        """The path of the original."""
        return self._original_path


class MaskedTable:
    """A table, its trainable rows, and the compact variable that stands for them."""

    def __init__(self, target: Target):
        self.variable = target.variable
        self.rows = target.rows
        self.axis = target.axis
        self.ids = tf.constant(self.rows.ids)
        self.positions = tf.constant(self.rows.positions)
        self.places = places_of_elements(self.variable.shape, self.rows.ids, self.axis)
        self.learning_rates = target.learning_rates
        self.compact = StandIn(self.variable, self._rows_of(_on_this_replica(self.variable.value)))

    def compact_gradient(self, gradient: Gradient) -> tf.Tensor | None:
        """The gradient of the compact variable, of that of the table."""
        return compact_gradient(gradient, self.ids, self.positions, self.axis)

    def gather(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the table to the compact variable."""
        strategy.extended.update(
            self.compact.value,
            lambda compact, table: compact.assign(self._rows_of(table), read_value=False),
            args=(self.variable.value,),
            group=False,
        )

    def scatter(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the compact variable to the table."""
        self._update(strategy, lambda table, compact: compact)

    def scatter_step(self, strategy: tf.distribute.Strategy) -> None:
        """Moves each row of the table by its share of the way to the compact variable's."""
        if self.learning_rates is None:
            self.scatter(strategy)
            return
        shape = [-1] + [1] * (len(self.variable.shape) - 1 - self.axis)
        shares = tf.reshape(tf.constant(self.learning_rates, self.compact.value.dtype), shape)

        def moved(table, compact):
            before, after = self._rows_of(table), tf.convert_to_tensor(compact)
            # The whole way must end on the same bits, which a sum may miss. Nor may a number
            # move that the inner optimizer left: inf - inf is NaN, and -0 + 0 is 0.
            whole = tf.logical_or(shares == 1, after == before)
            return tf.where(whole, after, before + shares * (after - before))

        self._update(strategy, moved)

    def _update(self, strategy: tf.distribute.Strategy, rows: Callable[[Any, Any], Any]) -> None:
        def write(table, compact):
            if self.places is None:
                return table.scatter_update(tf.IndexedSlices(rows(table, compact), self.ids))
            return table.scatter_nd_update(self.places, rows(table, compact))

        strategy.extended.update(
            self.variable.value, write, args=(self.compact.value,), group=False
        )

    def _rows_of(self, table: tf.Variable) -> tf.Tensor:
        # A mirrored table has no `sparse_read`, but its handle is the replica's own here.
        if self.places is None:
            return tf.raw_ops.ResourceGather(
                resource=table.handle, indices=self.ids, dtype=table.dtype
            )
        # There is `ResourceGatherNd`, but not under XLA.
        return tf.gather(table.read_value(), self.ids, axis=self.axis)


def places_of_elements(shape: Sequence[int], ids: np.ndarray, axis: int) -> tf.Tensor | None:
    """The index of each element in the rows `ids` along an axis; `None` for the first axis.

    TensorFlow writes whole rows of a variable along its first axis only, and
    single elements anywhere.

    Returns:
        int64 of the shape of the rows and one axis more, as long as `shape`.
    """
    if axis == 0:
        return None
    along = [ids if place == axis else np.arange(size) for place, size in enumerate(shape)]
    return tf.constant(np.stack(np.meshgrid(*along, indexing="ij"), axis=-1))


def read_sparsely(table: keras.Variable) -> None:
    """Makes every lookup in `table` read the rows it looks up, and no others.

    Once a row has been written, TensorFlow copies a whole variable each time
    it is read densely, and a Keras layer reads its table densely before it
    gathers. `tf.gather` calls `sparse_read` of what it is given, where it has
    one. `tf.nn.embedding_lookup`, with which Keras looks up ragged ids, does
    not, and is told to below.
    """
    variable = table.value

    def sparse_read(indices, name=None):
        rows = _on_this_replica(variable).sparse_read(indices, name=name)
        return tf.cast(rows, table.dtype)

    table.sparse_read = sparse_read


def reads_sparsely(table: keras.Variable) -> bool:
    """Whether `read_sparsely` has been called for a table."""
    return hasattr(table, "sparse_read")


@tf.experimental.dispatch_for_api(tf.nn.embedding_lookup, {"ids": tf.RaggedTensor})
def _embedding_lookup(params, ids, max_norm=None, name=None):
    """`tf.nn.embedding_lookup` of ragged ids in a table that is read sparsely."""
    is_ours = isinstance(params, keras.Variable) and reads_sparsely(params)
    if max_norm is not None or not is_ours:
        return NotImplemented  # TensorFlow does it
    return tf.ragged.map_flat_values(lambda flat_ids: tf.gather(params, flat_ids, name=name), ids)


def _on_this_replica(variable: tf.Variable) -> tf.Variable:
    """A mirrored variable's component on this replica; any other variable itself."""
    components = tf.distribute.get_strategy().experimental_local_results(variable)
    context = tf.distribute.get_replica_context()
    if len(components) == 1 or context is None:
        return components[0]
    return components[tf.get_static_value(context.replica_id_in_sync_group) % len(components)]
