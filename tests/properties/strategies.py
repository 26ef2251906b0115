"""What the property tests draw: tables, rows, gradients, and every optimizer that Keras has."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import settings
from hypothesis import strategies as st

WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
DTYPES = ("float32", "float16", "bfloat16", "float64")
TABLE_PATH = "words/embeddings"


# For laws that take a millisecond to check.
cheap = settings(max_examples=10 * settings().max_examples)


def optimizer_classes() -> list[type[keras.optimizers.Optimizer]]:
    """Every optimizer that the installed Keras exports and that stands alone."""
    exported = (getattr(keras.optimizers, name) for name in sorted(dir(keras.optimizers)))
    return [
        item
        for item in exported
        if inspect.isclass(item)
        and issubclass(item, keras.optimizers.Optimizer)
        and item is not keras.optimizers.Optimizer
        and item not in WRAPPERS
    ]


def bits(value: Any) -> np.ndarray:
    """The bits of an array, a tensor or a variable, as unsigned integers."""
    array = np.asarray(value)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def assert_same_bits(actual: Any, expected: Any, what: str) -> None:
    np.testing.assert_array_equal(bits(actual), bits(expected), err_msg=what)


def mirrored_strategy() -> tf.distribute.Strategy:
    """Two devices of this machine. The collectives of several strategies in one process collide."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that can be made again and again."""

    cls: type
    arguments: dict[str, Any]
    wrapper: str = ""
    learning_rate: Any = 0.1

    def make(self) -> keras.optimizers.Optimizer:
        learning_rate = self.learning_rate
        if isinstance(learning_rate, dict):
            learning_rate = keras.optimizers.schedules.ExponentialDecay(**learning_rate)
        optimizer = self.cls(learning_rate=learning_rate, **self.arguments)
        if self.wrapper == "loss_scale":
            return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
        if self.wrapper == "multi":
            routes = {".*/kernel": keras.optimizers.SGD(0.1, momentum=0.9)}
            return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer, routes))
        return optimizer

    @property
    def has_settable_learning_rate(self) -> bool:
        return self.wrapper != "multi" and not isinstance(self.learning_rate, dict)


def _flags(cls: type) -> dict[str, bool]:
    """The switches of one class, such as `nesterov` or `amsgrad`, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if isinstance(parameter.default, bool) and name != "use_ema"
    }


@st.composite
def optimizers(draw, cls: type, wrappers: tuple[str, ...] = ("", "loss_scale", "multi")):
    """An optimizer of the class, with any mix of what all optimizers take."""
    arguments: dict[str, Any] = {name: draw(st.booleans(), label=name) for name in _flags(cls)}
    if "momentum" in inspect.signature(cls).parameters:
        arguments["momentum"] = draw(st.sampled_from([0.5, 0.9]), label="momentum")
    if weight_decay := draw(st.sampled_from([None, 0.1]), label="weight_decay"):
        arguments["weight_decay"] = weight_decay
    if clip := draw(st.sampled_from([None, "clipnorm", "global_clipnorm", "clipvalue"])):
        arguments[clip] = 0.5
    if draw(st.booleans(), label="use_ema"):
        arguments["use_ema"] = True
        arguments["ema_momentum"] = 0.5
        arguments["ema_overwrite_frequency"] = draw(st.sampled_from([None, 1, 2]))
    if draw(st.booleans(), label="accumulate"):
        arguments["gradient_accumulation_steps"] = 2
    if draw(st.booleans(), label="scale"):
        arguments["loss_scale_factor"] = 8.0
    schedule = {"initial_learning_rate": 0.1, "decay_steps": 2, "decay_rate": 0.5}
    learning_rate = draw(st.sampled_from([0.1, schedule]), label="learning_rate")
    return OptimizerSpec(cls, arguments, draw(st.sampled_from(wrappers)), learning_rate)


@dataclass
class Table:
    """The values of a table, and which of its rows train."""

    values: np.ndarray
    ids: np.ndarray
    constraint: Any = None
    frozen: np.ndarray = field(init=False)

    def __post_init__(self):
        self.frozen = np.setdiff1d(np.arange(len(self.values)), self.ids)

    def variable(self, values: np.ndarray | None = None) -> keras.Variable:
        scope, name = TABLE_PATH.split("/")
        with keras.name_scope(scope):
            variable = keras.Variable(
                self.values if values is None else values, dtype=self.dtype, name=name
            )
        variable.constraint = self.constraint
        return variable

    @property
    def dtype(self) -> str:
        return keras.backend.standardize_dtype(self.values.dtype)


CONSTRAINTS = [
    None,
    keras.constraints.NonNeg(),
    keras.constraints.MaxNorm(0.5, axis=-1),
    keras.constraints.UnitNorm(axis=0),
]


@st.composite
def tables(draw, dtypes: tuple[str, ...] = DTYPES):
    """A table of any rank, whose frozen rows hold any bits at all."""
    dtype = tf.as_dtype(draw(st.sampled_from(dtypes), label="dtype")).as_numpy_dtype
    num_rows = draw(st.integers(2, 9), label="num_rows")
    row_shape = tuple(draw(st.lists(st.integers(1, 4), max_size=2), label="row_shape"))
    ids = draw(
        st.lists(st.integers(0, num_rows - 1), min_size=1, unique=True).map(sorted), label="ids"
    )
    constraint = draw(st.sampled_from(CONSTRAINTS), label="constraint")
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    shape = (num_rows, *row_shape)
    raw = random.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    values = np.frombuffer(raw, dtype=dtype).reshape(shape).copy()
    values.reshape(-1)[: 1 + num_rows // 3] = -0.0
    values[ids] = random.normal(size=(len(ids), *row_shape)).astype(dtype)
    return Table(values, np.array(ids), constraint)


POISON = [np.nan, np.inf, -np.inf]


@st.composite
def gradients(draw, table: Table, kinds=("dense", "sparse", "none"), poisoned=None):
    """A gradient of the whole table, and the same of its trainable rows alone.

    Returns:
        A tensor, `IndexedSlices` or `None`, of the table; and a tensor or
        `None`, of its trainable rows.
    """
    kind = draw(st.sampled_from(kinds), label="kind")
    if kind == "none":
        return None, None
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    if poisoned is None:
        poisoned = draw(st.booleans(), label="poisoned")
    num_rows, *row_shape = table.values.shape
    ids = np.arange(num_rows)
    if kind == "sparse":
        ids = np.array(
            draw(st.lists(st.integers(0, num_rows - 1), max_size=12), label="looked up"),
            dtype=draw(st.sampled_from(["int32", "int64"]), label="index dtype"),
        )
    values = random.normal(size=(len(ids), *row_shape)).astype(table.values.dtype)
    if poisoned:
        frozen = np.isin(ids, table.frozen)
        values[frozen] = random.choice(POISON, size=values[frozen].shape)
    if kind == "dense":
        return tf.constant(values), tf.constant(values[table.ids])
    total = np.zeros_like(table.values)
    with np.errstate(invalid="ignore"):
        np.add.at(total, ids, values)
    slices = tf.IndexedSlices(
        tf.constant(values), tf.constant(ids), tf.constant(table.values.shape)
    )
    return slices, tf.constant(total[table.ids])


def kernel_gradients(table: Table) -> st.SearchStrategy:
    """Gradients of `oracle.kernel_variable(table)`."""
    return st.integers(0, 2**32 - 1).map(
        lambda seed: tf.constant(np.random.default_rng(seed).normal(size=(2, 3)), table.dtype)
    )
