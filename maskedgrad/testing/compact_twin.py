"""The oracle: the bare optimizer on variables that hold the trainable rows and nothing else.

Of a lazy optimizer: on variables that hold the rows that a step touches and nothing else.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.rows.gradients import Gradient
from maskedgrad.rows.targets import MaskedTable, named, resolve
from maskedgrad.testing.bits import assert_same_bits


def selected_gradient(
    gradient: Gradient, shape: Sequence[int], ids: np.ndarray, axis: int = 0
) -> Gradient:
    """The gradient of some rows, selected and summed by NumPy.

    Equivalent to `tf.gather(tf.convert_to_tensor(gradient), ids, axis=axis)`. That of all rows
    is the gradient itself, whose slices an optimizer may treat in a way of its own.

    Args:
        gradient: of a table: a tensor, `IndexedSlices` or `None`.
        shape: the shape of the table.
        ids: integers of shape `(K,)`.
        axis: int, the axis that the rows lie along.

    Returns:
        A tensor with K in the place of `axis`, or `None`; or the gradient as it is.

    Example:

    >>> slices = tf.IndexedSlices(tf.constant([[1.0], [2.0], [4.0]]), tf.constant([2, 0, 2]))
    >>> selected_gradient(slices, (3, 1), np.array([1, 2])).numpy().tolist()
    [[0.0], [5.0]]
    """
    if gradient is None or (axis == 0 and len(ids) == shape[0]):
        return gradient
    if isinstance(gradient, tf.IndexedSlices):
        values = gradient.values.numpy()
        dense = np.zeros(shape, values.dtype)
        with np.errstate(invalid="ignore"):
            np.add.at(dense, gradient.indices.numpy(), values)
    else:
        dense = gradient.numpy()
    return tf.constant(np.take(dense, ids, axis))


def compact_variable(target: MaskedTable) -> keras.Variable:
    """A variable that holds the trainable rows of a table, and answers to its path."""
    return _variable_like(target.variable, _trainable_rows(target))


def _variable_like(original: keras.Variable, values: np.ndarray) -> keras.Variable:
    *scopes, name = original.path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        variable = keras.Variable(values, dtype=original.dtype, name=name)
    variable.constraint = original.constraint
    return variable


class CompactTwin:
    """A masked optimizer on variables, beside the bare one on their trainable rows.

    Args:
        make_optimizer: a function that returns the same fresh optimizer each
            time.
        variables: what the masked optimizer trains.
        twin_variables: other variables of the same values and paths, each
            table in the form that `compact_variable` gives it.
        trainable_rows: as for `MaskedOptimizer`.
        lazy: as for `MaskedOptimizer`. A step of the twin is then one of a fresh optimizer, on
            the touched rows and their state alone.

    Raises:
        TypeError, ValueError: as `MaskedOptimizer` does.
    """

    def __init__(
        self,
        make_optimizer: Callable[[], keras.optimizers.Optimizer],
        variables: Sequence[keras.Variable],
        twin_variables: Sequence[keras.Variable],
        trainable_rows: Mapping[Any, Any],
        lazy: bool = False,
    ):
        self._make_optimizer, self._is_lazy = make_optimizer, lazy
        self.variables, self.twin_variables = list(variables), list(twin_variables)
        self.targets = resolve(named(trainable_rows), self.variables)
        self._frozen = [_frozen_rows(target) for target in self.targets]
        self.twin_optimizer = make_optimizer()
        self.twin_optimizer.build(self.twin_variables)
        self.optimizer = MaskedOptimizer(make_optimizer(), trainable_rows, lazy=lazy)
        self.optimizer.build(self.variables)

    def step(self, gradients: Sequence[Gradient], twin_gradients: Sequence[Gradient]) -> None:
        """A step of both, the twin first."""
        if self._is_lazy:
            places = [self._touched(*pair) for pair in zip(self.variables, gradients, strict=True)]
            self.step_twin_on_rows(twin_gradients, places)
        else:
            self.bare_step(self.twin_optimizer, twin_gradients, self.twin_variables)
        self.optimizer.apply(list(gradients), self.variables)

    def bare_step(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: Sequence[Gradient],
        variables: Sequence[keras.Variable],
    ) -> None:
        """A step of a bare optimizer."""
        optimizer.apply(list(gradients), list(variables))

    def step_twin_on_rows(
        self, gradients: Sequence[Gradient], places: Sequence[np.ndarray | None]
    ) -> None:
        """A step of a bare optimizer on some rows of the twin's tables, and their state.

        Args:
            gradients: of the twin's variables.
            places: for each variable which of its rows, int64 of shape `(n,)`; `None` for what is
                no table. Where a table has none, one takes part without a gradient, since Keras
                makes no step on variables without rows, and stays as it is.
        """
        # Which state of the optimizer has an entry for each row of which variable.
        number_of = {id(v): number for number, v in enumerate(self.variables)}
        of_row_state = {id(v): number_of[id(t.variable)] for v, t in self.optimizer.row_state()}
        tables = [of_row_state.get(id(v)) for v in self.optimizer.inner_optimizer.variables]
        rows = [np.array([0]) if each is not None and not len(each) else each for each in places]
        small = [
            whole if of_step is None else _variable_like(whole, np.asarray(whole)[of_step])
            for whole, of_step in zip(self.twin_variables, rows, strict=True)
        ]
        optimizer = self._make_optimizer()
        optimizer.build(small)
        state = list(zip(optimizer.variables, self.twin_optimizer.variables, tables, strict=True))
        for held, whole, table in state:
            held.assign(whole if table is None else np.asarray(whole)[rows[table]])
        small_gradients = [
            gradient if gradient is None or of_step is None else tf.gather(gradient, of_step)
            for gradient, of_step in zip(gradients, rows, strict=True)
        ]
        self.bare_step(optimizer, small_gradients, small)
        # Of what is no table, `small` has the variables of the twin themselves.
        trained = zip(small, self.twin_variables, range(len(small)), strict=True)
        for held, whole, table in [*state, *trained]:
            if table is None:
                whole.assign(held)
            elif (of_step := places[table]) is not None:
                _put(whole, held, of_step)

    def _touched(self, variable: keras.Variable, gradient: Gradient) -> np.ndarray | None:
        """Which of the trainable rows of a table a gradient touches, in the order of its slices."""
        ids = next((t.rows.ids for t in self.targets if t.variable is variable), None)
        if ids is None or isinstance(gradient, tf.Tensor):
            return None if ids is None else np.arange(len(ids))
        looked_up = [] if gradient is None else gradient.indices.numpy()
        trained = [row for row in dict.fromkeys(looked_up) if row in ids]
        return np.searchsorted(ids, np.array(trained, ids.dtype))

    def finalize(self) -> None:
        """Lets both set final values."""
        self.twin_optimizer.finalize_variable_values(self.twin_variables)
        self.optimizer.finalize_variable_values(self.variables)

    def check(self, when: str = "") -> None:
        """Raises an `AssertionError` if a bit is not as the twin says."""
        masked = {id(target.variable): target for target in self.targets}
        for target, frozen in zip(self.targets, self._frozen, strict=True):
            path = target.variable.path
            assert_same_bits(_frozen_rows(target), frozen, f"frozen rows of {path} {when}")
        for ours, twins in zip(self.variables, self.twin_variables, strict=True):
            if id(ours) in masked:
                rows = _trainable_rows(masked[id(ours)])
                assert_same_bits(rows, twins, f"trainable rows of {ours.path} {when}")
            else:
                assert_same_bits(ours, twins, f"{ours.path} {when}")
        slots = self.optimizer.inner_optimizer.variables, self.twin_optimizer.variables
        for ours, twins in zip(*slots, strict=True):
            assert_same_bits(ours, twins, f"slot {ours.path} {when}")


def assert_trains_like_compact(
    make_model: Callable[[], keras.Model],
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    data: Iterable[Any],
    rows: Mapping[Any, Any],
    lazy: bool = False,
) -> None:
    """Trains a model by a masked optimizer, and checks each bit against a twin.

    Equivalent to the law of `MaskedOptimizer`, taken at its word: in the twin
    no optimizer sees the table. NumPy selects the trainable rows of its
    gradient, the bare optimizer trains a variable that holds these rows and
    nothing else, and NumPy writes them into the table before the next batch.
    After each batch and at the end, frozen rows, trainable rows, all other
    variables and the optimizer's state must have the same bits.

    There is no tolerance. The slices of a sparse gradient that repeat an id
    are added up in their order on either side, on a CPU; on a GPU call
    `tf.config.experimental.enable_op_determinism()` first. Both train eagerly,
    since TensorFlow may round otherwise where it compiles a step.

    Args:
        make_model: a function that returns a fresh model, built and compiled
            with a loss. It must return the same weights and random seeds each
            time, so call `keras.utils.set_random_seed` in it, and name the
            layers of tables. The optimizer that it compiles with is not used.
        make_optimizer: a function that returns the same fresh optimizer each
            time: the bare one, which masks nothing.
        data: batches, as `train_step` takes them: `(x, y)` or `(x, y, sample_weight)`.
        rows: which rows train: a mapping from the path of a table, or a
            regular expression for it, to rows, as `MaskedOptimizer` takes it.
            Layers name nothing here, because each model has its own.
        lazy: whether the masked optimizer is lazy. The bare one then makes each step on the rows
            that the batch touches, and their state, alone.

    Raises:
        AssertionError: a bit differs. It says of what, and after which batch.
        ValueError: `make_model` returns a model that is not built, or other
            weights each time; or `rows` does not fit.

    Example:

    >>> def make_model():
    ...     keras.utils.set_random_seed(0)
    ...     words = keras.layers.Embedding(5, 2, name="words")
    ...     model = keras.Sequential([keras.Input((3,)), words])
    ...     model.compile(loss="mse")
    ...     return model
    >>> batch = np.array([[0, 1, 1]]), np.ones((1, 3, 2), "float32")
    >>> rows = {".*words/embeddings": [1, 4]}
    >>> assert_trains_like_compact(make_model, lambda: keras.optimizers.AdamW(0.1), [batch], rows)
    """
    model, twin_model = _same_models(make_model)
    tables = resolve(named(rows), twin_model.trainable_variables)
    compacts = {id(table.variable): compact_variable(table) for table in tables}
    twin = CompactTwin(
        make_optimizer,
        model.trainable_variables,
        [compacts.get(id(variable), variable) for variable in twin_model.trainable_variables],
        rows,
        lazy,
    )

    def check(when: str) -> None:
        for table in tables:
            _write_rows(table, np.asarray(compacts[id(table.variable)]))
        twin.check(when)
        _check_weights(model.non_trainable_weights, twin_model.non_trainable_weights, when)

    for number, batch in enumerate(data):
        gradients = _gradients(model, twin.optimizer, batch)
        selected = {
            id(table.variable): (table.variable.shape, table.rows.ids, table.axis)
            for table in tables
        }
        twin_gradients = [
            selected_gradient(gradient, *selected[id(variable)])
            if id(variable) in selected
            else gradient
            for gradient, variable in zip(
                _gradients(twin_model, twin.twin_optimizer, batch),
                twin_model.trainable_variables,
                strict=True,
            )
        ]
        twin.step(gradients, twin_gradients)
        check(f"after batch {number}")
    twin.finalize()
    check("after final values were set")


def _same_models(make_model: Callable[[], keras.Model]) -> tuple[keras.Model, keras.Model]:
    one, other = make_model(), make_model()
    for model in (one, other):
        if not model.built:
            raise ValueError(
                "`make_model` must return a model that is built. Received: the model "
                f"{model.name!r}, which its first batch builds. Call it on a batch of data in "
                "`make_model`."
            )
    try:
        _check_weights(one.weights, other.weights, "in a fresh model")
    except AssertionError as error:
        raise ValueError(
            "`make_model` must return a model of the same weights each time. Call "
            f"`keras.utils.set_random_seed(0)` first in it. Received: {error}"
        ) from error
    return one, other


def _check_weights(
    weights: Sequence[keras.Variable], twins: Sequence[keras.Variable], when: str
) -> None:
    for ours, theirs in zip(weights, twins, strict=True):
        assert_same_bits(ours, theirs, f"{ours.path} {when}")


def _gradients(model: keras.Model, optimizer: Any, batch: Any) -> list[Gradient]:
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    with tf.GradientTape() as tape:
        y_pred = model(x, training=True)
        loss = model.compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
        )
        scaled_loss = optimizer.scale_loss(loss)
    return tape.gradient(scaled_loss, model.trainable_variables)


def _frozen_rows(target: MaskedTable) -> np.ndarray:
    return np.take(np.asarray(target.variable), target.rows.complement().ids, target.axis)


def _trainable_rows(target: MaskedTable) -> np.ndarray:
    return np.take(np.asarray(target.variable), target.rows.ids, target.axis)


def _put(variable: keras.Variable, part: keras.Variable, places: np.ndarray) -> None:
    """Assigns the rows `places` of a variable the first rows of another one."""
    values = np.asarray(variable).copy()
    values[places] = np.asarray(part)[: len(places)]
    variable.assign(values)


def _write_rows(target: MaskedTable, rows: np.ndarray) -> None:
    table = np.asarray(target.variable).copy()
    np.moveaxis(table, target.axis, 0)[target.rows.ids] = np.moveaxis(rows, target.axis, 0)
    target.variable.assign(table)
