"""`MaskedOptimizer`: any Keras optimizer, for chosen rows of chosen tables only.

One step gathers the trainable rows of each table into a compact variable, lets
the inner optimizer work on that, and scatters the rows back. The inner
optimizer never sees a frozen row, so it cannot move one.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.inner import (
    OptionsOfInner,
    check_backend,
    check_unbuilt,
    checked_inner_optimizer,
    made,
    of_inner,
)
from maskedgrad.masking.masking import Masking
from maskedgrad.masking.row_ids import RowIds
from maskedgrad.masking.tracing import fail_if_run, outside_of_graphs, trace_again
from maskedgrad.masking.variables import SparselyRead, read_sparsely, read_whole_if_tied
from maskedgrad.rows import AlongAxis, MaskedTable, RowLearningRates, TrainableRows
from maskedgrad.rows.asked import Asked
from maskedgrad.rows.gradients import Gradient, check_number
from maskedgrad.rows.saved import (
    decode_row_learning_rates,
    decode_trainable_rows,
    encode_row_learning_rates,
    encode_trainable_rows,
)
from maskedgrad.rows.targets import check_same_tables, variables_before_build


@keras.saving.register_keras_serializable(package="maskedgrad")
class MaskedOptimizer(OptionsOfInner):
    """Trains chosen rows of chosen tables, and everything else as usual.

    Equivalent to the inner optimizer on a model in which each named table
    holds its trainable rows only, with dense gradients. Every other row keeps
    its bits, whatever the inner optimizer does with weight decay, momentum,
    averaging, constraints, or gradients that are not finite. Variables that no
    target names are trained as if the inner optimizer were not wrapped.

    Args:
        inner_optimizer: the optimizer to wrap: an instance that has not been
            built, or any identifier that `keras.optimizers.get` takes.
        trainable_rows: a mapping from target to rows. A target is a layer
            that owns one table, built or not, or the path of a variable:
            exact, or else a regular expression that matches whole paths; or a
            `maskedgrad.AlongAxis` of these, where rows lie along another axis
            than the first. Rows are ids, a boolean mask, a `range`, a `slice`
            or a `maskedgrad.Rows`.
        name: string, the name of the optimizer.
        row_learning_rates: an optional mapping from target to multipliers of
            the learning rate by rows: a mapping from multiplier to rows, such
            as `{0.1: ids}`, or an array of shape `(V,)`. A row that is not
            named has 1. A row of multiplier m moves in each step by m times
            what the inner optimizer would have moved it by; one of 0 is frozen.
        lazy: whether a step leaves rows, and their state, as they are if its
            batch does not look them up, so that it costs what the batch costs.
            Adam becomes LazyAdam.

    Raises:
        TypeError: `inner_optimizer` is not a Keras 3 optimizer, or a target
            or its rows are of another type.
        ValueError: `inner_optimizer` is built or masks rows already, Keras does
            not run on TensorFlow, or the rows are not valid. What depends on
            the variables is checked by `build`.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> before = words.get_weights()[0]
    >>> model.compile(MaskedOptimizer("adamw", trainable_rows={words: [1, 4]}), loss="mse")
    >>> _ = model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0)
    >>> (words.get_weights()[0] != before).all(axis=1).tolist()
    [False, True, False, False, True]
    """

    inner_optimizer = property(lambda optimizer: optimizer.inner, doc="The wrapped optimizer.")
    iterations = of_inner("iterations", "The number of steps that the inner optimizer has made.")
    learning_rate = of_inner("learning_rate", "The inner optimizer's learning rate.")
    around_row_changes: Any = contextlib.nullcontext  # puts weights in place of their averages

    def __init__(
        self,
        inner_optimizer: Any,
        trainable_rows: TrainableRows,
        name: str | None = None,
        row_learning_rates: RowLearningRates | None = None,
        lazy: bool = False,
    ):
        check_backend()
        inner_optimizer = checked_inner_optimizer(inner_optimizer, MaskedOptimizer)
        asked = Asked(trainable_rows, row_learning_rates, is_lazy=lazy)
        super().__init__(inner_optimizer, name)
        # A function that builds the optimizer looks up rows before that, sparsely too.
        for target, _ in asked.rows:
            for table in variables_before_build(target):
                read_sparsely(table)
        self._asked = asked
        self._masking: Any = None  # a `Masking`, once built
        self.chosen_row_ids: RowIds | None = None
        self.num_row_changes = 0  # how many times rows were chosen, by `build` and since

    @property
    def trainable_rows(self) -> dict[Any, Any]:
        """The rows of each table: by path once built, and before as given.

        Raises:
            ValueError: two tables have one path. `masked_tables` lists them.
        """
        if self._masking is None:
            return dict(self._asked.trainable_rows)
        tables = self._masking.masked_tables()
        by_path = {AlongAxis(t.path, t.axis) if t.axis else t.path: t.rows for t in tables}
        if len(by_path) != len(tables):
            raise ValueError(
                "Two tables have one path, since their layers have one name. "
                f"Received: {tables}. `masked_tables()` lists them, with their variables."
            )
        return by_path

    @property
    def lazy(self) -> bool:
        """Whether a step leaves rows alone that its batch does not look up."""
        return self._asked.is_lazy

    def masked_tables(self, variables: Sequence[keras.Variable] | None = None) -> list[MaskedTable]:
        """The tables that are masked, with the rows that train now.

        Args:
            variables: all trainable variables of the model; to ask before the
                optimizer is built.

        Returns:
            A list of `MaskedTable`, in the order of the variables; empty where
            the optimizer is not built and no `variables` are given. Each is a
            target too, by which `set_trainable_rows` knows its table.

        Raises:
            TypeError, ValueError: the optimizer is not built, and
                `trainable_rows` does not fit `variables`.

        Example:

        >>> table = keras.Variable(np.ones((4, 2), "float32"), name="table")
        >>> optimizer = MaskedOptimizer("adam", {"table": [0, 1]})
        >>> optimizer.masked_tables([table])
        [MaskedTable('table', Rows('0:2', num_rows=4))]
        """
        if self._masking is not None:
            return self._masking.masked_tables()
        return [] if variables is None else self._asked.tables(list(variables))

    def check_rows(
        self, trainable_rows: TrainableRows, variables: Sequence[Any]
    ) -> list[MaskedTable]:
        """The tables as `set_trainable_rows` would make them. Nothing changes."""
        asked = self._asked.but(trainable_rows=trainable_rows)
        return check_same_tables(asked.tables(variables), self.masked_tables(variables))

    def set_trainable_rows(self, trainable_rows: TrainableRows) -> None:
        """Changes which rows train from the next step on.

        Rows that stay keep their state. Rows that leave are frozen at once, with
        no momentum left to move them. Rows that join start with fresh state; the
        count of `iterations` goes on. No function is traced again.

        A function is traced for a fixed number of rows with Muon, with
        accumulated gradients, and where all rows train. Where that changes, a
        `MaskedModel` renews its function; a stock `keras.Model` stops, and no
        row moves, until `model.make_train_function(force=True)`.

        Args:
            trainable_rows: a mapping from target to rows, which names the
                tables that have trainable rows now.

        Raises:
            TypeError, ValueError: `trainable_rows` is not valid or names other
                tables, or the inner optimizer keeps state that cannot follow.
                Nothing has changed then.

        Example:

        >>> table = keras.Variable(np.ones((4, 2), "float32"), name="table")
        >>> optimizer = MaskedOptimizer("adam", {"table": [0, 1]})
        >>> optimizer.build([table])
        >>> optimizer.set_trainable_rows({"table": [1, 2]})
        >>> optimizer.trainable_rows
        {'table': Rows('1:3', num_rows=4)}
        """
        if self._masking is not None:
            tables = self.check_rows(trainable_rows, self._masking.variables)
            with self.around_row_changes():
                self._change_rows(tables)
        self._asked = self._asked.but(trainable_rows=trainable_rows)

    def _change_rows(self, tables: Sequence[MaskedTable]) -> None:
        outside_of_graphs(lambda: self._masking.change_rows(tables), self._masking.strategy)
        self.num_row_changes += 1

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the tables among `variables` and builds the inner optimizer.

        Raises:
            TypeError, ValueError: `trainable_rows` does not fit `variables`;
                see `MaskedOptimizer`. Nothing has changed then.
        """
        if self.built:
            return
        variables = list(variables)
        tables = self._asked.tables(variables)
        check_unbuilt(self.inner_optimizer)
        was_read_densely = not all(isinstance(table.variable, SparselyRead) for table in tables)
        self.prepare(variables)
        outside_of_graphs(lambda: self._build(tables), tf.distribute.get_strategy())
        if self.built and was_read_densely:
            trace_again()

    def _build(self, tables: list[MaskedTable]) -> None:
        if not all(table.variable.value.is_initialized() for table in tables):
            return  # the next trace builds it
        masking = Masking(tables, self._asked, self.inner_optimizer)
        self._masking = masking
        self.chosen_row_ids = RowIds(masking.tables, masking.variables, self._change_rows)
        self.num_row_changes += 1
        # Keras would record the variables here, and every checkpoint would hold them.
        super().build([])

    def prepare(self, variables: Sequence[keras.Variable]) -> None:
        """Makes lookups in the tables sparse, as `build` does, and notes where the tables are.

        A step that is traced before would read a table whole ever after. Raises what `build` does.
        """
        if not self.built:
            for table in self._asked.tables(list(variables)):
                read_sparsely(table.variable)
            self._asked = self._asked.but(variables=list(variables))

    def apply(
        self,
        grads: Iterable[Gradient],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """One step of the inner optimizer on what trains.

        Args:
            grads: for each variable a tensor, `tf.IndexedSlices` or `None`.
            trainable_variables: the variables; those of `build` if not given.
        """
        grads = list(grads)
        if not grads:
            return
        given = trainable_variables
        variables = list(self._checked_masking().variables if given is None else given)
        check_number(grads, variables)
        self.build(variables)
        read_whole_if_tied(grads, variables)
        if self._masking is None:
            fail_if_run()
        else:
            self._masking.step(grads, variables)

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Gradient, Any]]) -> Any:
        """Applies pairs of gradient and variable, and returns `iterations`."""
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Lets the inner optimizer set final values, of trainable rows only."""
        with self.gathered_rows() as compact_variables:
            self.inner_optimizer.finalize_variable_values(compact_variables(var_list))

    @contextlib.contextmanager
    def gathered_rows(self) -> Iterator[Callable[[Iterable[Any]], list[Any]]]:
        """A context in which the inner optimizer's variables hold the trainable rows.

        For what assigns an optimizer's variables between steps. The rows go back
        to the tables after it, but not after an exception. It gives a function
        from variables to what the inner optimizer has in their place.
        """
        with self._checked_masking().trainable_rows():
            yield self._masking.compact_variables

    def _checked_masking(self) -> Masking:
        if self._masking is None:
            raise ValueError(
                f"The optimizer must be built, to know its variables. Received: {self!r}, which is "
                "not. Call `build(model.trainable_variables)` first."
            )
        return self._masking

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Excludes variables, tables among them, from the inner optimizer's weight decay.

        Call it on this optimizer, before it is built: a table is known to the
        inner optimizer by its trainable rows only. The arguments are those of
        `keras.optimizers.Optimizer.exclude_from_weight_decay`.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built."
            )
        exclusions = list(var_list or []), list(var_names or [])
        self._asked = self._asked.but(decay_exclusions=exclusions)

    def scale_loss(self, loss: Any) -> Any:
        """The inner optimizer's `scale_loss`."""
        return self.inner_optimizer.scale_loss(loss)

    @property
    def variables(self) -> list[keras.Variable]:
        """The inner optimizer's variables, of shape `(K, ...)` for a table; then the row ids."""
        return [*self.inner_optimizer.variables, *getattr(self.chosen_row_ids, "variables", [])]

    def row_state(self) -> list[tuple[keras.Variable, MaskedTable]]:
        """The state that has an entry for each trainable row, with the table of these."""
        return [] if self._masking is None else self._masking.row_state()

    @property
    def fixed_lengths(self) -> tuple[int | None, ...]:
        """For each table, the number of rows that functions are traced for; `None` for any."""
        return tuple(table.fixed_length for table in getattr(self._masking, "tables", []))

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets `variables`, in their order."""
        self._checked_masking()
        shapes = [tuple(variable.shape) for variable in self.variables]
        received = [tuple(np.shape(weight)) for weight in weights]
        if received != shapes:
            raise ValueError(f"Expected weights of the shapes {shapes}. Received: {received}")
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    def get_config(self) -> dict[str, Any]:
        """A JSON value from which `from_config` makes the same optimizer, without its state."""
        asked = self._asked
        if rows := {table: table.rows for table in self.masked_tables()}:
            asked = asked.but(trainable_rows=rows)
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "trainable_rows": encode_trainable_rows(asked.saved_rows()),
            "row_learning_rates": encode_row_learning_rates(asked.saved_rates()),
            "lazy": asked.is_lazy,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "MaskedOptimizer":
        """The inverse of `get_config`. Raises a `TypeError` or `ValueError` for anything else."""
        options = {"name", "inner_optimizer", "trainable_rows", "row_learning_rates", "lazy"}
        if absent := sorted(options - set(config)):
            raise ValueError(
                f"The config of a `MaskedOptimizer` must have all of {sorted(options)}. "
                f"Received one without {absent}"
            )
        make, inner = keras.saving.deserialize_keras_object, config["inner_optimizer"]
        return cls(
            made(make, inner, custom_objects=custom_objects),
            decode_trainable_rows(config["trainable_rows"]),
            name=config["name"],
            row_learning_rates=decode_row_learning_rates(config["row_learning_rates"]),
            lazy=config["lazy"],
        )

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: `RowIds` and the inner optimizer, which Keras finds here, save theirs."""

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing, as `save_own_variables` saves nothing."""

    def __dir__(self) -> list[str]:
        # Keras saves what it finds here by its name, and a `LossScaleOptimizer` has this name too:
        # each would take the other's state, of which the number fits and the rows do not.
        return [name for name in super().__dir__() if name != "inner_optimizer"]

    def __repr__(self) -> str:
        rows = self._asked.trainable_rows if self._masking is None else self.masked_tables()
        return f"MaskedOptimizer({type(self.inner_optimizer).__name__}, {rows})"
