"""The inner optimizer: what it wraps, copies of it, and whether it can be wrapped."""

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from maskedgrad.messages import shorten


def of_inner(name: str, doc: str) -> Any:
    """A property that reads and sets the property of the inner optimizer."""

    def set_it(optimizer: Any, value: Any) -> None:
        # Keras sets some while the optimizer is made, before there is an inner one.
        if optimizer.inner is not None:
            setattr(optimizer.inner, name, value)

    return property(lambda optimizer: getattr(optimizer.inner, name), set_it, doc=doc)


class OptionsOfInner(keras.optimizers.Optimizer):
    """An optimizer around another, with the options of that one: to read, and to set.

    Each optimizer has some of its own, such as `momentum`. Without this, what is set on the
    optimizer of a model, as Keras allows it, would have no effect.
    """

    inner: Any = None

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, name: str | None):
        # Of a number Keras makes a variable, which a stock optimizer would load for its own.
        super().__init__(learning_rate=lambda: 0.0, name=name)
        for option in {each for each in vars(self) if each[0] != "_"} - {"name", "built"}:
            delattr(self, option)
        self.inner = inner_optimizer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # All that a `LossScaleOptimizer` does with an optimizer that it is put around:
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/loss_scale_optimizer.py#L101
        scales = isinstance(self.inner, keras.optimizers.LossScaleOptimizer)
        if name == "loss_scale_factor" and scales:
            raise ValueError(
                "A loss must be scaled once, or steps are thousands of times too small. Received: "
                "a `LossScaleOptimizer` around a `MaskedOptimizer` that has one inside. Compile "
                "with the `MaskedOptimizer` alone; in a stock `keras.Model` under `mixed_float16`, "
                "which adds one, with `compile(..., auto_scale_loss=False)`."
            )
        is_own = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if not is_own and hasattr(self.inner, name):
            setattr(self.inner, name, value)
        else:
            super().__setattr__(name, value)


def nested_optimizers(optimizer: Any) -> Iterator[Any]:
    """The optimizer, and those that it wraps at any depth."""
    yield optimizer
    inner_optimizer = getattr(optimizer, "inner_optimizer", None)
    if inner_optimizer is not None:
        yield from nested_optimizers(inner_optimizer)
        return
    for child in getattr(optimizer, "optimizers", []):
        yield from nested_optimizers(child)


def unbuilt_copy(optimizer: Any) -> Any:
    """A copy of an optimizer that is not built, and that shares nothing with it.

    Keras copies an optimizer by its config, from which not each can be made again. This copies what
    it holds, but for the strategy that it was made in: a trial needs one device.
    """
    nested = list(nested_optimizers(optimizer))
    memo: dict[int, Any] = {id(each): object.__new__(type(each)) for each in nested}
    memo |= {id(each._distribution_strategy): tf.distribute.get_strategy() for each in nested}
    for each in nested:
        # A function in the place of a method leads to the original, and is left out.
        held = {
            name: value
            for name, value in vars(each).items()
            if not (isinstance(value, types.FunctionType) and hasattr(type(each), name))
        }
        vars(memo[id(each)]).update(copy.deepcopy(held, memo))
        route = getattr(each, "_optimizer_map", None)
        if isinstance(route, types.FunctionType):  # which would lead to the originals
            vars(memo[id(each)])["_optimizer_map"] = _route_to_copies(route)
    return memo[id(optimizer)]


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Makes an optimizer, and those that it wraps, use a learning rate from now on."""
    for nested in nested_optimizers(optimizer):
        if hasattr(nested, "optimizers") or hasattr(nested, "inner_optimizer"):
            continue  # which has none of its own
        if isinstance(nested.learning_rate, keras.Variable):
            nested.learning_rate = learning_rate
        else:  # a schedule, which can be replaced by another alone
            nested.learning_rate = keras.optimizers.schedules.ExponentialDecay(
                learning_rate, decay_steps=1, decay_rate=1.0
            )


def _route_to_copies(route: Any) -> Any:
    copies: dict[int, Any] = {}

    def routed(variable: Any) -> Any:
        original = route(variable)
        return copies.setdefault(id(original), (original, unbuilt_copy(original)))[1]

    return routed


def moving_averages(optimizer: Any) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """The variables of which a built optimizer keeps averages, each with its average."""
    # Keras has no public way to ask for them.
    # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/optimizers/base_optimizer.py#L213
    for nested in nested_optimizers(optimizer):
        averages = getattr(nested, "_model_variables_moving_average", [])
        for variable, average in zip(nested._trainable_variables, averages, strict=False):
            if average is not None:
                yield variable, average


def made(make: Callable[..., Any], config: Any, **kwargs: Any) -> Any:
    """Returns what a function of Keras makes of the config of an inner optimizer."""
    try:
        return make(config, **kwargs)
    except (TypeError, ValueError):
        raise
    except Exception as error:
        # Keras does not say what it raises for a config that lacks something.
        raise ValueError(
            "The config of `inner_optimizer` must be what "
            f"`keras.saving.serialize_keras_object` returns. Received: {shorten(config)}, of "
            f"which Keras makes nothing: {type(error).__name__}: {error}"
        ) from error


def check_backend() -> None:
    """Raises a `ValueError` if Keras does not run on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "maskedgrad needs Keras to run on TensorFlow. Received: the backend "
            f"{keras.backend.backend()!r}. Set the environment variable "
            'KERAS_BACKEND="tensorflow" before Keras is imported.'
        )


def check_unbuilt(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises a `ValueError` if an optimizer is built."""
    if optimizer.built:
        raise ValueError(
            "`inner_optimizer` must not be built yet, because its state would be that of whole "
            f"tables. Received: the built optimizer {optimizer.name!r}. Make a fresh one: "
            "`type(optimizer).from_config(optimizer.get_config())`."
        )


def _advice_for(given: Any) -> str:
    if isinstance(given, type):
        return f"A class becomes an optimizer by a call: `{given.__name__}()`."
    if isinstance(given, dict):
        return "The optimizer comes first: `MaskedOptimizer(optimizer, trainable_rows)`."
    return "Optimizers of `tf_keras` and of PyTorch have a counterpart in `keras.optimizers`."


def checked_inner_optimizer(identifier: Any, masking: type) -> keras.optimizers.Optimizer:
    """The optimizer to wrap, if it is one that is not built, and none of the class `masking`."""
    is_config = isinstance(identifier, dict) and identifier.keys() & {"class_name", "config"}
    is_made = isinstance(identifier, str) or is_config
    optimizer = made(keras.optimizers.get, identifier) if is_made else identifier
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "`inner_optimizer` must be a Keras 3 optimizer, or what `keras.optimizers.get` takes "
            f"for one. Received: {optimizer!r} of type "
            f"{type(optimizer).__module__}.{type(optimizer).__qualname__}. {_advice_for(optimizer)}"
        )
    if any(isinstance(nested, masking) for nested in nested_optimizers(optimizer)):
        raise ValueError(
            "`inner_optimizer` must not mask rows itself. Received: a `MaskedOptimizer`. "
            "Name all tables in the `trainable_rows` of one; `set_trainable_rows` changes its rows."
        )
    check_unbuilt(optimizer)
    return optimizer
