"""Row state: what an inner optimizer keeps for each trainable row, found by trial."""

import functools
import numbers
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.distribute.one_device import apply_alone
from maskedgrad.masking.compact import CompactTable, stand_in_for
from maskedgrad.masking.inner import (
    moving_averages,
    nested_optimizers,
    set_learning_rate,
    unbuilt_copy,
)
from maskedgrad.masking.tracing import outside_of_graphs
from maskedgrad.masking.trial import (
    NUM_ROWS,
    RowSteps,
    Trial,
    option_without_lazy_meaning,
    try_row_steps,
)
from maskedgrad.masking.variables import StandIn, make_row_variable
from maskedgrad.rows.targets import MaskedTable


class RowAxis(NamedTuple):
    """Where trainable rows lie in a state variable: the number of their table, and an axis."""

    table: int
    axis: int


class RowState:
    """Which state of an inner optimizer belongs to rows, and how it follows other rows.

    Found by trial, before the optimizer is built: two copies of it are built on
    small variables of the same ranks and paths, one with more rows. What grows
    with the rows belongs to them. Nothing needs the optimizer's config.

    Args:
        optimizer: the inner optimizer, not built.
        variables: the variables that it is to train, with the tables themselves.
        tables: the tables among them.
        is_lazy: whether a step is to leave rows alone that its batch does not look up.

    Raises:
        ValueError: `is_lazy`, and the optimizer cannot step rows one by one.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        variables: Sequence[keras.Variable],
        tables: Sequence[MaskedTable],
        is_lazy: bool,
    ):
        self._variables, self._tables = list(variables), list(tables)
        self._axes: list[RowAxis | None] = []
        self._problem = ""
        self._any_length = False
        # In a thread that is in the scope of no strategy: a trial needs one device.
        outside_of_graphs(lambda: self._try_out(optimizer, is_lazy))
        if is_lazy:
            problem = option_without_lazy_meaning(optimizer) or self._problem or self._steps.problem
            if problem:
                raise _cannot_be_lazy(problem)

    def follow_rows(self, optimizer: Any, tables: Sequence[CompactTable]) -> None:
        """Lets the state of the optimizer, built now, and its compact variables change length."""
        self._problem = self._problem or self.length_problem(optimizer, tables)
        if self._problem and any(table.is_lazy for table in tables):
            raise _cannot_be_lazy(self._problem)
        for variable, axis in self.of(optimizer):
            make_row_variable(variable, axis.axis, self._any_length)
        self._numbers = _numbers_in(optimizer)
        for number, table in enumerate([] if self._problem else tables):
            make_row_variable(table.compact, table.axis, self._any_length)
            if table.is_lazy or self._steps.keeps_idle_rows:
                table.step_on_touched_rows(v for v, a in self.of(optimizer) if a.table == number)

    def length_problem(self, optimizer: Any, tables: Sequence[CompactTable]) -> str:
        """Which state has not one entry for each row that trains; empty if all has."""
        if not self._problem and len(optimizer.variables) != len(self._axes):
            return "its state is chosen by the sizes of variables"
        with tf.init_scope():
            for variable, axis in self.of(optimizer):
                if variable.shape[axis.axis] != tables[axis.table].ids.shape[0]:
                    return f"{variable.path!r} has not one entry for each row"
        return ""

    def keeps_idle_rows(self, optimizer: Any) -> bool:
        """Whether rows whose gradient is zero keep their bits, and those of their state."""
        # What was tried may have been changed since: `optimizer.weight_decay` can be set.
        keeps = self._steps.keeps_idle_rows and not self._problem
        return keeps and _numbers_in(optimizer) == self._numbers

    @functools.cached_property
    def takes_slices(self) -> bool:
        """Whether the optimizer takes the `IndexedSlices` of a lookup; tried on a copy."""

        def step() -> bool:
            zeros = tf.constant([0, 0], tf.int64)
            try:
                trial = self._trial(NUM_ROWS, dtype=None)  # that of tables: some take no other
                tables = [(t[:2], tf.constant(t.shape, tf.int64)) for t in trial.tables]
                trial.apply([tf.IndexedSlices(rows, zeros, shape) for rows, shape in tables])
            except Exception:
                return False
            return True

        return outside_of_graphs(step)

    def of(self, optimizer: Any) -> list[tuple[keras.Variable, RowAxis]]:
        """The state variables that have rows, each with the table and the axis of these."""
        if self._problem:
            return []
        pairs = zip(optimizer.variables, self._axes, strict=True)
        return [(variable, axis) for variable, axis in pairs if axis is not None]

    def values_for(
        self, optimizer: Any, old: Sequence[MaskedTable], new: Sequence[MaskedTable]
    ) -> list[np.ndarray]:
        """The values of `of(optimizer)` for other rows. Nothing changes yet.

        Rows that train before and after keep their state. Rows that join have
        the state that a new optimizer has for them.

        Raises:
            ValueError: the state cannot follow the rows.
        """
        if self._problem:
            raise _cannot_follow(self._problem)
        fresh = outside_of_graphs(lambda: self._fresh(new))
        values = []
        for (variable, axis), after in zip(self.of(optimizer), fresh, strict=True):
            before = variable.numpy()
            expected = list(before.shape)
            expected[axis.axis] = len(new[axis.table].rows)
            if list(after.shape) != expected:
                raise _cannot_follow(f"the shape of {variable.path!r} is chosen by its size")
            old_ids, new_ids = old[axis.table].rows.ids, new[axis.table].rows.ids
            _, places_before, places = np.intersect1d(old_ids, new_ids, return_indices=True)
            rows = np.moveaxis(after, axis.axis, 0)
            rows[places] = np.moveaxis(before, axis.axis, 0)[places_before]
            values.append(after)
        return values

    def _fresh(self, tables: Sequence[MaskedTable]) -> list[np.ndarray]:
        """The row state that a new optimizer has for the rows of `tables`."""
        fresh = self._built([stand_in_for(table) for table in tables])
        if len(fresh.variables) != len(self._axes):
            raise _cannot_follow("its state is chosen by the number of rows")
        # Keras starts an average from its variable in step 0 alone; of rows that join later it
        # would start from zero.
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/base_optimizer.py#L977
        for variable, average in moving_averages(fresh):
            if isinstance(variable, StandIn) and average.shape == variable.shape:
                average.assign(variable)
        return [variable.numpy() for variable, _ in self.of(fresh)]

    def _try_out(self, optimizer: keras.optimizers.Optimizer, is_lazy: bool) -> None:
        try:
            self._unbuilt = unbuilt_copy(optimizer)
            masked = {id(table.variable) for table in self._tables}
            self._small = [None if id(v) in masked else _small(v) for v in self._variables]
            # Table i has 2 i + 2 rows and then one more, so that each differs from all others.
            trials = [
                [_small(t.variable, t.axis, 2 * i + n) for i, t in enumerate(self._tables)]
                for n in (2, 3)
            ]
            few, many = map(self._built, trials)
            self._axes = [
                self._axis(*pair) for pair in zip(few.variables, many.variables, strict=True)
            ]
            if _numbers_in(few) != _numbers_in(many):
                raise ValueError("a number that it keeps depends on how many rows train")
            self._any_length = self._takes_any_length(few, trials[0])
        except Exception as error:
            self._problem = str(error) or type(error).__name__
        self._steps = self._try_steps(is_lazy)

    def _try_steps(self, is_lazy: bool) -> RowSteps:
        if self._problem or not self._any_length:
            return RowSteps("its step relies on the number of rows", keeps_idle_rows=False)
        if any(table.axis for table in self._tables):
            return RowSteps("rows lie along another axis than the first", keeps_idle_rows=False)
        for dtype in ("float64", "float32"):  # which is that of a learning rate, if nobody casts it
            try:
                return try_row_steps(functools.partial(self._trial, dtype=dtype), is_lazy)
            except Exception as error:
                problem = str(error) or type(error).__name__
        return RowSteps(problem, keeps_idle_rows=False)

    def _trial(self, num_rows: int, dtype: str | None) -> Trial:
        """A trial of steps, at a learning rate that shows."""
        random = np.random.default_rng(1)
        tables = []
        for table in self._tables:
            # The first rows are the same however many there are.
            values = random.standard_normal((NUM_ROWS, *table.variable.shape[1:]))[:num_rows]
            tables.append(StandIn(table.variable, values, dtype=dtype))
        optimizer = self._built(tables, learning_rate=0.5)
        row_state = self.of(optimizer)
        if any(axis.axis for _, axis in row_state):
            raise ValueError("rows of state lie along another axis than the first")
        return Trial(optimizer, tables, [v for v, _ in row_state], self._others_for(optimizer))

    def _others_for(self, trial: Any) -> list[StandIn]:
        """Returns what a copy trains beside the tables: all others, if it takes all or none."""
        takes_all_or_none = hasattr(trial, "optimizers")
        return [small for small in self._small if small is not None and takes_all_or_none]

    def _built(self, stand_ins: Sequence[StandIn], learning_rate: float | None = None) -> Any:
        """A copy that is built on stand-ins for the tables, and on small ones for all others."""
        tables = iter(stand_ins)
        trial = unbuilt_copy(self._unbuilt)
        if learning_rate is not None:
            set_learning_rate(trial, learning_rate)
        trial.build([next(tables) if small is None else small for small in self._small])
        return trial

    def _axis(self, few: keras.Variable, many: keras.Variable) -> RowAxis | None:
        sizes = list(zip(few.shape, many.shape, strict=True))
        grown = [axis for axis, (size, larger) in enumerate(sizes) if size != larger]
        if not grown:
            if not np.array_equal(few.numpy(), many.numpy()):
                raise ValueError(f"{few.path!r} holds numbers that depend on how many rows train")
            return None
        size, larger = sizes[grown[0]]
        number = size // 2 - 1
        if len(grown) > 1 or larger != size + 1 or size % 2 or number >= len(self._tables):
            raise ValueError(f"{few.path!r} has not one entry for each row")
        return RowAxis(number, grown[0])

    def _takes_any_length(self, trial: Any, stand_ins: Sequence[StandIn]) -> bool:
        """Whether a step can be traced for any number of rows; tried on a copy."""
        for stand_in, table in zip(stand_ins, self._tables, strict=True):
            make_row_variable(stand_in, table.axis, any_length=True)
        for variable, axis in self.of(trial):
            make_row_variable(variable, axis.axis, any_length=True)
        trained = [*stand_ins, *self._others_for(trial)]
        step = tf.function(lambda *g: apply_alone(trial, g, trained), autograph=False)
        specs = [tf.TensorSpec(variable.value.shape, variable.dtype) for variable in trained]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                step.get_concrete_function(*specs)
        except Exception:
            return False
        return True


def _small(variable: keras.Variable, axis: int | None = None, num_rows: int = 1) -> StandIn:
    """A stand-in with one entry along each axis; for a table, with its own but for the rows."""
    shape = [1] * len(variable.shape)
    if axis is not None:
        shape = [num_rows if place == axis else size for place, size in enumerate(variable.shape)]
    return StandIn(variable, tf.zeros(shape, variable.dtype), axis or 0)


def _numbers_in(optimizer: Any) -> list[Any]:
    """The numbers that an optimizer holds beside its variables."""
    return [
        (name, repr(value))
        for nested in nested_optimizers(optimizer)
        for name, value in sorted(vars(nested).items())
        if _is_of_numbers(value)
    ]


def _is_of_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_of_numbers, value))
    return isinstance(value, (numbers.Number, np.ndarray, tf.Tensor, tf.TensorShape))


def _cannot_be_lazy(problem: str) -> ValueError:
    return ValueError(
        "With `lazy=True` a step works on the rows that its batch looks up, and on no others. "
        f"Received: an inner optimizer and tables with which it cannot: {problem}. Leave `lazy` "
        "out, which makes the whole step on all rows that train, or take an optimizer that steps "
        "each row by itself, such as Adam or SGD with momentum."
    )


def _cannot_follow(problem: str) -> ValueError:
    return ValueError(
        "Other rows can train where the inner optimizer keeps one entry for each row, along one "
        f"axis of its state. Received: an inner optimizer that does not: {problem}. Nothing has "
        "changed. Make a new `MaskedOptimizer` of the rows that are to train, and compile the "
        "model with it: its state starts fresh."
    )
