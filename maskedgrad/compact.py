"""The compact variable, which stands for the trainable rows of a table."""

from typing import Any

import keras
import tensorflow as tf

from maskedgrad.gradients import Gradient, compact_gradient
from maskedgrad.rows import Target


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
        self.ids = tf.constant(self.rows.ids)
        self.positions = tf.constant(self.rows.positions)
        self.compact = StandIn(
            self.variable, _on_this_replica(self.variable.value).sparse_read(self.ids)
        )

    def compact_gradient(self, gradient: Gradient) -> tf.Tensor | None:
        """The gradient of the compact variable, of that of the table."""
        return compact_gradient(gradient, self.ids, self.positions)

    def gather(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the table to the compact variable."""
        # A mirrored table has no `sparse_read`, but its handle is the replica's own here.
        strategy.extended.update(
            self.compact.value,
            lambda compact, table: compact.assign(
                tf.raw_ops.ResourceGather(
                    resource=table.handle, indices=self.ids, dtype=table.dtype
                ),
                read_value=False,
            ),
            args=(self.variable.value,),
            group=False,
        )

    def scatter(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the compact variable to the table."""
        strategy.extended.update(
            self.variable.value,
            lambda table, compact: table.scatter_update(tf.IndexedSlices(compact, self.ids)),
            args=(self.compact.value,),
            group=False,
        )


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


def reads_sparsely(table: Any) -> bool:
    """Whether `read_sparsely` has been called for a table."""
    return hasattr(table, "sparse_read")


@tf.experimental.dispatch_for_api(tf.nn.embedding_lookup, {"ids": tf.RaggedTensor})
def _embedding_lookup(params, ids, max_norm=None, name=None):
    """`tf.nn.embedding_lookup` of ragged ids in a table that is read sparsely."""
    if max_norm is not None or not reads_sparsely(params):
        return NotImplemented  # TensorFlow does it
    return tf.ragged.map_flat_values(lambda flat_ids: tf.gather(params, flat_ids, name=name), ids)


def _on_this_replica(variable: tf.Variable) -> tf.Variable:
    """A mirrored variable's component on this replica; any other variable itself."""
    components = tf.distribute.get_strategy().experimental_local_results(variable)
    context = tf.distribute.get_replica_context()
    if len(components) == 1 or context is None:
        return components[0]
    return components[tf.get_static_value(context.replica_id_in_sync_group) % len(components)]
