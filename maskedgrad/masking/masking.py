"""What an optimizer masks: its tables, and what is done with all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

from maskedgrad.distribute.workers import check_workers_agree, facts_about, spans_workers
from maskedgrad.masking.compact import MaskedTable, read_sparsely
from maskedgrad.masking.multipliers import with_learning_rates
from maskedgrad.masking.state import nested_optimizers
from maskedgrad.masking.targets import SavedTarget, Target, resolve_targets


class Plan:
    """What an optimizer masks.

    A plain object, since Keras and TensorFlow take a variable that an
    optimizer holds as an attribute for a part of the optimizer's state.
    """

    def __init__(self, trainable_rows: dict[Any, Any], row_learning_rates: dict[Any, Any]):
        self.trainable_rows = trainable_rows
        self.row_learning_rates = row_learning_rates
        self.strategy = tf.distribute.get_strategy()
        self.decay_exclusions: tuple[list[Any], list[str]] | None = None
        self.variables: list[keras.Variable] = []
        self.tables: list[MaskedTable] = []
        self.rows_after_loading: dict[Any, Any] | None = None
        self.is_current: tf.Variable | None = None
        self.num_changes = 0

    def resolve(
        self, trainable_rows: Mapping[Any, Any], variables: Sequence[keras.Variable]
    ) -> list[Target]:
        """The tables that `trainable_rows` names, with what trains of them and how fast.

        Raises:
            TypeError, ValueError: that, or `row_learning_rates`, does not fit
                `variables`.
        """
        targets = resolve_targets(trainable_rows, variables)
        return with_learning_rates(targets, self.row_learning_rates, variables)

    def set_tables(self, targets: Sequence[Target], variables: list[keras.Variable]) -> None:
        """Takes the tables of `targets` for what is masked among `variables` from now on.

        Raises:
            ValueError: workers were started with different tables, rows or versions.
        """
        if spans_workers(tf.distribute.get_strategy()):
            check_workers_agree(tf.distribute.get_strategy(), facts_about(targets))
        self.variables = variables
        self.tables = [MaskedTable(target) for target in targets]
        for table in self.tables:
            read_sparsely(table.variable)
        if self.is_current is not None:
            self.is_current.assign(False)
        self.is_current = tf.Variable(
            True,
            trainable=False,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name="is_current",
        )
        self.num_changes += 1

    def check_current(self) -> list[tf.Operation]:
        """What stops a function that is traced here once other rows train."""
        check = tf.debugging.Assert(
            self.is_current,
            [
                "This function was traced before `set_trainable_rows` was called, and would train "
                "the rows of before. Trace it again: for a `keras.Model`, "
                "`model.make_train_function(force=True)`."
            ],
        )
        return [check] if check is not None else []

    def compact_variables(self, variables: Iterable[Any]) -> list[Any]:
        """The same variables, with a compact one in the place of each table."""
        compact = {id(table.variable): table.compact for table in self.tables}
        return [compact.get(id(variable), variable) for variable in variables]

    def exclude_from_weight_decay(self, inner_optimizer: keras.optimizers.Optimizer) -> None:
        """Passes on to an inner optimizer what is excluded, in terms that it knows."""
        if self.decay_exclusions is None:
            return
        var_list, var_names = self.decay_exclusions
        for optimizer in nested_optimizers(inner_optimizer):
            optimizer.exclude_from_weight_decay(
                var_list=self.compact_variables(var_list), var_names=var_names
            )

    def saved_rows(self) -> dict[Any, Any]:
        """`trainable_rows`, by what names a table in a model that is loaded."""
        if not self.tables:
            return self.trainable_rows
        return {self._saved(table): table.rows for table in self.tables}

    def saved_learning_rates(self) -> dict[Any, Any]:
        """`row_learning_rates`, by what names a table in a model that is loaded."""
        if not self.tables or not self.row_learning_rates:
            return self.row_learning_rates
        return {
            self._saved(target): rates
            for given, rates in self.row_learning_rates.items()
            for target in resolve_targets({given: slice(None)}, self.variables)
        }

    def targets(self) -> list[Target]:
        """The tables that are masked, with what trains of them and how fast."""
        return [
            Target(table.variable, table.rows, table.axis, table.learning_rates)
            for table in self.tables
        ]

    def _saved(self, table: Target | MaskedTable) -> SavedTarget:
        ids = [id(variable) for variable in self.variables]
        return SavedTarget(table.variable.path, ids.index(id(table.variable)), table.axis)

    def gather(self) -> None:
        """Copies the trainable rows of every table to its compact variable."""
        self._for_each_table(MaskedTable.gather)

    def scatter(self) -> None:
        """Copies the trainable rows of every table back from its compact variable."""
        self._for_each_table(MaskedTable.scatter)

    def scatter_step(self) -> None:
        """Moves the trainable rows of every table by their shares of the inner optimizer's step."""
        self._for_each_table(MaskedTable.scatter_step)

    def _for_each_table(
        self, update: Callable[[MaskedTable, tf.distribute.Strategy], None]
    ) -> None:
        def update_all(strategy: tf.distribute.Strategy) -> None:
            for table in self.tables:
                update(table, strategy)

        tf.__internal__.distribute.interim.maybe_merge_call(update_all, self.strategy)


@tf.autograph.experimental.do_not_convert
def outside_of_graphs(
    function: Callable[[], None], strategy: tf.distribute.Strategy | None = None
) -> None:
    """Calls `function` eagerly, also where `tf.function` is tracing, in a thread of its own.

    There it is in the scope of `strategy`; of that around the call if not given.

    Where the first batch builds the model and the optimizer, that happens in a
    trace. What the optimizer makes must outlive the graph of that trace, and
    must be made when the tables hold values, which they do from the second
    trace on; there, TensorFlow makes no variable, not even in `tf.init_scope`.
    A graph is known to the thread that traces it only. Nor is it known to
    another thread that Keras tracks no variables, which holds where a
    `LossScaleOptimizer` builds what it wraps.
    """
    strategy = strategy or tf.distribute.get_strategy()

    def call_in_scope() -> None:
        with strategy.scope():
            function()

    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(call_in_scope).result()


def trace_again() -> None:
    """Makes the train function of a `keras.Model` that is being traced start over.

    TensorFlow traces again after a first trace that makes a variable, so that
    what it runs makes none. This variable serves for nothing else. A function
    of other making may be in a later trace, where TensorFlow allows none.
    """
    if not tf.executing_eagerly() and tf.compat.v1.get_default_graph().name == _KERAS_TRACES:
        tf.Variable(0.0, trainable=False, name="trace_again")


# What Keras calls the function that it traces, and has no public way to tell.
_KERAS_TRACES = "one_step_on_data"
