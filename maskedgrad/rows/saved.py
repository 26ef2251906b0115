"""What is saved about a table, and how it is found again: by facts that agree, or not at all.

A path holds names that Keras makes up, and subclassed models have other paths
once loaded; two layers of one name give two variables of one path. The place
among the trained variables shifts where `layer.trainable = False` was set from
outside, which Keras does not save. No fact is enough by itself.
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras

from maskedgrad.messages import shorten
from maskedgrad.rows.rows import decode_rows, encode_rows

MOST_LISTED = 20  # variables in an error message


class SavedTable(NamedTuple):
    """What a config says of a table.

    - `path`: its path; or, for a layer that was not built, `layer`: its name; or
      `pattern`: what the user gave to name tables by their paths.
    - `axis`: the axis that rows lie along.
    - `shape`: its shape.
    - `place`: its place among the variables that were trained, of which there
      were `num_variables`, with paths of the digest `paths`. `None` where no
      optimizer had been built on them.
    """

    path: str | None
    layer: str | None = None
    pattern: str | None = None
    axis: int | None = 0
    shape: tuple[int, ...] | None = None
    place: int | None = None
    num_variables: int | None = None
    paths: str | None = None


def saved_table(
    variable: keras.Variable, axis: int | None, variables: Sequence[keras.Variable] | None = None
) -> SavedTable:
    """What is to be saved about a table.

    Args:
        variable: the table.
        axis: int, the axis that rows lie along.
        variables: all variables that are trained, if that is known.
    """
    table = SavedTable(variable.path, axis=axis, shape=tuple(variable.shape))
    if variables is None:
        return table
    place = [id(v) for v in variables].index(id(variable))
    paths = _digest_of_paths(variables)
    return table._replace(place=place, num_variables=len(variables), paths=paths)


def find_saved(saved: SavedTable, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """The variables that a config speaks of: one, or those of the one layer that it names.

    None where the table does not train any more, since it was frozen whole or
    quantized: an optimizer trains the variables that it was built on, and this
    is not among them, nor one that could be it.

    Raises:
        ValueError: what is saved and what is found do not agree, or leave a
            choice. It shows both.
    """
    found = _find(saved, variables)
    if not found and _trains_no_more(saved, variables):
        return []
    if not found:
        among = "" if saved.place is None else f", number {saved.place} of {saved.num_variables}"
        what = f"the path {saved.path!r}" if saved.path else f"a layer {saved.layer!r}"
        raise ValueError(
            f"A table that was saved must be found again beyond doubt. Saved: {what}, shape "
            f"{saved.shape}{among} of the variables that were trained. Found"
            f"{listing(variables)}Make the same layers trainable, give layers names of their own, "
            "or say which rows train: load with `compile=False` and compile anew."
        )
    if saved.num_variables not in (None, len(variables)):
        warnings.warn(
            f"{saved.num_variables} variables were trained when {saved.path!r} was saved, and "
            f"{len(variables)} are trained here. Keras does not save `trainable = False` that was "
            f"set on a layer from outside. Trained here{listing(variables)}",
            stacklevel=2,
        )
    return found


def encode_trainable_rows(saved: Iterable[tuple[SavedTable, Any]]) -> list[dict[str, Any]]:
    """Tables with their rows as a JSON value. See `decode_trainable_rows`.

    Example:

    >>> encode_trainable_rows([(SavedTable("words/embeddings"), [3, 4])])
    [{'path': 'words/embeddings', 'axis': 0, 'rows': '3:5'}]
    """
    return [
        {
            **{name: value for name, value in table._asdict().items() if value is not None},
            **encode_rows(rows),
        }
        for table, rows in saved
    ]


def decode_trainable_rows(config: Any) -> dict[SavedTable, Any]:
    """The inverse of `encode_trainable_rows`.

    Raises:
        TypeError, ValueError: `config` is not what `encode_trainable_rows` returns.
    """
    if not isinstance(config, (list, tuple)) or not all(isinstance(e, Mapping) for e in config):
        raise TypeError(
            "The config of trainable rows must be a list of mappings, one for each table. "
            f"Received: {shorten(config)}"
        )
    decoded = {_decode_table(entry): decode_rows(entry) for entry in config}
    if len(decoded) != len(config):
        raise ValueError(
            "The config of trainable rows must speak of each table once. "
            f"Received: {shorten(config)}"
        )
    return decoded


def encode_row_learning_rates(
    saved: Iterable[tuple[SavedTable, Iterable[tuple[float, Any]]]],
) -> list[dict[str, Any]]:
    """Tables with their multipliers, each with its rows, as a JSON value."""
    return [
        {"learning_rate": float(rate), "rows": encode_trainable_rows([(table, rows)])}
        for table, rows_by_rate in saved
        for rate, rows in rows_by_rate
    ]


def decode_row_learning_rates(config: Any) -> dict[SavedTable, dict[float, Any]]:
    """The inverse of `encode_row_learning_rates`, by multiplier.

    Raises:
        TypeError, ValueError: `config` is not what `encode_row_learning_rates` returns.
    """
    if not isinstance(config, (list, tuple)) or not all(map(_is_group, config)):
        raise ValueError(
            "The config of learning rates by rows must be a list of mappings, each with a number "
            f"as learning_rate, and rows. Received: {shorten(config)}"
        )
    decoded: dict[SavedTable, dict[float, Any]] = {}
    for group in config:
        for table, rows in decode_trainable_rows(group["rows"]).items():
            decoded.setdefault(table, {})[group["learning_rate"]] = rows
    return decoded


def _is_group(group: Any) -> bool:
    is_group = isinstance(group, Mapping) and "rows" in group
    return is_group and isinstance(group.get("learning_rate"), (int, float))


def _decode_table(entry: Mapping[str, Any]) -> SavedTable:
    table = SavedTable(**{name: entry.get(name) for name in SavedTable._fields})
    names = [name for name in (table.path, table.layer, table.pattern) if name is not None]
    numbers = [n for n in (table.place, table.num_variables) if n is not None]
    is_valid = (
        len(names) == 1
        and isinstance(names[0], str)
        and (table.axis is None or type(table.axis) is int)
        and all(map(_is_size, numbers))
        and (table.place is None or table.place < (table.num_variables or 0))
        and isinstance(table.paths, (str, type(None)))
        and (table.shape is None or isinstance(table.shape, (list, tuple)))
        and all(map(_is_size, table.shape or ()))
    )
    if not is_valid:
        raise ValueError(
            "A table in a config must have a path, a layer or a pattern, an int as its axis, and "
            "as its shape, and its place among the variables, ints that are not negative. "
            f"Received: {shorten(dict(entry))}"
        )
    return table._replace(shape=None if table.shape is None else tuple(table.shape))


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _find(saved: SavedTable, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    if saved.layer is not None:
        return _of_layer(saved, variables)
    fits = [v for v in variables if saved.shape is None or tuple(v.shape) == saved.shape]
    same_path = [v for v in fits if v.path == saved.path]
    alike = [v for v in fits if _are_alike(v.path, saved.path)]
    if saved.place is not None and saved.num_variables == len(variables):
        there = [v for v in fits if v is variables[saved.place]]
        # Where Keras has made up other names, the place decides.
        if saved.paths != _digest_of_paths(variables):
            return [v for v in there if v in _Identities(alike)]
        return [v for v in there if v in _Identities(same_path)] or _only(same_path)
    if len(alike) > 1 and saved.place is None and not _has_counter(saved.path):
        return _only(same_path)
    return _only(alike)


def _trains_no_more(saved: SavedTable, variables: Sequence[keras.Variable]) -> bool:
    """Whether fewer variables are trained than were, and none has a path or rows like the table."""

    def row_of(shape: Sequence[int]) -> tuple[int, ...]:
        place = (saved.axis or 0) % max(len(shape), 1)
        return (len(shape), *shape[:place], *shape[place + 1 :])

    trains_fewer = saved.place is not None and len(variables) < (saved.num_variables or 0)
    return trains_fewer and not any(
        row_of(tuple(v.shape)) == row_of(saved.shape or ()) or _are_alike(v.path, saved.path)
        for v in variables
    )


def _of_layer(saved: SavedTable, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    of_layer = [v for v in variables if f"/{v.path}".rpartition("/")[0].endswith(f"/{saved.layer}")]
    layers = {v.path.rpartition("/")[0] for v in of_layer}
    paths = {v.path for v in of_layer}
    if len(layers) != 1 or len(paths) != len(of_layer):
        return []
    return of_layer if saved.axis is not None else _only(of_layer)


class _Identities:
    """A set of objects by identity, since `==` of variables is elementwise."""

    def __init__(self, objects: Iterable[Any]):
        self._ids = {id(each) for each in objects}

    def __contains__(self, each: Any) -> bool:
        return id(each) in self._ids


def _only(variables: list[keras.Variable]) -> list[keras.Variable]:
    return variables if len(variables) == 1 else []


def _are_alike(path: str, other: str | None) -> bool:
    """Whether two paths are one but for counters that Keras makes up, and for models around."""
    names, others = (re.sub(r"_\d+(?=/|$)", "", each).split("/") for each in (path, other or ""))
    shorter = min(len(names), len(others))
    return names[-shorter:] == others[-shorter:] and (shorter > 1 or len(names) == len(others))


def _has_counter(path: str | None) -> bool:
    return re.search(r"_\d+(/|$)", path or "") is not None


def _digest_of_paths(variables: Sequence[keras.Variable]) -> str:
    paths = sorted(v.path for v in variables)
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]


def listing(variables: Sequence[keras.Variable]) -> str:
    """How error messages list variables: the first of them, and how many more there are."""
    if not variables:
        return ". "
    shown = [f"  {v.path}  {tuple(v.shape)}\n" for v in variables[:MOST_LISTED]]
    more = len(variables) - MOST_LISTED
    return ":\n" + "".join([*shown, f"  and {more} more\n" if more > 0 else ""])
