"""Rows are state: whatever is loaded into whatever, each row's state is its own or fresh."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer, Rows
from maskedgrad.testing import assert_same_bits, optimizer_classes, optimizers, row_sets
from maskedgrad.testing.strategies import WRAPPERS
from tests.features import has_muon, needs_muon, some_optimizer_classes

NUM_ROWS, WIDTH = 6, 2
ALL_ROWS = range(NUM_ROWS)
X = np.arange(NUM_ROWS, dtype="int32").reshape(2, 3)  # looks up each row, so that each may move
Y = np.array([[1.0], [-2.0]], "float32")
FORMATS = [".keras", ".weights.h5", "tf.train.Checkpoint"]
CLASSES = pytest.mark.parametrize("cls", some_optimizer_classes())
# One of Hypothesis's examples makes two models; there is a test for each class of optimizer.
few = settings(max_examples=max(2, settings.default.max_examples // 6))
# What Keras may say of a file, beside that rows come with their state.
SILENT = pytest.mark.filterwarnings("ignore::UserWarning")


def compiled(optimizer):
    """A stock or masked model, and its table; eager, since tracing is not what is tested here."""
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    outputs = keras.layers.Dense(1, name="head")(keras.layers.Flatten()(words(inputs)))
    base = MaskedModel if isinstance(optimizer, MaskedOptimizer) else keras.Model
    model = base(inputs, outputs)
    model.compile(optimizer, loss="mse", run_eagerly=True)
    return model, words.embeddings


def masked(optimizer, rows):
    return compiled(MaskedOptimizer(optimizer, {"words/embeddings": rows}))


def train(model, steps=1):
    for _ in range(steps):
        model.train_on_batch(X, Y)


def moved_by(model, table, steps=1):
    """The rows of the table that move in some steps."""
    before = table.numpy()
    train(model, steps)
    return set(np.flatnonzero((table.numpy() != before).any(axis=1)).tolist())


def rows_of(model):
    (table,) = model.optimizer.masked_tables()
    return set(table.rows.ids.tolist())


def save(model, file_format, folder):
    """Saves weights and state; returns a function that loads them into another model."""
    if file_format == "tf.train.Checkpoint":
        prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder / "state")

        def restore(other):
            checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
            return checkpoint.restore(prefix)

        return restore
    path = folder / f"state{file_format}"
    if file_format == ".keras":
        model.save(path)
    else:
        model.save_weights(path)
    return lambda other: other.load_weights(path)


def values_of(variables):
    return [variable.numpy() for variable in variables]


def assert_same_values(variables, values):
    for variable, value in zip(variables, values, strict=True):
        assert_same_bits(variable, value, variable.path)


def assert_goes_on_as(model, table, uninterrupted, table_there):
    """Rows, state and weights are the same, and so is what one more step makes of them."""
    rows = rows_of(uninterrupted)
    for _ in range(2):
        assert rows_of(model) == rows
        assert_same_values(model.optimizer.variables, values_of(uninterrupted.optimizer.variables))
        assert_same_values(model.weights, values_of(uninterrupted.weights))
        frozen = np.delete(table.numpy(), sorted(rows), axis=0)
        moved = moved_by(model, table)
        assert moved == moved_by(uninterrupted, table_there)
        assert moved <= rows
        assert_same_bits(np.delete(table.numpy(), sorted(rows), axis=0), frozen, "frozen rows")


def wrappers_restored_by(cls, file_format):
    """The wrappers whose state a file of Keras or TensorFlow holds, masked or not."""
    if file_format == "tf.train.Checkpoint":
        lost = "multi"
    else:
        # Of a Nadam in a loss scaler Keras has no `_u_product` among the variables that it saves.
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/nadam.py#L93
        lost = "loss_scale" if cls is keras.optimizers.Nadam else None
    return [name for name in ("", *WRAPPERS) if name != lost]


def assert_nothing_frozen_moves(model, table):
    """Steps after a load that has failed train rows that train, or say that they cannot."""
    before = table.numpy()
    try:
        train(model, 2)
    except (ValueError, tf.errors.OpError):
        assert_same_bits(table, before, "the table")
    moved = np.flatnonzero((table.numpy() != before).any(axis=1))
    assert set(moved.tolist()) <= rows_of(model)


@st.composite
def pairs_of_row_sets(draw):
    """Rows that were saved, and those that train where they are loaded, alike or not."""
    saved = draw(row_sets(NUM_ROWS), label="saved")
    same_number = st.permutations(ALL_ROWS).map(lambda ids: sorted(ids[: len(saved)]))
    others = st.one_of(st.just(saved), same_number, row_sets(NUM_ROWS))
    return saved, draw(others, label="rows before loading")


@SILENT
@few
@given(data=st.data())
@pytest.mark.parametrize("file_format", FORMATS)
@CLASSES
def test_loaded_rows_train_with_their_own_state(cls, file_format, tmp_path_factory, data):
    spec = data.draw(optimizers(cls, wrappers_restored_by(cls, file_format)))
    saved, before = data.draw(pairs_of_row_sets())
    steps = data.draw(st.sampled_from([0, 1, 2]), label="steps before saving")
    model, table = masked(spec.make(), saved)
    model.optimizer.build(model.trainable_variables)
    train(model, steps)
    load = save(model, file_format, tmp_path_factory.mktemp("state"))

    other, other_table = masked(spec.make(), before)
    other.optimizer.build(other.trainable_variables)
    train(other, data.draw(st.sampled_from([0, 1]), label="steps before loading"))
    fixed = other.optimizer.fixed_lengths
    try:
        status = load(other)
        if status is not None:
            status.assert_consumed()
    except (ValueError, tf.errors.OpError):
        # TensorFlow assigns one by one, and has no way to make room first.
        assert file_format == "tf.train.Checkpoint"
        assert fixed not in {(None,), (len(saved),)}
        assert rows_of(other) in (set(saved), set(before))
        assert_nothing_frozen_moves(other, other_table)
        return
    assert_goes_on_as(other, other_table, model, table)


@SILENT
@CLASSES
def test_a_loaded_model_trains_the_rows_that_were_set_last(cls, tmp_path):
    model, table = masked(cls(0.1), [0, 1])
    train(model)
    model.set_trainable_rows({"words/embeddings": [1, 3, 4]})
    train(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_goes_on_as(loaded, loaded.get_layer("words").embeddings, model, table)


@pytest.mark.parametrize("file_format", FORMATS[:2])
def test_loading_says_that_rows_come_with_their_state_only_where_they_differ(
    file_format, tmp_path, recwarn
):
    model, _ = masked("adam", [0, 1])
    train(model)
    load = save(model, file_format, tmp_path)
    load(model)
    assert not [each for each in recwarn if each.category is UserWarning]
    other, _ = masked("adam", [4])
    train(other)
    with pytest.warns(UserWarning, match="Rows come with their state"):
        load(other)


@SILENT
@few
@given(data=st.data())
@pytest.mark.parametrize("file_format", FORMATS)
def test_rows_that_are_set_after_loading_have_their_own_state_or_fresh_state(
    file_format, tmp_path_factory, data
):
    saved, after = data.draw(pairs_of_row_sets())
    model, _ = masked(keras.optimizers.Adam(0.1), saved)
    train(model, 2)
    load = save(model, file_format, tmp_path_factory.mktemp("state"))
    other, table = masked(keras.optimizers.Adam(0.1), data.draw(row_sets(NUM_ROWS)))
    train(other)
    load(other)
    other.set_trainable_rows({table.path: after})
    there = [variable for variable, _ in model.optimizer.row_state()]
    here = [variable for variable, _ in other.optimizer.row_state()]
    assert here
    for variable, value in zip(here, values_of(there), strict=True):
        own = dict(zip(saved, value, strict=True))
        fresh = np.zeros(WIDTH, "float32")
        expected = np.stack([own.get(row, fresh) for row in after])
        assert_same_bits(variable, expected, variable.path)
    assert moved_by(other, table) == set(after)


# Restored before there is anything to restore into.


@pytest.mark.parametrize(
    "make", [keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.Ftrl]
)
@pytest.mark.parametrize("before", [[0, 1], [3, 5]])
def test_state_that_is_restored_before_the_build_is_that_of_the_rows_saved(make, before, tmp_path):
    model, table = masked(make(0.1), [0, 1])
    train(model, 2)
    load = save(model, "tf.train.Checkpoint", tmp_path)
    other, other_table = masked(make(0.1), before)
    load(other)
    other.optimizer.build(other.trainable_variables)
    assert_goes_on_as(other, other_table, model, table)


# Stock optimizers.

MAKE_STOCK = {cls.__name__: cls for cls in optimizer_classes()}
if not has_muon():
    MAKE_STOCK.pop("Muon", None)
stocks = st.sampled_from(sorted(MAKE_STOCK))


def is_state_of_steps(values, before, table_state):
    """Whether row state is fresh, or what a stock optimizer had for these rows."""
    return any(np.array_equal(values, each) for each in [before, *table_state])


@given(data=st.data())
@pytest.mark.parametrize("file_format", FORMATS)
def test_state_of_a_stock_optimizer_is_passed_over_or_each_row_takes_its_own(
    file_format, tmp_path_factory, data
):
    stock, _ = compiled(MAKE_STOCK[data.draw(stocks, label="stock")]())
    train(stock, 2)
    load = save(stock, file_format, tmp_path_factory.mktemp("state"))
    rows = data.draw(row_sets(NUM_ROWS), label="rows")
    model, table = masked(MAKE_STOCK[data.draw(stocks, label="masked")](), rows)
    model.optimizer.build(model.trainable_variables)
    fresh = [variable.numpy() for variable, _ in model.optimizer.row_state()]
    if file_format == "tf.train.Checkpoint":
        load(model)  # TensorFlow says nothing unless it is asked by the status
    else:
        with pytest.warns(UserWarning, match="Skipping variable loading|could not be loaded"):
            load(model)
    assert rows_of(model) == set(rows)
    table_state = [
        variable.numpy()[rows]
        for variable in stock.optimizer.variables
        if NUM_ROWS in variable.shape[:1]
    ]
    for (variable, _), before in zip(model.optimizer.row_state(), fresh, strict=True):
        assert variable.shape == before.shape
        assert is_state_of_steps(variable.numpy(), before, table_state), variable.path
    assert moved_by(model, table) <= set(rows)


@given(data=st.data())
@pytest.mark.parametrize("file_format", FORMATS)
def test_masked_state_does_not_get_into_a_stock_optimizer(file_format, tmp_path_factory, data):
    rows = data.draw(row_sets(NUM_ROWS), label="rows")
    model, _ = masked(MAKE_STOCK[data.draw(stocks, label="masked")](), rows)
    train(model, 2)
    load = save(model, file_format, tmp_path_factory.mktemp("state"))
    stock, _ = compiled(MAKE_STOCK[data.draw(stocks, label="stock")]())
    stock.optimizer.build(stock.trainable_variables)
    fresh = values_of(stock.optimizer.variables)
    if file_format == "tf.train.Checkpoint":
        load(stock)
    else:
        with pytest.warns(UserWarning, match="Skipping variable loading"):
            load(stock)
    for variable, before in zip(stock.optimizer.variables, fresh, strict=True):
        assert tuple(variable.shape) == before.shape
        if variable.shape[:1] == (NUM_ROWS,) and len(rows) < NUM_ROWS:
            assert_same_bits(variable, before, variable.path)
    train(stock)


# Keras evaluates every attribute of an optimizer, by the alphabet, while it saves and loads.

GETTERS = {
    "trainable_rows": lambda optimizer: optimizer.trainable_rows,
    "variables": lambda optimizer: optimizer.variables,
    "masked_tables": lambda optimizer: optimizer.masked_tables(),
}


@SILENT
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["a", "_a", "frozen_rows"])
@pytest.mark.parametrize("getter", GETTERS)
def test_a_property_of_a_subclass_changes_nothing_about_loading(
    getter, name, file_format, tmp_path
):
    class Named(MaskedOptimizer):
        pass

    setattr(Named, name, property(GETTERS[getter]))
    model, table = compiled(Named(keras.optimizers.Adam(0.1), {"words/embeddings": [0, 1]}))
    train(model, 2)
    load = save(model, file_format, tmp_path)
    plain, plain_table = masked(keras.optimizers.Adam(0.1), [3, 4, 5])
    named, named_table = compiled(
        Named(keras.optimizers.Adam(0.1), {"words/embeddings": [3, 4, 5]})
    )
    for other in (plain, named):
        other.optimizer.build(other.trainable_variables)
        load(other)
    assert_same_values(plain.optimizer.variables, values_of(model.optimizer.variables))
    assert_goes_on_as(named, named_table, plain, plain_table)
    assert_same_bits(plain_table, named_table, "the table")
    assert moved_by(model, table) == {0, 1}


# Two tables, and rows along another axis.


@SILENT
@few
@given(data=st.data())
@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("names", [("words", "items"), ("words", "words")])
def test_each_of_two_tables_keeps_its_rows_and_its_state(
    names, file_format, tmp_path_factory, data
):
    def make(*rows):
        inputs = [keras.Input((3,), dtype="int32") for _ in names]
        words = [keras.layers.Embedding(NUM_ROWS, WIDTH, name=name) for name in names]
        towers = [
            keras.Model(each, layer(each), name=f"tower_{number}")
            for number, (each, layer) in enumerate(zip(inputs, words, strict=True))
        ]
        outputs = keras.layers.Flatten()(
            keras.layers.Subtract()([t(i) for t, i in zip(towers, inputs, strict=True)])
        )
        model = MaskedModel(inputs, keras.layers.Dense(1, name="head")(outputs))
        model.compile(
            keras.optimizers.Adam(0.1),
            loss="mse",
            run_eagerly=True,
            trainable_rows=dict(zip(words, rows, strict=True)),
        )
        model.optimizer.build(model.trainable_variables)
        return model

    saved, before = zip(*(data.draw(pairs_of_row_sets()) for _ in names), strict=True)
    model = make(*saved)
    model.train_on_batch([X, X[::-1]], Y)
    load = save(model, file_format, tmp_path_factory.mktemp("state"))
    other = make(*before)
    load(other)
    for _ in range(2):
        rows = [table.rows for table in other.optimizer.masked_tables()]
        assert rows == [Rows(ids, NUM_ROWS) for ids in saved]
        assert_same_values(other.optimizer.variables, values_of(model.optimizer.variables))
        assert_same_values(other.weights, values_of(model.weights))
        for each in (model, other):
            each.train_on_batch([X, X[::-1]], Y)


@needs_muon()
@pytest.mark.parametrize(
    ("saved", "before"), [(ALL_ROWS, [0, 1]), ([0, 1], ALL_ROWS), ([0, 1], [4])]
)
def test_state_of_other_rows_than_train_moves_no_table(saved, before, tmp_path):
    """Of a fixed length, TensorFlow restores the rows and then fails to restore their state."""

    def made(rows):
        muon = keras.optimizers.Muon(0.1, exclude_embeddings=False, weight_decay=0.1)
        model, table = masked(muon, rows)
        train(model)
        return model, table

    load = save(made(saved)[0], "tf.train.Checkpoint", tmp_path)
    model, table = made(before)
    with pytest.raises((ValueError, tf.errors.OpError)):
        load(model).assert_consumed()
    values = table.numpy()
    with pytest.raises(ValueError, match="must be of the rows that train"):
        train(model)
    assert_same_bits(table, values, "the table")
