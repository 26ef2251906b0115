"""Learning rates by rows: which multiplier each trainable row has."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.targets import (
    Target,
    check_trainable_rows,
    decode_trainable_rows,
    describe,
    encode_trainable_rows,
    resolve_targets,
)
from maskedgrad.messages import shorten
from maskedgrad.rows.rows import Rows, canonical


def check_row_learning_rates(row_learning_rates: Any) -> dict[Any, Any]:
    """`row_learning_rates` as a dictionary, once what can be known to be wrong has been raised."""
    if row_learning_rates is None:
        return {}
    if not isinstance(row_learning_rates, Mapping):
        raise TypeError(
            "`row_learning_rates` must be a mapping from target to multipliers, such as "
            f"`{{embedding_layer: {{0.1: [3, 7]}}}}`. Received: {shorten(row_learning_rates)}"
        )
    for target, rates in row_learning_rates.items():
        check_trainable_rows({target: slice(None)})
        for rate, _ in _groups(target, rates):
            _check_rate(target, rate)
    return dict(row_learning_rates)


def with_learning_rates(
    targets: Sequence[Target],
    row_learning_rates: Mapping[Any, Any],
    variables: Sequence[keras.Variable],
) -> list[Target]:
    """The same targets with the multipliers of their rows, and without the rows of multiplier 0.

    Args:
        targets: what `resolve_targets` returns.
        row_learning_rates: a mapping from target to multipliers, as
            `MaskedOptimizer` takes it.
        variables: the variables among which the tables are.

    Raises:
        TypeError: the multipliers are of another type.
        ValueError: a row is given two multipliers, a target names a table
            that is not among `targets`, or no row is left that trains.
    """
    rates_of: dict[int, np.ndarray] = {}
    masked = {id(target.variable): target for target in targets}
    for given, rates in row_learning_rates.items():
        for target in resolve_targets({given: slice(None)}, variables):
            variable, axis = target.variable, target.axis
            if id(variable) in rates_of:
                raise ValueError(
                    f"Two targets of `row_learning_rates` name the variable {variable.path!r}. "
                    f"Received the second: {describe(given)}. Join their multipliers under one."
                )
            if id(variable) not in masked or masked[id(variable)].axis != axis:
                raise ValueError(
                    "`row_learning_rates` must name tables that `trainable_rows` names. Received: "
                    f"{describe(given)}, which is {variable.path!r}. Rows of a table that trains "
                    "whole are named by `slice(None)`."
                )
            rates_of[id(variable)] = _multipliers(given, rates, variable.shape[axis])
    return [
        _with_rates(target, rates_of[id(target.variable)])
        if id(target.variable) in rates_of
        else target
        for target in targets
    ]


def encode_row_learning_rates(row_learning_rates: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """`row_learning_rates` as a JSON value. See `decode_row_learning_rates`."""
    return [
        {"learning_rate": float(rate), "rows": encode_trainable_rows({target: rows})}
        for target, rates in row_learning_rates.items()
        for rate, rows in _groups(target, rates)
    ]


def decode_row_learning_rates(config: Sequence[Mapping[str, Any]]) -> dict[Any, Any]:
    """The inverse of `encode_row_learning_rates`, by multiplier.

    Raises:
        TypeError, ValueError: `config` is not what `encode_row_learning_rates` returns.
    """
    if not isinstance(config, (list, tuple)) or not all(map(_is_group, config)):
        raise ValueError(
            "The config of learning rates by rows must be a list of mappings, each with a number "
            f"as learning_rate, and rows. Received: {shorten(config)}"
        )
    decoded: dict[Any, dict[float, Any]] = {}
    for group in config:
        for target, rows in decode_trainable_rows(group["rows"]).items():
            decoded.setdefault(target, {})[group["learning_rate"]] = rows
    return decoded


def _is_group(group: Any) -> bool:
    is_group = isinstance(group, Mapping) and "rows" in group
    return is_group and isinstance(group.get("learning_rate"), (int, float))


def _with_rates(target: Target, multipliers: np.ndarray) -> Target:
    rows = target.rows
    kept = rows.ids[multipliers[rows.ids] != 0]
    if not len(kept):
        raise ValueError(
            f"No row of {target.variable.path!r} trains, since each has a learning rate of 0. "
            "To freeze a whole table set `trainable = False` on its layer."
        )
    rates = multipliers[kept]
    _check_dtype(target.variable, rates)
    return target._replace(
        rows=Rows(kept, rows.num_rows), learning_rates=None if (rates == 1).all() else rates
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
    for rate, rows in _groups(target, rates):
        ids = Rows(rows, num_rows).ids
        if seen[ids].any():
            raise ValueError(
                f"A row of {describe(target)} must have one multiplier. "
                f"Received two for: {shorten(ids[seen[ids]])}"
            )
        seen[ids] = True
        multipliers[ids] = rate
    return multipliers


def _groups(target: Any, rates: Any) -> Iterator[tuple[float, Any]]:
    """Each multiplier that is given with its rows."""
    if isinstance(rates, Mapping):
        yield from ((rate, canonical(rows)) for rate, rows in rates.items())
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
    if isinstance(rates, range):  # that names rows, and as an array may take all memory
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
