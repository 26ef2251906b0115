"""Situations: losses, metrics, and steps of one's own."""

import keras
import numpy as np
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


def own(way, optimizer="sgd", compile_options=None, **members):
    """A compiled model of a class that has more members; its last batch is smaller."""

    def start(self):
        super(cls, self).__init__()
        self.words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
        self.head = keras.layers.Dense(1)
        self.tracker = keras.metrics.Mean(name=members.get("metric_name", "loss"))

    def call(self, ids, training=False):
        return self.head(ops.mean(self.words(ids), axis=1))

    cls = type("Own", (way.model,), {"__init__": start, "call": call, **members})
    return way.compiled(cls(), optimizer, **(compile_options or {}))


def squares(y, y_pred):
    return ops.mean((y - y_pred) ** 2)


def without_training(self, x=None, y=None, y_pred=None, sample_weight=None):
    return squares(y, y_pred)


def of_places(self, x, y, y_pred, *more, **others):
    return squares(y, y_pred)


def of_anything(self, *args, **kwargs):
    return 2 * keras.Model.compute_loss(self, *args, **kwargs)


def tracked(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: PLR0917 - of Keras
    loss = squares(y, y_pred)
    self.tracker.update_state(loss)
    return loss


def by_training(self, x, y, y_pred, sample_weight, training):  # noqa: PLR0917 - of Keras
    return squares(y, y_pred) * (1 if training else 3)


metrics_of_its_own = property(lambda self: [self.tracker])
NO_LOSS = {"loss": None}
LOSSES = {
    "without_training": {"compute_loss": without_training, "compile_options": NO_LOSS},
    "of_places": {"compute_loss": of_places, "compile_options": NO_LOSS},
    "that_calls_super": {"compute_loss": of_anything},
    "by_training": {"compute_loss": by_training, "compile_options": NO_LOSS},
    "that_tracks_itself": {
        "compute_loss": tracked,
        "metrics": metrics_of_its_own,
        "compile_options": NO_LOSS,
    },
    "that_tracks_itself_by_another_name": {
        "compute_loss": tracked,
        "metrics": metrics_of_its_own,
        "metric_name": "own_loss",
        "compile_options": NO_LOSS,
    },
    "beside_a_metric_named_loss": {
        "compute_loss": tracked,
        "reset_metrics": lambda self: self.tracker.reset_state(),
    },
}
for name, members in LOSSES.items():

    def fit_with_loss(way, members=members):
        eager = fitted(own(way, **members), validation_data=(X, Y))
        return eager, own(way, **members).train_on_batch(X, Y, return_dict=True)

    often = name in {"without_training", "that_calls_super", "that_tracks_itself"}
    entered(f"a_compute_loss_{name}", fit_with_loss, often)


@situation
def a_metric_named_loss(way):
    return fitted(way.small(metrics=[keras.metrics.MeanAbsoluteError(name="loss")]))


@rare_situation
def metrics_and_weighted_metrics(way):
    model = way.small(metrics=["mae"], weighted_metrics=[keras.metrics.MeanSquaredError()])
    return fitted(model, sample_weight=np.array([1.0, 2.0, 0.0, 1.0]), validation_data=(X, Y))


@rare_situation
def a_loss_that_is_a_function(way):
    return fitted(way.small(loss=lambda y, y_pred: ops.mean(ops.abs(y - y_pred), axis=-1)))


@rare_situation
def a_loss_that_is_not_finite(way):
    return fitted(way.small(loss=lambda y, y_pred: ops.log(y_pred * 0 - 1.0)))


class Penalty(keras.layers.Layer):
    """Adds to the loss, and shows a metric."""

    def __init__(self):
        super().__init__()
        self.mean = keras.metrics.Mean(name="mean_of_vectors")

    def call(self, vectors):
        self.add_loss(0.1 * ops.mean(vectors**2))
        self.mean.update_state(vectors)
        return vectors


@situation
def a_layer_that_adds_to_the_loss(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    vectors = Penalty()(keras.layers.Embedding(NUM_ROWS, WIDTH)(inputs))
    model = way.model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(vectors)))
    return fitted(way.compiled(model)), fitted(way.compiled(model, loss=None))


def two_outputs(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    flat = keras.layers.Flatten()(keras.layers.Embedding(NUM_ROWS, WIDTH)(inputs))
    return way.model(inputs, {n: keras.layers.Dense(1, name=n)(flat) for n in ("one", "two")})


@situation
def two_outputs_with_weights(way):
    model = way.compiled(
        two_outputs(way),
        loss={"one": "mse", "two": "mae"},
        loss_weights={"one": 0.5, "two": 2.0},
        metrics={"one": ["mae"]},
    )
    return fitted(model, y={"one": Y, "two": -Y}, sample_weight={"one": np.ones(4), "two": Y[:, 0]})


@rare_situation
def a_loss_of_one_of_two_outputs(way):
    return fitted(way.compiled(two_outputs(way), loss={"one": "mse"}), y={"one": Y})


def by_tape(self, data):
    x, y = data
    with tf.GradientTape() as tape:
        loss = squares(y, self(x, training=True))
    gradients = tape.gradient(loss, self.trainable_variables)
    self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
    self.tracker.update_state(loss)
    return {"own": self.tracker.result(), "count": tf.size(y)}


def by_keras(self, data):
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    with tf.GradientTape() as tape:
        loss = self.compute_loss(x, y, self(x, training=True), weight)
        self._loss_tracker.update_state(loss)
        scaled = self.optimizer.scale_loss(loss)
    weights = self.trainable_weights
    self.optimizer.apply(tape.gradient(scaled, weights), weights)
    return self.compute_metrics(x, y, None, weight)


def twice(self, data):
    keras.Model.train_step(self, data)
    return keras.Model.train_step(self, data)


def test_by_hand(self, data):
    x, y = data
    return {"own": squares(y, self(x, training=False))}


def of_the_outputs(self, x, y, y_pred, sample_weight=None):
    return {"own": ops.mean(y_pred)}


STEPS = {
    "train_step_by_a_tape": {"train_step": by_tape},
    "train_step_as_keras_has_it": {"train_step": by_keras},
    "train_step_that_steps_twice": {"train_step": twice},
    "test_step": {"test_step": test_by_hand},
    "predict_step": {
        "predict_step": lambda self, data: self(data[0] if isinstance(data, tuple) else data) + 1.0
    },
    "compute_metrics": {"compute_metrics": of_the_outputs},
}
for name, members in STEPS.items():

    def fit_with_steps(way, members=members):
        model = own(way, "adam", {"run_eagerly": False}, **members)
        return fitted(model, validation_data=(X, Y)), model.predict(X, verbose=0)

    often = name in {"train_step_by_a_tape", "compute_metrics"}
    entered(f"a_{name}_of_ones_own", fit_with_steps, often)
