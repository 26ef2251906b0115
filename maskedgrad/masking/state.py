"""The state of an inner optimizer by rows: carrying it over to another set of rows."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.compact import MaskedTable, StandIn


class RowAxis(NamedTuple):
    """Where the state of a table's rows lies in a state variable."""

    table: int
    axis: int


def nested_optimizers(optimizer: Any) -> Iterator[Any]:
    """The optimizer, and those that it wraps at any depth."""
    yield optimizer
    inner_optimizer = getattr(optimizer, "inner_optimizer", None)
    if inner_optimizer is not None:
        yield from nested_optimizers(inner_optimizer)
        return
    for child in getattr(optimizer, "optimizers", []):
        yield from nested_optimizers(child)


def clone_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The same optimizer without its state: what it was made from, and what it excludes."""
    clone = type(optimizer).from_config(optimizer.get_config())
    for theirs, ours in zip(nested_optimizers(clone), nested_optimizers(optimizer), strict=True):
        _copy_weight_decay_exclusions(ours, theirs)
    return clone


def carry_over_state(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    old_tables: Sequence[MaskedTable],
    new_tables: Sequence[MaskedTable],
    variables: Sequence[keras.Variable],
) -> None:
    """Gives a built optimizer the state of another for the rows that both train.

    The state of every other row stays what `new` was built with: fresh.

    Args:
        old: the optimizer that was built on the old tables' compact variables.
        new: a clone of it, built on the new tables' compact variables.
        old_tables: the tables with the rows that trained.
        new_tables: the same tables with the rows that will train.
        variables: what both were built on, with the tables themselves.
    """
    _start_averages(new, new_tables)
    kept = [
        np.intersect1d(before.rows.ids, after.rows.ids, return_indices=True)[1:]
        for before, after in zip(old_tables, new_tables, strict=True)
    ]
    axes = row_axes(old, variables, new_tables)
    for before, after, place in zip(old.variables, new.variables, axes, strict=True):
        if place is None:
            after.assign(before)
            continue
        old_places, new_places = kept[place.table]
        values = after.numpy()
        rows = np.moveaxis(values, place.axis, 0)
        rows[new_places] = np.moveaxis(before.numpy(), place.axis, 0)[old_places]
        after.assign(values)


def row_axes(
    optimizer: keras.optimizers.Optimizer,
    variables: Sequence[keras.Variable],
    tables: Sequence[MaskedTable],
) -> list[RowAxis | None]:
    """For each state variable the axis that runs along a table's trainable rows, if any.

    Found by trial: what grows with the rows belongs to them. Clones are built
    on small variables of the same ranks and paths, once with more rows.
    """
    place = {id(table.variable): index for index, table in enumerate(tables)}

    def shapes(more: int) -> list[tuple[int, ...]]:
        clone = clone_optimizer(optimizer)
        clone.build(
            [
                _small(v, 2 * place[id(v)] + more, tables[place[id(v)]].axis)
                if id(v) in place
                else _small(v, 1, 0)
                for v in variables
            ]
        )
        return [tuple(variable.shape) for variable in clone.variables]

    # Table number i has 2 i + 2 rows and then one more, so that each differs from all others.
    return [
        next(
            (
                RowAxis((few - 2) // 2, axis)
                for axis, (few, many) in enumerate(zip(small, large, strict=True))
                if few != many
            ),
            None,
        )
        for small, large in zip(shapes(2), shapes(3), strict=True)
    ]


def moving_averages(optimizer: Any) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """The variables of which a built optimizer keeps averages, each with its average."""
    # Keras has no public way to ask for them.
    for nested in nested_optimizers(optimizer):
        averages = getattr(nested, "_model_variables_moving_average", [])
        for variable, average in zip(nested._trainable_variables, averages, strict=False):
            if average is not None:
                yield variable, average


def _small(variable: keras.Variable, num_rows: int, axis: int) -> keras.Variable:
    shape = [num_rows if place == axis else 1 for place in range(len(variable.shape))]
    return StandIn(variable, tf.zeros(shape, variable.dtype))


def _copy_weight_decay_exclusions(source: Any, destination: Any) -> None:
    # Keras has no public way to ask an optimizer what it excludes.
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(source, name):
            setattr(destination, name, getattr(source, name))


def _start_averages(optimizer: Any, tables: Sequence[MaskedTable]) -> None:
    # Keras starts a moving average from the variable in the very first step
    # only, and has no public way to start one for rows that join later.
    compact = {id(table.compact) for table in tables}
    for variable, average in moving_averages(optimizer):
        if id(variable) in compact:
            average.assign(variable)
