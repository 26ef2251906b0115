"""What a built optimizer masks."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.distribute.one_device import apply_alone
from maskedgrad.distribute.workers import check_workers_agree, spans_workers
from maskedgrad.masking.compact import CompactTable, StepRows
from maskedgrad.masking.inner import nested_optimizers
from maskedgrad.masking.state import RowState
from maskedgrad.masking.tables import chunks_of_rows, digest_of_rows
from maskedgrad.rows.asked import Asked
from maskedgrad.rows.gradients import Gradient, check_shape
from maskedgrad.rows.targets import MaskedTable, check_given_once
from maskedgrad.version import __version__


class Masking:
    """What a built optimizer masks.

    A plain object, since Keras and TensorFlow take a variable that an
    optimizer holds as an attribute for a part of the optimizer's state.

    Args:
        tables: the tables, with the rows that train at first.
        asked: what was asked for, with the variables that are trained.
        inner_optimizer: the inner optimizer, which is built here.

    Raises:
        ValueError: workers were started with different tables, rows or versions.
    """

    def __init__(
        self,
        tables: Sequence[MaskedTable],
        asked: Asked,
        inner_optimizer: keras.optimizers.Optimizer,
    ):
        self.strategy = tf.distribute.get_strategy()
        self._check_workers_agree(tables)
        self.variables = list(asked.variables or [])
        self._state = RowState(inner_optimizer, self.variables, tables, asked.is_lazy)
        rated = {id(table.variable) for table, _ in asked.rated(self.variables)}
        with keras.name_scope(inner_optimizer.name):  # so that paths tell optimizers apart
            self.tables = [
                CompactTable(table, id(table.variable) in rated, asked.is_lazy) for table in tables
            ]
        if asked.decay_exclusions is not None:
            var_list, var_names = asked.decay_exclusions
            for optimizer in nested_optimizers(inner_optimizer):
                optimizer.exclude_from_weight_decay(self.compact_variables(var_list), var_names)
        with self._holding([table.trainable_rows() for table in self.tables]):
            inner_optimizer.build(self.compact_variables(self.variables))
        self._state.follow_rows(inner_optimizer, self.tables)
        self.inner_optimizer = inner_optimizer

    def masked_tables(self) -> list[MaskedTable]:
        """The tables, with the rows that train now."""
        return [table.masked() for table in self.tables]

    def row_state(self) -> list[tuple[keras.Variable, MaskedTable]]:
        """The state that has an entry for each trainable row, with the table of these."""
        tables = self.masked_tables()
        state = self._state.of(self.inner_optimizer)
        return [(variable, tables[axis.table]) for variable, axis in state]

    def change_rows(self, tables: Sequence[MaskedTable]) -> None:
        """Lets the rows of `tables` train from now on, with their state.

        Raises:
            ValueError: the state of the inner optimizer cannot follow. Nothing has changed then.
        """
        before = self.masked_tables()
        self._check_workers_agree(tables)
        values = self._state.values_for(self.inner_optimizer, before, tables)
        state = [variable for variable, _ in self._state.of(self.inner_optimizer)]
        kept = [variable.numpy() for variable in state]
        try:
            self._take(tables, state, values)
        except BaseException:
            self._take(before, state, kept)
            raise

    def _take(
        self, tables: Sequence[MaskedTable], state: Sequence[Any], values: Sequence[np.ndarray]
    ) -> None:
        for compact_table, table in zip(self.tables, tables, strict=True):
            compact_table.take_rows(table)
        for variable, value in zip(state, values, strict=True):
            variable.assign_rows(value)

    def _check_workers_agree(self, tables: Sequence[MaskedTable]) -> None:
        if spans_workers(self.strategy):
            check_workers_agree(self.strategy, _facts_about(tables))

    def compact_variables(self, variables: Iterable[Any]) -> list[Any]:
        """The same variables, with a compact one in the place of each table."""
        compact = {id(table.variable): table.compact for table in self.tables}
        return [compact.get(id(variable), variable) for variable in self._known(variables)]

    def _known(self, variables: Iterable[Any]) -> list[Any]:
        """With each table for TensorFlow's variable that it holds, which Keras takes for it too."""
        known = {id(table.variable.value): table.variable for table in self.tables}
        return [known.get(id(variable), variable) for variable in variables]

    def step(self, gradients: Sequence[Gradient], variables: Sequence[Any]) -> None:
        """Lets the inner optimizer make a step on trainable rows, and on all other variables.

        Args:
            gradients: of `variables`.
            variables: what is to be trained, tables among it.
        """
        if problem := self._state.length_problem(self.inner_optimizer, self.tables):
            raise ValueError(
                "The state of the inner optimizer must be of the rows that train. Received state "
                f"of others, as after a checkpoint that was restored in part: {problem}. Restore "
                "one of the rows that train now, or compile the model anew."
            )
        variables = self._known(variables)
        given = dict(zip(map(id, variables), gradients, strict=True))
        of_tables = {id(t.variable): given.get(id(t.variable)) for t in self.tables}
        for table in self.tables:
            check_given_once(table.variable, variables)
            check_shape(of_tables[id(table.variable)], table.variable)
        with tf.control_dependencies([check for table in self.tables for check in table.checks()]):
            are_whole_reads = any(isinstance(each, tf.Tensor) for each in of_tables.values())
            keeps_idle = self._state.keeps_idle_rows(self.inner_optimizer)
            rows = []
            for table in self.tables:
                gradient = of_tables[id(table.variable)]
                are_slices = isinstance(gradient, tf.IndexedSlices)
                if are_slices and table.is_whole and not self._state.takes_slices:
                    gradient = tf.convert_to_tensor(gradient)
                of_tables[id(table.variable)], chosen = table.rows_of_step(gradient, keeps_idle)
                rows.append(chosen)
            pairs = zip(variables, gradients, strict=True)  # what is no table may come twice
            selected = [of_tables.get(id(v), g) for v, g in pairs]
            # No read of the whole may last until rows are written, or TensorFlow makes a copy.
            awaited = [each for each in selected if each is not None] if are_whole_reads else []
            with (
                tf.control_dependencies(awaited),
                self._in_place(rows, CompactTable.scatter_step),
            ):
                apply_alone(self.inner_optimizer, selected, self.compact_variables(variables))

    @contextlib.contextmanager
    def trainable_rows(self) -> Iterator[None]:
        """A context in which the optimizer's variables hold all rows that train.

        The rows go back to the tables after it, but not after an exception.
        """
        with self._in_place(
            [table.trainable_rows() for table in self.tables], CompactTable.scatter
        ):
            yield

    @contextlib.contextmanager
    def _in_place(self, rows: Sequence[StepRows], scatter: Callable[..., None]) -> Iterator[None]:
        self._for_each_table(CompactTable.gather, rows)
        with self._holding(rows):
            yield
        self._for_each_table(scatter, rows)

    @contextlib.contextmanager
    def _holding(self, rows: Sequence[StepRows]) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            for table, chosen in zip(self.tables, rows, strict=True):
                held.enter_context(table.in_place(chosen))
            yield

    def _for_each_table(self, update: Callable[..., None], rows: Sequence[StepRows]) -> None:
        def update_all(strategy: tf.distribute.Strategy, rows: Sequence[StepRows]) -> None:
            for table, chosen in zip(self.tables, rows, strict=True):
                update(table, strategy, chosen)

        # As Keras's optimizers do: `merge_call` is an error under strategies that go without it.
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/optimizer.py#L217
        merge_call = tf.__internal__.distribute.interim.maybe_merge_call
        merge_call(update_all, self.strategy, list(rows))


def _facts_about(tables: Iterable[MaskedTable]) -> dict[str, str]:
    """Returns the facts that the workers which train `tables` must agree on, by their names."""
    facts = {
        "the version of maskedgrad": __version__,
        "the version of Keras": keras.__version__,
        "the version of TensorFlow": tf.__version__,
    }
    for table in tables:
        path, variable, rates = table.path, table.variable, table.learning_rates
        rows = f"{table.rows.get_config()['rows']} of axis {table.axis}"
        digest = digest_of_rows(chunks_of_rows(variable), np.ones(variable.shape[0], bool))
        facts |= {
            f"the shape and dtype of {path!r}": f"{tuple(variable.shape)} {variable.dtype}",
            f"the rows of {path!r} that train": rows,
            f"the learning rates of rows of {path!r}": str(rates if rates is None else [*rates]),
            f"the values of {path!r}, by their SHA-256": digest,
        }
    return facts
