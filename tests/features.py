"""What only some of the supported versions of Keras have; a test that is about it asks for it."""

import functools
import inspect
from typing import Any

import keras
import pytest
import tensorflow as tf

from tests.properties.strategies import mirrored_strategy


def feature(path: str, default: Any = None) -> Any:
    """What Keras exports as `keras.<path>`, or `default` where it does not.

    >>> feature("optimizers.Adam").__name__, feature("optimizers.Newton")
    ('Adam', None)
    """
    names = path.split(".")
    return functools.reduce(lambda parent, name: getattr(parent, name, default), names, keras)


def needs(path: str, argument: str | None = None) -> pytest.MarkDecorator:
    """Skips a test, or one of its parameters, where `keras.<path>` or its argument is missing."""
    found = feature(path)
    if argument is None or found is None:
        return pytest.mark.skipif(found is None, reason=f"this Keras has no keras.{path}")
    return pytest.mark.skipif(
        argument not in inspect.signature(found).parameters,
        reason=f"keras.{path} of this Keras takes no `{argument}`",
    )


def metrics_are_of_all_devices() -> bool:
    """Whether Keras adds up over the devices of a strategy what a metric counts on each."""
    with mirrored_strategy().scope():
        total = keras.metrics.Mean().variables[0].value
    return total.synchronization == tf.VariableSynchronization.ON_READ


def exported(path: str) -> Any:
    """A parameter that is `keras.<path>`, skipped where Keras does not export it."""
    return pytest.param(feature(path), marks=needs(path), id=path.rpartition(".")[2])
