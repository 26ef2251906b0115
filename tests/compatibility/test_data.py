"""Whatever the data come from, the rows train as Keras trains them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.compatibility.helpers import (
    MATRIX,
    X,
    Y,
    assert_only_trained,
    assert_step_is_that_of_a_whole_table,
    bits,
    compiled_model,
    in_both_models,
)
from tests.compatibility.table import works

BATCH_SIZE = 4
BATCHES = [
    (X[start : start + BATCH_SIZE], Y[start : start + BATCH_SIZE])
    for start in range(0, len(X), BATCH_SIZE)
]
WEIGHTS = np.linspace(0.0, 2.0, len(X), dtype="float32")


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, index):
        return BATCHES[index]


def trained(model_class, train):
    """A model that was trained from a fixed start, and its table."""
    keras.utils.set_random_seed(1)
    model, words = compiled_model(model_class)
    train(model)
    assert_only_trained(MATRIX, words.embeddings)
    return model, np.array(words.embeddings)


def fit_arrays(model, x=X, y=Y, **options):
    history = model.fit(x, y, batch_size=BATCH_SIZE, shuffle=False, verbose=0, **options)
    return history.history


def train_on_batches(model):
    for x, y in BATCHES:
        model.train_on_batch(x, y)


SOURCES = {
    "tf.data": lambda model: model.fit(
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH_SIZE), verbose=0
    ),
    "PyDataset": lambda model: model.fit(Batches(), shuffle=False, verbose=0),
    "generator": lambda model: model.fit((batch for batch in BATCHES), verbose=0),
    "train_on_batch": train_on_batches,
}


@works("Data", "NumPy arrays")
@in_both_models
def test_a_step_on_arrays_is_that_of_a_whole_table(model_class):
    assert_step_is_that_of_a_whole_table(
        model_class, lambda model: model.fit(X, Y, batch_size=len(X), verbose=0)
    )


@works("Data", "`tf.data.Dataset`")
@works("Data", "`keras.utils.PyDataset`")
@works("Data", "a Python generator")
@works("Data", "`train_on_batch`")
@pytest.mark.parametrize("source", SOURCES)
@in_both_models
def test_a_source_of_batches_trains_what_arrays_train(model_class, source):
    _, from_arrays = trained(model_class, fit_arrays)
    _, from_source = trained(model_class, SOURCES[source])
    assert (bits(from_source) == bits(from_arrays)).all()


@works("Data", "`sample_weight`")
@in_both_models
def test_a_weighted_step_is_that_of_a_whole_table(model_class):
    assert_step_is_that_of_a_whole_table(
        model_class,
        lambda model: model.fit(X, Y, batch_size=len(X), sample_weight=WEIGHTS, verbose=0),
    )


@works("Data", "`class_weight`")
@in_both_models
def test_a_step_with_weighted_classes_is_that_of_a_whole_table(model_class):
    classes = (Y > 0).astype("int32")
    weights = {0: 0.5, 1: 3.0}
    assert_step_is_that_of_a_whole_table(
        model_class,
        lambda model: model.fit(X, classes, batch_size=len(X), class_weight=weights, verbose=0),
    )


@works("Data", "`validation_split`")
@in_both_models
def test_what_is_split_off_for_validation_trains_nothing(model_class):
    logs = {}
    model, table = trained(
        model_class, lambda model: logs.update(fit_arrays(model, validation_split=0.25))
    )
    _, from_the_rest = trained(model_class, lambda model: fit_arrays(model, X[:12], Y[:12]))
    assert (bits(table) == bits(from_the_rest)).all()
    assert logs["val_loss"] == [model.evaluate(X[12:], Y[12:], batch_size=BATCH_SIZE, verbose=0)]


@works("Data", "`validation_data`")
@in_both_models
def test_validation_trains_nothing(model_class):
    logs = {}
    x, y = X[::-1], Y[::-1] + 1.0
    model, table = trained(
        model_class, lambda model: logs.update(fit_arrays(model, validation_data=(x, y)))
    )
    _, without = trained(model_class, fit_arrays)
    assert (bits(table) == bits(without)).all()
    assert logs["val_loss"] == [model.evaluate(x, y, batch_size=BATCH_SIZE, verbose=0)]
