"""Runs a situation as stock Keras and wrapped, and tells what differs.

The law: take what stock Keras does in a situation, do it with a `MaskedOptimizer` whose rows are
all rows, and nothing differs. A situation is a function of a `Way`, which makes its models and
optimizers; it returns whatever can be compared. What it raises and what it warns of counts too.
"""

import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep
from maskedgrad.testing import bits

NUM_ROWS, WIDTH, LENGTH = 12, 4, 3
TABLES = "(.*/)?(embeddings|table)"  # the paths of all tables
RANDOM = np.random.default_rng(0)
# No id twice, so that it makes no difference in which order the slices of a row are added.
X = RANDOM.permutation(NUM_ROWS).reshape(-1, LENGTH).astype("int32")
Y = RANDOM.normal(size=(len(X), 1)).astype("float32")


class Way(NamedTuple):
    """A way of running a situation.

    Args:
        model: the class of its models.
        sequential: the class of its sequential models.
        wrap: makes the optimizer to compile with of a bare one.
        folder: a folder that is there while the situation runs.
    """

    model: type
    sequential: type
    wrap: Callable[[Any], Any]
    folder: Path = Path()

    def optimizer(self, optimizer: Any = "adam") -> Any:
        """An optimizer, or one around it that masks all rows of all tables."""
        return self.wrap(keras.optimizers.get(optimizer))

    def small(self, optimizer: Any = "adam", **options: Any) -> keras.Model:
        """A compiled model of a table and a `Dense` layer; eager, unless it is said."""
        inputs = keras.Input((LENGTH,), dtype="int32")
        words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
        outputs = keras.layers.Dense(1, name="head")(keras.layers.Flatten()(words(inputs)))
        return self.compiled(self.model(inputs, outputs), optimizer, **options)

    def compiled(self, model: keras.Model, optimizer: Any = "adam", **options: Any) -> keras.Model:
        """The model, compiled."""
        defaults = {"loss": "mse", "run_eagerly": "jit_compile" not in options}
        model.compile(self.optimizer(optimizer), **{**defaults, **options})
        return model


# Of the name that Keras makes names of variables of.
MaskedSequential = type("Sequential", (MaskedTrainStep, keras.Sequential), {})


def _masked(optimizer: Any) -> MaskedOptimizer:
    return MaskedOptimizer(optimizer, {TABLES: slice(None)})


STOCK = Way(keras.Model, keras.Sequential, lambda optimizer: optimizer)
MODEL = Way(MaskedModel, MaskedSequential, _masked)
OPTIMIZER = Way(keras.Model, keras.Sequential, _masked)

# The list, and which of it the default lane runs; `-m thorough` runs the others.
SITUATIONS: dict[str, Callable[[Way], Any]] = {}
OFTEN: set[str] = set()
# Where the wrapper is to differ, and why.
DIFFER = {
    "an_optimizer_given_too_few_gradients": "Keras steps the first variables and says nothing",
    "an_optimizer_given_a_generator_of_gradients": "Keras asks for its length, and fails",
    "an_optimizer_given_gradients_of_another_shape": "TensorFlow fails, where we say what is wrong",
}


def situation(function: Callable[[Way], Any]) -> Callable[[Way], Any]:
    """Enters a function in the list of situations, by its name."""
    return entered(function.__name__, function)


def rare_situation(function: Callable[[Way], Any]) -> Callable[[Way], Any]:
    """As `situation`, for the thorough lane."""
    return entered(function.__name__, function, often=False)


def entered(name: str, function: Callable[[Way], Any], often: bool = True) -> Callable[[Way], Any]:
    """Enters a function in the list of situations by a name, which no other has."""
    assert name not in SITUATIONS, name
    SITUATIONS[name] = function
    if often:
        OFTEN.add(name)
    return function


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that a `MaskedOptimizer` wraps; any other itself."""
    return optimizer.inner_optimizer if isinstance(optimizer, MaskedOptimizer) else optimizer


def learned(model: keras.Model) -> dict[str, Any]:
    """All that training has changed: weights, and state with the names that it has."""
    state = unwrapped(model.optimizer).variables
    # A scaler that a stock model adds is around a `MaskedOptimizer`, which holds one thing more.
    state = [variable for variable in state if not variable.name.endswith("_trainable_rows")]
    return {
        "weights": {str(i): w for i, w in enumerate(model.get_weights())},
        "names": [variable.name for variable in state],
        "state": [variable.numpy() for variable in state],
    }


def fitted(model: keras.Model, x: Any = X, y: Any = Y, **options: Any) -> dict[str, Any]:
    """What `fit` leaves of a model: what it has learned, and the history."""
    defaults = {"verbose": 0, "shuffle": False, "epochs": 2}
    if isinstance(x, np.ndarray):
        defaults["batch_size"] = 3
    history = model.fit(x, y, **{**defaults, **options})
    return {"history": history.history, "epochs": history.epoch, **learned(model)}


def outcome(function: Callable[[Way], Any], way: Way) -> dict[str, Any]:
    """What a situation comes to: what it returns or raises, and the warnings."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    policy, floatx = keras.config.dtype_policy(), keras.config.floatx()
    result, error = None, ""
    with warnings.catch_warnings(record=True) as caught, tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("always")
        try:
            result = function(way._replace(folder=Path(folder)))
        except Exception as raised:
            error = type(raised).__name__
        finally:
            keras.config.set_dtype_policy(policy)
            keras.config.set_floatx(floatx)
    # Not the deprecations: NumPy has them for Keras, once for each array that is written.
    categories = sorted(
        each.category.__name__ for each in caught if each.category is not DeprecationWarning
    )
    return {"error": error, "warnings": categories, "result": result}


@functools.cache
def as_stock(function: Callable[[Way], Any]) -> dict[str, Any]:
    """What a situation comes to as stock."""
    return outcome(function, STOCK)


def differences(ours: Any, stock: Any, where: str = "") -> list[str]:
    """Where two results differ, in words; values are compared bit for bit."""
    if isinstance(stock, dict) and isinstance(ours, dict) and ours.keys() == stock.keys():
        pairs = [(f"{where}/{key}", ours[key], stock[key]) for key in stock]
    elif _is_list(stock) and _is_list(ours) and len(ours) == len(stock):
        pairs = [(f"{where}/{i}", *pair) for i, pair in enumerate(zip(ours, stock, strict=True))]
    else:
        return [] if _same(ours, stock) else [f"{where}: {ours!r} where stock has {stock!r}"]
    return [found for name, one, other in pairs for found in differences(one, other, name)]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _same(ours: Any, stock: Any) -> bool:
    if isinstance(stock, (str, type(None), dict, list, tuple)):
        return type(ours) is type(stock) and ours == stock
    if isinstance(ours, (str, type(None), dict, list, tuple)):
        return False
    ours, stock = (
        np.asarray(keras.ops.convert_to_numpy(v) if tf.is_tensor(v) else v) for v in (ours, stock)
    )
    if ours.dtype != stock.dtype or ours.shape != stock.shape:
        return False
    if ours.dtype.kind in "OSU":
        return ours.tolist() == stock.tolist()
    return np.array_equal(bits(ours), bits(stock))
