"""Tables to look at: rows of a layer, a variable or an array, some of them at a time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.masking.of_model import masked_tables
from maskedgrad.masking.tables import row_reader
from maskedgrad.messages import capitalized, shorten
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.saved import SavedTable, find_saved, listing
from maskedgrad.rows.targets import AlongAxis, MaskedTable, about_keras_2, describe

CHUNK_NUMBERS = 2**21  # of float64, 16 MiB


@dataclasses.dataclass(frozen=True, eq=False)
class TableView:
    """A table that is looked at and never copied as a whole.

    Args:
        name: what messages call it.
        num_rows: int, the number of its rows, V.
        width: int, how many numbers a row has.
        dtype: the dtype of the numbers.
        read: reads rows by their ids, int64 of shape `(n,)`: an array of shape
            `(n, width)`, bit for bit.
        variable: the variable that it is of; `None` for an array.
        rows: the rows that train, if that is known.
    """

    name: str
    num_rows: int
    width: int
    dtype: np.dtype[Any]
    read: Callable[[np.ndarray], np.ndarray]
    variable: Any = None
    rows: Rows | None = None

    def chunks(self, num_columns: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The whole table, some rows at a time, each with the id of its first row.

        Args:
            num_columns: int, how many numbers the caller makes of a row.
        """
        step = max(1, CHUNK_NUMBERS // max(1, self.width, num_columns))
        for start in range(0, self.num_rows, step):
            yield start, self.read(np.arange(start, min(start + step, self.num_rows)))


def view_of(target: Any) -> TableView:
    """The table that is named.

    Args:
        target: an embedding layer or another with one matrix; a model whose
            optimizer masks one table; what `MaskedOptimizer.masked_tables`
            lists; an `AlongAxis` of a layer; a `keras.Variable`; or an array of
            shape `(V, ...)`, which may be mapped into memory.

    Raises:
        TypeError: it is of another type.
        ValueError: it has no table, or several.
    """
    match target:
        case MaskedTable():
            return of_variable(target.variable, target.axis, target.rows)
        case keras.Variable():
            return of_variable(target)
        case keras.Model():
            return view_of(_only_masked(target))
        case AlongAxis(target=keras.Layer() as layer, axis=axis):
            return of_variable(_only_matrix(layer), axis)
        case keras.Layer():
            return of_variable(_only_matrix(target))
        case np.ndarray() | tf.Tensor():
            return _of_array(np.asarray(target))
    raise TypeError(
        "A table must be a layer, a model whose optimizer masks one table, one of "
        "`optimizer.masked_tables()`, a `keras.Variable` or an array. "
        f"Received: {describe(target)}. {_advice_for(target)}"
    )


def _advice_for(target: Any) -> str:
    if isinstance(target, (list, tuple)):
        return "`layer.get_weights()` is a list of arrays, of which the table is one."
    return about_keras_2(target) or "A layer is found by its name: `model.get_layer(name)`."


def of_variable(variable: keras.Variable, axis: int = 0, rows: Rows | None = None) -> TableView:
    """A view of a variable with rows along an axis. Along any but the first it is read whole."""
    shape = tuple(variable.shape)
    dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
    axis %= len(shape)
    num_rows = shape[axis]
    width = int(np.prod(shape)) // max(1, num_rows)
    read = row_reader(variable, axis)
    return TableView(
        f"the table {variable.path!r}",
        num_rows,
        width,
        np.dtype(dtype),
        lambda ids: read(ids).reshape(len(ids), width),
        variable,
        rows,
    )


def before_of(before: Any, view: TableView) -> TableView:
    """The table as it was before a training.

    Args:
        before: what there is of it: see `row_report`.
        view: the table as it is now.

    Raises:
        TypeError: `before` is of another type.
        ValueError: it is of another table, or the same one.
    """
    path = view.variable.path if view.variable is not None else None
    if isinstance(before, Mapping):
        if path not in before:
            raise ValueError(
                f"`before` must have an entry for {view.name}. Received: {list(before)}"
            )
        return before_of(before[path], view)
    if isinstance(getattr(before, "tables", None), Mapping):
        return overlaid(view, *_of_patch(before, path, view))
    if isinstance(before, keras.Model) and path is not None:
        earlier = of_variable(_same_path(before, path))
    elif isinstance(before, np.ndarray) and _is_of_rows(before, view):
        return overlaid(view, view.rows.ids if view.rows else np.zeros(0, np.int64), before)
    else:
        try:
            earlier = view_of(before)
        except TypeError as error:
            raise TypeError(f"`before` must be a `RowPatch`, or a table. {error}") from error
    _check_comparable(earlier, view)
    return earlier


def _of_array(array: np.ndarray) -> TableView:
    if array.ndim < 1 or not (array.dtype.kind in "fiu" or array.dtype.name == "bfloat16"):
        raise TypeError(
            "A table must be an array of real numbers, of shape (V, ...). "
            f"Received: an array of shape {array.shape} and dtype {array.dtype}"
        )
    width = int(np.prod(array.shape[1:]))
    return TableView(
        "the table",
        len(array),
        width,
        array.dtype,
        lambda ids: np.asarray(array[ids]).reshape(len(ids), width),
    )


def _only_masked(model: keras.Model) -> MaskedTable:
    tables = masked_tables(model)
    if len(tables) != 1:
        raise ValueError(
            "A model that stands for its table must be built and have an optimizer that masks one. "
            f"Received: the model {model.name!r}, which masks {len(tables)}"
            f"{listing([table.variable for table in tables])}Name the table by its layer, "
            "`model.get_layer(name)`, or as one of `model.optimizer.masked_tables()`."
        )
    return tables[0]


def _only_matrix(layer: keras.Layer) -> keras.Variable:
    weights = list(layer.weights)
    matrices = [v for v in weights if len(v.shape) > 1 and tf.as_dtype(v.dtype).is_floating]
    if len(matrices) != 1:
        raise ValueError(
            f"{capitalized(describe(layer))} must have one table. Received: "
            f"{len(matrices)} matrices of floats among its variables{listing(weights)}"
            "Name the one that is meant: `layer.weights[0]`. A layer that is not built has none."
        )
    return matrices[0]


def _of_patch(patch: Any, path: str | None, view: TableView) -> tuple[np.ndarray, np.ndarray]:
    tables = list(patch.tables.values())
    found = [table for table in tables if table.path == path]
    if not found and len(tables) == 1:
        found = tables  # of an array, or of a model that was loaded since and has other paths
    if not found:
        raise ValueError(f"`before` must be a patch of {view.name}. Received: {shorten(patch)}")
    (table,) = found
    values = table.values if table.original is None else table.original
    expected, received = (view.num_rows, view.width), (table.rows.num_rows, values[0].size)
    if expected != received or values.dtype != view.dtype:
        raise ValueError(
            f"`before` must be a patch of {view.name}, of {expected} numbers of {view.dtype}. "
            f"Received: {shorten(patch)}, of {received} numbers of {values.dtype}"
        )
    return table.ids, values


def _same_path(model: keras.Model, path: str | None) -> keras.Variable:
    variables = model.weights
    exact = [variable for variable in variables if variable.path == path]
    try:
        (found,) = exact or find_saved(SavedTable(path), variables)
    except ValueError as error:
        raise ValueError(
            f"`before` must be a model with one variable of the path {path!r}. Received: the model "
            f"{model.name!r}, which has {len(exact)} of them{listing(variables)}"
            "Give the table itself: `{path: layer}`, or its layer."
        ) from error
    return found


def _is_of_rows(before: np.ndarray, view: TableView) -> bool:
    """Whether an array is a copy of the trainable rows, and not one of the whole table."""
    return view.rows is not None and before.shape[:1] == (len(view.rows),) != (view.num_rows,)


def overlaid(view: TableView, ids: np.ndarray, values: np.ndarray) -> TableView:
    """A view of a table with other values in some rows: those that it had before."""
    values = values.reshape(len(values), -1)
    if values.shape != (len(ids), view.width) or values.dtype != view.dtype:
        raise ValueError(
            f"`before` must be rows of {view.name}: {len(ids)} rows of {view.width} numbers of "
            f"{view.dtype}. Received: an array of shape {values.shape} and dtype {values.dtype}"
        )

    def read(wanted: np.ndarray) -> np.ndarray:
        rows = view.read(wanted)
        places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
        others = np.flatnonzero(ids[places] == wanted) if len(ids) else places
        rows[others] = values[places[others]]
        return rows

    known = Rows(ids, view.num_rows)
    return dataclasses.replace(view, read=read, variable=None, rows=known)


def _check_comparable(before: TableView, now: TableView) -> None:
    if before.variable is not None and before.variable is now.variable:
        raise ValueError(
            f"`before` must be what {now.name} was before the training. Received: the table "
            "itself, which has trained. Keep a copy of its rows beforehand: "
            "`RowPatch.from_model(model)`."
        )
    expected, received = ((v.num_rows, v.width, v.dtype.name) for v in (now, before))
    if expected != received:
        raise ValueError(
            f"`before` must have the rows of {now.name}: (rows, numbers of each, dtype) = "
            f"{expected}, or rows of it that train. Received: {received}"
        )


def check_holds(before: TableView, ids: Sequence[int] | np.ndarray, now: TableView) -> None:
    """Raises a `ValueError` if what is known of a table as it was lacks one of the ids."""
    if before.rows is None or before.variable is not None:
        return
    absent = np.setdiff1d(ids, before.rows.ids)
    if len(absent):
        raise ValueError(
            f"`before` must hold each row that trains. Received: {before.rows} of {now.name}, "
            f"without {Rows(absent, now.num_rows)}. Take it before the training, when the same "
            "rows are chosen."
        )
