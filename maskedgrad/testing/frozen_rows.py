"""`frozen_rows_unchanged`: compares frozen rows before and after, bit by bit."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.of_model import masked_optimizer_in, masked_tables
from maskedgrad.masking.tables import bits
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable
from maskedgrad.testing.causes import likely_cause


@contextlib.contextmanager
def frozen_rows_unchanged(model_or_variable: Any, rows: Any = None) -> Iterator[None]:
    """A context in which frozen rows must keep their bits.

    Equivalent to a copy of each table made before, and a comparison of the
    bits of its frozen rows after. Rows count as frozen that are so when the
    context is entered. Nothing is compared if an error leaves the context.

    Args:
        model_or_variable: a built `keras.Model` that is compiled with a
            `MaskedOptimizer`, whose masked tables are watched; or a
            `keras.Variable` or `tf.Variable` of shape `(V, ...)`.
        rows: for a variable, the rows that may change, in any form that
            `maskedgrad.Rows` takes; `None` for no row at all. A model knows
            its own.

    Raises:
        AssertionError: on leaving, if a frozen row has changed. It says which
            rows of which table changed most, and what likely changed them.
        TypeError: `model_or_variable` or `rows` is of another type.
        ValueError: the model is not built or masks no table, or `rows` does
            not fit.

    Example:

    >>> table = keras.Variable(np.ones((4, 2), "float32"), name="table")
    >>> with frozen_rows_unchanged(table, rows=[3]):
    ...     _ = table.assign(table - np.float32([[0], [0], [0], [1]]))
    """
    with unchanged_outside_of(_tables(model_or_variable, rows)):
        yield


@contextlib.contextmanager
def unchanged_outside_of(tables: Sequence[MaskedTable]) -> Iterator[None]:
    """A context in which tables may change in the rows that train only."""
    tables_before = [np.asarray(table.variable).copy() for table in tables]
    yield
    reports = [_change(table, before) for table, before in zip(tables, tables_before, strict=True)]
    if any(reports):
        raise AssertionError("\n".join(report for report in reports if report))


def tables_of(model: Any) -> list[MaskedTable]:
    """The tables that a compiled model masks, with the rows that train.

    Raises:
        TypeError: `model` is not a model.
        ValueError: it is not built, or masks no table.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected a `keras.Model`, a `keras.Variable` or a `tf.Variable`. "
            f"Received: {model!r} of type {type(model).__name__}. The table of a layer is among "
            "its `weights`."
        )
    optimizer = masked_optimizer_in(getattr(model, "optimizer", None))
    if optimizer is None:
        raise ValueError(
            f"The model {model.name!r} must be compiled with a `MaskedOptimizer`, which says "
            f"which rows are frozen. Received: optimizer={getattr(model, 'optimizer', None)!r}. "
            "For a model that is trained otherwise, give the variable and the rows that may change."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} must be built, since a table that does not exist has no "
            "rows to compare. Received: a model that its first batch builds. Call it on a batch "
            "of data first."
        )
    return masked_tables(model)


def _tables(model_or_variable: Any, rows: Any) -> list[MaskedTable]:
    if not isinstance(model_or_variable, (keras.Variable, tf.Variable)):
        if rows is not None:
            raise ValueError(
                "`rows` is for a variable: a model's optimizer says which of its rows train. "
                f"Received: rows={rows!r} with {model_or_variable!r}"
            )
        return tables_of(model_or_variable)
    shape = np.asarray(model_or_variable).shape  # that of a `tf.Variable` may be left open
    if not shape:
        raise ValueError(
            f"A variable must have rows. Received: {_name(model_or_variable)!r}, a scalar"
        )
    may_change = Rows([] if rows is None else rows, shape[0])
    return [MaskedTable(model_or_variable, may_change)]


def _name(variable: Any) -> str:
    return variable.path if isinstance(variable, keras.Variable) else variable.name


def _change(table: MaskedTable, before: np.ndarray) -> str:
    """Returns what has changed in the frozen rows of a table, as text; empty if nothing has."""
    variable, axis = table.variable, table.axis
    after = np.asarray(variable)
    if after.shape != before.shape:
        return f"{_name(variable)!r} was of shape {before.shape} and is of shape {after.shape} now."
    frozen = table.rows.complement().ids
    old, new = _rows(before, frozen, axis), _rows(after, frozen, axis)
    changed = (bits(old) != bits(new)).any(axis=1)
    if not changed.any():
        return ""
    old, new = old.astype("float64"), new.astype("float64")
    constraint = getattr(variable, "constraint", None)
    constrained = None
    if constraint is not None:
        whole = keras.ops.convert_to_numpy(constraint(keras.ops.convert_to_tensor(before)))
        constrained = _rows(whole, frozen, axis).astype("float64")
    with np.errstate(invalid="ignore", over="ignore"):
        sizes = np.nan_to_num(np.abs(new - old).max(axis=1), nan=np.inf)
        cause = likely_cause(old, new, changed, constrained)
    largest = [place for place in np.argsort(-sizes, kind="stable") if changed[place]][:5]
    listed = ", ".join(f"row {frozen[place]} by {sizes[place]:.3g}" for place in largest)
    return (
        f"{changed.sum()} of {len(frozen)} frozen rows of {_name(variable)!r} changed. "
        f"The largest changes: {listed}. Likely cause: {cause}."
    )


def _rows(table: np.ndarray, ids: np.ndarray, axis: int) -> np.ndarray:
    """Rows along an axis, each flat: an array of shape `(len(ids), n)`."""
    row_size = table.size // max(1, table.shape[axis])
    return np.moveaxis(table, axis, 0)[ids].reshape(len(ids), row_size)
