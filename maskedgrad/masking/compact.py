"""A table and the compact variable that stands for its trainable rows."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.tables import read_rows
from maskedgrad.masking.variables import (
    StandIn,
    make_row_variable,
    on_first_device,
    on_this_replica,
    read_sparsely,
)
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable


class CompactTable:
    """A table, which of its rows train, and the compact variable that stands for these.

    Which rows train is held in `ids`, and how fast in `multipliers`, if they
    have learning rates of their own: variables that a step reads.
    """

    def __init__(self, table: MaskedTable, has_multipliers: bool):
        self.variable, self.axis = table.variable, table.axis
        read_sparsely(self.variable)
        name = self.variable.path.replace("/", "_")
        self.compact = stand_in_for(table)
        self.ids = _number_for_each_row(table.rows.ids, "int64", f"{name}_trainable_rows")
        self.multipliers = None
        if has_multipliers:
            self.multipliers = _number_for_each_row(
                multipliers_of(table), self.variable.dtype, f"{name}_learning_rates"
            )

    @property
    def state(self) -> list[keras.Variable]:
        """The variables that say which rows train."""
        return [self.ids] if self.multipliers is None else [self.ids, self.multipliers]

    def masked(self) -> MaskedTable:
        """The table with the rows that train now."""
        with tf.init_scope():
            ids, *multipliers = (on_first_device(variable).numpy() for variable in self.state)
        rates = multipliers[0].astype(float) if multipliers else None
        rows = Rows(ids, self.variable.shape[self.axis])
        return MaskedTable(self.variable, rows, self.axis, rates)

    def take_rows(self, table: MaskedTable) -> None:
        """Takes the rows of `table` for those that train from now on."""
        self.compact.assign_rows(_rows_in_place(table))
        self.ids.assign_rows(table.rows.ids)
        if self.multipliers is not None:
            self.multipliers.assign_rows(multipliers_of(table))

    def checked_ids(self) -> tf.Tensor:
        """The ids, int64 of shape `(K,)`.

        Where the inner optimizer relies on K, a function that was traced for
        another K stops here before anything has moved; under XLA too, which
        drops assertions but not shapes.
        """
        return self._checked(on_this_replica(self.ids.value))

    def gather(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the table to the compact variable."""
        strategy.extended.update(
            self.compact.value,
            lambda compact, table, ids: compact.assign(
                self._rows_of(table, self._checked(ids)), read_value=False
            ),
            args=(self.variable.value, self.ids.value),
            group=False,
        )

    def scatter(self, strategy: tf.distribute.Strategy) -> None:
        """Copies the trainable rows from the compact variable to the table."""
        self._update(strategy, lambda read, after: after)

    def scatter_step(self, strategy: tf.distribute.Strategy) -> None:
        """Moves each row of the table by its share of the way to the compact variable's."""
        if self.multipliers is None:
            self.scatter(strategy)
            return
        shape = [-1] + [1] * (len(self.variable.shape) - 1 - self.axis)

        def moved(read: Callable[[], Any], after: Any, multipliers: Any) -> Any:
            before, shares = read(), tf.reshape(multipliers.read_value(), shape)
            # The whole way must end on the same bits, which a sum may miss. Nor may a number
            # move that the inner optimizer left: inf - inf is NaN, and -0 + 0 is 0.
            whole = tf.logical_or(shares == 1, after == before)
            return tf.where(whole, after, before + shares * (after - before))

        self._update(strategy, moved, self.multipliers.value)

    def _update(
        self, strategy: tf.distribute.Strategy, rows: Callable[..., Any], *args: tf.Variable
    ) -> None:
        def write(table: Any, ids: Any, compact: Any, *args: Any) -> Any:
            ids = self._checked(ids)
            values = rows(lambda: self._rows_of(table, ids), tf.identity(compact), *args)
            if self.axis == 0:
                return table.scatter_update(tf.IndexedSlices(values, ids))
            return table.scatter_nd_update(
                places_of_elements(self.variable.shape, ids, self.axis), values
            )

        strategy.extended.update(
            self.variable.value,
            write,
            args=(self.ids.value, self.compact.value, *args),
            group=False,
        )

    def _checked(self, ids: tf.Variable) -> tf.Tensor:
        length = [self.compact.fixed_length]
        return tf.ensure_shape(ids.read_value(), length, name=TRACED_FOR_OTHER_ROWS)

    def _rows_of(self, table: tf.Variable, ids: tf.Tensor) -> tf.Tensor:
        # A mirrored table has no `sparse_read`, but its handle is the replica's own here.
        if self.axis == 0:
            return tf.raw_ops.ResourceGather(resource=table.handle, indices=ids, dtype=table.dtype)
        # There is `ResourceGatherNd`, but not under XLA.
        return tf.gather(table.read_value(), ids, axis=self.axis)


# What TensorFlow's message calls the operation that stops.
TRACED_FOR_OTHER_ROWS = "traced_for_other_rows__call_make_train_function_with_force"


def stand_in_for(table: MaskedTable) -> StandIn:
    """A variable that holds the trainable rows of a table, and answers to its path."""
    return StandIn(table.variable, _rows_in_place(table), table.axis)


def _rows_in_place(table: MaskedTable) -> np.ndarray:
    return np.moveaxis(read_rows(table.variable, table.rows.ids, table.axis), 0, table.axis)


def multipliers_of(table: MaskedTable) -> np.ndarray:
    """The multiplier of each trainable row: float64 of shape `(K,)`."""
    return np.ones(len(table.rows)) if table.learning_rates is None else table.learning_rates


def places_of_elements(shape: Sequence[int], ids: tf.Tensor, axis: int) -> tf.Tensor:
    """The index of each element in the rows `ids` along an axis: int64, as many axes and one more.

    TensorFlow writes whole rows of a variable along its first axis only, and
    single elements anywhere.

    Example:

    >>> places_of_elements([2, 3], tf.constant([2], tf.int64), axis=1).numpy().tolist()
    [[[0, 2]], [[1, 2]]]
    """
    along = [
        ids if place == axis else tf.range(size, dtype=ids.dtype)
        for place, size in enumerate(shape)
    ]
    return tf.stack(tf.meshgrid(*along, indexing="ij"), axis=-1)


def _number_for_each_row(values: np.ndarray, dtype: str, name: str) -> Any:
    variable = keras.Variable(
        values,
        dtype=dtype,
        trainable=False,
        autocast=False,
        aggregation="only_first_replica",
        name=name,
    )
    make_row_variable(variable, axis=0, any_length=True)
    return variable
