"""A row moves by its multiplier times what the inner optimizer would have moved it by."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, reject
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer
from maskedgrad.testing import (
    TABLE_PATH,
    assert_same_bits,
    gradients_of,
    optimizers,
    tables,
)
from tests.features import some_optimizer_classes

multipliers = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])


@pytest.mark.parametrize("cls", some_optimizer_classes())
@given(data=st.data())
def test_a_row_moves_by_its_share_of_every_optimizers_step(cls, data):
    table, spec = data.draw(tables()), data.draw(optimizers(cls))
    rates = np.array([data.draw(multipliers) for _ in table.values])
    rates[table.ids[0]] = 0.5
    trained = table.ids[rates[table.ids] != 0]
    variable, compact = table.variable(), table.variable(table.values[trained])
    shares = rates[trained].reshape([-1] + [1] * (table.values.ndim - 1)).astype(table.dtype)
    oracle = spec.make()
    oracle.build([compact])
    optimizer = MaskedOptimizer(
        spec.make(), {TABLE_PATH: table.ids}, row_learning_rates={TABLE_PATH: rates}
    )
    optimizer.build([variable])
    for _ in range(data.draw(st.integers(1, 3), label="steps")):
        gradient, _ = data.draw(gradients_of(table))
        selected = None if gradient is None else tf.gather(densified(gradient), trained)
        before = compact.value + 0
        try:
            oracle.apply([selected], [compact])
        except Exception:
            reject()  # no law where the bare optimizer does not work either
        moved = before + shares * (compact.value - before)
        whole = tf.logical_or(shares == 1, compact.value == before)
        compact.assign(tf.where(whole, compact.value, moved))
        optimizer.apply([gradient], [variable])
        frozen = np.setdiff1d(np.arange(len(rates)), trained)
        assert_same_bits(variable.numpy()[frozen], table.values[frozen], "frozen rows")
        assert_same_bits(variable.numpy()[trained], compact, "trainable rows")


def densified(gradient):
    """The dense gradient, added up in the order of the slices."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(
        gradient.values, gradient.indices, int(gradient.dense_shape[0])
    )


@pytest.mark.parametrize("make", [keras.optimizers.SGD, keras.optimizers.AdamW])
def test_a_multiplier_is_one_of_the_learning_rate_where_a_step_is_proportional_to_it(make):
    values = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    slow, alone = (keras.Variable(values, name="table") for _ in range(2))
    bare = make(0.025)
    optimizer = MaskedOptimizer(
        make(0.1), {"table": slice(None)}, row_learning_rates={"table": {0.25: [0, 1, 2]}}
    )
    for step in range(3):
        gradient = tf.constant(values * (step + 1) - 0.3)
        optimizer.apply([gradient], [slow])
        bare.apply([gradient], [alone])
    # The two multiply in another order, which rounds otherwise.
    np.testing.assert_allclose(slow, alone, rtol=1e-5, atol=1e-6)


def test_an_array_says_the_same_as_a_mapping():
    by_array = rates_of({"table": np.array([1, 0.5, 0.5, 0])})
    by_mapping = rates_of({"table": {0.5: [1, 2], 0: [3]}})
    assert by_array == by_mapping == ([0, 1, 2], [1.0, 0.5, 0.5])


def rates_of(row_learning_rates):
    variable = keras.Variable(np.ones((4, 2), "float32"), name="table")
    optimizer = MaskedOptimizer("sgd", {"table": slice(None)}, None, row_learning_rates)
    optimizer.learning_rate = 1.0
    optimizer.build([variable])
    optimizer.apply([tf.ones((4, 2))], [variable])
    moved = 1 - variable.numpy()[:, 0]
    rows = list(optimizer.trainable_rows["table"])
    return rows, moved[rows].tolist()


def test_multipliers_hold_for_rows_that_join_and_come_back_from_a_config():
    variable = keras.Variable(np.ones((4, 2), "float32"), name="table")
    optimizer = MaskedOptimizer(
        keras.optimizers.SGD(1.0), {"table": [0]}, row_learning_rates={"table": {0.5: [0, 1]}}
    )
    optimizer.build([variable])
    optimizer.set_trainable_rows({"table": [1, 2]})
    again = MaskedOptimizer.from_config(optimizer.get_config())
    for one in (optimizer, again):
        variable.assign(np.ones((4, 2), "float32"))
        one.apply([tf.ones((4, 2))], [variable])
        assert variable.numpy()[:, 0].tolist() == [1, 0.5, 0, 1]
    assert again.get_config() == optimizer.get_config()


def test_a_row_that_the_inner_optimizer_leaves_keeps_its_bits():
    values = np.array([[-np.inf, -0.0, 1.0]], "float32").T
    variable = keras.Variable(values, name="table")
    optimizer = MaskedOptimizer("sgd", {"table": slice(None)}, None, {"table": {0.5: [0, 1, 2]}})
    optimizer.apply([tf.zeros((3, 1))], [variable])
    assert_same_bits(variable, values, "rows")


@pytest.mark.parametrize("name", ["rows.weights.h5", "checkpoint"])
def test_multipliers_come_with_the_state_that_was_saved_of_the_rows(name, tmp_path):
    models = []
    for rows, rates in [([0, 1, 2], {0.5: [1]}), ([1, 2], {0.25: [2], 0: [0]})]:
        words = keras.layers.Embedding(4, 2, name="words")
        model = MaskedModel(inputs := keras.Input((2,)), words(inputs))
        model.compile(MaskedOptimizer("adam", {words: rows}, None, {words: rates}), loss="mse")
        model.train_on_batch(np.array([[0, 1]]), np.ones((1, 2, 2)))
        models.append(model)
    saved, loaded = models
    if name == "checkpoint":
        path = tf.train.Checkpoint(model=saved).write(str(tmp_path / name))
        tf.train.Checkpoint(model=loaded).read(path).assert_consumed()
    else:
        saved.save_weights(tmp_path / name)
        with pytest.warns(UserWarning, match="Rows come with their state"):
            loaded.load_weights(tmp_path / name)
    (table,) = loaded.optimizer.masked_tables()
    assert list(table.rows) == [0, 1, 2]
    assert table.learning_rates.tolist() == [1, 0.5, 1]
    for model in models:
        model.train_on_batch(np.array([[0, 1]]), np.ones((1, 2, 2)))
    pairs = [model.weights + model.optimizer.variables for model in models]
    for one, other in zip(*pairs, strict=True):
        assert_same_bits(one, other, one.path)


@pytest.mark.processes  # the time that it takes
def test_a_number_for_each_of_many_rows_takes_no_quadratic_time():
    rates = np.linspace(0.1, 1, 100_000)
    optimizer = MaskedOptimizer("sgd", {"table": [5]}, row_learning_rates={"table": rates})
    variable = keras.Variable(np.ones((len(rates), 1), "float32"), name="table")
    optimizer.learning_rate = 1.0
    optimizer.apply([tf.ones(variable.shape)], [variable])
    assert variable.numpy()[5, 0] == np.float32(1) + np.float32(rates[5]) * np.float32(-1)


def test_a_config_says_the_rates_of_a_layer_that_was_frozen_whole_since():
    words = keras.layers.Embedding(5, 2)
    words.build()
    rates = {words: {0.5: [1], 2.0: [4]}}
    optimizer = MaskedOptimizer("adam", {words: [1, 4]}, row_learning_rates=rates)
    optimizer.build([words.embeddings])
    before = optimizer.get_config()
    words.trainable = False
    assert optimizer.get_config() == before


def test_final_values_are_set_whole():
    variable = keras.Variable(np.ones((2, 1), "float32"), name="table")
    averaging = keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.5)
    optimizer = MaskedOptimizer(averaging, {"table": [0]}, None, {"table": {0.5: [0]}})
    optimizer.apply([tf.ones((2, 1))], [variable])
    optimizer.finalize_variable_values([variable])
    average = optimizer.inner_optimizer.variables[-1].numpy()
    assert variable.numpy()[0] == average[0]


@pytest.mark.parametrize(
    ("rates", "error", "message"),
    [
        ([1, 2], TypeError, "must be a mapping from target"),
        ({"table": {-1: [0]}}, ValueError, "0 or more"),
        ({"table": {float("nan"): [0]}}, ValueError, "finite"),
        ({"table": {"slow": [0]}}, ValueError, "finite number"),
        ({"table": {True: [0]}}, ValueError, "finite number"),
        ({"table": {10**400: [0]}}, ValueError, "finite number"),
        ({"table": keras.KerasTensor((2,))}, TypeError, "array of one number for each row"),
        ({"table": range(2)}, TypeError, "a range names rows"),
        ({"table": range(2**40)}, TypeError, "a range names rows"),
        ({"table": [[1.0]]}, TypeError, "one number for each row"),
        ({"table": {0.5: [-1]}}, ValueError, "must not be negative"),
        ({"table": []}, TypeError, "one number for each row"),
        ({3: {0.5: [1]}}, TypeError, "A target must be"),
    ],
)
def test_nonsense_is_refused_at_once(rates, error, message):
    with pytest.raises(error, match=message):
        MaskedOptimizer("sgd", {"table": [0]}, row_learning_rates=rates)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"table": [1.0, 2.0]}, "one for each row of the table, 3"),
        ({"table": {0.5: [9]}}, "must be below 3"),
        ({"table": {0.5: [0, 1], 0.1: [1]}}, "one multiplier"),
        ({"other": {0.5: [0]}}, "must name tables that `trainable_rows` names"),
        ({"gone": {0.5: [0]}}, "matches none"),
        ({"table": {0: [0]}}, "No row of 'table' trains"),
        ({"table": {0: [0]}, "tabl.": {0.5: [0]}}, "Two targets of `row_learning_rates`"),
        ({"table": {1e39: [0]}}, "dtype float32 can hold"),
        ({"table": {1e-60: [0]}}, "dtype float32 can hold"),
    ],
)
def test_what_does_not_fit_the_table_is_refused_when_the_optimizer_is_built(rates, message):
    variables = [
        keras.Variable(np.ones((3, 1), "float32"), name="table"),
        keras.Variable(np.ones((3, 1), "float32"), name="other"),
    ]
    optimizer = MaskedOptimizer("sgd", {"table": [0]}, row_learning_rates=rates)
    with pytest.raises(ValueError, match=message):
        optimizer.build(variables)
    assert not optimizer.built
