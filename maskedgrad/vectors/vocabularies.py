"""Which rows of a table new words get, from what turns words into ids."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskedgrad.rows.targets import describe
from maskedgrad.rows.vocabulary import ids_by_word, sample
from maskedgrad.vectors import lookups, tokenizers
from maskedgrad.vectors.layers import layers_in


class Places(NamedTuple):
    """Where new words go.

    - `ids`: the row of each new word.
    - `used`: the rows that hold something now.
    - `instead`: the layers that know the new words, by the `id` of those in
      whose place they stand.
    """

    ids: np.ndarray
    used: np.ndarray
    instead: dict[int, Any]


def places_of(model: Any, table: Any, words: Sequence[Any], vocabulary: Any) -> Places:
    """Where new words go in a table.

    Args:
        model: the model, or the table itself.
        table: the embedding layer.
        words: the new words.
        vocabulary: what gives them ids, or `None` where the model holds it.

    Raises:
        ValueError: a word is known; or what gives ids does not fit the table.
    """
    inside = [each for each in layers_in(model) if each is vocabulary]
    if lookups.is_lookup(vocabulary) and (inside or model is table):
        seen = lookups.seen_lookups_of(model, table)
        alike = [e for e in seen if e.get_vocabulary() == vocabulary.get_vocabulary()]
        each_once = {id(each): each for each in [vocabulary, *alike]}
        return _of_lookups(model, table, list(each_once.values()), words)
    in_model = tokenizers.tokenizers_in(model)
    if inside and vocabulary in in_model:
        return _of_tokenizer(table, vocabulary, words)
    if in_model or not (lookups.is_lookup(vocabulary) or vocabulary is None):
        _check_strings(words)
    if vocabulary is not None:
        return _of_vocabulary(model, table, vocabulary, words)
    if in_model:
        return _of_tokenizer(table, _only(in_model, table), words)
    if found := lookups.lookups_of(model, table):
        return _of_lookups(model, table, found, words)
    if (fixed := lookups.fixed_source_of(model, table)) is not None:
        raise ValueError(
            f"No text would reach a new row of {describe(table)}: {describe(fixed)}, a "
            f"{type(fixed).__name__}, gives it its ids, and none to new words. Put a lookup in its "
            "place, such as a `StringLookup`, or say by `vocabulary=` what gives words their ids."
        )
    _check_strings(words)
    num_rows = table.input_dim
    ids = np.arange(num_rows, num_rows + len(words))
    instead = {}
    for lookup in _inverses_of_size(model, num_rows):
        check_unknown(words, lookup.get_vocabulary(), describe(lookup))
        instead[id(lookup)] = _with_more(lookup, words)
    return Places(ids, np.arange(num_rows), instead)


def _check_strings(words: Sequence[Any]) -> None:
    if not all(isinstance(word, str) for word in words):
        raise TypeError(
            "`words` must be strings where no `IntegerLookup` looks them up. "
            f"Received: words={sample(list(words))}"
        )


def check_unknown(words: Sequence[Any], known: Any, what: str) -> None:
    """Raises a `ValueError` if one of the words is known."""
    words = [word for word in words if word in set(known)]
    if words:
        raise ValueError(
            f"`words` must be new to {what}. Received words that it knows: {sample(words)}. Their "
            "rows are there: train `Rows(row_ids(words, vocabulary), num_rows)`."
        )


def check_fits(size: int, table: Any, what: str) -> None:
    """Raises a `ValueError` if more ids are given than a table has rows."""
    if size > table.input_dim:
        raise ValueError(
            f"What gives ids must fit the table. Received: {what} with {size} ids, and "
            f"{describe(table)} with {table.input_dim} rows. If the vocabulary changed since the "
            "model was trained, `maskedgrad.change_vocabulary` moves its rows by word."
        )


def _of_lookups(model: Any, table: Any, found: list[Any], words: Sequence[Any]) -> Places:
    first = found[0]
    for lookup in found:
        _check_same_words(first, lookup)
    size = first.vocabulary_size()
    check_fits(size, table, describe(first))
    lookups.check_rows_to_spare(model, table, found)
    words = lookups.words_for(first, words)
    check_unknown(words, first.get_vocabulary(), describe(first))
    instead = {}
    for lookup in found:
        instead[id(lookup)] = _with_more(lookup, words)
    given = [lookups.ids_given(instead[id(lookup)], words) for lookup in found]
    for lookup in lookups.inverses_of(model, first):
        instead[id(lookup)] = _with_more(lookup, words)
    return Places(given[0], np.arange(size), instead)


def _with_more(lookup: Any, words: Sequence[Any]) -> Any:
    """A lookup that knows new words after its own."""
    own = lookup.get_vocabulary(include_special_tokens=False)
    return lookups.with_words(lookup, [*own, *words])


def _check_same_words(lookup: Any, other: Any) -> None:
    words, others = lookup.get_vocabulary(), other.get_vocabulary()
    if words != others:
        raise ValueError(
            "Lookups that give ids to one table must have one vocabulary. Received: "
            f"{describe(lookup)} with {sample(words)} and {describe(other)} with {sample(others)}"
        )


def _of_tokenizer(table: Any, tokenizer: Any, words: Sequence[str]) -> Places:
    used = tokenizers.used_ids(tokenizer)
    what = f"the tokenizer {type(tokenizer).__name__}"
    check_fits(int(used.max()) + 1, table, what)
    check_unknown(words, ids_by_word(tokenizer), what)
    try:
        learned = tokenizers.taught(tokenizer, words)
    except tokenizers.CannotLearnError as error:
        first = int(used.max()) + 1
        ids = np.arange(first, first + len(words))
        warnings.warn(
            f"The rows {first} to {ids[-1]} are for {sample(list(words))}, which the tokenizer of "
            f"the model does not know: {error}. Give it a tokenizer that has them at these ids, "
            "or put the ids into `token_ids` in the place of a word by hand.",
            stacklevel=4,
        )
        return Places(ids, used, {})
    return Places(tokenizers.ids_of(learned, words), used, {id(tokenizer): learned})


def _only(found: list[Any], table: Any) -> Any:
    fitting = {id(each): each for each in found if _size(each) <= table.input_dim}
    whole = [each for each in fitting.values() if _size(each) == table.input_dim]
    meant = whole or list(fitting.values()) or found
    if len(meant) != 1:
        raise ValueError(
            f"One tokenizer must be the one of {describe(table)}. Received: a model with "
            f"{[each.name for each in meant]}. Name it: `vocabulary=model.preprocessor.tokenizer`."
        )
    return meant[0]


def _size(tokenizer: Any) -> int:
    return int(tokenizers.used_ids(tokenizer).max()) + 1


def _of_vocabulary(model: Any, table: Any, vocabulary: Any, words: Sequence[Any]) -> Places:
    """Where words go by a vocabulary outside of the model, which stays as it is."""
    if tokenizers.is_of_hugging_face(vocabulary):
        id_of = ids_by_word(vocabulary)
        given = ids_by_word(tokenizers.taught(vocabulary, words))
        if absent := [word for word in words if word not in given]:
            raise ValueError(
                "The tokenizer must take the new words by `add_tokens`. Received: a "
                f"{type(vocabulary).__name__} that does not know {sample(absent)} after it"
            )
    elif tokenizers.is_tokenizer(vocabulary):
        places = _of_tokenizer(table, vocabulary, words)
        return places._replace(instead={})
    elif lookups.is_lookup(vocabulary):
        places = _of_lookups(model, table, [vocabulary], words)
        instead = _learned_likewise(model, table, ids_by_word(vocabulary), words)
        return places._replace(instead=instead)
    else:
        id_of = given = ids_by_word(vocabulary)
    known = [word for word in words if word in id_of]
    before = {word: id_ for word, id_ in id_of.items() if word not in set(words)}
    used = np.array(sorted(before.values()), dtype=np.int64)
    size = int(used.max()) + 1 if len(used) else 0
    check_fits(size, table, "a vocabulary")
    if known and len(known) < len(words):
        raise ValueError(
            "`vocabulary` must know all of the new words or none. "
            f"Received one that knows {sample(known)} of {sample(list(words))}"
        )
    after = [given.get(word, size + place) for place, word in enumerate(words)]
    ids = np.array(after, dtype=np.int64)
    if known and ids.min() < table.input_dim:
        raise ValueError(
            f"`words` must be new to {describe(table)}. Received: {sample(known)}, whose ids "
            f"{ids.tolist()[:5]} in `vocabulary` are rows of its {table.input_dim} already. To "
            "train them: `Rows(row_ids(words, vocabulary), num_rows)`. If no model was "
            "trained with them yet, give the vocabulary as it was before they were added."
        )
    instead = _learned_likewise(model, table, id_of, words)
    return Places(ids, used, instead)


def _learned_likewise(
    model: Any, table: Any, id_of: dict[str, int], words: Sequence[Any]
) -> dict[int, Any]:
    """The lookups of the model that have the given vocabulary, and copies that have the words too.

    Raises:
        ValueError: one is seen to give the table other ids.
    """
    instead = {}
    for lookup in lookups.seen_lookups_of(model, table):
        if ids_by_word(lookup) != id_of:
            raise ValueError(
                f"`vocabulary` must be that of {describe(lookup)}, which gives the table its ids. "
                f"Received: {sample(list(id_of))}, and the lookup knows "
                f"{sample(list(ids_by_word(lookup)))}"
            )
        instead[id(lookup)] = _with_more(lookup, lookups.words_for(lookup, words))
    return instead


def _inverses_of_size(model: Any, num_rows: int) -> list[Any]:
    return [
        each
        for each in layers_in(model)
        if lookups.is_inverse(each) and each.vocabulary_size() == num_rows
    ]
