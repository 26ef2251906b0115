"""What `trainable_rows` names: targets, and the variables that they stand for."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from maskedgrad.messages import capitalized, shorten
from maskedgrad.rows.rows import Rows, canonical, decode_rows, encode_rows


@dataclasses.dataclass(frozen=True)
class AlongAxis:
    """A target whose rows lie along another axis than the first.

    Such are the new tokens' columns of an output layer that is not tied to the
    table, and their entries of its bias.

    Args:
        target: a layer, or the path of a variable as `MaskedOptimizer` takes
            it. A layer stands for all variables that it trains.
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
    >>> (head.get_weights()[1] != bias).tolist()
    [False, False, False, True, True]
    """

    target: Any
    axis: int

    def __post_init__(self):
        if not isinstance(self.target, (keras.Layer, str)):
            raise TypeError(
                "`target` must be a layer or the path of a variable. "
                f"Received: {describe(self.target)}"
            )
        if isinstance(self.axis, bool) or not isinstance(self.axis, int):
            raise TypeError(f"`axis` must be an int. Received: axis={self.axis!r}")


class Target(NamedTuple):
    """A table, the rows of it that train, and the axis that they lie along.

    `learning_rates` are multipliers, float64 of shape `(K,)`, or `None` where
    each is 1.
    """

    variable: keras.Variable
    rows: Rows
    axis: int = 0
    learning_rates: np.ndarray | None = None


class SavedTarget(NamedTuple):
    """A target as a config names it.

    The path of a variable holds names that Keras makes up, and they may differ
    in a model that is made again. Its place among the trainable variables does
    not, and Keras restores the state of an optimizer by place too.
    """

    path: str
    place: int
    axis: int = 0


def resolve_targets(
    trainable_rows: Mapping[Any, Any], variables: Sequence[keras.Variable]
) -> list[Target]:
    """The tables that `trainable_rows` names among `variables`, with their rows.

    Args:
        trainable_rows: a mapping from target to rows. A target is a layer that
            owns one table, or the path of a variable: exact, or else a regular
            expression that matches whole paths, as for
            `keras.optimizers.OptimizerMap`; or an `AlongAxis` of these. Rows
            are what `Rows` takes.
        variables: the trainable variables among which the tables are.

    Returns:
        A list of `Target`, in the order of `variables`.

    Raises:
        TypeError: a target or its rows are of another type.
        ValueError: a target names no variable, or one that cannot have rows
            or does not train; two targets name the same variable; a target
            selects no row; or the rows do not fit the table.
    """
    _check_mapping(trainable_rows)
    variables = [v for v in variables if isinstance(v, keras.Variable)]
    found: dict[int, tuple[Any, Target]] = {}
    for target, rows in trainable_rows.items():
        for variable in _variables_of(target, variables):
            if id(variable) in found:
                raise ValueError(
                    f"Two targets name the variable {variable.path!r}: "
                    f"{describe(found[id(variable)][0])} and {describe(target)}. "
                    "Join their rows under one target."
                )
            axis = _axis_of(target, variable)
            found[id(variable)] = target, Target(variable, _rows_of(target, variable, rows), axis)
    return [found[id(v)][1] for v in variables if id(v) in found]


def check_trainable_rows(trainable_rows: Mapping[Any, Any]) -> None:
    """Raises what can be known to be wrong before the optimizer is built."""
    _check_mapping(trainable_rows)
    for target, rows in trainable_rows.items():
        if not isinstance(target, (keras.Layer, str, AlongAxis, SavedTarget)):
            raise TypeError(
                "A target must be a layer or the path of a variable. "
                f"Received: {describe(target)}. A variable is named by its path: `variable.path`."
            )
        built = built_variables(target)
        for variable in built:
            _rows_of(target, variable, rows)
        if not built:
            canonical(rows)


def built_variables(target: Any) -> list[keras.Variable]:
    """The variables that a target names where that is known before the optimizer is built."""
    if isinstance(target, AlongAxis) and isinstance(target.target, keras.Layer):
        return _variables_of_layer(target.target) if target.target.built else []
    if isinstance(target, keras.Layer) and target.built:
        return [table_of(target)]
    return []


def table_of(layer: keras.Layer) -> keras.Variable:
    """The one table that a built layer owns and trains."""
    variables = _variables_of_layer(layer)
    if len(variables) != 1:
        raise ValueError(
            f"A layer that is a target must own one table. {capitalized(describe(layer))} owns "
            f"{len(variables)} variables{_listing(variables)}Name the table by its path, or "
            "what lies along one axis of all of them by `AlongAxis(layer, axis)`."
        )
    return variables[0]


def _variables_of_layer(layer: keras.Layer) -> list[keras.Variable]:
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"{capitalized(describe(layer))} has LoRA enabled, so its table does not train. "
            "Use either LoRA or trainable rows for one layer."
        )
    if layer.dtype_policy.quantization_mode is not None:
        raise ValueError(
            f"{capitalized(describe(layer))} is quantized, so its table does not train. "
            "Train the rows first and quantize the model afterwards."
        )
    if not layer.weights:
        raise ValueError(
            f"A layer that is a target must own a table. {capitalized(describe(layer))} "
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
    if isinstance(target, keras.Layer):
        return f"the layer {target.name!r}"
    if isinstance(target, AlongAxis):
        return f"axis {target.axis} of {describe(target.target)}"
    return repr(target)


def identities(targets: Sequence[Any]) -> list[tuple[int, int]]:
    """What tells apart the tables of `Target`s or `MaskedTable`s, and the axes of their rows."""
    return [(id(target.variable), target.axis) for target in targets]


def listed(targets: Sequence[Any]) -> str:
    """How error messages list the tables of `Target`s or `MaskedTable`s."""
    return ", ".join(f"{target.variable.path!r} axis {target.axis}" for target in targets)


def encode_trainable_rows(trainable_rows: Mapping[Any, Any]) -> dict[str, Any]:
    """`trainable_rows` as a JSON value, by path. See `decode_trainable_rows`."""
    config: dict[str, Any] = {}
    for target, rows in trainable_rows.items():
        path, place, axis = _as_saved(target)
        encoded = encode_rows(rows)
        if place is not None:
            encoded["place"] = place
        if axis:
            encoded["axis"] = axis
        if path in config:
            raise ValueError(
                "Tables of one path cannot be told apart in a config. "
                f"Received: two tables of the path {path!r}. Give their layers different names."
            )
        config[path] = encoded
    return config


def decode_trainable_rows(config: Mapping[str, Any]) -> dict[Any, Any]:
    """The inverse of `encode_trainable_rows`.

    Raises:
        TypeError, ValueError: `config` is not what `encode_trainable_rows` returns.
    """
    if not isinstance(config, Mapping):
        raise TypeError(
            "The config of trainable rows must be a mapping from path to the config of rows. "
            f"Received: {shorten(config)}"
        )
    return {_decode_target(path, rows): decode_rows(rows) for path, rows in config.items()}


def _decode_target(path: str, config: Any) -> Any:
    places = dict(config) if isinstance(config, Mapping) else {}
    axis, place = places.get("axis", 0), places.get("place", 0)
    if not isinstance(path, str) or type(axis) is not int or type(place) is not int or place < 0:
        raise ValueError(
            "A target in a config must have a path, an int as its axis, and an int that is not "
            f"negative as its place. Received: {shorten(path)} with axis={shorten(axis)} and "
            f"place={shorten(place)}"
        )
    if "place" in places:
        return SavedTarget(path, place, axis)
    return AlongAxis(path, axis) if axis else path


def _as_saved(target: Any) -> tuple[str, int | None, int]:
    if isinstance(target, SavedTarget):
        return target
    if not isinstance(target, AlongAxis):
        return _path_of_table(target), None, 0
    layer = target.target
    return (
        f"{_path_of(layer)}/[^/]+" if isinstance(layer, keras.Layer) else layer,
        None,
        target.axis,
    )


def _path_of_table(target: Any) -> str:
    if isinstance(target, str):
        return target
    return table_of(target).path if target.built else f"{_path_of(target)}/[^/]+"


def _path_of(layer: keras.Layer) -> str:
    """A regular expression for the path of a layer."""
    if layer.built:
        return re.escape(_variables_of_layer(layer)[0].path.rpartition("/")[0])
    return f"(.*/)?{re.escape(layer.name)}"


def _rows_of(target: Any, variable: keras.Variable, rows: Any) -> Rows:
    if len(variable.shape) == 0:
        raise ValueError(
            f"{capitalized(describe(target))} names {variable.path!r}, "
            "which is a scalar and has no rows."
        )
    try:
        resolved = Rows(rows, variable.shape[_axis_of(target, variable)])
    except (TypeError, ValueError) as error:
        raise type(error)(f"The rows given for {describe(target)}: {error}") from error
    if not len(resolved):
        raise ValueError(
            f"{capitalized(describe(target))} is given no row at all. Received: {shorten(rows)}. "
            "To freeze a whole table set `trainable = False` on its layer."
        )
    return resolved


def _axis_of(target: Any, variable: keras.Variable) -> int:
    axis = target.axis if isinstance(target, (AlongAxis, SavedTarget)) else 0
    rank = len(variable.shape)
    if not -rank <= axis < max(rank, 1):
        raise ValueError(
            f"{capitalized(describe(target))} names {variable.path!r}, which has {rank} axes. "
            "Expected an axis that each of the variables has. Received: "
            f"axis={axis}. The last axis of kernel and bias alike is -1."
        )
    return axis % max(rank, 1)


def _variables_of(target: Any, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    if isinstance(target, keras.Layer):
        return _among([table_of(_built(target))], target, variables)
    if isinstance(target, AlongAxis):
        if isinstance(target.target, keras.Layer):
            layer = _built(target.target)
            found = _among(_variables_of_layer(layer), layer, variables)
            _check_one_length(target, found)
            return found
        target = target.target
    path, place = target[:2] if isinstance(target, SavedTarget) else (target, None)
    matches = [v for v in variables if v.path == path]
    if place is not None and len(matches) != 1:
        matches = list(variables[place : place + 1])
    elif not matches:
        matches = _matching(path, variables)
    if not matches:
        raise ValueError(
            f"The target {path!r} matches none of the variables that are trained"
            f"{_listing(variables)}A variable of a frozen layer is not among them."
        )
    return matches


def _built(layer: keras.Layer) -> keras.Layer:
    if not layer.built:
        raise ValueError(
            f"{capitalized(describe(layer))} is not built, so it is not part of what is trained. "
            "Is it the layer that the model uses?"
        )
    return layer


def _among(
    tables: list[keras.Variable], layer: keras.Layer, variables: Sequence[keras.Variable]
) -> list[keras.Variable]:
    for table in tables:
        if not any(v is table for v in variables):
            raise ValueError(
                f"The table of {describe(layer)}, {table.path!r}, is not among the variables "
                f"that are trained{_listing(variables)}Is it the layer that the model uses, "
                "and is every layer and model around it trainable?"
            )
    return tables


def _check_one_length(target: AlongAxis, variables: list[keras.Variable]) -> None:
    lengths = {v.shape[_axis_of(target, v)] for v in variables if len(v.shape)}
    if len(lengths) > 1:
        raise ValueError(
            f"{capitalized(describe(target))} must be of one length in all variables of the layer. "
            f"Received{_listing(variables)}Name them by their paths, each with its own axis."
        )


def _matching(pattern: str, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    try:
        return [v for v in variables if re.fullmatch(pattern, v.path)]
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{shorten(pattern)} is neither the path of a variable nor a regular expression "
            f"({error}). The paths are{_listing(variables)}"
        ) from error


def _check_mapping(trainable_rows: Any) -> None:
    if not isinstance(trainable_rows, Mapping):
        raise TypeError(
            "`trainable_rows` must be a mapping from target to rows, such as "
            f"`{{embedding_layer: [3, 7]}}`. Received: {shorten(trainable_rows)}"
        )
    if not trainable_rows:
        raise ValueError("`trainable_rows` must name at least one table. Received: {}")


def _listing(variables: Sequence[keras.Variable]) -> str:
    if not variables:
        return ". "
    return ":\n" + "".join(f"  {v.path}  {tuple(v.shape)}\n" for v in variables)
