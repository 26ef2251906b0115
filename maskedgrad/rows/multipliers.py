"""Learning rates by rows: which multiplier each trainable row has."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.messages import shorten
from maskedgrad.rows.rows import Rows, canonical
from maskedgrad.rows.targets import MaskedTable, Named, describe, named, resolve


def named_rates(row_learning_rates: Any) -> list[tuple[Named, Any]]:
    """What `row_learning_rates` names, each with its multipliers.

    Raises:
        TypeError, ValueError: what can be known to be wrong before the build.
    """
    if row_learning_rates is None:
        return []
    if not isinstance(row_learning_rates, Mapping):
        raise TypeError(
            "`row_learning_rates` must be a mapping from target to multipliers, such as "
            f"`{{embedding_layer: {{0.1: [3, 7]}}}}`. Received: {shorten(row_learning_rates)}"
        )
    for target, rates in row_learning_rates.items():
        for rate, _ in rows_by_rate(target, rates):
            _check_rate(target, rate)
    every_row = dict.fromkeys(row_learning_rates, slice(None))
    names = [name for name, _ in named(every_row)] if every_row else []
    return list(zip(names, row_learning_rates.values(), strict=True))


def with_learning_rates(
    tables: Sequence[MaskedTable],
    rates: Iterable[tuple[Named, Any]],
    variables: Sequence[keras.Variable],
) -> list[MaskedTable]:
    """The same tables with the multipliers of their rows, and without the rows of multiplier 0.

    Args:
        tables: what `resolve` returns.
        rates: what `named_rates` returns.
        variables: the variables among which the tables are.

    Raises:
        TypeError: the multipliers are of another type.
        ValueError: a row is given two multipliers, a target names a table
            that is not among `tables`, or no row is left that trains.
    """
    rates_of: dict[int, np.ndarray] = {}
    axes = {id(table.variable): table.axis for table in tables}
    for name, multipliers in rates:
        for table in resolve([(name, slice(None))], variables):
            variable = table.variable
            if id(variable) in rates_of:
                raise ValueError(
                    f"Two targets of `row_learning_rates` name the variable {variable.path!r}. "
                    f"Received the second: {describe(name.given)}. Join their multipliers under "
                    "one."
                )
            if axes.get(id(variable)) != table.axis:
                raise ValueError(
                    "`row_learning_rates` must name tables that `trainable_rows` names. Received: "
                    f"{describe(name.given)}, which is {variable.path!r}. Rows of a table that "
                    "trains whole are named by `slice(None)`."
                )
            num_rows = variable.shape[table.axis]
            rates_of[id(variable)] = _multipliers(name.given, multipliers, num_rows)
    return [
        _with_rates(table, rates_of[id(table.variable)])
        if id(table.variable) in rates_of
        else table
        for table in tables
    ]


def _with_rates(table: MaskedTable, multipliers: np.ndarray) -> MaskedTable:
    rows = table.rows
    kept = rows.ids[multipliers[rows.ids] != 0]
    if not len(kept):
        raise ValueError(
            f"No row of {table.path!r} trains, since each has a learning rate of 0. "
            "To freeze a whole table set `trainable = False` on its layer."
        )
    rates = multipliers[kept]
    _check_dtype(table.variable, rates)
    return dataclasses.replace(
        table,
        rows=Rows(kept, rows.num_rows),
        learning_rates=None if (rates == 1).all() else rates,
    )


def _multipliers(target: Any, rates: Any, num_rows: int) -> np.ndarray:
    """The multiplier of each row of a table: float64 of shape `(V,)`."""
    multipliers = np.ones(num_rows)
    seen = np.zeros(num_rows, dtype=bool)
    if not isinstance(rates, Mapping) and np.shape(rates) != (num_rows,):
        raise ValueError(
            f"The multipliers for {describe(target)} must be one for each row of the table, "
            f"{num_rows}. Received: {np.size(rates)}. Name rows by their multiplier instead: "
            "`{0.1: ids}`."
        )
    for rate, rows in rows_by_rate(target, rates):
        ids = Rows(rows, num_rows).ids
        if seen[ids].any():
            raise ValueError(
                f"A row of {describe(target)} must have one multiplier. "
                f"Received two for: {shorten(ids[seen[ids]])}"
            )
        seen[ids] = True
        multipliers[ids] = rate
    return multipliers


def rows_by_rate(target: Any, rates: Any) -> Iterator[tuple[float, Any]]:
    """Each multiplier that is given with its rows."""
    if isinstance(rates, Mapping):
        for rate, rows in rates.items():
            try:
                yield rate, canonical(rows)
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"The rows given for the multiplier {shorten(rate)} of {describe(target)}: "
                    f"{error} The multiplier is the key, as in `{{0.1: [3, 7]}}`."
                ) from error
        return
    array = _numbers(rates)
    if array is None:
        raise TypeError(
            f"The multipliers for {describe(target)} must be a mapping from multiplier to rows, "
            "or an array of one number for each row of the table; a range names rows. "
            f"Received: {shorten(rates)}"
        )
    order = np.argsort(array, kind="stable")
    values, starts = np.unique(array[order], return_index=True)
    for rate, ids in zip(values, np.split(order, starts[1:]), strict=True):
        yield float(rate), ids


def _numbers(rates: Any) -> np.ndarray | None:
    """`rates` as an array of shape `(V,)`, if they are that."""
    if isinstance(rates, range):  # a range names rows, and as an array it may take all memory
        return None
    try:
        array = np.asarray(rates)
    except (TypeError, ValueError, NotImplementedError):
        return None
    return array if array.ndim == 1 and len(array) and array.dtype.kind in "fiu" else None


def _check_dtype(variable: keras.Variable, rates: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        held = rates.astype(tf.as_dtype(variable.dtype).as_numpy_dtype).astype(float)
    lost = rates[~np.isfinite(held) | (held == 0)]
    if len(lost):
        raise ValueError(
            f"A multiplier for {variable.path!r} must be a number that its dtype {variable.dtype} "
            f"can hold. Received: {lost[0]}, which is {held[rates == lost[0]][0]} there."
        )


def _check_rate(target: Any, rate: Any) -> None:
    is_number = isinstance(rate, (int, float, np.integer, np.floating))
    # The largest float bounds integers too, of which Python has larger ones.
    if not is_number or isinstance(rate, bool) or not 0 <= rate <= sys.float_info.max:
        raise ValueError(
            f"A multiplier for {describe(target)} must be a finite number, 0 or more: 0 freezes "
            f"a row, and 1 is the learning rate as it is. Received: {rate!r}"
        )
