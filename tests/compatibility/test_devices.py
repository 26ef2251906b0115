"""Several devices of one machine, and every way of running a step, train the same rows."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer
from maskedgrad.testing import assert_same_bits
from tests.compatibility.helpers import (
    IDS,
    MATRIX,
    NUM_ROWS,
    WIDTH,
    X,
    Y,
    assert_only_trained,
    in_both_models,
    pooled_model,
)
from tests.compatibility.table import works
from tests.devices import mirrored_strategy


def train(model_class, scaler="none", scope=None, batch_size=4, **compile_options):
    """A trained model, and the TensorFlow variable that is its table."""
    keras.utils.set_random_seed(1)
    with scope or contextlib.nullcontext():
        model, words = pooled_model(model_class)
        inner = keras.optimizers.AdamW(0.1, use_ema=True)
        if scaler == "inside":
            inner = keras.optimizers.LossScaleOptimizer(inner)
        optimizer = MaskedOptimizer(inner, {words: IDS})
        if scaler == "outside":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, loss="mse", **compile_options)
    model.fit(X, Y, batch_size=batch_size, epochs=2, shuffle=False, verbose=0)
    return model, words.embeddings.value


def assert_same_model(one, other):
    assert int(one.optimizer.iterations) == int(other.optimizer.iterations)
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        assert_same_bits(ours, theirs, "a weight")
    for ours, theirs in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
        assert_same_bits(ours, theirs, ours.path)


@works(
    "Devices",
    "`tf.distribute.MirroredStrategy`",
    "Make the model and the optimizer in `strategy.scope()`. Of a table, what crosses devices in a "
    "step is its trainable rows.",
)
@pytest.mark.parametrize("scaler", ["none", "inside", "outside"])
@in_both_models
def test_replicas_hold_the_same_bits_and_train_what_one_device_trains(model_class, scaler):
    alone, table = train(model_class, scaler)
    together, mirrored_table = train(model_class, scaler, mirrored_strategy().scope())
    first, second = mirrored_table.values
    assert_same_bits(first, second, "replicas")
    assert_only_trained(MATRIX, first)
    # Two halves of a batch are averaged apart and then added: the order of a sum differs.
    np.testing.assert_allclose(first, table, rtol=1e-5, atol=1e-6)
    for one, other in zip(alone.get_weights(), together.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@works(
    "Devices",
    "`tf.distribute.MirroredStrategy`",
    "Make the model and the optimizer in `strategy.scope()`. Of a table, what crosses devices in a "
    "step is its trainable rows.",
)
def test_what_crosses_replicas_for_a_table_is_its_trainable_rows(monkeypatch):
    reduced = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce

    def recording(self, reduce_op, value, options=None):
        reduced.extend(tuple(leaf.shape) for leaf in tf.nest.flatten(value))
        return all_reduce(self, reduce_op, value, options)

    monkeypatch.setattr(tf.distribute.ReplicaContext, "all_reduce", recording)
    train(MaskedModel, scope=mirrored_strategy().scope())
    # A graph does not know how many rows that will be.
    assert (None, WIDTH) in reduced
    assert not any(shape[:1] == (NUM_ROWS,) for shape in reduced)


@works("Devices", "`steps_per_execution`")
@pytest.mark.parametrize("steps", [2, 3, 8])  # 8 batches; the last call of 3 makes 2 steps
@in_both_models
def test_several_steps_in_one_call_are_as_many_calls(model_class, steps):
    one_by_one, _ = train(model_class, batch_size=2)
    together, table = train(model_class, batch_size=2, steps_per_execution=steps)
    assert_only_trained(MATRIX, table)
    assert_same_model(one_by_one, together)


@works(
    "Devices",
    "`steps_per_execution` under `MirroredStrategy`",
    "With `cross_device_ops=tf.distribute.ReductionToOneDevice()`. With what TensorFlow reduces by "
    "between CPUs if nothing is said, Keras fails by itself, with or without `MaskedOptimizer`.",
)
@pytest.mark.parametrize("steps", [2, pytest.param(8, marks=pytest.mark.thorough)])
@in_both_models
def test_several_steps_in_one_call_are_as_many_calls_on_replicas_too(model_class, steps):
    _, one_by_one = train(model_class, scope=mirrored_strategy().scope())
    _, together = train(model_class, scope=mirrored_strategy().scope(), steps_per_execution=steps)
    first, second = together.values
    assert_same_bits(first, second, "replicas")
    assert_only_trained(MATRIX, first)
    # TensorFlow optimizes the loop as another graph, and a sum of replicas rounds otherwise.
    np.testing.assert_allclose(first, one_by_one.values[0], rtol=1e-6, atol=1e-7)


@works("Devices", "`jit_compile=True`")
@works("Devices", "`run_eagerly=True`")
@pytest.mark.parametrize("option", ["jit_compile", "run_eagerly"])
@in_both_models
def test_a_step_is_the_same_compiled_and_eager(model_class, option):
    in_graph, _ = train(model_class)
    otherwise, table = train(model_class, **{option: True})
    assert getattr(otherwise, option) is True
    assert_only_trained(MATRIX, table)
    # XLA fuses operations, and rounds less often.
    for one, other in zip(in_graph.get_weights(), otherwise.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
