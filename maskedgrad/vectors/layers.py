"""What a model is made of: its layers, its tables, and what its graph calls them with."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from maskedgrad.rows.targets import describe

# Operations that hand on the values of ids as they are, in another shape or dtype.
SHAPING = {
    "Cast",
    "Concatenate",
    "ExpandDims",
    "Flatten",
    "GetItem",
    "Identity",
    "Permute",
    "Ravel",
    "Reshape",
    "Squeeze",
    "Stack",
    "Transpose",
}

USERS = keras.layers.Embedding, keras.layers.CategoryEncoding


def layers_in(layer: Any) -> list[Any]:
    """A layer and all layers inside of it, at any depth, each once, an outer one before its own."""
    # `Model.layers` lists those of a model only, one level deep. Without this a table inside of a
    # `TimeDistributed` or a `Bidirectional` is not found.
    # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/layers/layer.py#L1708
    found = list(layer._flatten_layers())
    # Up to Keras 3.12 a functional model forgets the layers that it was given before its graph: of
    # a task of keras_hub the preprocessor, in which the tokenizer is.
    # https://github.com/keras-team/keras/blob/v3.12.0/keras/src/models/functional.py#L141
    for each in [*found]:
        preprocessor = getattr(each, "preprocessor", None)
        if isinstance(preprocessor, keras.Layer) and id(preprocessor) not in set(map(id, found)):
            found += preprocessor._flatten_layers()
    return found


def is_graph(model: Any) -> bool:
    """Whether a model is remade from its layers, and not by a constructor of its own."""
    if isinstance(model, keras.Sequential):
        return True
    if not isinstance(model, keras.Model) or not hasattr(model, "operations"):
        return False
    try:
        return "input_layers" in model.get_config()
    except Exception:  # a layer in it has no config: what remakes the graph says which
        return True


def tables_in(layer: Any) -> list[Any]:
    """The embedding layers in a layer or model, at any depth, each once."""
    found = {id(each): each for each in layers_in(layer)}
    return [each for each in found.values() if isinstance(each, keras.layers.Embedding)]


def table_in(model: Any, table: Any) -> Any:
    """The embedding layer that `table` names; where it is `None`, the one of the words.

    Raises:
        ValueError: none is meant, or any of several may be.
    """
    tables = tables_in(model)
    named = [each for each in tables if table is None or table is each or table == each.name]
    if table is None and len(named) > 1:
        named = _tables_of_tokens(model, tables)
    if len(named) != 1:
        raise ValueError(
            "The model must have one embedding layer that `table` names, or one in all. "
            f"Received: table={getattr(table, 'name', table)!r}, and "
            f"the embedding layers {[each.path for each in tables]}. Give the layer itself: "
            "`table=model.get_layer(...)`. A table that is no `keras.layers.Embedding`, or in a "
            "model that is not built, is not among them."
        )
    return named[0]


def _tables_of_tokens(model: Any, tables: list[Any]) -> list[Any]:
    """What models of keras_hub call their `token_embedding`, if all tables are of one of them."""
    for layer in layers_in(model):
        tokens = getattr(layer, "token_embedding", None)
        if isinstance(tokens, keras.layers.Embedding):
            return [tokens] if len(tables_in(layer)) == len(tables) else []
    return [each for each in tables if each.name == "token_embedding"]


def captured_values(model: Any) -> Iterator[tuple[Any, Any]]:
    """The variables and arrays that a graph calls its operations with."""
    for operation in _operations(model):
        if is_graph(operation):
            yield from captured_values(operation)
        for node in _nodes(operation):
            arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            for value in arguments:
                if hasattr(value, "shape") and not keras.utils.is_keras_tensor(value):
                    yield operation, value


class IdSources(NamedTuple):
    """What gives a table of a graph its ids.

    - `lookups`: the lookups whose ids reach the table, by `id`, each with whether they are seen to
      reach it as they are, through operations of `SHAPING` only.
    - `others`: the operations that are no such lookups, inputs of the model included.
    """

    lookups: dict[int, tuple[Any, bool]]
    others: list[Any]


def sources_of_ids(model: Any, table: Any) -> IdSources:
    """What gives a table its ids, as far as a graph shows it."""
    found: dict[int, tuple[Any, bool]] = {}
    others: list[Any] = []
    if not is_graph(model):
        return IdSources(found, others)
    producers = _producers(model)
    waiting = [(tensor, True) for tensor in _looked_up(model, table)]
    followed: set[tuple[int, bool]] = set()
    while waiting:
        tensor, as_it_is = waiting.pop()
        if (id(tensor), as_it_is) in followed:
            continue
        followed.add((id(tensor), as_it_is))
        for node in producers.get(id(tensor), []):
            within = _vocabularies_in(node.operation)
            for lookup in within:
                is_seen = as_it_is and lookup is node.operation
                found[id(lookup)] = lookup, is_seen or found.get(id(lookup), (None, False))[1]
            as_before = as_it_is and type(node.operation).__name__ in SHAPING
            if as_it_is and not as_before and node.operation not in within:
                others.append(node.operation)
            waiting.extend((source, as_before) for source in node.input_tensors)
    return IdSources(found, others)


def makers_before(model: Any, layer: Any) -> list[Any]:
    """The layers with weights or words that a layer of a graph is called after.

    What lies between them, such as an `argmax`, has none.
    """
    producers = _producers(model) if is_graph(model) else {}
    waiting = list(_looked_up(model, layer)) if producers else []
    followed: set[int] = set()
    found = {}
    while waiting:
        tensor = waiting.pop()
        nodes = [] if id(tensor) in followed else producers.get(id(tensor), [])
        followed.add(id(tensor))
        for node in nodes:
            operation = node.operation
            if getattr(operation, "weights", None) or hasattr(operation, "get_vocabulary"):
                found[id(operation)] = operation
            else:
                waiting.extend(node.input_tensors)
    return list(found.values())


def users_of_ids(model: Any) -> list[Any]:
    """The layers and operations of a graph that have something for each id.

    Without those inside of a layer that is no graph, which may make other ids, of positions say.
    """
    if not is_graph(model):
        return []
    users = []
    for operation in _operations(model):
        if is_graph(operation):
            users += users_of_ids(operation)
        elif isinstance(operation, USERS) or type(operation).__name__ in ("OneHot", "MultiHot"):
            users.append(operation)
    return users


def _vocabularies_in(operation: Any) -> list[Any]:
    if not isinstance(operation, keras.Layer) or is_graph(operation):
        return []
    inside = [layer for layer in layers_in(operation) if hasattr(layer, "get_vocabulary")]
    # What a `TextVectorization` looks words up with is a part of it.
    return [operation] if operation in inside else inside


def _looked_up(model: Any, table: Any) -> Iterator[Any]:
    """The tensors that a table, or a layer that holds it, is called with in a graph."""
    for operation in _operations(model):
        if operation is table:
            yield from (tensor for node in _nodes(table) for tensor in node.input_tensors)
        elif isinstance(operation, keras.Layer) and table in layers_in(operation):
            if is_graph(operation):
                yield from _looked_up(operation, table)
            else:
                tensors = [tensor for node in _nodes(operation) for tensor in node.input_tensors]
                integers = [tensor for tensor in tensors if "int" in str(tensor.dtype)]
                yield from integers or tensors


def _producers(model: Any) -> dict[int, list[Any]]:
    """The nodes that each tensor of a graph comes from, through inner models too."""
    found: dict[int, list[Any]] = {}
    for operation in _operations(model):
        for node in _nodes(operation):
            found.update((id(tensor), [node]) for tensor in node.outputs)
    for operation in _operations(model):
        if is_graph(operation):
            found.update(_producers(operation))
            # What an inner model takes in is what it is called with.
            called_with: dict[int, list[Any]] = {}
            for node in _nodes(operation):
                for inner, outer in zip(operation.inputs, node.input_tensors, strict=False):
                    called_with.setdefault(id(inner), []).extend(found.get(id(outer), []))
            found.update(called_with)
            # What it returns is what was made within it.
            for node in _nodes(operation):
                pairs = zip(operation.outputs, node.outputs, strict=False)
                found.update((id(outer), found.get(id(inner), [])) for inner, outer in pairs)
    return found


def _operations(model: Any) -> list[Any]:
    return list(getattr(model, "operations", model.layers))


def _nodes(operation: Any) -> list[Any]:
    # Without the calls nobody can tell which lookup feeds which table. Public is `layer.input`
    # alone, which raises for a layer that is called twice.
    # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/ops/operation.py#L32
    return list(operation._inbound_nodes)


def by_hand(table: Any) -> str:
    """What to do where a model cannot be remade."""
    return (
        "By hand: `larger, rows = maskedgrad.extend(layer, words)` for "
        f"{describe(table)}, then make the model anew around `larger`, and set the other "
        "layers' weights by `new_layer.set_weights(old_layer.get_weights())`."
    )
