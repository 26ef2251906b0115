"""Layers that hold tables, and layers on top of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import AlongAxis, MaskedOptimizer
from tests.compatibility.helpers import (
    IDS,
    LENGTH,
    MATRIX,
    NUM_ROWS,
    WIDTH,
    X,
    Y,
    assert_only_trained,
    bits,
    in_both_models,
    pooled_model,
)
from tests.compatibility.table import refused, works
from tests.features import needs

TABLES = "Layers that hold tables"
ON_TOP = "Layers on top"
FROZEN = np.setdiff1d(np.arange(NUM_ROWS), IDS)
PADDED = np.where(X == 0, 1, X)
PADDED[::2, 3:] = 0


def assert_trains_as_without_masks(
    model, whole, trainable_rows, x, y, *, tables, **compile_options
):
    """One step moves what trains as it moves where everything trains, and moves nothing else.

    Args:
        model: a model, not compiled.
        whole: the same model once more, which trains whole.
        trainable_rows: as `MaskedOptimizer` takes it.
        x: the inputs, one batch.
        y: what `fit` takes for it.
        tables: variables of `model` with the ids that train and the axis that they lie along.
        **compile_options: for both models.
    """
    whole.set_weights(model.get_weights())
    before = model.get_weights()
    options = {"loss": "mse", **compile_options}
    model.compile(MaskedOptimizer(keras.optimizers.SGD(0.1), trainable_rows), **options)
    # Eagerly, since a single step is not worth a graph.
    whole.compile(keras.optimizers.SGD(0.1), run_eagerly=True, **options)
    for each in (model, whole):
        each.fit(x, y, batch_size=len(X), verbose=0)
    masked = {id(variable): (ids, axis) for variable, ids, axis in tables}
    assert masked.keys() <= {id(variable) for variable in model.trainable_variables}
    for variable, *values in zip(
        model.weights, before, model.get_weights(), whole.get_weights(), strict=True
    ):
        old, new, unmasked = values
        ids = slice(None)
        if id(variable) in masked:
            ids, axis = masked[id(variable)]
            old, new, unmasked = (np.moveaxis(value, axis, 0) for value in values)
            assert_only_trained(old, new, ids)
            others = np.setdiff1d(np.arange(len(old)), ids)
            assert (unmasked[others] != old[others]).any(), "nothing here shows a mask"
        # Keras adds up slices of the same row one by one, in another order.
        np.testing.assert_allclose(new[ids], unmasked[ids], rtol=1e-4, atol=1e-6)


def assert_rows_train_as_without_masks(make, model_class, x=X, y=Y, **compile_options):
    """The same for the rows `IDS` of one table. `make` takes a model class, as `pooled_model`."""
    (model, words), (whole, _) = make(model_class), make(keras.Model)
    tables = [(words.embeddings, IDS, 0)]
    assert_trains_as_without_masks(
        model, whole, {words: IDS}, x, y, tables=tables, **compile_options
    )
    return model, words


def fit(model, optimizer, x=X, y=Y):
    """Trains for one epoch of two batches."""
    model.compile(optimizer, loss="mse")
    model.fit(x, y, batch_size=8, verbose=0)


def assert_padding_is_ignored(model, words, x):
    """What stands in row 0 of the table makes no difference."""
    before = model(x).numpy()
    table = words.embeddings.numpy()
    table[0] += 10.0
    words.embeddings.assign(table)
    np.testing.assert_array_equal(model(x).numpy(), before)


# ---- layers that hold tables ----


@works(TABLES, "`Embedding` with `mask_zero`", "The row of the padding is like any other.")
@in_both_models
def test_padding_stays_masked(model_class):
    model, words = assert_rows_train_as_without_masks(
        lambda model_class: pooled_model(model_class, mask_zero=True), model_class, PADDED
    )
    assert_padding_is_ignored(model, words, PADDED)


@works(
    TABLES,
    "`Embedding` with a regularizer",
    "The loss counts every row of the table; the gradient reaches trainable rows only.",
)
@in_both_models
def test_a_regularizer_counts_every_row_and_moves_the_trainable_ones(model_class):
    l2 = 0.5

    def make(model_class):
        return pooled_model(model_class, embeddings_regularizer=keras.regularizers.L2(l2))

    unread = np.where(np.isin(X, IDS), 1, X)  # the trainable rows move by the regularizer alone
    model, words = assert_rows_train_as_without_masks(make, model_class, unread)
    expected = (1 - 2 * l2 * 0.1) * MATRIX[IDS]
    # A rounding in each product and in the difference.
    np.testing.assert_allclose(words.embeddings.numpy()[IDS], expected, rtol=1e-6)
    loss = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    error = np.mean((model(X).numpy() - Y) ** 2)
    table = words.embeddings.numpy()
    # NumPy adds the squares in another order.
    np.testing.assert_allclose(loss, error + l2 * np.sum(table**2), rtol=1e-5)


CONSTRAINTS = {
    "NonNeg": (keras.constraints.NonNeg(), lambda rows: (rows >= 0).all()),
    "MaxNorm": (
        keras.constraints.MaxNorm(0.5, axis=1),
        # Keras divides by the norm plus a small number, so that rounding stays below this.
        lambda rows: (np.linalg.norm(rows, axis=1) < 0.5 + 1e-6).all(),
    ),
}


@works(
    TABLES,
    "`Embedding` with a constraint on values or rows, such as `NonNeg()`, `MaxNorm(axis=1)`",
    "Holds for trainable rows. A frozen row that violates it stays as it is.",
)
@in_both_models
@pytest.mark.parametrize(("constraint", "holds"), CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_a_constraint_on_rows_holds_where_rows_train(constraint, holds, model_class):
    assert not holds(MATRIX[IDS])
    assert not holds(MATRIX[FROZEN])
    _, words = assert_rows_train_as_without_masks(
        lambda model_class: pooled_model(model_class, embeddings_constraint=constraint), model_class
    )
    assert holds(words.embeddings.numpy()[IDS])


@works(
    TABLES,
    "`Embedding` with a constraint along the rows, such as `UnitNorm(axis=0)`",
    "Holds over the trainable rows, as if the table held no others.",
)
@in_both_models
def test_a_constraint_along_the_rows_holds_over_the_trainable_rows(model_class):
    constraint = keras.constraints.UnitNorm(axis=0)
    model, words = pooled_model(model_class, embeddings_constraint=constraint)
    fit(model, MaskedOptimizer("adamw", {words: IDS}))
    table = words.embeddings.numpy()
    assert_only_trained(MATRIX, table)
    # One rounding in each square, in their sum and in the quotient.
    np.testing.assert_allclose(np.linalg.norm(table[IDS], axis=0), 1, rtol=1e-6)


def mean_of_rows(model, words, x):
    """What `pooled_model` predicts, of the weights that it has now."""
    kernel, bias = model.layers[-1].get_weights()
    return np.stack([words.embeddings.numpy()[ids].mean(axis=0) for ids in x]) @ kernel + bias


class Mean(keras.layers.Layer):
    """The mean of each ragged text."""

    def call(self, vectors):
        return tf.reduce_mean(vectors, axis=1)


def ragged_model(model_class):
    inputs = keras.Input((None,), dtype="int32", ragged=True)
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    return model_class(inputs, keras.layers.Dense(1)(Mean()(words(inputs)))), words


@works(TABLES, "`Embedding` with ragged ids", "`keras.Input(ragged=True)`")
@needs("Input", "ragged")
@in_both_models
def test_ragged_ids_are_looked_up(model_class):
    texts = [row[: 1 + place % LENGTH].tolist() for place, row in enumerate(X)]
    x = tf.ragged.constant(texts, dtype=tf.int32)
    model, words = assert_rows_train_as_without_masks(ragged_model, model_class, x)
    # NumPy adds in another order.
    np.testing.assert_allclose(
        model(x).numpy(), mean_of_rows(model, words, texts), rtol=1e-5, atol=1e-6
    )


def sparse_model(model_class):
    inputs = keras.Input((LENGTH,), dtype="int32", sparse=True)
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    average = keras.layers.GlobalAveragePooling1D()(words(inputs))
    return model_class(inputs, keras.layers.Dense(1)(average)), words


@works(
    TABLES,
    "`Embedding` with sparse ids",
    "`keras.Input(sparse=True)`. Keras reads the whole table there, in each step.",
)
@in_both_models
def test_sparse_ids_are_looked_up(model_class):
    x = tf.sparse.from_dense(X.astype("int32"))
    model, words = assert_rows_train_as_without_masks(sparse_model, model_class, x)
    # NumPy adds in another order.
    np.testing.assert_allclose(
        model(x).numpy(), mean_of_rows(model, words, X), rtol=1e-5, atol=1e-6
    )


@works(TABLES, "`TextVectorization` in front of an `Embedding`", "The model takes raw strings.")
@in_both_models
def test_rows_of_words_train_from_raw_strings(model_class):
    vocabulary = [f"word{i}" for i in range(2, NUM_ROWS)]  # 0 is the padding, and 1 the unknown

    def make(model_class):
        inputs = keras.Input((), dtype="string")
        ids = keras.layers.TextVectorization(vocabulary=vocabulary, output_sequence_length=LENGTH)
        words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
        average = keras.layers.GlobalAveragePooling1D()(words(ids(inputs)))
        return model_class(inputs, keras.layers.Dense(1)(average)), words

    texts = [" ".join(f"word{i}" for i in row) for row in np.maximum(X, 2)]
    model, words = assert_rows_train_as_without_masks(make, model_class, tf.constant(texts))
    # NumPy adds in another order.
    np.testing.assert_allclose(
        model(tf.constant(texts)).numpy(),
        mean_of_rows(model, words, np.maximum(X, 2)),
        rtol=1e-5,
        atol=1e-6,
    )


@works(TABLES, "One table in two models that train in turn", "Each optimizer has its own rows.")
@in_both_models
def test_two_models_train_their_rows_of_one_table(model_class):
    first, words = pooled_model(model_class)
    inputs = keras.Input((LENGTH,), dtype="int32")
    second = model_class(inputs, keras.layers.GRU(1)(words(inputs)))
    optimizers = {
        first: MaskedOptimizer("adamw", {words: [3, 7]}),
        second: MaskedOptimizer("adamw", {words: [7, 9]}),
    }
    for model, optimizer in optimizers.items():
        model.compile(optimizer, loss="mse")
    for model, ids in [(first, [3, 7]), (second, [7, 9]), (first, [3, 7])]:
        before = words.embeddings.numpy()
        model.fit(X, Y, batch_size=8, verbose=0)
        assert_only_trained(before, words.embeddings.numpy(), ids)


@works(TABLES, "Two tables in one model", "Each has its own rows. A table not named trains whole.")
@in_both_models
def test_two_tables_train_their_own_rows(model_class):
    def make(model_class):
        inputs = keras.Input((LENGTH,), dtype="int32")
        tables = [keras.layers.Embedding(NUM_ROWS, WIDTH, name=name) for name in "abc"]
        average = keras.layers.GlobalAveragePooling1D()
        means = [average(table(inputs)) for table in tables]
        return model_class(inputs, keras.layers.Dense(1)(keras.layers.Concatenate()(means))), tables

    (model, (a, b, _)), (whole, _) = make(model_class), make(keras.Model)
    assert_trains_as_without_masks(
        model,
        whole,
        {a: IDS, b: [7]},
        X,
        Y,
        tables=[(a.embeddings, IDS, 0), (b.embeddings, [7], 0)],
    )


FEATURES = np.random.default_rng(1).normal(size=(16, 6)).astype("float32")


@works(TABLES, "Rows of a `Dense` kernel, named by its path", "Some inputs of the layer train.")
@in_both_models
def test_rows_of_a_kernel_train(model_class):
    def make(model_class):
        inputs = keras.Input((6,))
        dense = keras.layers.Dense(3, activation="tanh", name="features")
        return model_class(inputs, keras.layers.Dense(1)(dense(inputs))), dense

    (model, dense), (whole, _) = make(model_class), make(keras.Model)
    assert_trains_as_without_masks(
        model, whole, {dense.kernel.path: [2, 5]}, FEATURES, Y, tables=[(dense.kernel, [2, 5], 0)]
    )


@works(
    TABLES,
    "Outputs of a `Dense` layer, by `AlongAxis(layer, -1)`",
    "The columns of its kernel and the entries of its bias, such as those of new tokens.",
)
@in_both_models
def test_outputs_of_a_dense_layer_train(model_class):
    def make(model_class):
        inputs = keras.Input((6,))
        logits = keras.layers.Dense(8, name="logits")
        return model_class(inputs, logits(inputs)), logits

    (model, logits), (whole, _) = make(model_class), make(keras.Model)
    assert_trains_as_without_masks(
        model,
        whole,
        {AlongAxis(logits, -1): IDS},
        FEATURES,
        np.arange(16) % 8,
        tables=[(logits.kernel, IDS, 1), (logits.bias, IDS, 0)],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


@works(TABLES, "LoRA on other layers of the model", "`layer.enable_lora(rank)` before `compile`.")
@in_both_models
def test_lora_trains_beside_the_rows(model_class):
    model, words = pooled_model(model_class)
    head = model.layers[-1]
    head.enable_lora(2)
    (kernel,) = head.non_trainable_variables
    before = [variable.numpy() for variable in (kernel, head.lora_kernel_b)]
    fit(model, MaskedOptimizer("adamw", {words: IDS}))
    assert_only_trained(MATRIX, words.embeddings.numpy())
    np.testing.assert_array_equal(bits(kernel.numpy()), bits(before[0]))
    assert (head.lora_kernel_b.numpy() != before[1]).all()


@refused(
    TABLES,
    "LoRA on the table itself",
    "Use either LoRA or trainable rows for one layer.",
)
@in_both_models
@pytest.mark.parametrize("when", ["before the optimizer is made", "after compile"])
def test_lora_on_the_table_is_refused(when, model_class):
    model, words = pooled_model(model_class)
    if when == "before the optimizer is made":
        words.enable_lora(2)
        with pytest.raises(ValueError, match="has LoRA enabled, so its table does not train"):
            MaskedOptimizer("adamw", {words: IDS})
        return
    model.compile(MaskedOptimizer("adamw", {words: IDS}), loss="mse")
    words.enable_lora(2)
    before = model.get_weights()
    with pytest.raises(ValueError, match="has LoRA enabled, so its table does not train"):
        model.fit(X, Y, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(bits(old), bits(new))


# ---- layers on top ----


def reading_model(read, mask_zero):
    """Makes a model of what reads the vectors of a table."""

    def make(model_class):
        inputs = keras.Input((LENGTH,), dtype="int32")
        words = keras.layers.Embedding(
            NUM_ROWS, WIDTH, weights=[MATRIX], mask_zero=mask_zero, name="words"
        )
        return model_class(inputs, keras.layers.Dense(1)(read(words(inputs)))), words

    return make


def bidirectional(vectors):
    return keras.layers.Bidirectional(keras.layers.LSTM(3))(vectors)


def gated(vectors):
    return keras.layers.GRU(3)(vectors)


def attentive(vectors):
    attended = keras.layers.MultiHeadAttention(2, 2)(vectors, vectors)
    return keras.layers.GlobalAveragePooling1D()(attended)


def convolutional(vectors):
    return keras.layers.GlobalMaxPooling1D()(keras.layers.Conv1D(3, 2)(vectors))


@works(ON_TOP, "`Bidirectional(LSTM)`", "Also with `mask_zero`.")
@works(ON_TOP, "`GRU`", "Also with `mask_zero`.")
@works(ON_TOP, "`MultiHeadAttention`", "Also with `mask_zero`.")
@in_both_models
@pytest.mark.parametrize("read", [bidirectional, gated, attentive])
def test_layers_that_know_of_padding_read_the_table(read, model_class):
    make = reading_model(read, mask_zero=True)
    model, words = assert_rows_train_as_without_masks(make, model_class, PADDED)
    assert_padding_is_ignored(model, words, PADDED)


@works(ON_TOP, "`Conv1D`")
@in_both_models
def test_a_convolution_reads_the_table(model_class):
    make = reading_model(convolutional, mask_zero=False)
    assert_rows_train_as_without_masks(make, model_class)
