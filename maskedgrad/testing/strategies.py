"""What property tests draw: tables, rows, gradients, and every optimizer that Keras has."""

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from maskedgrad.testing.compact_twin import selected_gradient

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        'Property tests need the library Hypothesis. Install it: pip install "maskedgrad[testing]"'
    ) from error

# By what `OptimizerSpec.wrapper` calls them, those that this Keras exports.
WRAPPERS = {
    wrapper: getattr(keras.optimizers, name)
    for wrapper, name in {"loss_scale": "LossScaleOptimizer", "multi": "MultiOptimizer"}.items()
    if hasattr(keras.optimizers, name)
}
DTYPES = ("float32", "float16", "bfloat16", "float64")
TABLE_PATH = "words/embeddings"
POISON = [np.nan, np.inf, -np.inf]
CONSTRAINTS = [
    None,
    keras.constraints.NonNeg(),
    keras.constraints.MaxNorm(0.5, axis=-1),
    keras.constraints.UnitNorm(axis=0),
]


def row_sets(num_rows: int, min_size: int = 1) -> st.SearchStrategy[list[int]]:
    """Sets of rows of a table, as ascending lists of ids.

    Args:
        num_rows: int, the number of rows of the table.
        min_size: int, how many rows a set has at least.

    Example:

    >>> from hypothesis import find
    >>> find(row_sets(5), lambda rows: len(rows) > 1)
    [0, 1]
    """
    ids = st.integers(0, num_rows - 1)
    return st.sets(ids, min_size=min_size, max_size=num_rows).map(sorted)


def optimizer_classes() -> list[type[keras.optimizers.Optimizer]]:
    """Every optimizer that the installed Keras exports and that stands alone.

    Example:

    >>> keras.optimizers.AdamW in optimizer_classes()
    True
    """
    exported = (getattr(keras.optimizers, name) for name in sorted(dir(keras.optimizers)))
    return [
        item
        for item in exported
        if inspect.isclass(item)
        and issubclass(item, keras.optimizers.Optimizer)
        and item is not keras.optimizers.Optimizer
        and item not in WRAPPERS.values()
    ]


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that can be made again and again: `make` returns a fresh one."""

    cls: type
    arguments: dict[str, Any]
    wrapper: str = ""
    learning_rate: Any = 0.1

    def make(self) -> keras.optimizers.Optimizer:
        """The optimizer, not built."""
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
        """Whether `optimizer.learning_rate` can be assigned."""
        return self.wrapper != "multi" and not isinstance(self.learning_rate, dict)


@st.composite
def optimizers(
    draw: st.DrawFn,
    cls: type[keras.optimizers.Optimizer] | None = None,
    wrappers: Sequence[str] = ("", *WRAPPERS),
) -> OptimizerSpec:
    """An `OptimizerSpec` with any mix of what all optimizers take.

    Args:
        draw: given by Hypothesis.
        cls: the class of the optimizer; any that Keras exports if not given.
        wrappers: what may be around it: nothing, a `LossScaleOptimizer`, or a
            `MultiOptimizer`, if Keras exports it, that leaves kernels to another.

    Example:

    >>> from hypothesis import find
    >>> spec = find(optimizers(keras.optimizers.Adam), lambda spec: spec.arguments["amsgrad"])
    >>> spec.make().amsgrad
    True
    """
    cls = cls or draw(st.sampled_from(optimizer_classes()), label="class")
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


def _flags(cls: Callable[..., Any]) -> dict[str, bool]:
    """Returns the boolean arguments of a class, such as `nesterov`, with their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if isinstance(parameter.default, bool) and name != "use_ema"
    }


@dataclass
class Table:
    """The values of a table, the ids of its rows that train, and its constraint."""

    values: np.ndarray
    ids: npt.NDArray[np.int64]
    constraint: Any = None
    frozen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.frozen = np.setdiff1d(np.arange(len(self.values)), self.ids)

    def variable(self, values: np.ndarray | None = None) -> keras.Variable:
        """A variable of the path `TABLE_PATH` that holds the values, or others."""
        scope, name = TABLE_PATH.split("/")
        with keras.name_scope(scope):
            variable = keras.Variable(
                self.values if values is None else values, dtype=self.dtype, name=name
            )
        variable.constraint = self.constraint
        return variable

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return keras.backend.standardize_dtype(self.values.dtype)


@st.composite
def tables(draw: st.DrawFn, dtypes: Sequence[str] = DTYPES) -> Table:
    """A `Table` of any rank, whose frozen rows hold any bits at all.

    Args:
        draw: given by Hypothesis.
        dtypes: the names of the dtypes that it may have.

    Example:

    >>> from hypothesis import find
    >>> find(tables(["float16"]), lambda table: len(table.frozen)).values.dtype
    dtype('float16')
    """
    dtype = tf.as_dtype(draw(st.sampled_from(dtypes), label="dtype")).as_numpy_dtype
    num_rows = draw(st.integers(2, 9), label="num_rows")
    row_shape = tuple(draw(st.lists(st.integers(1, 4), max_size=2), label="row_shape"))
    ids = draw(row_sets(num_rows), label="ids")
    constraint = draw(st.sampled_from(CONSTRAINTS), label="constraint")
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    shape = (num_rows, *row_shape)
    raw = random.bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    values = np.frombuffer(raw, dtype=dtype).reshape(shape).copy()
    values.reshape(-1)[: 1 + num_rows // 3] = -0.0
    values[ids] = random.normal(size=(len(ids), *row_shape)).astype(dtype)
    return Table(values, np.array(ids), constraint)


@st.composite
def gradients(
    draw: st.DrawFn,
    shape: Sequence[int],
    dtype: Any = "float32",
    kinds: Sequence[str] = ("dense", "sparse", "none"),
    poisoned_rows: Collection[int] = (),
) -> tf.Tensor | tf.IndexedSlices | None:
    """A gradient of a table.

    Args:
        draw: given by Hypothesis.
        shape: the shape of the table, `(V, ...)`.
        dtype: the dtype of the gradient.
        kinds: what it may be: a dense tensor, `IndexedSlices` that may repeat
            ids, or `None`.
        poisoned_rows: ids whose gradient holds NaN and infinity, and nothing
            else.

    Example:

    >>> from hypothesis import find
    >>> from maskedgrad.testing import gradients
    >>> find(gradients((2, 3)), lambda gradient: gradient is not None).shape
    TensorShape([2, 3])
    """
    kind = draw(st.sampled_from(kinds), label="kind")
    if kind == "none":
        return None
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    num_rows, *row_shape = shape
    ids = np.arange(num_rows)
    if kind == "sparse":
        ids = np.array(
            draw(st.lists(st.integers(0, num_rows - 1), max_size=12), label="looked up"),
            dtype=draw(st.sampled_from(["int32", "int64"]), label="index dtype"),
        )
    values = random.normal(size=(len(ids), *row_shape)).astype(tf.as_dtype(dtype).as_numpy_dtype)
    is_poisoned = np.isin(ids, list(poisoned_rows))
    values[is_poisoned] = random.choice(POISON, size=values[is_poisoned].shape)
    if kind == "dense":
        return tf.constant(values)
    return tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant(shape))


@st.composite
def gradients_of(
    draw: st.DrawFn,
    table: Table,
    kinds: Sequence[str] = ("dense", "sparse", "none"),
    poisoned: bool | None = None,
) -> tuple[tf.Tensor | tf.IndexedSlices | None, tf.Tensor | None]:
    """A gradient of a whole table, and the same of its trainable rows alone.

    Args:
        draw: given by Hypothesis.
        table: the `Table`.
        kinds: as for `gradients`.
        poisoned: whether the gradient of frozen rows is not finite; either if
            not given.

    Returns:
        A tensor, `IndexedSlices` or `None`, of the table; and a tensor or
        `None`, of its trainable rows.

    Example:

    >>> from hypothesis import find
    >>> table = Table(np.ones((3, 2), "float32"), np.array([1]))
    >>> whole, compact = find(gradients_of(table, kinds=["dense"]), lambda pair: True)
    >>> (whole[1] == compact[0]).numpy().tolist()
    [True, True]
    """
    if poisoned is None:
        poisoned = draw(st.booleans(), label="poisoned")
    shape = table.values.shape
    poisoned_rows = table.frozen if poisoned else ()
    gradient = draw(gradients(shape, table.values.dtype, kinds, poisoned_rows))
    return gradient, selected_gradient(gradient, shape, table.ids)
