"""Several devices of one machine train the rows that one device trains."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer
from tests.properties.strategies import assert_same_bits, mirrored_strategy

NUM_ROWS, WIDTH, IDS = 20, 4, [3, 7]
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
FROZEN = np.setdiff1d(np.arange(NUM_ROWS), IDS)
X = RANDOM.integers(0, NUM_ROWS, size=(64, 5))
Y = RANDOM.normal(size=(64, 1)).astype("float32")


def train(base, scaler, scope):
    with scope:
        inputs = keras.Input((5,), dtype="int32")
        words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words", weights=[MATRIX])
        head = keras.layers.Dense(1, kernel_initializer="ones")
        model = base(inputs, head(keras.layers.GlobalAveragePooling1D()(words(inputs))))
        inner = keras.optimizers.AdamW(0.1, use_ema=True)
        if scaler == "inside":
            inner = keras.optimizers.LossScaleOptimizer(inner)
        optimizer = MaskedOptimizer(inner, {words: IDS})
        if scaler == "outside":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, loss="mse")
    model.fit(X, Y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model, words.embeddings.value


@pytest.mark.parametrize("scaler", ["none", "inside", "outside"])
@pytest.mark.parametrize("base", [MaskedModel, keras.Model])
def test_replicas_hold_the_same_bits_and_train_what_one_device_trains(base, scaler):
    alone, table = train(base, scaler, contextlib.nullcontext())
    together, mirrored_table = train(base, scaler, mirrored_strategy().scope())
    first, second = mirrored_table.values
    assert_same_bits(first, second, "replicas")
    assert_same_bits(first.numpy()[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (first.numpy()[IDS] != MATRIX[IDS]).all()
    # Two halves of a batch are averaged apart and then added: the order of a sum differs.
    np.testing.assert_allclose(first, table, rtol=1e-5, atol=1e-6)
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_what_crosses_replicas_for_a_table_is_its_trainable_rows(monkeypatch):
    reduced = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def recording(self, reduce_op, value, options=None):
        reduced.extend(tuple(leaf.shape) for leaf in tf.nest.flatten(value))
        return all_reduce(self, reduce_op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", recording)
    train(MaskedModel, "none", mirrored_strategy().scope())
    assert (len(IDS), WIDTH) in reduced
    assert not any(shape[:1] == (NUM_ROWS,) for shape in reduced)
