"""Nonsense is the rows that NumPy would select, or a documented error that changes nothing.

The documented errors are TypeError and ValueError; whatever else is raised ends
a test here. That nothing has changed is seen in the bits, and in a twin that
never met the nonsense and goes on to train alike.
"""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, mask_gradients
from maskedgrad.testing import assert_same_bits, bits
from tests.properties import nonsense
from tests.properties.strategies import cheap

# One model serves all examples of a law, since it takes longer to make than an example.
SHARED = [*settings().suppress_health_check, HealthCheck.function_scoped_fixture]
several = settings(max_examples=3 * settings().max_examples, suppress_health_check=SHARED)
many = settings(cheap, suppress_health_check=SHARED)

DOCUMENTED = (TypeError, ValueError)
ROWS = {"words/embeddings": [1, 2], "tags/embeddings": [0, 3]}
BATCH = np.array([[0, 1, 4], [2, 3, 0]]), np.ones((2, 1), "float32")


def make_model() -> MaskedModel:
    """A model of two tables, of 5 and 4 rows, and a layer of two variables; trained once."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(5, 2, name="words")(inputs)
    tags = keras.layers.Embedding(4, 2, name="tags")(inputs % 4)
    flat = keras.layers.Flatten()(words + tags)
    model = MaskedModel(inputs, keras.layers.Dense(1, name="head")(flat), name="model")
    model.compile("adamw", loss="mse", trainable_rows=ROWS)
    model.train_on_batch(*BATCH)
    return model


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def twin():
    return make_model()


def mappings(model, values: st.SearchStrategy) -> st.SearchStrategy:
    """What makes a mapping from the layers of a model to values, or fails at it."""
    return nonsense.mappings({layer.name: layer for layer in [model, *model.layers]}, values)


def values_of(model) -> list[np.ndarray]:
    return [value.numpy() for value in [*model.weights, *model.optimizer.variables]]


def assert_twins(model, twin) -> None:
    for value, twin_value in zip(values_of(model), values_of(twin), strict=True):
        assert_same_bits(value, twin_value, "weights or state of the optimizer")


def named(trainable_rows) -> dict[tuple[str, int], list[int]]:
    """The `trainable_rows` of a built optimizer, as `nonsense.tables_named` gives them."""
    return {
        (target.target, target.axis) if isinstance(target, AlongAxis) else (target, 0): list(rows)
        for target, rows in trainable_rows.items()
    }


def as_trainable_rows(tables):
    return {AlongAxis(path, axis) if axis else path: rows for (path, axis), rows in tables.items()}


def check_message(error: Exception) -> None:
    note(f"refused: {error!r}")
    assert str(error)


@contextlib.contextmanager
def untouched_if_refused(model):
    """A context in which a documented error may be raised, that leaves a compiled model as it was.

    Gives a list, which an error is put in.
    """
    optimizer, inner_optimizer = model.optimizer, model.optimizer.inner_optimizer
    before, rows, changes = values_of(model), optimizer.trainable_rows, optimizer.num_row_changes
    refused: list[Exception] = []
    try:
        yield refused
    except DOCUMENTED as error:
        check_message(error)
        refused.append(error)
    if refused:
        assert model.compiled
        assert model.optimizer is optimizer
        assert optimizer.inner_optimizer is inner_optimizer
        assert (optimizer.trainable_rows, optimizer.num_row_changes) == (rows, changes)
        for value, value_before in zip(values_of(model), before, strict=True):
            assert_same_bits(value, value_before, "weights or state of the optimizer")


@several
@given(data=st.data())
def test_rows_are_changed_as_numpy_selects_them_or_nothing_is(model, twin, data):
    make_rows = data.draw(mappings(model, nonsense.rows()))
    with untouched_if_refused(model) as refused:
        given_rows = make_rows()
        model.optimizer.set_trainable_rows(given_rows)
    if not refused:
        expected = nonsense.tables_named(given_rows, model.trainable_variables)
        assert named(model.optimizer.trainable_rows) == expected
        twin.optimizer.set_trainable_rows(as_trainable_rows(expected))
    for each in (model, twin):
        each.train_on_batch(*BATCH)
    assert_twins(model, twin)


@several
@given(data=st.data(), makes=st.booleans())
def test_a_model_is_compiled_with_what_numpy_selects_or_left_as_it_was(model, twin, data, makes):
    make_rows = data.draw(mappings(model, nonsense.rows()))
    inner = keras.optimizers.AdamW(0.1)
    with untouched_if_refused(model) as refused:
        given_rows = make_rows()
        if given_rows is None:  # then `compile` takes an optimizer that masks
            given_rows = {}
        arguments = {"loss": "mse", "run_eagerly": True}
        if makes:
            model.compile(MaskedOptimizer(inner, given_rows), **arguments)
        else:
            model.compile(inner, trainable_rows=given_rows, **arguments)
    if refused:
        assert not inner.built
    else:
        expected = nonsense.tables_named(given_rows, model.trainable_variables)
        trainable_rows = as_trainable_rows(expected)
        twin.compile(keras.optimizers.AdamW(0.1), trainable_rows=trainable_rows, **arguments)
    for each in (model, twin):
        each.train_on_batch(*BATCH)
    assert_twins(model, twin)
    if not refused:
        assert named(model.optimizer.trainable_rows) == expected


@several
@given(data=st.data())
def test_an_optimizer_is_built_for_what_numpy_selects_or_not_at_all(model, twin, data):
    variables, twins = model.trainable_variables, twin.trainable_variables
    gradients = [tf.ones(variable.shape) for variable in variables]
    make_rows = data.draw(mappings(model, nonsense.rows()))
    inner = keras.optimizers.AdamW(0.1)
    before = [variable.numpy() for variable in variables]
    trainable_rows, optimizer = ROWS, None
    try:
        given_rows = make_rows()
        optimizer = MaskedOptimizer(inner, given_rows)
        optimizer.build(variables)
    except DOCUMENTED as error:
        check_message(error)
        assert not inner.built
        if optimizer is None:
            optimizer = MaskedOptimizer(inner, ROWS)
        assert not optimizer.built
        assert optimizer.inner_optimizer is inner
        optimizer.set_trainable_rows(ROWS)
    else:
        expected = nonsense.tables_named(given_rows, variables)
        assert named(optimizer.trainable_rows) == expected
        trainable_rows = as_trainable_rows(expected)
    for variable, value in zip(variables, before, strict=True):
        assert_same_bits(variable.numpy(), value, variable.path)
    optimizer.apply(gradients, variables)
    MaskedOptimizer(keras.optimizers.AdamW(0.1), trainable_rows).apply(gradients, twins)
    for variable, other in zip(variables, twins, strict=True):
        assert_same_bits(variable.numpy(), other.numpy(), variable.path)


def learning_rates() -> st.SearchStrategy:
    """Multipliers of the rows of a table of some five rows, and nonsense."""
    rates = st.one_of(
        st.sampled_from([0, 0.5, 1, 2.0, np.float16(3.0), 10**400, 1e-300, True, -1.0]),
        nonsense.scalars,
    )
    of_every_row = st.lists(st.sampled_from([0, 0.5, 1, 1e-300, 1e300, np.nan]), max_size=6)
    return st.one_of(
        st.dictionaries(rates, nonsense.rows(), max_size=2),
        of_every_row,
        of_every_row.map(np.array),
        of_every_row.map(lambda rates: tf.constant(rates, "float64")),
        of_every_row.map(lambda rates: np.array(rates, "float16")),
        nonsense.rows(),
    )


def multipliers(row_learning_rates, variables) -> dict[str, np.ndarray]:
    """The multiplier of each row, by path, as NumPy makes it of what was accepted."""
    found = {}
    for target, rates in row_learning_rates.items():
        for (path, axis), ids in nonsense.tables_named({target: slice(None)}, variables).items():
            assert axis == 0
            assert path not in found
            found[path] = np.ones(len(ids))
            if not hasattr(rates, "items"):
                found[path][:] = np.asarray(rates)
                continue
            for rate, given_rows in rates.items():
                found[path][nonsense.selected(given_rows, len(ids))] = rate
    return found


@several
@given(data=st.data())
def test_rows_move_by_the_multipliers_that_numpy_makes_or_none_does(model, data):
    variables = model.trainable_variables
    gradients = [-tf.ones(variable.shape) for variable in variables]
    all_rows = {"words/embeddings": slice(None), "tags/embeddings": slice(None)}
    make_rates = data.draw(mappings(model, learning_rates()))
    inner = keras.optimizers.SGD(1.0)
    for variable in variables:
        variable.assign(tf.zeros(variable.shape))
    row_learning_rates = {}
    try:
        row_learning_rates = make_rates()
        optimizer = MaskedOptimizer(inner, all_rows, row_learning_rates=row_learning_rates)
        optimizer.build(variables)
    except DOCUMENTED as error:
        check_message(error)
        assert not inner.built
        assert not any(bits(variable.numpy()).any() for variable in variables)
        return
    optimizer.apply(gradients, variables)
    expected = multipliers(row_learning_rates or {}, variables)
    for variable in variables:
        rates = expected.get(variable.path, np.ones(variable.shape[0])).astype("float32")
        rates = rates.reshape(-1, *[1] * (len(variable.shape) - 1))
        moved = np.broadcast_to(rates, variable.shape)
        assert_same_bits(variable.numpy(), np.ascontiguousarray(moved), variable.path)


@many
@given(data=st.data())
def test_gradients_keep_what_numpy_selects_or_none_is_masked(model, data):
    variables = model.trainable_variables
    gradients = [tf.ones(variable.shape) for variable in variables]
    make_rows = data.draw(mappings(model, nonsense.rows()))
    try:
        given_rows = make_rows()
        masked = mask_gradients(gradients, variables, given_rows)
    except DOCUMENTED as error:
        check_message(error)
        masked, expected = gradients, {}
    else:
        expected = nonsense.tables_named(given_rows, variables)
    axes = {path: (axis, ids) for (path, axis), ids in expected.items()}
    for variable, gradient in zip(variables, masked, strict=True):
        axis, ids = axes.get(variable.path, (0, range(variable.shape[0])))
        wanted = np.zeros(variable.shape, "float32")
        np.moveaxis(wanted, axis, 0)[list(ids)] = 1.0
        assert_same_bits(gradient, wanted, variable.path)
