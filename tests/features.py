"""What only some of the supported versions of Keras have; a test that is about it asks for it."""

import functools
import inspect
from typing import Any

import keras
import pytest
import tensorflow as tf

from maskedgrad.testing import optimizer_classes
from tests.devices import mirrored_strategy

# What is not in the oldest Keras that is supported. Of another name, a typo, nothing is skipped.
LATER = [
    "callbacks.OrbaxCheckpoint",
    "layers.ReversibleEmbedding",
    "optimizers.MultiOptimizer",
    "optimizers.Muon",
    "optimizers.ScheduleFreeAdamW",
]


def feature(path: str) -> Any:
    """What Keras exports as `keras.<path>`, or `None` where it does not."""
    return functools.reduce(
        lambda parent, name: getattr(parent, name, None), path.split("."), keras
    )


def needs(path: str, argument: str | None = None) -> pytest.MarkDecorator:
    """Skips a test, or one of its parameters, where `keras.<path>` or its argument is missing."""
    found = feature(path)
    assert found is not None or path in LATER, path
    if argument is None or found is None:
        return pytest.mark.skipif(found is None, reason=f"this Keras has no keras.{path}")
    return pytest.mark.skipif(
        argument not in inspect.signature(found).parameters,
        reason=f"keras.{path} of this Keras takes no `{argument}`",
    )


@functools.cache
def has_muon() -> bool:
    """Whether Keras has a `Muon` that steps on TensorFlow, as from 3.13 on."""
    if (muon := feature("optimizers.Muon")) is None:
        return False
    variable = keras.Variable(tf.ones((2, 2)), name="kernel")
    try:
        muon(0.1).apply([tf.ones((2, 2))], [variable])
    except AttributeError:  # it asks a variable of TensorFlow for its path
        return False
    return True


@functools.cache
def clones_are_compiled() -> bool:
    """Whether Keras compiles the clone of a model that is compiled; 3.8 does not."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    return bool(keras.models.clone_model(model).compiled)


def needs_muon() -> pytest.MarkDecorator:
    """Skips where Keras has no `Muon` that steps on TensorFlow."""
    return pytest.mark.skipif(not has_muon(), reason="this Keras has no Muon for TensorFlow")


def skip_if_lacking(program: str) -> None:
    """Skips a test of a program that uses what Keras does not export yet."""
    for path in LATER:
        if f"keras.{path}" in program and feature(path) is None:
            pytest.skip(f"the program uses keras.{path}, which this Keras does not have")


def metrics_are_of_all_devices() -> bool:
    """Whether Keras adds up over the devices of a strategy what a metric counts on each."""
    with mirrored_strategy().scope():
        total = keras.metrics.Mean().variables[0].value
    return total.synchronization == tf.VariableSynchronization.ON_READ


def takes_distributed_datasets() -> bool:
    """Whether Keras takes what `strategy.distribute_datasets_from_function` returns for data."""
    strategy = mirrored_strategy()
    data = strategy.distribute_datasets_from_function(
        lambda context: tf.data.Dataset.from_tensors(tf.zeros([1, 1])).repeat()
    )
    with strategy.scope():
        model = keras.Sequential([keras.layers.Dense(1)])
    try:
        model.predict(data, steps=1, verbose=0)
    except ValueError as error:
        if "Unrecognized data type" not in str(error):
            raise
        return False
    return True


def exported(path: str) -> Any:
    """A parameter that is `keras.<path>`, skipped where Keras does not export it."""
    return pytest.param(feature(path), marks=needs(path), id=path.rpartition(".")[2])


def some_optimizer_classes() -> list[Any]:
    """Parameters that are Keras's optimizer classes, each fourth in the default lane of tests.

    For what each class does alike: that it steps as its twin does is tested for all of them.
    """
    return [
        pytest.param(cls, marks=[pytest.mark.thorough] if place % 4 else [], id=cls.__name__)
        for place, cls in enumerate(optimizer_classes())
    ]
