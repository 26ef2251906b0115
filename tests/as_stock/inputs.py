"""Situations: layers around a table, and what is looked up in it."""

import keras
import tensorflow as tf
from keras import ops

from tests.as_stock.harness import (
    LENGTH,
    NUM_ROWS,
    WIDTH,
    X,
    Y,
    entered,
    fitted,
    rare_situation,
    situation,
)

WAYS = {"eagerly": {}, "in_a_graph": {"run_eagerly": False}, "under_xla": {"jit_compile": True}}


def words(**options):
    return keras.layers.Embedding(NUM_ROWS, WIDTH, name="words", **options)


def around(way, layers, inputs=None, **options):
    """A compiled model of a table, layers and a head."""
    inputs = keras.Input((LENGTH,), dtype="int32") if inputs is None else inputs
    outputs = inputs
    for layer in [words(**options.pop("table", {})), *layers]:
        outputs = layer(outputs)
    return way.compiled(way.model(inputs, keras.layers.Dense(1)(outputs)), **options)


LAYERS = {
    "an_lstm_with_a_mask": lambda: [keras.layers.LSTM(2)],
    "a_bidirectional_gru": lambda: [keras.layers.Bidirectional(keras.layers.GRU(2))],
    "a_convolution": lambda: [keras.layers.Conv1D(2, 2), keras.layers.Flatten()],
    "batch_normalization": lambda: [keras.layers.BatchNormalization(), keras.layers.Flatten()],
    "dropout": lambda: [keras.layers.Dropout(0.5, seed=1), keras.layers.Flatten()],
    "a_function": lambda: [keras.layers.Lambda(lambda v: ops.max(v, axis=1))],
}
for name, make_layers in LAYERS.items():

    def with_layers(way, make_layers=make_layers, name=name):
        return fitted(around(way, make_layers(), table={"mask_zero": "mask" in name}))

    entered(f"{name}_on_top", with_layers, often=name == "an_lstm_with_a_mask")


@rare_situation
def attention_on_top(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    vectors = words(mask_zero=True)(inputs)
    outputs = keras.layers.Flatten()(keras.layers.MultiHeadAttention(1, 2)(vectors, vectors))
    return fitted(way.compiled(way.model(inputs, keras.layers.Dense(1)(outputs))))


@rare_situation
def two_lookups_in_one_table(way):
    inputs, table = [keras.Input((LENGTH,), dtype="int32") for _ in range(2)], words()
    pooled = [keras.layers.GlobalAveragePooling1D()(table(each)) for each in inputs]
    model = way.compiled(way.model(inputs, keras.layers.Dot(1)(pooled)), "sgd", run_eagerly=False)
    return fitted(model, [X, X[::-1]], batch_size=2)


@situation
def two_tables(way):
    inputs = [keras.Input((LENGTH,), dtype="int32", name=name) for name in ("one", "two")]
    tables = [keras.layers.Embedding(NUM_ROWS, WIDTH, name=f"words_{i}") for i in range(2)]
    pooled = [
        keras.layers.Flatten()(table(each)) for table, each in zip(tables, inputs, strict=True)
    ]
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(pooled))
    model = way.compiled(way.model(inputs, outputs), run_eagerly=False)
    return fitted(model, {"one": X, "two": X[::-1]}, batch_size=2)


@situation
def a_tied_output(way):
    inputs, table = keras.Input((LENGTH,), dtype="int32"), words()

    class Tied(keras.layers.Layer):
        def call(self, vectors):
            return ops.matmul(vectors, ops.transpose(ops.convert_to_tensor(table.embeddings)))

    outputs = Tied()(keras.layers.GlobalAveragePooling1D()(table(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = way.compiled(way.model(inputs, outputs), loss=loss, run_eagerly=False)
    return fitted(model, y=X[:, 0])


@rare_situation
def a_model_in_a_model(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    inner = keras.Model(inputs, keras.layers.Flatten()(words()(inputs)), name="inner")
    outer = keras.Input((LENGTH,), dtype="int32")
    return fitted(way.compiled(way.model(outer, keras.layers.Dense(1)(inner(outer)))))


@rare_situation
def a_table_that_is_frozen_as_a_whole_beside_one_that_trains(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    frozen = keras.layers.Embedding(NUM_ROWS, WIDTH, trainable=False)
    outputs = keras.layers.Flatten()(words()(inputs) + frozen(inputs))
    return fitted(way.compiled(way.model(inputs, keras.layers.Dense(1)(outputs)), "adamw"))


@rare_situation
def lora_on_the_head(way):
    model = way.small()
    model.get_layer("head").enable_lora(2)
    return fitted(way.compiled(model))


@rare_situation
def a_model_that_is_quantized_after_training(way):
    model = way.small()
    after = fitted(model)
    model.quantize("int8")
    return after, model.predict(X, verbose=0)


if "ragged" in keras.Input.__code__.co_varnames:

    @situation
    def ragged_ids(way):
        inputs = keras.Input((None,), dtype="int32", ragged=True)
        pool = keras.layers.Lambda(lambda v: tf.reduce_sum(v, axis=1), output_shape=(WIDTH,))
        model = around(way, [pool], inputs, loss="mse")
        data = tf.ragged.constant([[1], [2, 3], [4, 5, 6], [0]], dtype="int32")
        return fitted(model, tf.data.Dataset.from_tensors((data, Y)), None)


@situation
def sparse_ids(way):
    inputs = keras.Input((LENGTH,), dtype="int32", sparse=True)
    model = around(way, [keras.layers.Flatten()], inputs, loss="mse")
    data = tf.data.Dataset.from_tensors((tf.sparse.from_dense(X), Y))
    return fitted(model, data, None)


@rare_situation
def words_that_are_looked_up(way):
    vocabulary = [f"word {i}" for i in range(NUM_ROWS - 1)]
    inputs = keras.Input((2,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=vocabulary)
    outputs = keras.layers.Flatten()(words()(lookup(inputs)))
    model = way.compiled(way.model(inputs, keras.layers.Dense(1)(outputs)))
    texts = tf.constant([["word 1", "word 2"], ["none", "word 3"]])
    return fitted(model, tf.data.Dataset.from_tensors((texts, Y[:2])), None)


for dtype in ("uint8", "int64", "float32"):
    entered(
        f"ids_of_{dtype}",
        lambda way, dtype=dtype: fitted(
            around(way, [keras.layers.Flatten()], keras.Input((LENGTH,), dtype=dtype)),
            X.astype(dtype),
        ),
        often=False,
    )

OUT_OF_RANGE = {
    "too_large": NUM_ROWS + 2,
    "far_too_large": 2**31 - 1,
    "negative": -1,
    "far_negative": -99,
}
for reach, wrong in OUT_OF_RANGE.items():
    for name, options in WAYS.items():
        if reach in {"far_too_large", "far_negative"} and name != "under_xla":
            continue

        def with_wrong_ids(way, wrong=wrong, options=options):
            ids = X.copy()
            ids[1, 1] = wrong
            return fitted(way.small("sgd", **options), ids)

        often = name == "under_xla" and reach in {"too_large", "negative"}
        entered(f"ids_that_are_{reach}_{name}", with_wrong_ids, often)


# Ways of reading a table.


class Reads(keras.layers.Layer):
    """Reads a table by a function of it and of ids."""

    def __init__(self, read):
        super().__init__(name="reads")
        self.read = read

    def build(self, shape):
        self.table = self.add_weight(shape=(NUM_ROWS, WIDTH), name="table")

    def call(self, ids):
        return self.read(self.table, ids)


def mean_of_rows(table, ids):
    return tf.reduce_mean(tf.gather(table, ids), axis=0)


READS = {
    "vectorized_map": lambda t, ids: tf.vectorized_map(lambda i: mean_of_rows(t, i), ids),
    "vectorized_map_of_take": lambda t, ids: ops.vectorized_map(
        lambda i: ops.mean(ops.take(t, i, axis=0), axis=0), ids
    ),
    "map_fn": lambda t, ids: tf.map_fn(
        lambda i: mean_of_rows(t, i), ids, fn_output_signature="float32"
    ),
    "one_hot": lambda t, ids: ops.mean(ops.matmul(ops.one_hot(ids, NUM_ROWS), t), axis=1),
    "slices": lambda t, ids: t[0] + t[1:3][1] + ops.mean(tf.gather(t, ids), axis=1),
    "embedding_lookup": lambda t, ids: ops.mean(tf.nn.embedding_lookup(t, ids), axis=1),
    "embedding_lookup_with_a_norm": lambda t, ids: ops.mean(
        tf.nn.embedding_lookup(t, ids, max_norm=0.1), axis=1
    ),
    "gather_nd": lambda t, ids: ops.mean(tf.gather_nd(t, ids[..., None]), axis=1),
    "gather_with_batch_dims": lambda t, ids: ops.mean(
        tf.gather(
            tf.convert_to_tensor(t)[None] + tf.zeros([tf.shape(ids)[0], 1, 1]), ids, batch_dims=1
        ),
        axis=1,
    ),
    "gather_of_columns": lambda t, ids: (
        tf.gather(t, [0, 1, 2, 3], axis=1)[:1] + mean_of_rows(t, ids[:, 0])
    ),
    "the_whole_table": lambda t, ids: (
        ops.sum(t, axis=0)[None] + ops.mean(tf.gather(t, ids), axis=1)
    ),
    "its_value": lambda t, ids: ops.mean(tf.gather(t.value, ids), axis=1),
    "take_along_axis": lambda t, ids: (
        ops.mean(
            ops.take_along_axis(
                ops.convert_to_tensor(t),
                ops.repeat(ops.reshape(ids, (-1, 1)), WIDTH, axis=1),
                axis=0,
            ),
            axis=0,
        )[None]
        + 0.0 * ops.cast(ids[:, :1], "float32")
    ),
    "switch": lambda t, ids: tf.cond(
        ids[0, 0] > 5, lambda: ops.mean(tf.gather(t, ids), 1), lambda: ops.sum(tf.gather(t, ids), 1)
    ),
    "recompute_grad": lambda t, ids: tf.recompute_grad(lambda i: ops.mean(tf.gather(t, i), 1))(ids),
}
XLA_TOO = {"vectorized_map", "vectorized_map_of_take", "map_fn", "slices", "switch"}
for name, read in READS.items():
    for running in ("in_a_graph", "under_xla") if name in XLA_TOO else ("in_a_graph",):

        def reading(way, read=read, running=running):
            inputs = keras.Input((LENGTH,), dtype="int32", batch_size=2)
            model = way.model(inputs, keras.layers.Dense(1)(Reads(read)(inputs)))
            return fitted(way.compiled(model, "sgd", **WAYS[running]), batch_size=2)

        often = (name, running) in {("vectorized_map", "under_xla"), ("its_value", "in_a_graph")}
        entered(f"reading_by_{name}_{running}", reading, often)


def gradient_of_a_gradient(way, jacobian):
    layer = words()
    inputs = keras.Input((LENGTH,), dtype="int32")
    model = way.compiled(
        way.model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(layer(inputs))))
    )
    model.train_on_batch(X, Y)
    table = layer.embeddings
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(layer(X) ** 3)
        first = tf.convert_to_tensor(tape.gradient(loss, table))
        target = tf.reduce_sum(first[:2], axis=1) if jacobian else tf.reduce_sum(first**2)
    if jacobian:
        return outer.jacobian(target, table.value)
    return tf.convert_to_tensor(outer.gradient(target, table))


entered("a_gradient_of_a_gradient", lambda way: gradient_of_a_gradient(way, jacobian=False))
entered("a_jacobian", lambda way: gradient_of_a_gradient(way, jacobian=True), often=False)


@rare_situation
def stateless_calls(way):
    model = way.small()
    outputs, _ = model.stateless_call(model.trainable_variables, model.non_trainable_variables, X)
    return outputs
