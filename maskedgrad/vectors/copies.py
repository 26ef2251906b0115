"""A copy of a model around a table of another number of rows, with all else that it has learned."""

import inspect
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from maskedgrad.rows.targets import describe
from maskedgrad.vectors.configs import (
    config_with,
    places_in,
    plain,
    with_entry,
    with_words,
    without_names,
)
from maskedgrad.vectors.layers import by_hand, captured_values, is_graph, layers_in, tables_in
from maskedgrad.vectors.lookups import (
    copy_words,
    is_lookup,
    same_lookup,
    saves_words,
    with_one_more,
)
from maskedgrad.vectors.tokenizers import is_tokenizer, tokenizers_in


class Remade(NamedTuple):
    """What differs in a copy: the rows of its table, and the layers that others stand for.

    `others` are tables that have as many rows as it, in the copy too.
    """

    table: Any
    num_rows: int
    instead: Mapping[int, Any]
    others: Sequence[Any] = ()

    def is_resized(self, layer: Any) -> bool:
        """Whether a layer is one of the tables."""
        return any(layer is each for each in (self.table, *self.others))


def copied(model: Any, remade: Remade, resized: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A copy of a model or layer around a table of `remade.num_rows` rows.

    Args:
        model: a built model or layer.
        remade: the table in it, how many rows that has in the copy, and the
            layers that stand in the place of others, by `id`.
        resized: the new value of a weight along whose first axis the rows of
            the table lie, of its old one.

    Raises:
        ValueError: the model cannot be remade; or something in it would not be
            in the copy what it was.
    """
    if model is not remade.table:
        _check_nothing_else_uses(remade.table, model)
    new = remade_layer(model, remade)
    axes = _axes_of_rows(model, new, remade)
    _copy_learned(model, new, remade)
    for old_weight, new_weight, axis in zip(model.weights, new.weights, axes, strict=True):
        value = keras.ops.convert_to_numpy(old_weight)
        if axis is not None:
            value = np.moveaxis(resized(np.moveaxis(value, axis, 0)), 0, axis)
        new_weight.assign(value)
        if new_weight.trainable != old_weight.trainable:
            new_weight.trainable = old_weight.trainable
    return new


def remade_layer(model: Any, remade: Remade) -> Any:
    """A layer or model made anew from its config, with fresh weights."""
    copies = dict(remade.instead)

    def copy_of(layer: Any) -> Any:
        if id(layer) not in copies:
            copies[id(layer)] = _remade_once(layer, remade, copy_of)
        return copies[id(layer)]

    try:
        new = copy_of(model)
        if model is remade.table:
            new.build(None)
        _enable_lora(model, new)
    except Exception as error:
        raise ValueError(
            f"{describe(model)} cannot be made anew around a table of {remade.num_rows} rows: "
            f"{_told(error)}. A layer may be bound to the old number of rows, or "
            f"lack a `get_config` that its constructor takes. {by_hand(remade.table)}"
        ) from error
    return new


def _remade_once(layer: Any, remade: Remade, copy_of: Callable[[Any], Any]) -> Any:
    if is_graph(layer):
        return _remade_graph(layer, copy_of)
    # What is no layer is an operation, such as the sum of two tensors.
    inside = {id(each) for each in layers_in(layer)} if isinstance(layer, keras.Layer) else set()
    if id(remade.table) in inside and layer is not remade.table:
        return _remade_around(layer, remade)
    if inside & remade.instead.keys():
        return _from_config(layer, config_with(layer, remade.instead))
    if is_lookup(layer):  # not by its config, which says of what shape its first call was
        return same_lookup(layer)
    larger = {"input_dim": remade.num_rows} if remade.is_resized(layer) else {}
    return type(layer).from_config({**layer.get_config(), **larger})


def _remade_graph(model: Any, copy_of: Callable[[Any], Any]) -> Any:
    if isinstance(model, keras.Sequential):
        (tensor,) = model.inputs
        inputs = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        return type(model)([inputs, *map(copy_of, model.layers)], name=model.name)
    # Left to itself, `clone_model` makes inputs of other names.
    input_for = {
        id(layer.output): keras.layers.InputLayer.from_config(layer.get_config()).output
        for layer in model.layers
        if isinstance(layer, keras.layers.InputLayer)
    }
    inputs = keras.tree.map_structure(lambda tensor: input_for[id(tensor)], model.input)
    # A view, since `clone_model` compiles the copy of a compiled model, with
    # an optimizer that may be bound to the old number of rows.
    view = keras.Model(model.input, model.output)
    clone = keras.models.clone_model(view, input_tensors=inputs, clone_function=copy_of)
    return type(model)(clone.input, clone.output, name=model.name)


def _remade_around(layer: Any, remade: Remade) -> Any:
    """Remakes a layer or model that makes its table itself, by an entry of its config.

    Which entry that is, is found by trying: the one with which the table has
    the new number of rows. Those that are named for a vocabulary come first.
    """
    config = config_with(layer, remade.instead)
    old = remade.table.input_dim
    larger_words = with_words(layer, config, remade.instead)
    if larger_words != config:  # the words say how large the table is
        new = _from_config(layer, larger_words)
        if any(each.input_dim == remade.num_rows for each in tables_in(new)):
            return new
    if remade.num_rows == old:
        return _from_config(layer, config)
    place_of_table = [each is remade.table for each in layers_in(layer)].index(True)
    tried = {}
    for place in places_in(old, config):
        try:
            new = _from_config(layer, with_entry(config, place, remade.num_rows))
            table = layers_in(new)[place_of_table]
        except Exception as error:  # whatever the constructor says: another entry may be the one
            tried[place] = _told(error)
            continue
        if getattr(table, "input_dim", None) == remade.num_rows:
            return new
        tried[place] = f"the table still has {getattr(table, 'input_dim', None)} rows"
    told = "; ".join(f"with {'.'.join(map(str, place))}, {why}" for place, why in tried.items())
    raise ValueError(
        f"no entry of the config of {describe(layer)} is the number of rows of its table, {old}"
        f"{f' ({told})' if told else ''}."
    )


def _told(error: Exception) -> str:
    """The text of an error on one line, to be quoted in another."""
    text = re.sub(r"\x1b\[\d*m", "", " ".join(str(error).split())).rstrip(".")
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"


def _from_config(layer: Any, config: dict[str, Any]) -> Any:
    classes = {type(each).__name__: type(each) for each in layers_in(layer)}
    # keras_hub compiles its tasks as they are made, with an optimizer that trains every row.
    if _takes(type(layer), "compile"):
        config = {**config, "compile": False}
    with keras.saving.custom_object_scope(classes):
        new = _built_from_config(layer, config)
        if _names(new) != _names(layer):
            # Some classes name the layers inside them after an argument, and not after themselves.
            named = {(type(each).__name__, each.name) for each in _compared(layer)}
            unnamed = _built_from_config(layer, without_names(config, named))
            if _names(unnamed) == _names(layer):
                new = unnamed
                for each, other in _pairs(layer, new):
                    other.name = each.name
    if hasattr(layer, "sampler"):  # what `generate` of keras_hub needs, and `compile` makes
        new.sampler = type(layer.sampler).from_config(layer.sampler.get_config())
        new.generate_function = None
    return new


def _built_from_config(layer: Any, config: dict[str, Any]) -> Any:
    new = type(layer).from_config(plain(config))
    if not new.built:
        new.build_from_config(layer.get_build_config())
    return new


def _names(layer: Any) -> list[str]:
    return [_stem(each.name) for each in _compared(layer)]


def _takes(layer_class: type, argument: str) -> bool:
    own = [vars(each)["__init__"] for each in layer_class.__mro__ if "__init__" in vars(each)]
    return any(argument in inspect.signature(init).parameters for init in own if callable(init))


def _pairs(old: Any, new: Any) -> list[tuple[Any, Any]]:
    """Each layer with its copy.

    Raises:
        ValueError: the copy is made of other layers.
    """
    layers, others = _compared(old), _compared(new)
    pairs = list(zip(layers, others, strict=False))
    differ = [
        f"{describe(each)} ({type(each).__name__}) became {describe(other)} "
        f"({type(other).__name__})"
        for each, other in pairs
        if type(each) is not type(other) or not _stem(other.name).endswith(_stem(each.name))
    ]
    if differ or len(layers) != len(others):
        raise ValueError(
            f"a copy of {describe(old)} must be made of the same layers. Received: a config of "
            f"{len(others)} layers for a model of {len(layers)}"
            f"{f', where {differ[0]}' if differ else ''}. Layers that were added or exchanged "
            "after the model was made are not in its config, nor are layers that others share"
        )
    return pairs


def _compared(layer: Any) -> list[Any]:
    """The layers inside of a layer that a copy has too."""
    inside = layers_in(layer)
    # Two levels may share the input that they were made from, and their copies do not.
    left_out = {id(each) for each in inside if isinstance(each, keras.layers.InputLayer)}
    for each in inside:
        # A preprocessor of keras_hub makes the layer that packs tokens in its first call.
        if not each.weights and not is_tokenizer(each) and tokenizers_in(each):
            within = (part for part in layers_in(each) if part is not each)
            left_out.update(id(part) for part in within if not is_tokenizer(part))
    return [each for each in inside if id(each) not in left_out]


def _stem(name: str) -> str:
    """A name without the number by which Keras tells layers apart that were given none."""
    return re.sub(r"_\d+$", "", name)


def _enable_lora(old: Any, new: Any) -> None:
    for layer, other in _pairs(old, new):
        adapted = [each for each in layers_in(layer) if getattr(each, "lora_enabled", False)]
        # A backbone of keras_hub notes what it saves as LoRA weights.
        if adapted and hasattr(layer, "default_lora_layer_names"):
            other.enable_lora(adapted[0].lora_rank, sorted({each.name for each in adapted}))
    for layer, other in _pairs(old, new):
        if getattr(layer, "lora_enabled", False) and not other.lora_enabled:
            other.enable_lora(layer.lora_rank, lora_alpha=layer.lora_alpha)


def _copy_learned(old: Any, new: Any, remade: Remade) -> None:
    """Copies what is no weight: `trainable`, what `adapt` learned, and assets."""
    done: set[int] = set()
    for layer, other in _pairs(old, new):
        if other.trainable != layer.trainable:
            other.trainable = layer.trainable
        source = remade.instead.get(id(layer), layer)
        if source is other:
            done.update(map(id, layers_in(other)))
        if id(other) in done:
            continue
        if is_lookup(source):
            copy_words(source, other)
            if source is not layer:
                _check_saves_words(other)
            done.update(map(id, layers_in(other)))  # a `TextVectorization` has a lookup inside
        elif hasattr(source, "adapt"):
            store: dict[str, Any] = {}
            source.save_own_variables(store)
            other.load_own_variables(store)
        elif _has_assets(source):
            with tempfile.TemporaryDirectory() as folder:
                source.save_assets(folder)
                other.load_assets(folder)


def _check_saves_words(lookup: Any) -> None:
    if not saves_words(lookup):
        raise ValueError(
            f"{describe(lookup)} is made with `vocabulary=` by the layer around it, so a saved "
            "copy would have the old words. Have `get_config` of that layer tell the words, or "
            "make the lookup without words, and give it them by `set_vocabulary` or `adapt`."
        )


def _has_assets(layer: Any) -> bool:
    # The vocabulary of a tokenizer is an asset that may lie within another layer's.
    return hasattr(layer, "load_assets") and getattr(layer, "file_assets", None) is not None


def _axes_of_rows(old: Any, new: Any, remade: Remade) -> list[int | None]:
    """For each weight the axis that the rows of the table lie along, or `None`."""
    num_rows = remade.table.input_dim
    if remade.num_rows == num_rows:
        # A trial with a row more shows which weights have rows. Words may say how many there are.
        instead = {
            key: with_one_more(each) if is_lookup(each) else each
            for key, each in remade.instead.items()
        }
        remade = remade._replace(num_rows=num_rows + 1, instead=instead)
        new = remade_layer(old, remade)
    _check_same_weights(old, new, remade.table)
    _check_resized(old, new, remade)
    return [_axis_of_rows(*pair, num_rows) for pair in zip(old.weights, new.weights, strict=True)]


def _check_resized(old: Any, new: Any, remade: Remade) -> None:
    for layer, other in _pairs(old, new):
        if remade.is_resized(layer) and other.input_dim != remade.num_rows:
            raise ValueError(
                f"{describe(layer)} has the ids of {describe(remade.table)}, so it must have as "
                f"many rows. Received: a layer around it that makes it of {other.input_dim}. "
                f"{by_hand(remade.table)}"
            )


def _axis_of_rows(old: Any, new: Any, num_rows: int) -> int | None:
    before, after = tuple(old.shape), tuple(new.shape)
    if before == after:
        return None
    sizes = enumerate(zip(before, after, strict=False))
    differ = [axis for axis, (size, larger) in sizes if size != larger]
    if len(before) != len(after) or [before[axis] for axis in differ] != [num_rows]:
        raise ValueError(
            f"The weight {old.path!r} of shape {before} becomes one of shape "
            f"{after} around the larger table, and only a weight with one axis of "
            f"{num_rows} can be extended. Make the layer anew and set its weights by hand."
        )
    if "float" not in str(old.dtype):
        raise ValueError(
            f"The weight {old.path!r} is of dtype {old.dtype}, and would have to grow with the "
            "table: a quantized layer is more than its rows. Make the model anew first, extend "
            "it, and quantize it afterwards."
        )
    return differ[0]


def _check_same_weights(old: Any, new: Any, table: Any) -> None:
    pairs = list(zip(old.weights, new.weights, strict=False))
    differ = [
        f"{each.path!r} ({each.dtype}) became {other.path!r} ({other.dtype})"
        for each, other in pairs
        if (_stem(each.name), each.dtype) != (_stem(other.name), other.dtype)
    ]
    if differ or len(old.weights) != len(new.weights):
        raise ValueError(
            f"A copy of {describe(old)} must have the same weights. Its config gives one of "
            f"{len(new.weights)} weights, and it has {len(old.weights)}"
            f"{f': {differ[0]}' if differ else ''}. Does a layer share a weight that its config "
            f"does not tell of, or was it changed after it was made? {by_hand(table)}"
        )


def _check_nothing_else_uses(table: Any, model: Any) -> None:
    for operation, value in captured_values(model) if is_graph(model) else []:
        if table.input_dim in tuple(value.shape):
            raise ValueError(
                f"The operation {operation.name!r} is given an array of shape "
                f"{tuple(value.shape)}, which would not grow with {describe(table)}. "
                "`keras.layers.ReversibleEmbedding` makes a tied output that does. "
                f"{by_hand(table)}"
            )
