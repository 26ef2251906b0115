"""Slices that repeat something smaller are added as if they had all been made."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad.masking.expansion import sum_by_segment
from maskedgrad.testing import assert_same_bits
from tests.test_graph import large_operations

NUM_ROWS, WIDTH = 11, 3


@pytest.fixture(autouse=True)
def _products_as_they_are_written():
    """TensorFlow groups factors anew by their sizes, which are not those of all slices."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True, **before})


def numbers(*shape):
    return tf.constant(np.random.default_rng(len(shape)).normal(size=shape).astype("float32"))


def odd_places(x):
    """A mask that is the same for all texts, of which no size is known."""
    mask = (tf.range(tf.shape(x)[1]) % 2 == 1)[None, :, None]
    return tf.raw_ops.PlaceholderWithDefault(input=mask, shape=[None, None, 1])


# What a model may do with looked-up rows, of shape `(batch, length, width)`; each returns
# numbers of a text.
READERS = {
    "mean": lambda x: tf.reduce_mean(x, axis=1),
    "sum": lambda x: tf.reduce_sum(x, axis=1),
    "mean of all": tf.reduce_mean,
    "pooled by Keras": keras.layers.GlobalAveragePooling1D(),
    "masked": lambda x: keras.layers.GlobalAveragePooling1D()(x, mask=x[:, :, 0] > 0),
    "weighted tokens": lambda x: tf.reduce_sum(x * tf.nn.softmax(x[:, :, :1], axis=1), axis=1),
    "weighted places": lambda x: tf.reduce_sum(
        x * tf.cast(tf.range(tf.shape(x)[1]), x.dtype)[:, None], 1
    ),
    "scaled": lambda x: tf.reduce_mean(x * numbers(WIDTH), axis=1) / 3.0,
    "less their mean": lambda x: tf.reduce_sum(
        -x - tf.stop_gradient(tf.reduce_mean(x, axis=1, keepdims=True)), 1
    ),
    "with each of four": lambda x: tf.reduce_sum(x[None] * numbers(4, 1, 1, WIDTH), axis=2),
    "half precision": lambda x: tf.cast(tf.reduce_mean(tf.cast(x, "float16"), axis=1), "float32"),
    "flattened": lambda x: tf.reduce_sum(tf.reshape(x, [-1, WIDTH]), axis=0),
    "split": lambda x: tf.reduce_mean(tf.reshape(x, [tf.shape(x)[0], -1, 1, WIDTH]), axis=[1, 2]),
    "repeated weights": lambda x: tf.reduce_sum(
        x
        * tf.reshape(
            tf.tile(numbers(1, WIDTH), [tf.size(x[:, :, 0]), 1]),
            tf.concat([[-1], tf.shape(x)[1:]], 0),
        ),
        1,
    ),
    "gated": lambda x: tf.reduce_mean(
        functools.reduce(lambda x, gate: x + x * gate, [0.5] * 3, x), axis=1
    ),
    "masked places": lambda x: tf.reduce_sum(tf.where(odd_places(x), x, 0.0), axis=1),
    "each number alone": lambda x: tf.reduce_mean(
        tf.reshape(x, [tf.shape(x)[0], -1, WIDTH, 1]), axis=1
    ),
    "of squares": lambda x: tf.reduce_sum(x**2, axis=1),
    "largest": lambda x: tf.reduce_max(x, axis=1),
    "padded": lambda x: tf.reduce_sum(tf.pad(x, [[0, 0], [1, 0], [0, 0]]), axis=1),
}

# Whose gradient is no repetition, or one that the rules do not know.
MADE_WHOLE = {
    "each number alone",
    "gated",
    "largest",
    "of squares",
    "padded",
    "weighted tokens",
    "with each of four",
}


def sums(reader, table, places, texts, *all_ids):
    """The gradient of looked-up rows, weighted by text: added where made, and all of them."""
    with tf.GradientTape() as tape:
        read = [reader(tf.gather(table, ids) * texts[:, :, None]) for ids in all_ids]
        loss = tf.add_n([tf.reduce_sum(tf.sin(each)) for each in read])
    slices = tape.gradient(loss, table)
    segments = tf.gather(tf.constant(places), slices.indices)
    whole = tf.math.unsorted_segment_sum(slices.values, segments, NUM_ROWS)
    return sum_by_segment(slices.values, segments, NUM_ROWS), whole


def assert_same_sums(reader, places, are_known, texts, *all_ids):
    table = tf.Variable(np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH)).astype("float32"))
    specs = [
        tf.TensorSpec(
            [size if known else None for size, known in zip(each.shape, are_known, strict=True)],
            each.dtype,
        )
        for each in (texts, *all_ids)
    ]
    function = tf.function(lambda *args: sums(READERS[reader], table, places, *args))
    received, wanted = function.get_concrete_function(*specs)(texts, *all_ids)
    assert_same_bits(received, wanted, f"the sum of {reader}")


def tokens(*sizes):
    return tf.constant(np.random.default_rng(sum(sizes)).integers(0, NUM_ROWS, sizes), tf.int32)


@given(data=st.data())
def test_the_sum_is_that_of_all_slices(data):
    reader = data.draw(st.sampled_from(sorted(READERS)), label="reader")
    num_texts, length = data.draw(st.tuples(st.integers(1, 4), st.integers(0, 5)), label="sizes")
    are_known = data.draw(st.tuples(st.booleans(), st.booleans()), label="known")
    read = 1 if data.draw(st.booleans(), label="one text for all") else num_texts
    num_lookups = data.draw(st.integers(1, 3), label="lookups")
    all_ids = [tokens(read, length + place) for place in range(num_lookups)]
    share = data.draw(st.sampled_from([0.0, 0.5, 1.0]), label="share that is added")
    is_added = np.random.default_rng(1).random(NUM_ROWS) < share
    places = np.where(is_added, np.arange(NUM_ROWS), -1)
    assert_same_sums(reader, places, are_known, numbers(num_texts, 1), *all_ids)


@pytest.mark.parametrize("num_texts", [3, 1])
@pytest.mark.parametrize("reader", sorted(READERS))
def test_sizes_may_be_unknown(reader, num_texts):
    places = np.arange(NUM_ROWS) % 3 - 1
    all_ids = tokens(num_texts, 4), tokens(num_texts, 6)
    assert_same_sums(reader, places, (False, False), numbers(3, 1), *all_ids)


def of_one_row(table, texts, ids):
    """The gradient of a row that is looked up alone, beside those of tokens."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(tf.gather(table, 4) * texts))
        loss += tf.reduce_sum(tf.sin(tf.reduce_mean(tf.gather(table, ids), axis=1)))
    return tape.gradient(loss, table)


def by_hand(table, texts, ids, *more_sizes):
    """Slices whose shape leaves a size to be found out."""
    rows = tf.gather(table, ids)
    with tf.GradientTape() as tape:
        tape.watch(rows)
        loss = tf.reduce_sum(tf.sin(tf.reduce_mean(rows, axis=1) * texts))
    values = tf.reshape(tape.gradient(loss, rows), [-1, *more_sizes, WIDTH])
    return tf.IndexedSlices(tf.reshape(values, [-1, WIDTH]), tf.reshape(ids, [-1]))


def by_hand_in_two_steps(table, texts, ids):
    """Slices that have had an axis more."""
    return by_hand(table, texts, ids, 1)


def joined(slices):
    values, indices = ([getattr(each, name) for each in slices] for name in ("values", "indices"))
    return tf.IndexedSlices(tf.concat(values, axis=0), tf.concat(indices, axis=0))


def twice_by_hand(table, texts, ids):
    """Such slices of two lookups, joined."""
    return joined([by_hand(table, each, ids) for each in (texts, -texts)])


def of_two_tapes(table, texts, ids):
    """Slices of one lookup, joined to those of two."""
    slices = []
    for num_lookups in (2, 1):
        with tf.GradientTape() as tape:
            read = [tf.reduce_mean(tf.gather(table, ids), axis=1) for _ in range(num_lookups)]
            loss = tf.reduce_sum(tf.sin(tf.add_n(read) * texts))
        slices.append(tape.gradient(loss, table))
    return joined(slices)


@pytest.mark.parametrize(
    "gradient", [of_one_row, by_hand, by_hand_in_two_steps, twice_by_hand, of_two_tapes]
)
def test_slices_may_be_put_together_in_any_way(gradient):
    table = tf.Variable(numbers(NUM_ROWS, WIDTH))
    places = tf.range(NUM_ROWS) % 3 - 1

    def sums_of(texts, ids):
        slices = gradient(table, texts, ids)
        segments = tf.cast(tf.gather(places, slices.indices), tf.int64)
        whole = tf.math.unsorted_segment_sum(slices.values, segments, 2)
        return sum_by_segment(slices.values, segments, 2), whole

    specs = [tf.TensorSpec([None, 1]), tf.TensorSpec([None, None], tf.int32)]
    traced = tf.function(sums_of).get_concrete_function(*specs)
    for length in (3, 0):
        received, wanted = traced(numbers(4, 1), tokens(4, length))
        assert_same_bits(received, wanted, "the sum")


def test_a_long_chain_of_operations_is_taken_as_it_is():
    table, ids = tf.Variable(numbers(NUM_ROWS, WIDTH)), tokens(4, 3)
    places = tf.range(NUM_ROWS, dtype=tf.int64) % 3 - 1

    @tf.function(autograph=False)
    def both():
        with tf.GradientTape() as tape:
            rows = tf.gather(table, ids)
            for _ in range(350):
                rows = -rows
            loss = tf.reduce_sum(tf.sin(tf.reduce_mean(rows, axis=1)))
        slices = tape.gradient(loss, table)
        segments = tf.gather(places, slices.indices)
        whole = tf.math.unsorted_segment_sum(slices.values, segments, 2)
        return sum_by_segment(slices.values, segments, 2), whole

    assert_same_bits(*both(), "the sum")


@pytest.mark.parametrize("reader", sorted(READERS))
def test_slices_that_repeat_something_smaller_are_not_made(reader):
    table, places = tf.Variable(tf.zeros([NUM_ROWS, WIDTH])), np.arange(NUM_ROWS) - 5

    def step(all_ids):
        return sums(READERS[reader], table, places, tf.ones([7, 1]), *all_ids)[0]

    ids = (tf.zeros([7, 13], tf.int32),) * 2
    made = [each for each in large_operations(step, ids, 7 * 13 * WIDTH) if "gradient_tape" in each]
    assert bool(made) == (reader in MADE_WHOLE)
