"""The configs that layers and models are made anew from, with what is to differ in a copy."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from maskedgrad.vectors.layers import is_graph, layers_in
from maskedgrad.vectors.lookups import is_lookup

Place = tuple[Any, ...]
PLAIN = bool, int, float, str


def config_with(layer: Any, instead: Mapping[int, Any]) -> dict[str, Any]:
    """The config of a layer in which other layers stand for some of those inside it."""
    config = plain({**layer.get_config(), **_left_out(layer)})
    told_of = set(_objects_in(config))
    changed = {}
    for each in layers_in(layer):
        if id(each) in instead:
            new = keras.saving.serialize_keras_object(instead[id(each)])
            changed[_class_and_name(new)] = new["config"]
        elif (type(each).__name__, each.name) in told_of:
            changed[type(each).__name__, each.name] = _left_out(each)
    return _changed(config, changed) if changed else config


def _objects_in(config: Any) -> Iterator[tuple[Any, Any]]:
    """The class and the name of each object that a config tells of."""
    if isinstance(config, dict):
        if isinstance(config.get("config"), dict):
            yield _class_and_name(config)
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for each in config:
            yield from _objects_in(each)


def _left_out(layer: Any) -> dict[str, Any]:
    """The arguments that a layer was made with and that its config does not tell of.

    Some backbones of keras_hub forget one, such as `tie_word_embeddings` of Llama.
    """
    parameters = inspect.signature(type(layer).__init__).parameters.values()
    plain = [each for each in parameters if isinstance(getattr(layer, each.name, None), PLAIN)]
    plain = [each for each in plain if each.default != getattr(layer, each.name)]
    if not plain or isinstance(layer, keras.layers.InputLayer) or is_graph(layer):
        return {}
    config = layer.get_config()
    forgotten = [each.name for each in plain if each.name not in {*config, "dtype", "trainable"}]
    return {name: getattr(layer, name) for name in forgotten}


def _changed(value: Any, changed: Mapping[tuple[Any, Any], dict[str, Any]]) -> Any:
    if isinstance(value, dict):
        value = {key: _changed(each, changed) for key, each in value.items()}
        if (key := _class_and_name(value)) in changed:
            value = {**value, "config": {**value["config"], **changed[key]}}
        return value
    if isinstance(value, (list, tuple)):
        entries = (_changed(each, changed) for each in value)
        return list(entries) if isinstance(value, list) else tuple(entries)
    return value


def _class_and_name(serialized: dict[str, Any]) -> tuple[Any, Any]:
    config = serialized.get("config")
    return serialized.get("class_name"), config.get("name") if isinstance(config, dict) else None


def places_in(number: int, config: Any) -> list[Place]:
    """Where a number stands in a config, the likeliest first."""
    places = list(_all_places_of(number, config))
    return sorted(places, key=lambda place: "vocab" not in str(place[-1]))


def _all_places_of(number: int, config: Any, place: Place = ()) -> Iterator[Place]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key not in ("build_config", "compile_config"):
                yield from _all_places_of(number, value, (*place, key))
    elif isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            yield from _all_places_of(number, value, (*place, index))
    elif type(config) is int and config == number:
        yield place


def with_entry(config: Any, place: Place, value: Any) -> Any:
    """A config with another value at a place."""
    if not place:
        return value
    first, *rest = place
    if isinstance(config, dict):
        return {**config, first: with_entry(config[first], tuple(rest), value)}
    entries = list(config)
    entries[first] = with_entry(entries[first], tuple(rest), value)
    return entries if isinstance(config, list) else tuple(entries)


def without_names(config: Any, named: set[tuple[Any, Any]]) -> Any:
    """A config whose own name, and those of the objects that it tells of, are left to Keras."""
    nameless = {key: {"name": None} for key in named}
    return {**_changed(config, nameless), "name": None}


def plain(config: Any) -> Any:
    """A config that a constructor may change, of plain containers and without living layers."""
    # `copy.deepcopy` of a list that Keras tracks copies the layers that it is an attribute of.
    if isinstance(config, dict):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return (list if isinstance(config, list) else tuple)(map(plain, config))
    is_layer = isinstance(config, keras.Layer)
    return keras.saving.serialize_keras_object(config) if is_layer else config


def with_words(layer: Any, config: Any, instead: Mapping[int, Any]) -> Any:
    """A config in which the words of lookups are those of the lookups that stand for them."""
    for old in layers_in(layer):
        if id(old) in instead and is_lookup(old):
            for is_whole in (True, False):
                before, after = (
                    each.get_vocabulary(include_special_tokens=is_whole)
                    for each in (old, instead[id(old)])
                )
                config = _exchanged(config, list(before), list(after))
    return config


def _exchanged(config: Any, old: list[Any], new: list[Any]) -> Any:
    if isinstance(config, dict):
        return {key: _exchanged(value, old, new) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return new if list(config) == old else [_exchanged(each, old, new) for each in config]
    return config
