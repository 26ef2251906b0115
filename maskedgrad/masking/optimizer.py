"""`MaskedOptimizer`: any Keras optimizer, for chosen rows of chosen tables only.

One step gathers the trainable rows of each table into a compact variable, lets
the inner optimizer work on that, and scatters the rows back. The inner
optimizer never sees a frozen row, so it cannot move one.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.compact import read_sparsely, reads_sparsely
from maskedgrad.masking.gradients import Gradient
from maskedgrad.masking.masking import Plan, outside_of_graphs, trace_again
from maskedgrad.masking.multipliers import (
    check_row_learning_rates,
    decode_row_learning_rates,
    encode_row_learning_rates,
)
from maskedgrad.masking.state import carry_over_state, clone_optimizer, nested_optimizers
from maskedgrad.masking.targets import (
    AlongAxis,
    Target,
    built_variables,
    check_trainable_rows,
    decode_trainable_rows,
    encode_trainable_rows,
    identities,
    listed,
    resolve_targets,
)
from maskedgrad.messages import shorten
from maskedgrad.rows.rows import Rows


@keras.saving.register_keras_serializable(package="maskedgrad")
class MaskedOptimizer(keras.optimizers.Optimizer):
    """Trains chosen rows of chosen tables, and everything else as usual.

    Equivalent to the inner optimizer on a model in which each named table
    holds its trainable rows only. Every other row keeps its bits, whatever
    the inner optimizer does with weight decay, momentum, averaging,
    constraints, or gradients that are not finite.

    Variables that no target names are trained by the inner optimizer as if
    they were not wrapped.

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

    Raises:
        TypeError: `inner_optimizer` is not a Keras 3 optimizer, or a target
            or its rows are of another type.
        ValueError: `inner_optimizer` is built already or masks rows already,
            Keras does not run on TensorFlow, or the rows are not valid. What
            depends on the variables is checked by `build`.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> before = words.get_weights()[0]
    >>> model.compile(MaskedOptimizer("adamw", trainable_rows={words: [1, 4]}), loss="mse")
    >>> _ = model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0)
    >>> (words.get_weights()[0] != before).all(axis=1).tolist()
    [False, True, False, False, True]
    """

    inner_optimizer: Any = None

    def __init__(
        self,
        inner_optimizer: Any,
        trainable_rows: Mapping[Any, Any],
        name=None,
        row_learning_rates: Mapping[Any, Any] | None = None,
    ):
        _check_backend()
        inner_optimizer = _checked_inner_optimizer(inner_optimizer)
        check_trainable_rows(trainable_rows)
        rates = check_row_learning_rates(row_learning_rates)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        # The function that builds the optimizer looks up first, and must read sparsely too.
        for target in trainable_rows:
            for table in built_variables(target):
                read_sparsely(table)
        self._plan = Plan(dict(trainable_rows), rates)

    @property
    def trainable_rows(self) -> dict[Any, Any]:
        """The rows of each table: by path once built, and before as given."""
        self._finish_loading()
        if self.built:
            return {
                AlongAxis(table.variable.path, table.axis)
                if table.axis
                else table.variable.path: table.rows
                for table in self._plan.tables
            }
        return dict(self._plan.trainable_rows)

    def set_trainable_rows(self, trainable_rows: Mapping[Any, Any]) -> None:
        """Changes which rows train from the next step on.

        Rows that stay keep their state. Rows that leave are frozen at once, with
        no momentum left to move them. Rows that join start with fresh state; the
        count of `iterations` goes on. `inner_optimizer` is another object then.

        A function that was traced before trains the rows of before, and stops
        with an error (under XLA it cannot). A `MaskedModel` renews its own; for
        a stock `keras.Model` call `model.make_train_function(force=True)`.

        Args:
            trainable_rows: a mapping from target to rows, which names the
                tables that have trainable rows now.

        Raises:
            TypeError, ValueError: `trainable_rows` is not valid or names other
                tables. Nothing has changed then.

        Example:

        >>> table = keras.Variable(np.ones((4, 2), "float32"), name="table")
        >>> optimizer = MaskedOptimizer("adam", {"table": [0, 1]})
        >>> optimizer.build([table])
        >>> optimizer.set_trainable_rows({"table": [1, 2]})
        >>> optimizer.trainable_rows
        {'table': Rows('1:3', num_rows=4)}
        """
        check_trainable_rows(trainable_rows)
        self._finish_loading()
        if not self.built:
            self._plan.trainable_rows = dict(trainable_rows)
            return
        targets = self._plan.resolve(trainable_rows, self._plan.variables)
        if identities(targets) != identities(self._plan.tables):
            raise ValueError(
                "`trainable_rows` must name the tables that have trainable rows now, since a "
                "table that is not named trains whole, and along the same axes. "
                f"Expected: {listed(self._plan.tables)}. Received: {listed(targets)}"
            )
        outside_of_graphs(lambda: self._change_rows(targets), self._plan.strategy)

    def _change_rows(self, targets: list[Target]) -> None:
        old, plan = self.inner_optimizer, self._plan
        new, old_tables = clone_optimizer(old), plan.tables
        plan.set_tables(targets, plan.variables)
        self.inner_optimizer = new
        self._build_inner_optimizer()
        carry_over_state(old, new, old_tables, plan.tables, plan.variables)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the tables among `variables` and builds the inner optimizer.

        Raises:
            TypeError, ValueError: `trainable_rows` does not fit `variables`;
                see `MaskedOptimizer`. Nothing has changed then.
        """
        if self.built:
            return
        variables = list(variables)
        targets = self._plan.resolve(self._plan.trainable_rows, variables)
        _check_unbuilt(self.inner_optimizer)
        was_read_densely = not all(reads_sparsely(target.variable) for target in targets)
        outside_of_graphs(lambda: self._build(targets, variables))
        if self.built and was_read_densely:
            trace_again()

    def prepare(self, variables: Sequence[keras.Variable]) -> None:
        """Makes what looks up in the tables read sparsely, as `build` does, without any state.

        Called by `MaskedModel.compile`, so that a step which is traced before
        the optimizer is built does not read a table whole ever after.

        Raises:
            TypeError, ValueError: as `build` does.
        """
        if not self.built:
            for target in self._plan.resolve(self._plan.trainable_rows, list(variables)):
                read_sparsely(target.variable)

    def _build(self, targets: list[Target], variables: list[keras.Variable]) -> None:
        if not all(target.variable.value.is_initialized() for target in targets):
            for target in targets:
                read_sparsely(target.variable)  # in the next trace
            return
        self._plan.set_tables(targets, variables)
        self._build_inner_optimizer()
        # Keras would record the variables here, and every checkpoint would hold them.
        super().build([])

    def _build_inner_optimizer(self) -> None:
        self._plan.exclude_from_weight_decay(self.inner_optimizer)
        self.inner_optimizer.build(self._plan.compact_variables(self._plan.variables))

    def apply(self, grads: Iterable[Gradient], trainable_variables=None) -> None:
        """One step of the inner optimizer on what trains.

        Args:
            grads: a gradient for each variable: a tensor, `tf.IndexedSlices`
                or `None`.
            trainable_variables: the variables; those of `build` if not given.
        """
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "An optimizer that is not built must be given the variables: "
                    "`optimizer.apply(grads, trainable_variables)`. "
                    f"Received: {len(grads)} gradients and no variables"
                )
            trainable_variables = self._plan.variables
        trainable_variables = list(trainable_variables)
        self.build(trainable_variables)
        if not self.built:
            _fail_if_run()
            return
        grads, variables = self.select_trainable(grads, trainable_variables)
        with tf.control_dependencies(self._plan.check_current()):
            self._plan.gather()
            self.inner_optimizer.apply(grads, variables)
            self._plan.scatter_step()

    def apply_gradients(self, grads_and_vars) -> Any:
        """`apply` for pairs of gradient and variable. Returns `iterations`."""
        super().apply_gradients(grads_and_vars)
        return self.iterations

    def select_trainable(
        self, grads: Sequence[Gradient], variables: Sequence[Any]
    ) -> tuple[list[Gradient], list[Any]]:
        """Gradients and variables with each table replaced by its trainable rows.

        `apply` accepts these in place of what they were made from. An
        optimizer around this one that looks at gradients, such as
        `LossScaleOptimizer`, then sees what trains and nothing else.

        Returns:
            The gradients, of shape `(K, ...)` for a table, and the variables.
        """
        self._finish_loading()
        tables = {id(table.variable): table for table in self._plan.tables}
        grads = [
            tables[id(variable)].compact_gradient(grad) if id(variable) in tables else grad
            for grad, variable in zip(grads, variables, strict=True)
        ]
        return grads, self._plan.compact_variables(variables)

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Lets the inner optimizer set final values, of trainable rows only."""
        with self.gathered_rows():
            self.inner_optimizer.finalize_variable_values(self._plan.compact_variables(var_list))

    @contextlib.contextmanager
    def gathered_rows(self) -> Iterator[None]:
        """A context in which the inner optimizer's variables hold the trainable rows.

        For what assigns the variables of an optimizer between steps, as
        `callbacks.SwapEMAWeights` does: the rows go back to the tables after it.
        After an exception nothing goes back.
        """
        self._finish_loading()
        self._plan.gather()
        yield
        self._plan.scatter()

    def exclude_from_weight_decay(self, var_list=None, var_names=None) -> None:
        """Excludes variables from the inner optimizer's weight decay.

        Call it on this optimizer, before it is built: a table is known to the
        inner optimizer by its trainable rows only.

        Args:
            var_list: variables, tables among them.
            var_names: strings; a variable is excluded whose name holds one.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built."
            )
        self._plan.decay_exclusions = list(var_list or []), list(var_names or [])

    def scale_loss(self, loss):
        """The inner optimizer's `scale_loss`."""
        return self.inner_optimizer.scale_loss(loss)

    @property
    def variables(self) -> list[keras.Variable]:
        """The state of the inner optimizer, of shape `(K, ...)` for a table."""
        self._finish_loading()
        return self.inner_optimizer.variables

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets `variables`, in their order."""
        if not self.built:
            raise ValueError("`set_weights()` needs a built optimizer: call `build()` first.")
        shapes = [tuple(variable.shape) for variable in self.variables]
        received = [tuple(np.shape(weight)) for weight in weights]
        if received != shapes:
            raise ValueError(f"Expected weights of the shapes {shapes}. Received: {received}")
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    @property
    def num_row_changes(self) -> int:
        """How many times rows have been chosen: by `build`, and by `set_trainable_rows` since."""
        return self._plan.num_changes

    @property
    def iterations(self):
        """The number of steps that the inner optimizer has made."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        """The inner optimizer's learning rate. It can be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def optimizers(self) -> list[keras.optimizers.Optimizer]:
        """Those of an inner `MultiOptimizer`, whose learning rates callbacks set one by one.

        Raises:
            AttributeError: the inner optimizer is no `MultiOptimizer`.
        """
        return self.inner_optimizer.optimizers

    @property
    def loss_scale_factor(self):
        """The inner optimizer's loss scale factor. It can be set."""
        return self.inner_optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, value):
        # Keras sets it while the optimizer is made, before there is an inner one.
        if self.inner_optimizer is not None:
            self.inner_optimizer.loss_scale_factor = value

    def get_config(self) -> dict[str, Any]:
        """A JSON value from which `from_config` makes the same optimizer, without its state."""
        self._finish_loading()
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "trainable_rows": encode_trainable_rows(self._plan.saved_rows()),
            "row_learning_rates": encode_row_learning_rates(self._plan.saved_learning_rates()),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects=None) -> "MaskedOptimizer":
        """The inverse of `get_config`.

        Raises:
            TypeError, ValueError: `config` is not what `get_config` returns.
        """
        absent = {"name", "inner_optimizer", "trainable_rows"} - set(config)
        if absent:
            raise ValueError(
                "The config of a `MaskedOptimizer` must have a name, inner_optimizer and "
                f"trainable_rows. Received one without {sorted(absent)}"
            )
        return cls(
            _made(
                keras.saving.deserialize_keras_object,
                config["inner_optimizer"],
                custom_objects=custom_objects,
            ),
            decode_trainable_rows(config["trainable_rows"]),
            name=config["name"],
            row_learning_rates=decode_row_learning_rates(config.get("row_learning_rates", [])),
        )

    def save_own_variables(self, store) -> None:
        """Called by Keras, which lets the inner optimizer save its state itself."""
        for index, rows in enumerate(self.trainable_rows.values() if self.built else []):
            store[str(index)] = rows.ids

    def load_own_variables(self, store) -> None:
        """Called by Keras, which lets the inner optimizer load its state next.

        If that is of other rows than train now, rows of both keep their state,
        and all others start fresh.
        """
        if not self.built or len(store.keys()) != len(self._plan.tables):
            return  # the inner optimizer warns of it
        saved = {
            target: Rows(np.asarray(store[str(index)]), rows.num_rows)
            for index, (target, rows) in enumerate(self._plan.saved_rows().items())
        }
        current = self._plan.saved_rows()
        if saved == current:
            return
        for target, rows in current.items():
            kept = len(np.intersect1d(rows.ids, saved[target].ids))
            warnings.warn(
                f"The optimizer was saved with other trainable rows of {target.path!r}: "
                f"{kept} rows keep their state, and {len(rows) - kept} start fresh.",
                stacklevel=2,
            )
        # All rows that have state in the file, those of multiplier 0 too.
        targets = resolve_targets(saved, self._plan.variables)
        outside_of_graphs(lambda: self._change_rows(targets), self._plan.strategy)
        self._plan.rows_after_loading = current

    def _finish_loading(self) -> None:
        rows, self._plan.rows_after_loading = self._plan.rows_after_loading, None
        if rows is not None:
            self.set_trainable_rows(rows)


def masked_optimizer_in(optimizer: Any) -> Any:
    """The `MaskedOptimizer` that `optimizer` is, or wraps at any depth; `None` if there is none."""
    while optimizer is not None and not isinstance(optimizer, MaskedOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "maskedgrad needs Keras to run on TensorFlow. "
            f"Received: the backend {keras.backend.backend()!r}. "
            'Set the environment variable KERAS_BACKEND="tensorflow" before Keras is imported.'
        )


def _checked_inner_optimizer(identifier: Any) -> keras.optimizers.Optimizer:
    if isinstance(identifier, (str, dict)):
        optimizer = _made(keras.optimizers.get, identifier)
    else:
        optimizer = identifier
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a Keras 3 optimizer, or what `keras.optimizers.get` takes "
            f"for one. Received: {optimizer!r} of type "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}. "
            "Optimizers of `tf_keras` and of PyTorch have a counterpart in `keras.optimizers`."
        )
    if any(isinstance(nested, MaskedOptimizer) for nested in nested_optimizers(optimizer)):
        raise ValueError(
            "`inner_optimizer` must not mask rows itself. Received: a `MaskedOptimizer`. "
            "Name all the tables in the `trainable_rows` of one."
        )
    _check_unbuilt(optimizer)
    return optimizer


def _made(make: Callable[..., Any], config: Any, **kwargs: Any) -> Any:
    """What a function of Keras makes of the config of an inner optimizer."""
    try:
        return make(config, **kwargs)
    except (TypeError, ValueError):
        raise
    except Exception as error:
        # Keras does not say what it raises for a config that lacks something.
        raise ValueError(
            "The config of `inner_optimizer` must be what "
            f"`keras.saving.serialize_keras_object` returns. Received: {shorten(config)}, of "
            f"which Keras makes nothing: {type(error).__name__}: {error}"
        ) from error


def _check_unbuilt(optimizer: keras.optimizers.Optimizer) -> None:
    if optimizer.built:
        raise ValueError(
            "`inner_optimizer` must not be built yet, because its state would be that of whole "
            f"tables. Received: the built optimizer {optimizer.name!r}. Make a fresh one: "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )


def _fail_if_run() -> None:
    # This is the trace in which `tf.function` makes the variables. It traces
    # again once they hold values, and runs what it traced then.
    tf.debugging.Assert(
        False,
        [
            "The tables held no value yet when MaskedOptimizer was built. "
            "Build the model and the optimizer before this function is called."
        ],
    )
