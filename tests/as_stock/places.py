"""Situations: devices, threads, scopes and precisions."""

import threading

import keras
import numpy as np
import tensorflow as tf

from tests.as_stock.harness import (
    X,
    Y,
    entered,
    fitted,
    learned,
    rare_situation,
    situation,
    unwrapped,
)
from tests.devices import mirrored_strategy

SECOND = "/CPU:1"
WAYS = {"eagerly": {}, "in_a_graph": {"run_eagerly": False}, "under_xla": {"jit_compile": True}}


def where(model):
    """The devices of weights and state."""
    variables = [*model.weights, *unwrapped(model.optimizer).variables]
    return [(variable.name, variable.value.device) for variable in variables]


for name, options in WAYS.items():

    def on_second_device(way, options=options):
        with tf.device(SECOND):
            model = way.small(**options)
            return fitted(model), where(model)

    entered(f"everything_on_a_second_device_{name}", on_second_device, often=name != "in_a_graph")

    def made_on_second_device(way, options=options):
        with tf.device(SECOND):
            model = way.small(**options)
        # Not where the state is: in a graph stock Keras puts it beside no table then.
        return fitted(model)

    entered(f"a_model_that_is_made_on_a_second_device_{name}", made_on_second_device, often=False)


@rare_situation
def a_table_on_a_second_device(way):
    with tf.device(SECOND):
        words = keras.layers.Embedding(12, 4, name="words")
        words.build()
    inputs = keras.Input((3,), dtype="int32")
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs)))
    return fitted(way.compiled(way.model(inputs, outputs), run_eagerly=False))


def in_a_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    (result,) = results
    return result


@rare_situation
def everything_in_a_thread(way):
    return in_a_thread(lambda: fitted(way.small(run_eagerly=False)))


@situation
def training_in_a_thread(way):
    model = way.small(run_eagerly=False)
    before = fitted(model)
    return before, in_a_thread(lambda: fitted(model))


class Halved(keras.optimizers.schedules.LearningRateSchedule):
    """Is not registered, so that a scope has to name it."""

    def __call__(self, step):
        return 0.1 / (1.0 + tf.cast(step, "float32"))

    def get_config(self):
        return {}


@situation
def a_custom_object_scope(way):
    with keras.saving.custom_object_scope({"Halved": Halved}):
        model = way.small(keras.optimizers.Adam(Halved()), run_eagerly=False)
        before = fitted(model)
        model.save(way.folder / "model.keras")
        return before, fitted(keras.saving.load_model(way.folder / "model.keras"))


@rare_situation
def a_custom_object_scope_that_is_left_before_training(way):
    with keras.saving.custom_object_scope({"Halved": Halved}):
        model = way.small(keras.optimizers.Adam(Halved()), run_eagerly=False)
    return fitted(model)


@rare_situation
def an_object_that_no_scope_names(way):
    model = way.small(keras.optimizers.Adam(Halved()))
    model.save(way.folder / "model.keras")
    keras.saving.load_model(way.folder / "model.keras")


@rare_situation
def scopes_of_names(way):
    with keras.name_scope("outer"), tf.name_scope("inner"):
        return fitted(way.small(run_eagerly=False))


def under(strategy, way, **options):
    with strategy.scope():
        model = way.small(**options)
    return fitted(model, batch_size=2)


@rare_situation
def one_device_strategy(way):
    return under(tf.distribute.OneDeviceStrategy(SECOND), way, run_eagerly=False)


@situation
def mirrored_strategy_of_two_devices(way):
    return under(mirrored_strategy(), way, run_eagerly=False)


@rare_situation
def several_steps_per_execution_on_two_devices(way):
    return under(mirrored_strategy(), way, run_eagerly=False, steps_per_execution=2)


# Precision.

for policy in ("float16", "bfloat16", "float64", "mixed_bfloat16", "mixed_float16"):

    def with_policy(way, policy=policy):
        keras.config.set_dtype_policy(policy)
        return fitted(way.small(keras.optimizers.Adam(0.01)))

    entered(f"the_policy_{policy}", with_policy, often=policy == "mixed_float16")


@rare_situation
def another_floatx(way):
    keras.config.set_floatx("float64")
    return fitted(way.small(), y=Y.astype("float64"))


def overflowing(y, y_pred):
    return keras.ops.mean((y - y_pred) ** 2) * np.float32(1e38)


def scaled(way, **options):
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), **options)
    return fitted(way.small(scaler, run_eagerly=False))


@rare_situation
def a_loss_that_is_scaled(way):
    return scaled(way, initial_scale=8.0, dynamic_growth_steps=2)


@situation
def a_scaled_loss_that_overflows(way):
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=1024.0)
    return fitted(way.small(scaler, run_eagerly=False, loss=overflowing))


@situation
def a_loss_scaler_that_is_compiled_with_again(way):
    model = way.small("sgd")
    scaler = keras.optimizers.LossScaleOptimizer(way.optimizer("sgd"), initial_scale=8.0)
    for loss in ("mse", "mae"):
        model.compile(scaler, loss=loss, run_eagerly=True)
        model.fit(X, Y, verbose=0, shuffle=False)
    return model.get_weights(), scaler.dynamic_scale


@situation
def mixed_float16_with_an_optimizer_that_is_compiled_with_again(way):
    keras.config.set_dtype_policy("mixed_float16")
    model, optimizer = way.small("sgd"), way.optimizer("sgd")
    for loss in ("mse", "mae"):
        model.compile(optimizer, loss=loss, run_eagerly=True)
        model.fit(X, Y, verbose=0, shuffle=False)
    return model.get_weights()


@rare_situation
def a_loss_scaler_by_hand(way):
    model = way.small(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    with tf.GradientTape() as tape:
        loss = model.optimizer.scale_loss(tf.reduce_mean((model(X) - Y) ** 2))
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply(gradients, model.trainable_variables)
    return loss, learned(model)
