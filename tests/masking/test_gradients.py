"""Gradients are masked by selection: what a frozen row holds reaches nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import Rows, mask_gradients
from maskedgrad.masking.gradients import compact_gradient, touched_rows
from maskedgrad.testing import TABLE_PATH, assert_same_bits, gradients_of, tables
from tests.properties.strategies import cheap


@cheap
@given(data=st.data(), in_graph=st.booleans())
def test_a_compact_gradient_is_the_trainable_rows_of_the_whole(data, in_graph):
    table = data.draw(tables())
    gradient, expected = data.draw(gradients_of(table))
    rows = Rows(table.ids, len(table.values))
    select = tf.function(compact_gradient) if in_graph else compact_gradient
    actual = select(gradient, tf.Variable(rows.ids))
    if expected is None:
        assert actual is None
    else:
        assert_same_bits(actual, tf.convert_to_tensor(expected), "the compact gradient")


def test_every_id_is_found_in_every_set_of_rows():
    """All sets of rows of a table of seven, and ids of it and beside it, each alone its own bit."""
    slices = tf.IndexedSlices(tf.constant(2.0 ** np.arange(12)), tf.range(-2, 10))
    compact, touched = tf.function(compact_gradient), tf.function(touched_rows)
    ids = tf.Variable([0], dtype=tf.int64, shape=tf.TensorShape([None]))
    for chosen in range(1, 2**7):
        rows = [row for row in range(7) if chosen >> row & 1]
        ids.assign(rows)
        assert compact(slices, ids).numpy().tolist() == [2.0 ** (row + 2) for row in rows]
        gradient, of_table, places = (each.numpy().tolist() for each in touched(slices, ids))
        assert [rows[place] for place in places] == of_table
        assert sorted(zip(of_table, gradient, strict=True)) == [(r, 2.0 ** (r + 2)) for r in rows]


def test_slices_are_not_made_dense():
    num_rows = 1000

    ids = tf.Variable([3, 5], dtype=tf.int64)

    @tf.function
    def select(values, indices):
        slices = tf.IndexedSlices(values, indices, tf.constant([num_rows, 3]))
        return compact_gradient(slices, ids)

    shapes = ([4, 3], "float32"), ([4], "int32")
    graph = select.get_concrete_function(*(tf.TensorSpec(*shape) for shape in shapes)).graph
    computed = [op for op in graph.get_operations() if op.type != "Placeholder"]
    assert not [op for op in computed for out in op.outputs if num_rows in out.shape.as_list()]


@cheap
@given(data=st.data(), in_graph=st.booleans())
def test_masked_gradients_are_of_the_same_kind_and_hold_trainable_rows_only(data, in_graph):
    table = data.draw(tables())
    gradient, _ = data.draw(gradients_of(table))
    variables = [table.variable(), keras.Variable([1.0], name="other")]
    other = tf.constant([float("nan")])

    def mask(gradient):
        return mask_gradients([gradient, other], variables, {TABLE_PATH: table.ids})

    masked, untouched = (tf.function(mask) if in_graph else mask)(gradient)
    assert_same_bits(untouched, other, "a variable that no target names")
    if gradient is None:
        assert masked is None
    elif isinstance(gradient, tf.IndexedSlices):
        kept = np.isin(gradient.indices, table.ids)
        assert isinstance(masked, tf.IndexedSlices)
        assert_same_bits(masked.indices, gradient.indices.numpy()[kept], "ids")
        assert_same_bits(masked.values, gradient.values.numpy()[kept], "slices")
        assert_same_bits(masked.dense_shape, gradient.dense_shape, "shape")
    else:
        assert_same_bits(masked.numpy()[table.ids], gradient.numpy()[table.ids], "trainable")
        assert not masked.numpy()[table.frozen].any()


def test_gradients_are_masked_in_a_function_without_a_word_of_autograph(caplog):
    table = keras.Variable(np.ones((4, 2), "float32"), name="table")
    caplog.set_level("WARNING", logger="tensorflow")
    tf.get_logger().addHandler(caplog.handler)  # it hands nothing on
    try:
        masked = tf.function(lambda g: mask_gradients([g], [table], {"table": [1]}))(
            tf.ones((4, 2))
        )
    finally:
        tf.get_logger().removeHandler(caplog.handler)
    assert masked[0].numpy()[:, 0].tolist() == [0, 1, 0, 0]
    assert "AutoGraph" not in caplog.text


@pytest.mark.parametrize("num_gradients", [0, 2])
def test_gradients_and_variables_must_be_of_one_length(num_gradients):
    table = keras.Variable([[1.0], [2.0]], name="table")
    with pytest.raises(ValueError, match="of one length"):
        mask_gradients([None] * num_gradients, [table], {"table": [1]})
