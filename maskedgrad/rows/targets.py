"""What users name, and the tables that it stands for."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from maskedgrad.messages import capitalized, shorten
from maskedgrad.rows.paths import of_path
from maskedgrad.rows.rows import Rows, canonical
from maskedgrad.rows.saved import SavedTable, find_saved, listing, saved_table


@dataclasses.dataclass(frozen=True)
class AlongAxis:
    """A target whose rows lie along another axis than the first.

    Such are the new tokens' columns of an output layer that is not tied to the
    table, and their entries of its bias.

    Args:
        target: a layer, which stands for all variables that it trains, or the
            path of a variable as `MaskedOptimizer` takes it.
        axis: int, the axis of each of these variables that the rows lie along.
            -1 is the last: of a `Dense` layer the outputs, for kernel and bias.

    Raises:
        TypeError: `target` or `axis` is of another type.

    Example:

    >>> inputs = keras.Input((2,))
    >>> head = keras.layers.Dense(5, name="head")
    >>> model = MaskedModel(inputs, head(inputs))
    >>> kernel, bias = head.get_weights()
    >>> model.compile("sgd", loss="mse", trainable_rows={AlongAxis(head, -1): [3, 4]})
    >>> _ = model.fit(np.ones((1, 2)), np.ones((1, 5)), verbose=0)
    >>> (head.get_weights()[0] != kernel).any(axis=0).tolist()
    [False, False, False, True, True]
    """

    target: keras.Layer | str
    axis: int

    def __post_init__(self) -> None:
        if not isinstance(self.target, (keras.Layer, str)):
            raise TypeError(
                "`target` must be a layer or the path of a variable. "
                f"Received: {describe(self.target)}"
            )
        if isinstance(self.axis, bool) or not isinstance(self.axis, int):
            raise TypeError(f"`axis` must be an int. Received: axis={self.axis!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedTable:
    """A table of which some rows train: what `MaskedOptimizer.masked_tables` lists.

    It serves as a target too, and then names its table whatever path that has.

    Args:
        variable: the table, a `keras.Variable` of any rank from 1.
        rows: a `Rows`, those that train.
        axis: int, the axis that the rows lie along.
        learning_rates: multipliers of the learning rate, float64 of shape
            `(K,)`, or `None` where each is 1.
    """

    variable: Any
    rows: Rows
    axis: int = 0
    learning_rates: npt.NDArray[np.float64] | None = None

    @property
    def path(self) -> str:
        """The path of the variable."""
        return self.variable.path

    def but(self, **changes: Any) -> "MaskedTable":
        """The same with other fields."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        along = f", axis={self.axis}" if self.axis else ""
        return f"MaskedTable({self.path!r}, {self.rows}{along})"


class Named(NamedTuple):
    """A target as a user or a config names it. It is made once, where it comes in.

    - `given`: as it came, for messages.
    - `what`: a layer, the path of a variable or a pattern of paths, a variable,
      or a `SavedTable`.
    - `axis`: the axis that rows lie along; `None` where a layer stands for its
      one table.
    """

    given: Any
    what: Any
    axis: int | None


def named(trainable_rows: Mapping[Any, Any]) -> list[tuple[Named, Any]]:
    """Each `Named` with its rows in canonical form, validated as far as that goes before a build.

    Raises:
        TypeError: a target or its rows are of another type.
        ValueError: rows are not valid, or do not fit a layer that is built.
    """
    if not isinstance(trainable_rows, Mapping):
        raise TypeError(
            "`trainable_rows` must be a mapping from target to rows, such as "
            f"`{{embedding_layer: [3, 7]}}`. Received: {shorten(trainable_rows)}"
        )
    if not trainable_rows:
        raise ValueError("`trainable_rows` must name at least one table. Received: {}")
    requests = []
    for target, rows in trainable_rows.items():
        name = _named(target)
        for variable in variables_before_build(name):
            _rows_of(name, variable, rows)
        requests.append((name, _canonical(name, rows)))
    return requests


def _canonical(name: Named, rows: Any) -> Any:
    try:
        return canonical(rows)
    except (TypeError, ValueError) as error:
        raise type(error)(f"The rows given for {describe(name.given)}: {error}") from error


def _named(target: Any) -> Named:
    match target:
        case AlongAxis():
            return Named(target, target.target, target.axis)
        case MaskedTable():
            return Named(target, target.variable, target.axis)
        case SavedTable(pattern=str(pattern)):
            return Named(pattern, pattern, target.axis)
        case SavedTable():
            return Named(target, target, target.axis)
        case keras.Layer():
            return Named(target, target, None)
        case str():
            return Named(target, target, 0)
    raise TypeError(
        "A target must be a layer of Keras 3 or the path of a variable. "
        f"Received: {describe(target)}. {_advice_for(target)}"
    )


def about_keras_2(target: Any) -> str:
    """What to do with a layer of Keras 2, as a sentence; empty for anything else."""
    packages = {each.__module__.partition(".")[0] for each in type(target).__mro__}
    if packages & {"tf_keras", "tensorflow"} and hasattr(target, "trainable_weights"):
        return (
            "It is a layer of Keras 2. Make it, and the model, of Keras 3: `keras.layers."
            f"{type(target).__name__}`."
        )
    return ""


def _advice_for(target: Any) -> str:
    if isinstance(target, type):
        return "Name the layer itself, and not its class: `model.get_layer(name)`."
    return about_keras_2(target) or "A variable is named by its path: `variable.path`."


def resolve(
    requests: Iterable[tuple[Named, Any]], variables: Sequence[keras.Variable]
) -> list[MaskedTable]:
    """The tables that are named among `variables`, with their rows, in the order of `variables`.

    Args:
        requests: what `named` returns.
        variables: the trainable variables among which the tables are.

    Raises:
        TypeError: rows are of another type.
        ValueError: a target names no variable, or one that cannot have rows,
            does not train or is given twice; two targets name the same variable; a target
            selects no row; or the rows do not fit the table.
    """
    given = [v for v in variables if isinstance(v, keras.Variable)]
    variables = list({id(v): v for v in given}.values())
    found: dict[int, tuple[Named, MaskedTable]] = {}
    for name, rows in requests:
        for variable in _variables_of(name, variables):
            if id(variable) in found:
                raise ValueError(
                    f"Two targets name the variable {variable.path!r}: "
                    f"{describe(found[id(variable)][0].given)} and {describe(name.given)}. "
                    "Join their rows under one target."
                )
            check_given_once(variable, given)
            table = MaskedTable(variable, _rows_of(name, variable, rows), _axis_of(name, variable))
            found[id(variable)] = name, table
    return [found[id(v)][1] for v in variables if id(v) in found]


def check_given_once(table: keras.Variable, variables: Sequence[Any]) -> None:
    """Raises a `ValueError` if a table is among variables more than once."""
    times = sum(variable is table for variable in variables)
    if times > 1:
        raise ValueError(
            "A table must be given once among the variables, since each time would be a step of "
            f"its rows. Received: {table.path!r}, {times} times. Where parts of a model share it, "
            "`{id(v): v for v in variables}.values()` has each variable once."
        )


def check_same_tables(
    tables: list[MaskedTable], masked: Sequence[MaskedTable]
) -> list[MaskedTable]:
    """`tables`, or a `ValueError` if they are not those that are masked, along the same axes."""
    if [(id(t.variable), t.axis) for t in tables] != [(id(t.variable), t.axis) for t in masked]:
        expected, received = (
            ", ".join(f"{table.path!r} axis {table.axis}" for table in each)
            for each in (masked, tables)
        )
        raise ValueError(
            "`trainable_rows` must name the tables that have trainable rows now, since a "
            "table that is not named trains whole, and along the same axes. "
            f"Expected: {expected}. Received: {received}"
        )
    return tables


def saved(name: Named) -> list[SavedTable]:
    """What a config is to say of what was named, before it is known what is trained."""
    if isinstance(name.what, SavedTable):
        return [name.what]
    if isinstance(name.what, str):
        return [SavedTable(None, pattern=name.what, axis=name.axis)]
    if found := variables_before_build(name):
        return [saved_table(table, _axis_of(name, table)) for table in found]
    return [SavedTable(None, layer=name.what.name, axis=name.axis)]


def variables_before_build(name: Named) -> list[keras.Variable]:
    """The variables that a target names where that is known before the optimizer is built."""
    layer = name.what
    if isinstance(layer, keras.Variable):
        return [layer]
    if not isinstance(layer, keras.Layer) or not layer.built:
        return []
    found = _trained_by(layer)
    if name.axis is None and len(found) != 1:
        raise ValueError(
            f"A layer that is a target must own one table. {capitalized(describe(layer))} owns "
            f"{len(found)} variables{listing(found)}Name the layer in it that owns the table, the "
            "table by its path, or what lies along one axis of all of them by "
            "`AlongAxis(layer, axis)`."
        )
    if name.axis is None and found[0].name.endswith("kernel"):
        raise ValueError(
            f"It must be said along which axis the rows of {describe(layer)} lie, since it owns no "
            f"table but a kernel. Received: the layer alone, with{listing(found)}"
            "`AlongAxis(layer, axis)` says it. The outputs of `Dense` and of a convolution lie "
            "along axis -1, those of a transposed convolution along axis -2."
        )
    _check_one_length(name, found)
    return found


def _check_one_length(name: Named, variables: Sequence[keras.Variable]) -> None:
    """Raises a `ValueError` if the axis that is named is of several lengths in the variables."""
    if len({v.shape[_axis_of(name, v)] for v in variables if len(v.shape)}) > 1:
        raise ValueError(
            f"{capitalized(describe(name.given))} must be of one length in all variables that it "
            f"stands for. Received{listing(variables)}"
            "Name them by their paths, each with its own axis."
        )


def _check_axis_is_said(name: Named, variables: Sequence[keras.Variable]) -> None:
    """Raises a `ValueError` if a path stands for a transposed table, and no axis of its own."""
    turned = [v for v in variables if v.name == "reverse_embeddings"]
    is_said = isinstance(name.given, AlongAxis) or name.axis
    if turned and (not is_said or len(turned) < len(variables)):
        raise ValueError(
            f"It must be said along which axis the rows of {turned[0].path!r} lie, since it is a "
            f"table turned round, of shape {tuple(turned[0].shape)}. "
            f"Received: {describe(name.given)}. "
            f"The tokens are `AlongAxis({turned[0].path!r}, 1)`; name the table beside it by "
            "its own path."
        )


def _trained_by(layer: keras.Layer) -> list[keras.Variable]:
    what = capitalized(describe(layer))
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"{what} has LoRA enabled, so its table does not train. "
            "Use either LoRA or trainable rows for one layer."
        )
    if layer.dtype_policy.quantization_mode is not None:
        raise ValueError(
            f"{what} is quantized, so its table does not train. "
            "Train the rows first and quantize the model afterwards."
        )
    if not layer.weights:
        raise ValueError(
            f"A layer that is a target must own a table. {what} "
            "owns no variable. Name the layer that does, or the table by its path."
        )
    if not layer.trainable_variables:
        raise ValueError(
            f"The table of {describe(layer)} does not train. "
            "Set `layer.trainable = True`: only the trainable rows will move."
        )
    return list(layer.trainable_variables)


def describe(target: Any) -> str:
    """How error messages name a target."""
    match target:
        case keras.Layer():
            return f"the layer {target.name!r}"
        case AlongAxis():
            return f"axis {target.axis} of {describe(target.target)}"
        case MaskedTable():
            return f"the table {target.path!r}"
        case SavedTable():
            return f"the saved table {target.path or target.layer!r}"
    return shorten(target)


def _axis_of(name: Named, variable: keras.Variable) -> int:
    """The axis of a variable that rows lie along, counted from its first."""
    axis, rank = name.axis or 0, len(variable.shape)
    if not -rank <= axis < max(rank, 1):
        raise ValueError(
            f"{capitalized(describe(name.given))} names {variable.path!r}, which has {rank} axes. "
            "Expected an axis that each of the variables has. Received: "
            f"axis={axis}. The last axis of kernel and bias alike is -1."
        )
    return axis % max(rank, 1)


def _rows_of(name: Named, variable: keras.Variable, rows: Any) -> Rows:
    what = capitalized(describe(name.given))
    if len(variable.shape) == 0:
        raise ValueError(f"{what} names {variable.path!r}, which is a scalar and has no rows.")
    try:
        resolved = Rows(rows, variable.shape[_axis_of(name, variable)])
    except (TypeError, ValueError) as error:
        raise type(error)(f"The rows given for {describe(name.given)}: {error}") from error
    if not len(resolved):
        raise ValueError(
            f"{what} is given no row at all. Received: {shorten(rows)}. "
            "To freeze a whole table set `trainable = False` on its layer."
        )
    return resolved


def _variables_of(name: Named, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    what = name.what
    if isinstance(what, SavedTable):
        return find_saved(what, variables)
    if isinstance(what, str):
        found = of_path(what, variables)
        _check_axis_is_said(name, found)
        return found
    if isinstance(what, keras.Layer) and not what.built:
        raise ValueError(
            f"{capitalized(describe(what))} is not built, so it is not part of what is trained. "
            "Is it the layer that the model uses?"
        )
    found = variables_before_build(name)
    for table in found:
        if not any(v is table for v in variables):
            # As where the cell of a notebook that makes the layer has run once more.
            has_twin = any(v.path == table.path for v in variables)
            advice = (
                "That of this path is of another layer with the same name: take the layer from "
                "the model, `model.get_layer(name)`, or name the path."
                if has_twin
                else "Is it the layer that the model uses, and is every layer and model around it "
                "trainable? A variable that is no `keras.Variable` is not among them: give "
                "`model.trainable_variables`."
            )
            raise ValueError(
                f"The table of {describe(name.given)}, {table.path!r}, is not among the variables "
                f"that are trained{listing(variables)}{advice}"
            )
    return found
