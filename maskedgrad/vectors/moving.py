"""`change_vocabulary`: trained rows move, by word, to where another vocabulary has them."""

from typing import Any

import keras
import numpy as np

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import describe
from maskedgrad.rows.vocabulary import ids_by_word, sample
from maskedgrad.vectors.copies import Remade, copied
from maskedgrad.vectors.extension import ModelOrLayer, centers, check_descriptions, table_of
from maskedgrad.vectors.initial_values import check_initializer, first_values
from maskedgrad.vectors.layers import layers_in
from maskedgrad.vectors.lookups import (
    check_rows_to_spare,
    is_inverse,
    lookups_beside,
    names_another_order,
    num_reserved,
    seen_lookups_of,
    tables_beside,
    unclear_lookups_of,
    with_words,
)
from maskedgrad.vectors.tokenizers import tokenizers_in
from maskedgrad.vectors.vocabularies import check_fits


def change_vocabulary(
    model_or_layer: ModelOrLayer,
    old_vocabulary: Any,
    new_vocabulary: Any,
    initializer: Any = "normal",
    *,
    table: str | keras.layers.Embedding | None = None,
    noise: float = 0.0,
    seed: int | None = None,
) -> tuple[ModelOrLayer, Rows]:
    """A model or a layer for another vocabulary, in which each word keeps what it has learned.

    The row of each word moves, bit for bit, to the id that the new vocabulary
    gives the word. Words that are new to it start from `initializer`, as in
    `extend`; rows of words that it lacks are left out. What is given stays as
    it is, and the copy is not compiled. The lookup of the model that gives the
    table its ids has the new vocabulary in the copy, and so has one that turns
    ids back into words. The rows of another table that it gives its ids to
    move likewise. An output that is not tied, such as a `Dense` layer of
    V units, stays in the old order, and so does a lookup that names what it
    scores.

    Args:
        model_or_layer: as for `extend`.
        old_vocabulary: the words of the rows as they are, as for `row_ids`:
            what `lookup.get_vocabulary()` was while the model was trained.
        new_vocabulary: the words of the rows as they are to be, as for
            `row_ids`, such as a lookup that was adapted again.
        initializer: first values of new words: as for `extend`, with ids of
            old rows.
        table: as for `extend`.
        noise: as for `extend`.
        seed: as for `extend`.

    Returns:
        The model or layer, and the `Rows` of the words that are new in it,
        which are none if it has no new word.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a vocabulary does not fit the table, or the lookup of the
            model; the model has a tokenizer; or as for `extend`.

    Example:

    >>> words = keras.layers.Embedding(3, 1, weights=[np.array([[0.0], [1.0], [2.0]])])
    >>> _ = words.build(None)
    >>> old = ["", "cat", "dog"]
    >>> moved, new = change_vocabulary(words, old, ["", "dog", "cow", "cat"], "zeros")
    >>> moved.get_weights()[0].ravel().tolist(), new
    ([0.0, 2.0, 0.0, 1.0], Rows('2', num_rows=4))
    """
    check_initializer(initializer, noise)
    old_table = table_of(model_or_layer, table)
    old_ids, new_ids = ids_by_word(old_vocabulary), ids_by_word(new_vocabulary)
    num_rows = old_table.input_dim
    check_fits(max(old_ids.values(), default=-1) + 1, old_table, "`old_vocabulary`")
    size = max(new_ids.values(), default=-1) + 1
    kept = [word for word in new_ids if word in old_ids]
    if not kept:
        raise ValueError(
            "The vocabularies must have a word in common. Received: "
            f"old_vocabulary={sample(list(old_ids))}, new_vocabulary={sample(list(new_ids))}"
        )
    added = sorted((word for word in new_ids if word not in old_ids), key=new_ids.__getitem__)
    check_descriptions(initializer, added, num_rows)
    places = np.array([new_ids[word] for word in added], dtype=np.int64)
    source = np.array([old_ids[word] for word in kept])
    target = np.array([new_ids[word] for word in kept])
    nameless = np.setdiff1d(np.arange(min(size, num_rows)), [*old_ids.values()])
    instead = _with_new_words(model_or_layer, old_table, old_ids, new_ids)

    def moved(old: np.ndarray) -> np.ndarray:
        rows = old.reshape(num_rows, -1)
        new = np.zeros((size, rows.shape[1]), dtype=old.dtype)
        # Rows that no word has, such as further ones for what is not known, stay where they are.
        new[nameless] = rows[nameless]
        new[target] = rows[source]
        if added:
            start = centers(initializer, rows)
            drawn = first_values(start, added, rows, source, noise=noise, seed=seed)
            new[places] = drawn.astype(old.dtype)
        return new.reshape(-1, *old.shape[1:])

    others = tables_beside(model_or_layer, old_table, instead, size, moves=True)
    copy = copied(model_or_layer, Remade(old_table, size, instead, others), moved)
    return copy, Rows(places, size)


def _with_new_words(
    model: Any, table: Any, old_ids: dict[str, int], new_ids: dict[str, int]
) -> dict[int, Any]:
    """The lookups of the model that have the words of the table, with the new ones in their place.

    Raises:
        ValueError: a lookup gives the table other ids, or gives them in a way
            that is not seen through and has the old words.
    """
    if tokenizers_in(model):
        raise ValueError(
            "A tokenizer of a model is not exchanged. Received: a model with a tokenizer. Give "
            f"the backbone that holds {describe(table)}, and make the task anew around it."
        )
    within = [
        each for each in lookups_beside(model, table) if ids_by_word(each) in (old_ids, new_ids)
    ]
    found = seen_lookups_of(model, table) or within
    unclear = [e for e in unclear_lookups_of(model, table) if ids_by_word(e) != new_ids]
    if not found and unclear:
        raise ValueError(
            f"It cannot be seen which row of {describe(table)} a word of {describe(unclear[0])} "
            "has, so it must have the new words already, by `set_vocabulary` or `adapt`. "
            f"Received: a model where it has {sample(list(ids_by_word(unclear[0])))}"
        )
    inverses = [each for each in layers_in(model) if is_inverse(each)]
    of_table = [each for each in inverses if ids_by_word(each) == old_ids]
    found += [each for each in of_table if not names_another_order(model, each, table)]
    instead = {}
    for lookup in found:
        known = ids_by_word(lookup)
        if known not in (old_ids, new_ids):
            raise ValueError(
                f"{describe(lookup)} gives the table its ids, so it must have one of the two "
                f"vocabularies. Received: {sample(list(known))}, which is neither"
            )
        words = sorted(new_ids, key=new_ids.__getitem__)
        reserved = lookup.get_vocabulary()[: num_reserved(lookup)]
        if list(dict.fromkeys(map(str, reserved))) != words[: len(set(reserved))]:
            raise ValueError(
                f"`new_vocabulary` must begin as that of {describe(lookup)}, with {reserved}. "
                f"Received: {sample(words)}"
            )
        own = words[len(set(reserved)) :]
        is_number = not isinstance(lookup.get_vocabulary()[-1], str)
        new = with_words(lookup, list(map(int, own)) if is_number else own)
        if ids_by_word(new) != new_ids:
            raise ValueError(
                f"The ids of `new_vocabulary` must follow each other, as {describe(lookup)} counts "
                f"its words. Received: ids {sorted(new_ids.values())[:5]} and so on"
            )
        instead[id(lookup)] = new
    if found:
        check_rows_to_spare(model, table, found)
    return instead
