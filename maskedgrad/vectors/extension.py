"""`extend`: a trained model whose table gets rows for new words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import describe
from maskedgrad.rows.vocabulary import check_words, sample
from maskedgrad.vectors.initial_values import check_initializer, first_values

ModelOrLayer = TypeVar("ModelOrLayer", bound=keras.Model | keras.layers.Embedding)

LOOKUPS = keras.layers.StringLookup, keras.layers.TextVectorization


def extend(
    model_or_layer: ModelOrLayer,
    words: Sequence[str],
    initializer: Any = "normal",
    *,
    table: str | keras.layers.Embedding | None = None,
    noise: float = 0.0,
    seed: int | None = None,
) -> tuple[ModelOrLayer, Rows]:
    """A model or a layer with a row more for each new word, and those rows.

    What is given stays as it is. What comes back is a copy, not compiled, with
    the same names and weights; the table has n more rows after its V old ones,
    which keep their bits. Whatever else grows along with the table, such as
    the tied output of a `keras.layers.ReversibleEmbedding` and a bias on it,
    is extended by the same initializer. An output that is not tied, such as a
    `Dense` layer of V units, has a table of its own and stays as it is. A
    lookup layer in the model that holds V words learns the new ones.

    Args:
        model_or_layer: a functional or `Sequential` model, or a built
            `keras.layers.Embedding` or `ReversibleEmbedding`.
        words: the new words, n of them. They get the ids V to V + n - 1.
        initializer: first values of the new rows: `"zeros"`; `"mean"`, the
            mean of the table; `"normal"`, drawn with the mean and the
            variance of each of its columns; a mapping from a new word to the
            ids of the rows that describe it, whose mean it starts from, as in
            `{"<city>": row_ids(["town", "place"], vocabulary)}`, while words
            that it lacks are drawn as by `"normal"`; or a function of the new
            words and an array of shape `(V, width)` that returns an array of
            shape `(n, width)`. It is called once for each weight that grows.
        table: the embedding layer to extend, or its name, if the model has
            more than one.
        noise: float, the deviation of noise on means, in units of the
            deviation of each column.
        seed: int, makes drawn rows the same each time.

    Returns:
        The larger model or layer, and the `Rows` of the new words.

    Raises:
        TypeError: an argument is of another type, such as a subclassed model.
        ValueError: `words` is empty, repeats a word, or holds one that a
            lookup layer of the model knows; the model has no such table or
            several; or something else in it depends on the table in a way
            that a copy would lose.

    Example:

    >>> words = keras.layers.Embedding(5, 2)
    >>> _ = words.build(None)
    >>> larger, new = extend(words, ["<city>"], {"<city>": [1, 3]})
    >>> larger.get_weights()[0].shape, new
    ((6, 2), Rows('5', num_rows=6))
    """
    _check_new_words(words)
    check_initializer(initializer, noise)
    if isinstance(model_or_layer, keras.layers.Embedding):
        old_table = checked_table(model_or_layer)
    else:
        old_table = checked_table(_table_in(_checked_model(model_or_layer), table))
    num_rows = old_table.input_dim
    _check_descriptions(initializer, words, num_rows)

    def grown(old: np.ndarray) -> np.ndarray:
        table = old.reshape(num_rows, -1)
        rows = first_values(
            _centers(initializer, table),
            words,
            table,
            np.arange(num_rows),
            noise=noise,
            seed=seed,
        )
        return np.concatenate([table, rows.astype(old.dtype)]).reshape(-1, *old.shape[1:])

    if old_table is model_or_layer:
        larger = _larger_table(old_table, len(words))
        larger.build(None)
    else:
        _check_lookups(model_or_layer, num_rows, words)
        _check_nothing_else_uses(old_table, model_or_layer)
        larger = _larger_model(model_or_layer, old_table, words)
    _copy_weights(model_or_layer, larger, num_rows, len(words), grown)
    return larger, Rows(slice(num_rows, None), num_rows + len(words))


def _larger_table(layer: keras.layers.Embedding, num_new: int) -> keras.layers.Embedding:
    config = layer.get_config()
    return type(layer).from_config({**config, "input_dim": layer.input_dim + num_new})


def _larger_model(model: Any, old_table: Any, words: Sequence[str]) -> Any:
    copies: dict[int, Any] = {}

    def copy(layer: Any) -> Any:
        if layer is old_table:
            return _larger_table(layer, len(words))
        if isinstance(layer, LOOKUPS):
            return _larger_lookup(layer, old_table.input_dim, words)
        if _is_made_of_layers(layer):
            return _rebuilt(layer, copy_once)
        return type(layer).from_config(layer.get_config())

    def copy_once(layer: Any) -> Any:
        if id(layer) not in copies:
            copies[id(layer)] = copy(layer)
        return copies[id(layer)]

    try:
        return _rebuilt(model, copy_once)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be rebuilt around a table of "
            f"{old_table.input_dim + len(words)} rows; the error above says where. A layer may be "
            f"bound to the old number of rows, or lack a `get_config`. {_by_hand(old_table)}"
        ) from error


def _rebuilt(model: Any, copy: Callable[[Any], Any]) -> Any:
    if isinstance(model, keras.Sequential):
        (tensor,) = model.inputs
        inputs = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        return type(model)([inputs, *map(copy, model.layers)], name=model.name)
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
    clone = keras.models.clone_model(view, input_tensors=inputs, clone_function=copy)
    return type(model)(clone.input, clone.output, name=model.name)


def _is_made_of_layers(model: Any) -> bool:
    """Whether a model is functional or `Sequential`."""
    is_functional = isinstance(model, keras.Model) and hasattr(model, "operations")
    return is_functional or isinstance(model, keras.Sequential)


def _larger_lookup(lookup: Any, num_rows: int, words: Sequence[str]) -> Any:
    config = lookup.get_config()
    # The config of a lookup that was adapted lacks what it learned.
    config["vocabulary"] = lookup.get_vocabulary(include_special_tokens=False)
    if _gives_rows(lookup, num_rows):
        config["vocabulary"] = [*config["vocabulary"], *words]
        if config["max_tokens"] is not None:
            config["max_tokens"] += len(words)
    return type(lookup).from_config(config)


def _gives_rows(lookup: Any, num_rows: int) -> bool:
    is_whole = lookup.vocabulary_size() == num_rows
    return is_whole and lookup.get_config()["output_mode"] == "int"


def _copy_weights(
    old: Any, new: Any, num_rows: int, num_new: int, grown: Callable[[np.ndarray], np.ndarray]
) -> None:
    values = []
    for old_weight, new_weight in zip(old.weights, new.weights, strict=True):
        value = keras.ops.convert_to_numpy(old_weight)
        if old_weight.shape != new_weight.shape:
            axis = _grown_axis(old_weight, new_weight, num_rows, num_new)
            value = np.moveaxis(grown(np.moveaxis(value, axis, 0)), 0, axis)
        values.append(value)
    new.set_weights(values)


def _grown_axis(old: Any, new: Any, num_rows: int, num_new: int) -> int:
    for axis, size in enumerate(old.shape):
        grown = (*old.shape[:axis], num_rows + num_new, *old.shape[axis + 1 :])
        if size == num_rows and tuple(new.shape) == grown:
            return axis
    raise ValueError(
        f"The weight {old.path!r} of shape {tuple(old.shape)} becomes one of shape "
        f"{tuple(new.shape)} around the larger table, and only a weight with one axis of "
        f"{num_rows} can be extended. Make the layer anew and set its weights by hand."
    )


def _centers(initializer: Any, table: np.ndarray) -> Any:
    if not isinstance(initializer, Mapping):
        return initializer
    return {
        word: table[np.asarray(ids)].mean(axis=0, dtype=np.float64)
        for word, ids in initializer.items()
    }


def _layers_in(model: Any) -> Iterator[Any]:
    for layer in model.layers:
        if _is_made_of_layers(layer):
            yield from _layers_in(layer)
        else:
            yield layer


def _table_in(model: Any, table: Any) -> Any:
    tables = {
        id(layer): layer for layer in _layers_in(model) if isinstance(layer, keras.layers.Embedding)
    }
    named = [t for t in tables.values() if table is None or table in (t.name, t)]
    if len(named) != 1:
        raise ValueError(
            "The model must have one embedding layer that `table` names, or one in all. "
            f"Received: table={table!r}, and the embedding layers "
            f"{[t.name for t in tables.values()]}. A table inside of another layer cannot be "
            "extended with the model: extend the layer that owns it, and make that anew."
        )
    return named[0]


def _check_lookups(model: Any, num_rows: int, words: Sequence[str]) -> None:
    for layer in _layers_in(model):
        if isinstance(layer, LOOKUPS) and _gives_rows(layer, num_rows):
            known = [word for word in words if word in layer.get_vocabulary()]
            if known:
                raise ValueError(
                    f"`words` must be new to {describe(layer)}. Received words that it knows: "
                    f"{sample(known)}"
                )


def _check_nothing_else_uses(old_table: Any, model: Any) -> None:
    table = old_table.embeddings
    for layer in _layers_in(model):
        if layer is not old_table and any(weight is table for weight in layer.weights):
            raise ValueError(
                f"The table of {describe(old_table)} is held by {describe(layer)} too, and a copy "
                f"of that would not share the larger one. {_by_hand(old_table)}"
            )
    for operation, value in _captured_values(model):
        if old_table.input_dim in tuple(value.shape):
            raise ValueError(
                f"The operation {operation.name!r} is given an array of shape "
                f"{tuple(value.shape)}, which would not grow with {describe(old_table)}. "
                "`keras.layers.ReversibleEmbedding` makes a tied output that does. "
                f"{_by_hand(old_table)}"
            )


def _captured_values(model: Any) -> Iterator[tuple[Any, Any]]:
    """The variables and arrays that a functional model calls its operations with."""
    for operation in getattr(model, "operations", model.layers):
        if _is_made_of_layers(operation):
            yield from _captured_values(operation)
        # Keras has no public name for the arguments of a call.
        for node in operation._inbound_nodes:
            arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            for value in arguments:
                if hasattr(value, "shape") and not keras.utils.is_keras_tensor(value):
                    yield operation, value


def _by_hand(old_table: Any) -> str:
    return (
        "By hand: `larger, rows = maskedgrad.extend(layer, words)` for "
        f"{describe(old_table)}, then make the model anew around `larger`, and set the other "
        "layers' weights by `new_layer.set_weights(old_layer.get_weights())`."
    )


def _checked_model(model: Any) -> Any:
    if not _is_made_of_layers(model):
        raise TypeError(
            "`extend` takes a functional or `Sequential` model, or an embedding layer. "
            f"Received: {type(model).__name__}. Of a subclassed model extend the embedding layer, "
            "`larger, rows = maskedgrad.extend(model.words, words)`, and make the model anew "
            "around `larger`."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} must be built, for its table has no rows yet. "
            "Call it on a batch, or begin it with a `keras.Input`."
        )
    return model


def checked_table(layer: Any) -> Any:
    """`layer`, if it is an embedding layer whose table is its rows and nothing else."""
    if not isinstance(layer, keras.layers.Embedding):
        raise TypeError(
            "A table must belong to a `keras.layers.Embedding` or a layer derived from it. "
            f"Received: {layer!r}"
        )
    if not layer.built:
        raise ValueError(
            f"An embedding layer must be built to have rows. Received: {describe(layer)}. "
            "Call it on a batch, or `layer.build(None)`."
        )
    if layer.dtype_policy.quantization_mode is not None or getattr(layer, "lora_enabled", False):
        raise ValueError(
            f"The table of {describe(layer)} is quantized or has LoRA enabled, so it is more than "
            "its rows. Make the layer anew first, and quantize it or enable LoRA afterwards."
        )
    return layer


def _check_new_words(words: Any) -> None:
    check_words(words)
    if not words or len(set(words)) != len(words):
        raise ValueError(
            "`words` must name at least one new word, and none twice. "
            f"Received: words={sample(words)}"
        )


def _check_descriptions(initializer: Any, words: Sequence[str], num_rows: int) -> None:
    if not isinstance(initializer, Mapping):
        return
    for word, ids in initializer.items():
        if word not in words:
            raise ValueError(
                f"`initializer` must describe new words. Received: {word!r}, of {sample(words)}"
            )
        if not len(Rows(ids, num_rows)):
            raise ValueError(f"{word!r} must be described by at least one row. Received: none")
