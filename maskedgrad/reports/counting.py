"""Counting what trains: parameters, rows, and the memory of the optimizer."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from maskedgrad.masking.of_model import masked_optimizer_in, masked_tables
from maskedgrad.reports.printing import print_text, print_with_closing, without_closing
from maskedgrad.rows.targets import MaskedTable, describe


def summary(model: keras.Model, **options: Any) -> None:
    """Prints the summary of a model, and what of it trains.

    Equivalent to `model.summary(**options)`, but for the lines below its
    table. Keras counts whole tables there; these count trainable rows.
    Where the optimizer masks nothing, Keras' own lines stay.

    Args:
        model: a `keras.Model`.
        **options: as for `keras.Model.summary`.

    Raises:
        TypeError: `model` is no `keras.Model`.

    Example:

    >>> words = keras.layers.Embedding(500, 8, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> summary(model, print_fn=lambda text: print(*text.splitlines()[-5:], sep="\\n"))
     Total parameters: 4,000 (15.62 KB)
     Trainable parameters: 16 (64.00 B)
       words/embeddings: 2 of 500 rows, 16 parameters (64.00 B)
     Frozen parameters: 3,984 (15.56 KB)
     Optimizer memory: known once the first training step has built the optimizer
    """
    _check_is_model(model)
    print_summary(model, functools.partial(keras.Model.summary, model), **options)


def print_summary(
    model: keras.Model,
    print_keras_summary: Callable[..., None],
    print_fn: Callable[[str], Any] | None = None,
    **options: Any,
) -> None:
    """`summary`, for a class that has a `summary` of its own and calls this in it.

    Args:
        model: a `keras.Model`.
        print_keras_summary: the method `summary` that Keras gives the model.
        print_fn: takes the whole text. It prints or logs, as Keras does, if
            none is given.
        **options: what else `print_keras_summary` takes.
    """
    if masked_optimizer_in(getattr(model, "optimizer", None)) is None:
        print_keras_summary(print_fn=print_fn, **options)
        return
    closing = "".join(_closing_lines(count_parameters(model), model.built))
    if print_fn is None and keras.config.is_interactive_logging_enabled():
        print_with_closing(functools.partial(print_keras_summary, **options), closing)
        return
    parts: list[str] = []
    print_keras_summary(print_fn=parts.append, **options)
    (print_fn or print_text)(without_closing("".join(parts)) + closing)


class Size(NamedTuple):
    """How many numbers, and how many bytes they take."""

    parameters: int
    bytes: int


class TableCount(NamedTuple):
    """The trainable rows of a table: their number, out of how many, and their size."""

    path: str
    axis: int
    num_trainable: int
    num_rows: int
    trainable: Size


class OptimizerMemory(NamedTuple):
    """What an optimizer holds, in bytes.

    - `state`: its variables, without the ids of the rows that train.
    - `masking`: what masking adds: the compact variables, and the ids.
    - `unmasked`: what `state` would be if every row trained.
    """

    state: int
    masking: int
    unmasked: int


class ParameterCount(NamedTuple):
    """What `count_parameters` returns."""

    total: Size
    trainable: Size
    frozen: Size
    tables: list[TableCount]
    optimizer: OptimizerMemory | None


def count_parameters(model: keras.Model) -> ParameterCount:
    """How many parameters of a model there are, how many train, and what the optimizer holds.

    Equivalent to what Keras counts, if each masked table counted its trainable
    rows as trainable weights and its frozen rows as non-trainable ones. The
    state of the optimizer is not among the parameters.

    Args:
        model: a `keras.Model`, built or not, compiled or not.

    Returns:
        A `ParameterCount`. `optimizer` is `None` where no optimizer is built.

    Raises:
        TypeError, ValueError: `model` is no `keras.Model`; or as `MaskedOptimizer.build`
            does, where the optimizer is not built and its rows do not fit the model.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> model.optimizer.build(model.trainable_variables)
    >>> count = count_parameters(model)
    >>> count.trainable, count.tables[0].num_trainable
    (Size(parameters=4, bytes=16), 2)
    >>> count.optimizer.state  # two moments of four numbers, a counter and a learning rate
    44
    """
    _check_is_model(model)
    memory = _optimizer_memory(model)
    trainable_weights = list(_unique(model.trainable_weights))
    total = _size([*trainable_weights, *_unique(model.non_trainable_weights)])
    train = {id(variable) for variable in trainable_weights}
    masked_here = [table for table in masked_tables(model) if id(table.variable) in train]
    tables = [_count_rows(table) for table in masked_here]
    masked = {id(table.variable) for table in masked_here}
    trainable = _sum(
        [
            _size(variable for variable in trainable_weights if id(variable) not in masked),
            *[table.trainable for table in tables],
        ]
    )
    frozen = Size(total.parameters - trainable.parameters, total.bytes - trainable.bytes)
    return ParameterCount(total, trainable, frozen, tables, memory)


def state_bytes(optimizer: keras.optimizers.Optimizer) -> int:
    """The memory that the variables of a built optimizer take, in bytes.

    Example:

    >>> optimizer = keras.optimizers.Adam()
    >>> optimizer.build([keras.Variable(np.ones(2, "float32"))])
    >>> state_bytes(optimizer)  # two moments of two numbers, a counter and a learning rate
    28
    """
    return _size(optimizer.variables).bytes


def readable_bytes(num_bytes: float) -> str:
    """A number of bytes as Keras writes it.

    Example:

    >>> readable_bytes(2**20 * 1.5)
    '1.50 MB'
    """
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if num_bytes < 1024:
            return f"{num_bytes:.2f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} PB"


def _check_is_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a `keras.Model`. Received: {describe(model)}. "
            "Give the model itself, and for a layer the one that it is part of."
        )


def _count_rows(table: MaskedTable) -> TableCount:
    num_trainable, num_rows = len(table.rows), table.rows.num_rows
    whole = _size([table.variable])
    trainable = Size(*(number // num_rows * num_trainable for number in whole))
    return TableCount(table.path, table.axis, num_trainable, num_rows, trainable)


def _optimizer_memory(model: keras.Model) -> OptimizerMemory | None:
    optimizer = getattr(model, "optimizer", None)
    masked = masked_optimizer_in(optimizer)
    if optimizer is None or not all(each.built for each in (optimizer, masked or optimizer)):
        return None
    state = state_bytes(optimizer)
    if masked is None:
        return OptimizerMemory(state, 0, state)
    tables = masked_tables(model)
    # The compact variable, and an id for each row.
    masking = sum(_count_rows(table).trainable.bytes + 8 * len(table.rows) for table in tables)
    state -= 8 * sum(len(table.rows) for table in tables)
    saved = 0
    for variable, table in masked.row_state():
        row_bytes = _size([variable]).bytes // len(table.rows)
        saved += row_bytes * (table.rows.num_rows - len(table.rows))
    return OptimizerMemory(state, masking, state + saved)


def _size(arrays: Iterable[Any]) -> Size:
    return _sum(
        Size(count := math.prod(array.shape), count * tf.as_dtype(array.dtype).size)
        for array in arrays
    )


def _sum(sizes: Iterable[Size]) -> Size:
    sizes = list(sizes)
    return Size(sum(size.parameters for size in sizes), sum(size.bytes for size in sizes))


def _unique(variables: Iterable[Any]) -> Iterator[Any]:
    return iter({id(variable): variable for variable in variables}.values())


def _closing_lines(count: ParameterCount, is_built: bool) -> list[str]:
    lines = [f"Total parameters: {_text(count.total)}"]
    lines.append(f"Trainable parameters: {_text(count.trainable)}")
    for table in count.tables:
        rows = f"{table.num_trainable:,} of {table.num_rows:,} rows"
        if table.axis:
            rows += f" along axis {table.axis}"
        number = table.trainable.parameters
        plural = "" if number == 1 else "s"
        size = f"{number:,} parameter{plural} ({readable_bytes(table.trainable.bytes)})"
        lines.append(f"  {table.path}: {rows}, {size}")
    if not is_built:
        lines.append("  Which rows train is known once the model is built")
    lines.append(f"Frozen parameters: {_text(count.frozen)}")
    lines.append(f"Optimizer memory: {_memory_text(count.optimizer)}")
    return [f" {line}\n" for line in lines]


def _memory_text(memory: OptimizerMemory | None) -> str:
    if memory is None:
        return "known once the first training step has built the optimizer"
    state, masking, unmasked = map(readable_bytes, memory)
    return f"{state} of state and {masking} for masking; {unmasked} of state without maskedgrad"


def _text(size: Size) -> str:
    return f"{size.parameters:,} ({readable_bytes(size.bytes)})"
