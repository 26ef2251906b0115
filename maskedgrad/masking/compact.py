"""A table and the compact variable that stands for its trainable rows."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.gradients import compact_gradient, touched_rows
from maskedgrad.masking.tables import read_rows
from maskedgrad.masking.tracing import is_compiled_by_xla
from maskedgrad.masking.variables import (
    RowVariable,
    StandIn,
    beside,
    gather_rows,
    make_row_variable,
    num_rows_of,
    on_first_device,
    on_this_replica,
    read_sparsely,
    share_reads,
)
from maskedgrad.rows.gradients import Gradient
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable


class StepRows(NamedTuple):
    """The rows of a table that a step works on.

    Without `ids` they are all rows, and the optimizer is given the table itself.
    With `ids` alone they are all rows that train. With `places` too they are
    those that the batch looks up, at these places among all that train; the last
    `num_unused` are there since some operations need a row, and are not written.
    """

    ids: Any = None
    places: Any = None
    num_unused: int = 0

    def used(self, tensor: tf.Tensor) -> tf.Tensor:
        """The part of a tensor of these rows that is written back."""
        return tensor[: -self.num_unused] if self.num_unused else tensor


class CompactTable:
    """A table, which of its rows train, and the compact variable that stands for these.

    Which rows train is held in `ids`, and how fast in `multipliers`, if they
    have learning rates of their own: variables that a step reads.
    """

    def __init__(self, table: MaskedTable, has_multipliers: bool, is_lazy: bool):
        self.variable, self.axis, self.is_lazy = table.variable, table.axis, is_lazy
        read_sparsely(self.variable)
        self.ids = _number_for_each_row(table, table.rows.ids, "int64", "trainable_rows")
        self.multipliers = None
        if has_multipliers:
            self.multipliers = _number_for_each_row(
                table, multipliers_of(table), self.variable.dtype, "learning_rates"
            )
        self.compact = stand_in_for(table, 1 if self.is_whole else None)
        # If a step works on the rows that a batch touches: the compact variable and each of the
        # row state, with a smaller variable that holds those rows during the step.
        self._windows: list[tuple[RowVariable, tf.Variable]] = []

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
        self.ids.assign_rows(table.rows.ids)
        if self.multipliers is not None:
            self.multipliers.assign_rows(multipliers_of(table))
        # XLA lets no step change the length of a variable, so it is right before one.
        self.compact.assign_rows(_rows_in_place(table, 1 if self.is_lazy else None))

    @property
    def is_whole(self) -> bool:
        """Whether all rows train as they are, so that the table itself can go to the optimizer."""
        if self.is_lazy or self.multipliers is not None:
            return False
        with tf.init_scope():
            return int(self.ids.shape[0]) == self.variable.shape[self.axis]

    @property
    def fixed_length(self) -> int | None:
        """The number of rows that functions are traced for; `None` for any."""
        return self.variable.shape[self.axis] if self.is_whole else self.compact.fixed_length

    def checks(self) -> list[Any]:
        """Operations that stop a function which was traced for another number of rows."""
        length, ids = self.fixed_length, on_this_replica(self.ids.value)
        if length is None:
            return []
        if is_compiled_by_xla():  # which drops assertions, but not shapes
            return [tf.ensure_shape(ids.read_value(), [length], name=TRACED_FOR_OTHER_ROWS)]
        return [tf.debugging.assert_equal(num_rows_of(ids), length, name=TRACED_FOR_OTHER_ROWS)]

    def trainable_rows(self) -> StepRows:
        """All rows that train."""
        return StepRows() if self.is_whole else StepRows(self.ids.value)

    # AutoGraph would make many calls of each in what is recursive here, and has nothing to convert.
    @tf.autograph.experimental.do_not_convert
    def rows_of_step(self, gradient: Gradient, keeps_idle: bool) -> tuple[Gradient, StepRows]:
        """The gradient of the rows that a step works on, and these rows.

        Args:
            gradient: that of the table.
            keeps_idle: whether the optimizer keeps the bits of rows without a gradient.
        """
        rows, ids = self.trainable_rows(), on_this_replica(self.ids.value)
        if rows.ids is None:
            return gradient, rows
        # XLA lets no variable change its length.
        if self.is_lazy or (keeps_idle and not is_compiled_by_xla()):
            self._check_lengths_may_change()
            if gradient is None:
                # None, but TensorFlow may not know, or it takes all steps in a graph to have none.
                none = tf.where(gather_rows(ids, [0]) < 0)[:, 0]
                return None, StepRows(none, none)
            if isinstance(gradient, tf.IndexedSlices):
                selected, *touched = touched_rows(gradient, ids)
                is_alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
                if is_alone and (not tf.executing_eagerly() or len(selected)):
                    return selected, StepRows(*touched)
                # One row more, without a gradient: workers crash over what has no numbers, and
                # `keras.ops.add` takes a tensor of no rows for a bias.
                # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/numpy.py#L96
                first = [ids.sparse_read([0]), tf.zeros([1], tf.int64)]
                more = [tf.concat(pair, axis=0) for pair in zip(touched, first, strict=True)]
                row = tf.zeros([1, *self.variable.shape[1:]], selected.dtype)
                return tf.concat([selected, row], axis=0), StepRows(more[0], more[1], num_unused=1)
        length = self.compact.fixed_length
        return compact_gradient(gradient, ids, self.axis, length), rows

    def _check_lengths_may_change(self) -> None:
        if is_compiled_by_xla():
            raise ValueError(
                "XLA lets no variable change its length, as `lazy` needs it. Received: a model "
                "that is compiled by XLA. Compile it with `jit_compile=False`."
            )

    def step_on_touched_rows(self, row_state: Iterable[RowVariable]) -> None:
        """Lets steps work on the rows that a gradient touches, and on their state."""
        held = [self.compact, *row_state]
        self._windows = [(variable, variable.window()) for variable in held]
        if self.is_lazy:
            self.take_rows(self.masked())  # now that the optimizer is built, few are held

    @contextlib.contextmanager
    def in_place(self, rows: StepRows) -> Iterator[None]:
        """A context in which the optimizer's variables hold the rows of a step."""
        with contextlib.ExitStack() as held:
            if rows.ids is None:
                held.enter_context(self.compact.holding(self.variable.value))
            for variable, window in self._windows if rows.places is not None else []:
                held.enter_context(variable.holding(window))
            yield

    def gather(self, strategy: tf.distribute.Strategy, rows: StepRows) -> None:
        """Copies the rows of a step, and their state, to where the optimizer works on them."""
        if rows.ids is None:
            return
        copies = [(self.compact.value, self.variable.value, rows.ids, self.axis)]
        if rows.places is not None:
            (_, of_table), *of_state = self._windows
            copies = [(of_table, self.variable.value, rows.ids, 0)]
            copies += [(window, state.value, rows.places, 0) for state, window in of_state]
        for window, *args in copies:
            strategy.extended.update(window, _assign_rows, args, group=False)

    def scatter(self, strategy: tf.distribute.Strategy, rows: StepRows) -> None:
        """Copies the rows of a step back."""
        self._scatter(strategy, rows, lambda before, after: after)

    def scatter_step(self, strategy: tf.distribute.Strategy, rows: StepRows) -> None:
        """Moves each row by its share of the way to where the optimizer has moved it."""
        if self.multipliers is None:
            self.scatter(strategy, rows)
            return
        shape = [-1] + [1] * (len(self.variable.shape) - 1 - self.axis)

        def moved(read: Callable[[], Any], after: Any, multipliers: Any, *places: Any) -> Any:
            of_all = multipliers.read_value
            shares = _rows_of(multipliers, *map(rows.used, places)) if places else of_all()
            before, shares = read(), tf.reshape(shares, shape)
            # The whole way must end on the same bits, which a sum may miss. Nor may a number
            # move that the inner optimizer left: inf - inf is NaN, and -0 + 0 is 0.
            whole = tf.logical_or(shares == 1, after == before)
            return tf.where(whole, after, before + shares * (after - before))

        places = [] if rows.places is None else [rows.places]
        self._scatter(strategy, rows, moved, self.multipliers.value, *places)

    def _scatter(
        self,
        strategy: tf.distribute.Strategy,
        rows: StepRows,
        values: Callable[..., Any],
        *args: Any,
    ) -> None:
        def write(table: Any, ids: Any, compact: Any, *args: Any) -> Any:
            ids, after = rows.used(tf.convert_to_tensor(ids)), rows.used(tf.identity(compact))
            written = values(lambda: _rows_of(table, ids, self.axis), after, *args)
            if self.axis == 0:
                table.scatter_update(tf.IndexedSlices(written, ids))
            else:
                places = places_of_elements(self.variable.shape, ids, self.axis)
                table.scatter_nd_update(places, written)
            return share_reads(table)

        if rows.ids is None:
            return
        compact = self.compact.value if rows.places is None else self._windows[0][1]
        args = rows.ids, compact, *args
        strategy.extended.update(self.variable.value, write, args, group=False)
        for state, window in self._windows[1:] if rows.places is not None else []:
            args = rows.places, window, rows
            strategy.extended.update(state.value, _put_rows, args, group=False)


def _rows_of(table: tf.Variable, ids: Any, axis: int = 0) -> tf.Tensor:
    if axis == 0:
        return gather_rows(table, ids)
    # There is `ResourceGatherNd`, but not under XLA.
    return tf.gather(table.read_value(), ids, axis=axis)


def _assign_rows(window: tf.Variable, table: tf.Variable, ids: Any, axis: int) -> Any:
    return window.assign(_rows_of(table, ids, axis), read_value=False)


def _put_rows(state: tf.Variable, places: tf.Tensor, window: tf.Variable, rows: StepRows) -> Any:
    return state.scatter_update(tf.IndexedSlices(rows.used(window.read_value()), rows.used(places)))


# What TensorFlow's message calls the operation that stops.
TRACED_FOR_OTHER_ROWS = "traced_for_other_rows__call_make_train_function_with_force"


def stand_in_for(table: MaskedTable, num_rows: int | None = None) -> StandIn:
    """A variable that holds the first or all trainable rows of a table, and answers to its path."""
    return StandIn(table.variable, _rows_in_place(table, num_rows), table.axis)


def _rows_in_place(table: MaskedTable, num_rows: int | None) -> np.ndarray:
    rows = read_rows(table.variable, table.rows.ids[:num_rows], table.axis)
    return np.moveaxis(rows, 0, table.axis)


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


def _number_for_each_row(table: MaskedTable, values: np.ndarray, dtype: str, name: str) -> Any:
    with beside(table.variable):
        variable = keras.Variable(
            values,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            name=f"{table.variable.path.replace('/', '_')}_{name}",
        )
    make_row_variable(variable, axis=0, any_length=True)
    return variable
