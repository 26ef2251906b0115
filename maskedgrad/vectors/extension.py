"""`extend`: a trained model whose table gets rows for new words."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import about_keras_2, describe
from maskedgrad.rows.vocabulary import advice_for_words, sample
from maskedgrad.vectors.copies import Remade, copied
from maskedgrad.vectors.initial_values import check_initializer, first_values
from maskedgrad.vectors.layers import table_in
from maskedgrad.vectors.lookups import tables_beside
from maskedgrad.vectors.vocabularies import places_of

ModelOrLayer = TypeVar("ModelOrLayer", bound=keras.Model | keras.layers.Embedding)


def extend(
    model_or_layer: ModelOrLayer,
    words: Sequence[str],
    initializer: Any = "normal",
    *,
    vocabulary: Any = None,
    table: str | keras.layers.Embedding | None = None,
    noise: float = 0.0,
    seed: int | None = None,
) -> tuple[ModelOrLayer, Rows]:
    """A model or a layer with a row for each new word, and those rows.

    What is given stays as it is. What comes back is a copy, not compiled, with
    the same names and weights; the V old rows of its table keep their bits.
    The new words have the ids that the model's own lookup or tokenizer gives
    them, which knows them in the copy; without one, the ids from V on. A table
    that has rows to spare, since it was padded, gives those first. Whatever
    else grows along with the table, such as the tied output of a
    `keras.layers.ReversibleEmbedding`, an output that keras_hub makes beside
    it, a bias on either, and a table of as many rows that the same lookup gives
    its ids to, is extended by the same initializer. An output
    that is not tied, such as a `Dense` layer of V units, has a table of its
    own and stays as it is.

    Args:
        model_or_layer: a built `keras.layers.Embedding` or
            `ReversibleEmbedding`; or a model that is built: functional,
            `Sequential`, a backbone or a task of keras_hub, or any that its
            class makes anew from its `get_config`.
        words: the new words, n of them; integers for an `IntegerLookup`.
        initializer: first values of the new rows: `"zeros"`; `"mean"`, the
            mean of the rows in use; `"normal"`, drawn with the mean and the
            variance of each of their columns; a mapping from a new word to the
            ids of the rows that describe it, whose mean it starts from, as in
            `{"<city>": row_ids(["town", "place"], vocabulary)}`, where ids may
            repeat, while words that it lacks are drawn as by `"normal"`; or a
            function of the new words and an array of shape `(V, width)` that
            returns an array of shape `(n, width)`. It is called once for each weight that grows.
        vocabulary: what gives the words their ids, where the model does not
            show it: as for `row_ids`, or a lookup or tokenizer of the model.
            One outside of the model is to learn the words next, in this order:
            `tokenizer.add_tokens(words)` for one of Hugging Face.
        table: the embedding layer to extend, or its name, if the model has
            more than one. Of a model of keras_hub it is its `token_embedding`.
        noise: float, the deviation of noise on means, in units of the
            deviation of each column.
        seed: int, makes drawn rows the same each time.

    Returns:
        The larger model or layer, and the `Rows` of the new words.

    Raises:
        TypeError: an argument is of another type.
        ValueError: `words` is empty, repeats a word, or holds one that is
            known; no text would reach the row of a word; the model has no such
            table or several; what gives ids does not fit the table; or
            something in the model depends on the table in a way that a copy
            would lose.

    Warns:
        UserWarning: the model has a tokenizer that takes no more words.

    Example:

    >>> words = keras.layers.Embedding(5, 2)
    >>> _ = words.build(None)
    >>> larger, new = extend(words, ["<city>"], {"<city>": [1, 3]})
    >>> larger.get_weights()[0].shape, new
    ((6, 2), Rows('5', num_rows=6))
    """
    _check_new_words(words)
    check_initializer(initializer, noise)
    old_table = table_of(model_or_layer, table)
    num_rows = old_table.input_dim
    check_descriptions(initializer, words, num_rows)
    places = places_of(model_or_layer, old_table, words, vocabulary)
    size = max(num_rows, int(places.ids.max()) + 1)
    if size - num_rows > len(words) or set(places.ids.tolist()) & set(places.used.tolist()):
        raise ValueError(
            f"New words must get rows that are free, or follow the {num_rows} rows of "
            f"{describe(old_table)}. Received: the ids {places.ids.tolist()[:5]} for "
            f"{sample(list(words))}"
        )

    def grown(old: np.ndarray) -> np.ndarray:
        table = old.reshape(num_rows, -1)
        rows = first_values(
            centers(initializer, table), words, table, places.used, noise=noise, seed=seed
        )
        new = np.zeros((size, table.shape[1]), dtype=old.dtype)
        new[:num_rows] = table
        new[places.ids] = rows.astype(old.dtype)
        return new.reshape(-1, *old.shape[1:])

    others = tables_beside(model_or_layer, old_table, places.instead, size, moves=False)
    larger = copied(model_or_layer, Remade(old_table, size, places.instead, others), grown)
    return larger, Rows(places.ids, size)


def table_of(model_or_layer: Any, table: Any) -> Any:
    """The embedding layer that is to be extended."""
    if isinstance(model_or_layer, keras.layers.Embedding):
        return checked_table(model_or_layer)
    return checked_table(table_in(_checked_model(model_or_layer), table))


def centers(initializer: Any, table: np.ndarray) -> Any:
    """An initializer with the mean of the rows that describe a word in the place of their ids."""
    if not isinstance(initializer, Mapping):
        return initializer
    return {
        word: table[_described_by(ids, len(table))].mean(axis=0, dtype=np.float64)
        for word, ids in initializer.items()
    }


def _checked_model(model: Any) -> Any:
    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"Expected a model or an embedding layer. Received: {describe(model)}. "
            f"{about_keras_2(model)}"
        )
    if not model.built:
        raise ValueError(
            f"What is extended must be built, to have a table. Received: {describe(model)}, which "
            "is not. Call it on a batch, or begin a model with a `keras.Input`."
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
    if not isinstance(words, (list, tuple)) or not all(
        isinstance(w, (str, int, np.integer)) for w in words
    ):
        raise TypeError(
            f"`words` must be a list or tuple of strings. Received: {sample(words)}. "
            f"{advice_for_words(words)}"
        )
    if not words or len(set(words)) != len(words):
        raise ValueError(
            "`words` must name at least one new word, and none twice. "
            f"Received: words={sample(words)}"
        )


def check_descriptions(initializer: Any, words: Sequence[str], num_rows: int) -> None:
    """Raises if an initializer describes a word that is not new, or by ids that are no rows."""
    if not isinstance(initializer, Mapping):
        return
    for word, ids in initializer.items():
        if word not in words:
            raise ValueError(
                f"`initializer` must describe new words. Received: {word!r}, of {sample(words)}"
            )
        _check_description(word, ids, num_rows)


def _described_by(rows: Any, num_rows: int) -> np.ndarray:
    """The ids of the rows that describe a word, which may repeat."""
    ids = np.asarray([]) if isinstance(rows, (Rows, slice)) else np.asarray(rows)
    if ids.ndim == 1 and ids.dtype.kind in "iu":
        _ = Rows(np.unique(ids), num_rows)  # which raises if one is no row
        return ids
    return Rows(rows, num_rows).ids


def _check_description(word: str, rows: Any, num_rows: int) -> None:
    try:
        ids = _described_by(rows, num_rows)
    except (TypeError, ValueError) as error:
        raise type(error)(f"The rows that describe {word!r}: {error}") from error
    if not len(ids):
        raise ValueError(f"{word!r} must be described by at least one row. Received: none")
