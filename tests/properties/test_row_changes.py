"""The set of trainable rows changes: rows move only while they train, and start fresh."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, reject
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer, Rows
from maskedgrad.masking.state import RowAxis, row_axes
from maskedgrad.testing import (
    TABLE_PATH,
    Table,
    assert_same_bits,
    gradients_of,
    optimizer_classes,
    optimizers,
    row_sets,
    tables,
)
from tests.properties.oracle import kernel_variable
from tests.properties.strategies import kernel_gradients

VALUES = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")


@given(data=st.data())
def test_a_row_moves_only_in_steps_in_which_it_trains(data):
    cls = data.draw(st.sampled_from(optimizer_classes()))
    table = data.draw(tables())
    variables = [table.variable(), kernel_variable(table)]
    optimizer = MaskedOptimizer(data.draw(optimizers(cls)).make(), {TABLE_PATH: table.ids})
    sets = st.lists(row_sets(len(table.values)), min_size=1, max_size=4)
    for ids in data.draw(sets, label="row sets"):
        optimizer.set_trainable_rows({TABLE_PATH: ids})
        now = Table(variables[0].numpy(), np.array(ids))
        try:
            for _ in range(data.draw(st.integers(0, 2), label="steps")):
                gradient, _ = data.draw(gradients_of(now, kinds=("dense", "sparse")))
                step = [gradient, data.draw(kernel_gradients(now))]
                optimizer.apply(step, variables)
        except tf.errors.InvalidArgumentError:
            reject()  # Keras does not mix these dtypes, wrapped or not
        after = variables[0].numpy()
        assert_same_bits(after[now.frozen], now.values[now.frozen], "frozen rows")


@given(sets=st.lists(row_sets(6), min_size=2, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_each_row_follows_an_optimizer_of_its_own_that_is_made_when_it_joins(sets, seed):
    """Gradient descent with momentum treats every number alone, so rows have oracles apart."""
    random = np.random.default_rng(seed)
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), {"table": sets[0]})
    optimizer.build([table])
    alone, expected = {}, VALUES.copy()
    for ids in sets:
        optimizer.set_trainable_rows({"table": ids})
        alone = {row: alone.get(row) or keras.optimizers.SGD(0.1, momentum=0.9) for row in ids}
        variables = {row: keras.Variable(expected[row]) for row in ids}
        for row in ids:
            if alone[row].built:
                velocity = alone[row].variables[-1].numpy()
                alone[row] = keras.optimizers.SGD(0.1, momentum=0.9)
                alone[row].build([variables[row]])
                alone[row].variables[-1].assign(velocity)
        for _ in range(2):
            gradient = random.normal(size=VALUES.shape).astype("float32")
            optimizer.apply([tf.constant(gradient)], [table])
            for row in ids:
                alone[row].apply([tf.constant(gradient[row])], [variables[row]])
        for row in ids:
            expected[row] = variables[row].numpy()
        assert_same_bits(table, expected, "the table")


@pytest.mark.parametrize("cls", optimizer_classes(), ids=lambda cls: cls.__name__)
def test_rows_that_join_start_with_the_state_of_a_new_optimizer(cls):
    table, gradient = keras.Variable(VALUES, name="table"), tf.ones_like(VALUES)
    optimizer = MaskedOptimizer(cls(), {"table": [0, 1]})
    optimizer.apply([gradient], [table])
    optimizer.set_trainable_rows({"table": [1, 2, 3]})
    fresh = MaskedOptimizer(cls(), {"table": [1, 2, 3]})
    fresh.build([table])
    axes = row_axes(fresh.inner_optimizer, [table], fresh._plan.tables)
    for slot, new, place in zip(optimizer.variables, fresh.variables, axes, strict=True):
        if place is not None:
            rows, new_rows = (np.moveaxis(v.numpy(), place.axis, 0)[1:] for v in (slot, new))
            assert_same_bits(rows, new_rows, slot.path)
    assert int(optimizer.iterations) == 1


def test_an_average_starts_from_the_row_that_joins():
    table = keras.Variable(VALUES, name="table")
    inner = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1)
    optimizer = MaskedOptimizer(inner, {"table": [0]})
    optimizer.apply([tf.ones_like(VALUES)], [table])
    optimizer.set_trainable_rows({"table": [0, 1]})
    optimizer.apply([tf.ones_like(VALUES)], [table])
    np.testing.assert_allclose(table, VALUES, rtol=1e-6)  # averages of equals, but rounded


def test_the_axis_of_rows_is_found_where_state_has_another_shape():
    first, second = keras.Variable(VALUES, name="first"), keras.Variable(VALUES.T, name="second")
    optimizer = MaskedOptimizer("adafactor", {"first": [0, 1], "second": [1]})
    optimizer.build([first, second])
    tables = optimizer._plan.tables
    axes = row_axes(optimizer.inner_optimizer, [first, second], tables)
    of_first, of_second = [RowAxis(0, 0), None, RowAxis(0, 0)], [RowAxis(1, 0), None, RowAxis(1, 0)]
    assert axes == [None, None, *of_first, *of_second]


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_masked_model_trains_the_new_rows_without_being_compiled_again(jit_compile, wrap):
    model, words = small_model(MaskedModel)
    optimizer = MaskedOptimizer("adamw", {words: [0]})
    model.compile(wrap(optimizer), loss="mse", jit_compile=jit_compile)
    for ids in ([0], [1, 2], [2, 5], [0, 1, 2, 3, 4, 5]):
        optimizer.set_trainable_rows({words: ids})
        before = words.embeddings.numpy()
        model.fit(np.arange(6).reshape(2, 3), np.ones((2, 1)), verbose=0)
        changed = (words.embeddings.numpy() != before).any(axis=1)
        assert np.flatnonzero(changed).tolist() == ids


def small_model(base):
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(6, 2, name="words")
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs)))
    return base(inputs, outputs), words


def test_a_stock_model_stops_until_its_function_is_renewed():
    model, words = small_model(keras.Model)
    optimizer = MaskedOptimizer("adamw", {words: [0]})
    model.compile(optimizer, loss="mse")
    batch = np.arange(6).reshape(2, 3), np.ones((2, 1))
    model.train_on_batch(*batch)
    optimizer.set_trainable_rows({words: [1]})
    before = words.embeddings.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="make_train_function"):
        model.train_on_batch(*batch)
    assert_same_bits(words.embeddings, before, "the table")
    model.make_train_function(force=True)
    model.train_on_batch(*batch)
    changed = (words.embeddings.numpy() != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [1]


def test_what_is_excluded_from_weight_decay_stays_excluded():
    table = keras.Variable(VALUES, name="table")
    inner = keras.optimizers.SGD(0.5, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["table"])
    optimizer = MaskedOptimizer(inner, {"table": [0]})
    optimizer.build([table])
    optimizer.set_trainable_rows({"table": [1]})
    optimizer.apply([tf.zeros_like(VALUES)], [table])
    assert_same_bits(table, VALUES, "the table")


NAMES = ["table", "other", "t.*|o.*"]
REFUSED = [
    (masked, named, rows)
    for masked, named, rows in itertools.product(NAMES, NAMES, [(9,), (), (1,)])
    if named != masked or rows != (1,)
]


@pytest.mark.parametrize(("masked", "named", "rows"), REFUSED)
def test_a_refused_change_changes_nothing(masked, named, rows):
    table, other = keras.Variable(VALUES, name="table"), keras.Variable(VALUES, name="other")
    optimizer = MaskedOptimizer("adam", {masked: [0]})
    optimizer.build([table, other])
    inner, before = optimizer.inner_optimizer, optimizer.trainable_rows
    with pytest.raises(ValueError, match=r"table|other"):
        optimizer.set_trainable_rows({named: rows})
    assert optimizer.inner_optimizer is inner
    assert optimizer.trainable_rows == before


def test_rows_that_no_table_can_have_are_refused_before_there_is_a_table():
    optimizer = MaskedOptimizer("adam", {"table": [0]})
    with pytest.raises(ValueError, match="negative"):
        optimizer.set_trainable_rows({"table": [-1]})
    assert optimizer.trainable_rows == {"table": [0]}


def test_state_that_was_saved_with_other_rows_is_carried_over(tmp_path):
    model, words = small_model(MaskedModel)
    batch = np.arange(6).reshape(2, 3), np.ones((2, 1))
    model.compile("adam", loss="mse", trainable_rows={words: [0, 1]})
    model.train_on_batch(*batch)
    model.save(tmp_path / "model.keras")
    saved = [variable.numpy() for variable in model.optimizer.variables]

    loaded, words = small_model(MaskedModel)
    loaded.compile("adam", loss="mse", trainable_rows={words: [1, 2, 3]})
    loaded.optimizer.build(loaded.trainable_variables)
    with pytest.warns(UserWarning, match="1 rows keep their state, and 2 start fresh"):
        loaded.load_weights(tmp_path / "model.keras")
    assert loaded.optimizer.trainable_rows == {"words/embeddings": Rows([1, 2, 3], 6)}
    for slot, value in zip(loaded.optimizer.variables, saved, strict=True):
        if slot.shape == (3, 2):
            assert_same_bits(slot.numpy()[0], value[1], slot.path)
            assert not slot.numpy()[1:].any()
        else:
            assert_same_bits(slot, value, slot.path)
    before = words.embeddings.numpy()
    loaded.train_on_batch(*batch)
    changed = (words.embeddings.numpy() != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [1, 2, 3]


def loading_state_of_other_rows():
    """An optimizer of rows 1, 2 and 3 whose inner one is ready to load state of rows 0 and 1."""
    table, store = keras.Variable(VALUES, name="table"), {}
    saved = MaskedOptimizer("adam", {"table": [0, 1]})
    saved.build([table])
    saved.save_own_variables(store)
    optimizer = MaskedOptimizer("adam", {"table": [1, 2, 3]})
    optimizer.build([table])
    with pytest.warns(UserWarning, match="1 rows keep their state, and 2 start fresh"):
        optimizer.load_own_variables(store)
    assert rows_with_state(optimizer) == {2}
    return optimizer, table


def rows_with_state(optimizer):
    return {slot.shape[0] for slot in optimizer.inner_optimizer.variables if len(slot.shape)}


ASKED_FIRST = {
    "trainable_rows": lambda optimizer, table: optimizer.trainable_rows,
    "variables": lambda optimizer, table: optimizer.variables,
    "get_config": lambda optimizer, table: optimizer.get_config(),
    "apply": lambda optimizer, table: optimizer.apply([tf.ones_like(VALUES)], [table]),
    "gathered_rows": lambda optimizer, table: optimizer.gathered_rows().__enter__(),
    "save": lambda optimizer, table: optimizer.save_own_variables({}),
}


@pytest.mark.parametrize("ask", ASKED_FIRST.values(), ids=ASKED_FIRST)
def test_whatever_is_asked_first_after_loading_is_told_of_the_rows_that_train(ask):
    optimizer, table = loading_state_of_other_rows()
    ask(optimizer, table)
    assert rows_with_state(optimizer) == {3}


def test_rows_that_are_set_after_loading_train():
    optimizer, _ = loading_state_of_other_rows()
    optimizer.set_trainable_rows({"table": [4, 5]})
    assert optimizer.trainable_rows == {"table": Rows([4, 5], 6)}
