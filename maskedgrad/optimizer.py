"""`MaskedOptimizer`: any Keras optimizer, for chosen rows of chosen tables only.

One step gathers the trainable rows of each table into a compact variable, lets
the inner optimizer work on that, and scatters the rows back. The inner
optimizer never sees a frozen row, so it cannot move one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.gradients import Gradient, compact_gradient
from maskedgrad.rows import (
    SavedTarget,
    Target,
    check_trainable_rows,
    decode_trainable_rows,
    encode_trainable_rows,
    resolve_targets,
)


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
            exact, or else a regular expression that matches whole paths.
            Rows are ids, a boolean mask, a `range`, a `slice` or a
            `maskedgrad.Rows`.
        name: string, the name of the optimizer.

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

    def __init__(self, inner_optimizer: Any, trainable_rows: Mapping[Any, Any], name=None):
        _check_backend()
        inner_optimizer = _checked_inner_optimizer(inner_optimizer)
        check_trainable_rows(trainable_rows)
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = inner_optimizer
        self._plan = _Plan(dict(trainable_rows))

    @property
    def trainable_rows(self) -> dict[Any, Any]:
        """The rows of each table: by path once built, and before as given."""
        if self.built:
            return {table.variable.path: table.rows for table in self._plan.tables}
        return dict(self._plan.trainable_rows)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Finds the tables among `variables` and builds the inner optimizer.

        Raises:
            TypeError, ValueError: `trainable_rows` does not fit `variables`;
                see `MaskedOptimizer`. Nothing has changed then.
        """
        if self.built:
            return
        variables = list(variables)
        targets = resolve_targets(self._plan.trainable_rows, variables)
        _check_unbuilt(self.inner_optimizer)
        _outside_of_graphs(lambda: self._build(targets, variables))

    def _build(self, targets: list[Target], variables: list[keras.Variable]) -> None:
        if not all(target.variable.value.is_initialized() for target in targets):
            return
        self._plan.set_tables(targets, variables)
        self._plan.exclude_from_weight_decay(self.inner_optimizer)
        self.inner_optimizer.build(self._plan.compact_variables(variables))
        # Keras would record the variables here, and every checkpoint would hold them.
        super().build([])

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
        self._for_each_table(_Table.gather)
        self.inner_optimizer.apply(grads, variables)
        self._for_each_table(_Table.scatter)

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
        table_of = {id(table.variable): table for table in self._plan.tables}
        grads = [
            table_of[id(variable)].compact_gradient(grad) if id(variable) in table_of else grad
            for grad, variable in zip(grads, variables, strict=True)
        ]
        return grads, self._plan.compact_variables(variables)

    def finalize_variable_values(self, var_list: Iterable[Any]) -> None:
        """Lets the inner optimizer set final values, of trainable rows only."""
        self._for_each_table(_Table.gather)
        self.inner_optimizer.finalize_variable_values(self._plan.compact_variables(var_list))
        self._for_each_table(_Table.scatter)

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
        return {
            "name": self.name,
            "inner_optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "trainable_rows": encode_trainable_rows(self._plan.saved_rows()),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects=None) -> "MaskedOptimizer":
        """The inverse of `get_config`."""
        return cls(
            keras.saving.deserialize_keras_object(
                config["inner_optimizer"], custom_objects=custom_objects
            ),
            decode_trainable_rows(config["trainable_rows"]),
            name=config["name"],
        )

    def _for_each_table(self, update: Callable[["_Table", tf.distribute.Strategy], None]) -> None:
        def update_all(strategy: tf.distribute.Strategy) -> None:
            for table in self._plan.tables:
                update(table, strategy)

        tf.__internal__.distribute.interim.maybe_merge_call(update_all, self._plan.strategy)


def masked_optimizer_in(optimizer: Any) -> Any:
    """The `MaskedOptimizer` that `optimizer` is, or wraps at any depth; `None` if there is none."""
    while optimizer is not None and not isinstance(optimizer, MaskedOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


class CompactVariable(keras.Variable):
    """The trainable rows of a table, as the inner optimizer sees them.

    It answers to the table's own name and path, because optimizers choose by
    them what they do with a variable.
    """

    def __init__(self, table: keras.Variable, ids: tf.Tensor):
        self._table_path = table.path
        scope = table.value.name.rpartition("/")[0]
        with tf.name_scope(f"{scope}/" if scope else ""):
            super().__init__(
                _on_this_replica(table.value).sparse_read(ids),
                dtype=table.dtype,
                autocast=False,
                aggregation=table.aggregation,
                name=table.name,
            )
        self.constraint = table.constraint

    @property
    def path(self) -> str:
        """The path of the table."""
        return self._table_path


class _Table:
    """A table, its trainable rows, and the compact variable that stands for them."""

    def __init__(self, target: Target):
        self.variable = target.variable
        self.rows = target.rows
        self.ids = tf.constant(self.rows.ids)
        self.positions = tf.constant(self.rows.positions)
        self.compact = CompactVariable(self.variable, self.ids)

    def compact_gradient(self, gradient: Gradient) -> tf.Tensor | None:
        return compact_gradient(gradient, self.ids, self.positions)

    def gather(self, strategy: tf.distribute.Strategy) -> None:
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
        strategy.extended.update(
            self.variable.value,
            lambda table, compact: table.scatter_update(tf.IndexedSlices(compact, self.ids)),
            args=(self.compact.value,),
            group=False,
        )


class _Plan:
    """What an optimizer masks.

    A plain object, since Keras and TensorFlow take a variable that an
    optimizer holds as an attribute for a part of the optimizer's state.
    """

    def __init__(self, trainable_rows: dict[Any, Any]):
        self.trainable_rows = trainable_rows
        self.strategy = tf.distribute.get_strategy()
        self.decay_exclusions: tuple[list[Any], list[str]] | None = None
        self.variables: list[keras.Variable] = []
        self.tables: list[_Table] = []

    def set_tables(self, targets: Sequence[Target], variables: list[keras.Variable]) -> None:
        self.variables = variables
        self.tables = [_Table(target) for target in targets]
        for table in self.tables:
            read_sparsely(table.variable)

    def compact_variables(self, variables: Iterable[Any]) -> list[Any]:
        compact = {id(table.variable): table.compact for table in self.tables}
        return [compact.get(id(variable), variable) for variable in variables]

    def exclude_from_weight_decay(self, inner_optimizer: keras.optimizers.Optimizer) -> None:
        if self.decay_exclusions is None:
            return
        var_list, var_names = self.decay_exclusions
        for optimizer in _nested(inner_optimizer):
            optimizer.exclude_from_weight_decay(
                var_list=self.compact_variables(var_list), var_names=var_names
            )

    def saved_rows(self) -> dict[Any, Any]:
        """`trainable_rows`, by what names a table in a model that is loaded."""
        if not self.tables:
            return self.trainable_rows
        place = {id(variable): place for place, variable in enumerate(self.variables)}
        return {
            SavedTarget(table.variable.path, place[id(table.variable)]): table.rows
            for table in self.tables
        }


def read_sparsely(table: keras.Variable) -> None:
    """Makes every lookup in `table` read the rows it looks up, and no others.

    Once a row has been written, TensorFlow copies a whole variable each time
    it is read densely, and a Keras layer reads its table densely before it
    gathers. `tf.gather` calls `sparse_read` of what it is given, where it has
    one.
    """
    variable = table.value

    def sparse_read(indices, name=None):
        rows = _on_this_replica(variable).sparse_read(indices, name=name)
        return tf.cast(rows, table.dtype)

    table.sparse_read = sparse_read


def _on_this_replica(variable: tf.Variable) -> tf.Variable:
    """A mirrored variable's component on this replica; any other variable itself."""
    components = tf.distribute.get_strategy().experimental_local_results(variable)
    context = tf.distribute.get_replica_context()
    if len(components) == 1 or context is None:
        return components[0]
    return components[tf.get_static_value(context.replica_id_in_sync_group) % len(components)]


def _outside_of_graphs(function: Callable[[], None]) -> None:
    """Calls `function` eagerly, also where `tf.function` is tracing.

    Where the first batch builds the model and the optimizer, that happens in a
    trace. What the optimizer makes must outlive the graph of that trace, and
    must be made when the tables hold values, which they do from the second
    trace on; there, TensorFlow makes no variable, not even in `tf.init_scope`.
    A graph is known to the thread that traces it only.
    """
    if tf.executing_eagerly():
        function()
        return
    strategy = tf.distribute.get_strategy()

    def call_in_scope() -> None:
        with strategy.scope():
            function()

    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(call_in_scope).result()


def _nested(optimizer: Any) -> Iterator[Any]:
    """The optimizer, and those that it wraps at any depth."""
    yield optimizer
    inner_optimizer = getattr(optimizer, "inner_optimizer", None)
    if inner_optimizer is not None:
        yield from _nested(inner_optimizer)
    for child in getattr(optimizer, "optimizers", []):
        yield from _nested(child)


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "maskedgrad needs Keras to run on TensorFlow. "
            f"Received: the backend {keras.backend.backend()!r}. "
            'Set the environment variable KERAS_BACKEND="tensorflow" before Keras is imported.'
        )


def _checked_inner_optimizer(identifier: Any) -> keras.optimizers.Optimizer:
    if isinstance(identifier, (str, dict)):
        optimizer = keras.optimizers.get(identifier)
    else:
        optimizer = identifier
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a Keras 3 optimizer, or what `keras.optimizers.get` takes "
            f"for one. Received: {optimizer!r} of type "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}. "
            "Optimizers of `tf_keras` and of PyTorch have a counterpart in `keras.optimizers`."
        )
    if any(isinstance(nested, MaskedOptimizer) for nested in _nested(optimizer)):
        raise ValueError(
            "`inner_optimizer` must not mask rows itself. Received: a `MaskedOptimizer`. "
            "Name all the tables in the `trainable_rows` of one."
        )
    _check_unbuilt(optimizer)
    return optimizer


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
