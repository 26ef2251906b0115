"""Rows of a dense gradient, made without the gradient: as many forms as outputs are tied in."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad.masking.selection import selected_rows
from maskedgrad.testing import assert_same_bits
from tests.test_graph import large_operations

NUM_ROWS, WIDTH, BATCH, LENGTH = 1009, 16, 2, 3
IDS = [1, 5, 6, 1008]
RANDOM = np.random.default_rng(0)
TOKENS = tf.constant(RANDOM.choice([*IDS, 0, 2, 500], (BATCH, LENGTH)))
TEXTS = tf.constant(RANDOM.normal(size=(BATCH, LENGTH, WIDTH)).astype("float32"))
TABLE = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")


def in_low_precision(texts, table):
    product = tf.matmul(tf.cast(texts, "bfloat16"), tf.cast(table, "bfloat16"), transpose_b=True)
    return tf.cast(product, "float32")


# From texts of shape `(batch, length, D)` and the table to scores `(batch, length, V)`.
OUTPUTS = {
    "Keras, three axes": lambda x, table: keras.ops.matmul(x, keras.ops.transpose(table)),
    "Keras, two axes": lambda x, table: keras.ops.matmul(
        keras.ops.reshape(x, (-1, WIDTH)), keras.ops.transpose(table)
    )[None],
    "transposed in the product": lambda x, table: tf.matmul(x, table, transpose_b=True),
    "transposed before it": lambda x, table: x @ tf.transpose(table),
    "a batch of tables": lambda x, table: x @ tf.transpose(tf.expand_dims(table, 0), [0, 2, 1]),
    "on the left": lambda x, table: tf.transpose(
        tf.matmul(table, tf.reshape(x, [-1, WIDTH]), transpose_b=True)
    )[None],
    "by labels": lambda x, table: tf.einsum("btd,vd->btv", x, table),
    "in low precision": in_low_precision,
    "scaled": lambda x, table: x @ tf.transpose(0.5 * table / 3.0),
    "scaled by row and column": lambda x, table: tf.matmul(
        x, tf.ones([NUM_ROWS, 1]) * table * tf.ones([WIDTH]), transpose_b=True
    ),
    "masked": lambda x, table: x @ tf.transpose(tf.where(table > 0, table, tf.zeros_like(table))),
    "with its rows": lambda x, table: x @ tf.transpose(table) + tf.gather(table, TOKENS)[..., :1],
    "twice": lambda x, table: x @ tf.transpose(table) + tf.einsum("btd,vd->btv", x * x, table),
}


def gradient_of(output, texts, table):
    with tf.GradientTape() as tape:
        scores = output(texts, table)
        loss = tf.reduce_mean(tf.reshape(scores, [-1, NUM_ROWS]) ** 2)
    return tape.gradient(loss, table)


def rows_of(output, ids, select):
    table = tf.Variable(TABLE)
    return lambda texts: select(gradient_of(output, texts, table), ids)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", OUTPUTS)
def test_rows_are_those_of_the_whole_gradient(name, jit):
    ids = tf.Variable(IDS, dtype=tf.int64, shape=[None])
    select, gather = (
        tf.function(rows_of(OUTPUTS[name], ids, each), jit_compile=jit)
        for each in (selected_rows, tf.gather)
    )
    for now in (IDS, [3]):
        if jit and now != IDS:
            break  # XLA compiles for each number of rows
        ids.assign(now)
        # A product of fewer rows may add in another order.
        np.testing.assert_allclose(select(TEXTS), gather(TEXTS), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_texts", [None, BATCH])
@pytest.mark.parametrize("name", OUTPUTS)
def test_the_whole_gradient_is_not_made(name, num_texts):
    ids = tf.Variable(IDS, dtype=tf.int64, shape=[None])
    texts = tf.TensorSpec([num_texts, LENGTH, WIDTH])
    table = tf.Variable(TABLE)
    forward, both_ways = (
        collections.Counter(
            operation.split()[0] for operation in large_operations(step, texts, NUM_ROWS * WIDTH)
        )
        for step in (
            lambda texts: OUTPUTS[name](texts, table),
            rows_of(OUTPUTS[name], ids, selected_rows),
        )
    )
    assert both_ways <= forward


def test_what_no_rule_knows_is_gathered_to_the_same_bits():
    ids = tf.Variable(IDS, dtype=tf.int64)

    @tf.function
    def both(whole):
        made = tf.cumsum(whole)
        return selected_rows(made, ids), tf.gather(made, ids)

    assert_same_bits(*both(TABLE), "rows of a sum that runs along them")


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_rows_along_any_axis(axis):
    ids = tf.Variable([0, 1], dtype=tf.int64)
    value = tf.constant(RANDOM.normal(size=(2, 3, 4)).astype("float32"))

    @tf.function
    def both(value):
        made = tf.transpose(tf.reshape(tf.transpose(value, [2, 0, 1]), [4, 2, 1, 3])[:, :, 0])
        made = made + tf.zeros([3, 1, 4]) * tf.ones([2, 1])
        return selected_rows(made, ids, axis % 3), tf.gather(made, ids, axis=axis)

    assert_same_bits(*both(value), "rows")


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("transposed", [(a, b) for a in (False, True) for b in (False, True)])
@pytest.mark.parametrize("from_end", [-2, -1])
def test_rows_of_a_product(from_end, transposed, batch):
    ids = tf.Variable([0, 3], dtype=tf.int64)
    sizes = [(4, 6), (6, 5)]
    first, second = (
        tf.constant(RANDOM.normal(size=(*batch, *(size[::-1] if is_turned else size))))
        for size, is_turned in zip(sizes, transposed, strict=True)
    )

    @tf.function
    def both(first, second):
        made = tf.matmul(first, second, *transposed)
        axis = made.shape.rank + from_end
        return selected_rows(made, ids, axis), tf.gather(made, ids, axis=axis)

    # A product of fewer rows may add in another order.
    np.testing.assert_allclose(*both(first, second), rtol=1e-12)


def test_an_eager_gradient_is_gathered():
    ids = tf.Variable(IDS, dtype=tf.int64)
    assert_same_bits(selected_rows(tf.constant(TABLE), ids), TABLE[IDS], "rows")


def test_a_gradient_of_an_outer_graph_is_gathered():
    ids = tf.Variable(IDS, dtype=tf.int64)

    @tf.function
    def rows(whole, condition):
        made = -whole
        return tf.cond(condition, lambda: selected_rows(made, ids), lambda: tf.zeros([4, WIDTH]))

    assert_same_bits(rows(TABLE, tf.constant(True)), -TABLE[IDS], "rows")


def drawn(*shape):
    return tf.constant(RANDOM.normal(size=shape).astype("float32"))


def of_unknown_rank(value):
    return tf.raw_ops.PlaceholderWithDefault(input=value, shape=tf.TensorShape(None))


def repeated(value, times, change):
    for _ in range(times):
        value = change(value)
    return value


# Of shape (5, 5), made in ways that a rule might take for another.
MADE = {
    # As the gradient of `tf.einsum("vv,bv->b", table, x)`.
    "a diagonal": lambda x: tf.raw_ops.Einsum(inputs=[x[0], x], equation="b,bv->vv"),
    "a product of unknown rank": lambda x: tf.raw_ops.MatMul(a=of_unknown_rank(x), b=x),
    "a second factor of unknown rank": lambda x: tf.raw_ops.MatMul(a=x, b=of_unknown_rank(x)),
    "segments of two axes": lambda x: tf.math.unsorted_segment_sum(
        tf.stack([x, x]), [[1, 2, 1, 4, 2], [0, 1, 1, 1, 2]], 5
    ),
    "a long chain": lambda x: repeated(x, 400, tf.negative),
    "operations that share one": lambda x: repeated(x, 10, lambda x: 0.5 * x + x / 4),
}


@pytest.mark.parametrize("name", MADE)
def test_rows_are_gathered_where_no_rule_holds(name):
    ids = tf.Variable([3], dtype=tf.int64)

    @tf.function(autograph=False)
    def both(value):
        made = MADE[name](value)
        return [
            (selected_rows(made, ids, axis), tf.gather(made, ids, axis=axis)) for axis in (0, 1)
        ]

    for pair in both(value := drawn(5, 5)):
        # A product of fewer rows may add in another order.
        np.testing.assert_allclose(*pair, rtol=1e-5, atol=1e-7)
    assert len(both.get_concrete_function(value).graph.get_operations()) < 2000
