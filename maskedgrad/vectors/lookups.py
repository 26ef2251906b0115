"""Lookup layers: which of them gives a table its ids, and copies that know more words."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from maskedgrad.messages import shorten
from maskedgrad.rows.targets import describe
from maskedgrad.rows.vocabulary import LOOKUPS, sample
from maskedgrad.vectors.layers import (
    by_hand,
    is_graph,
    layers_in,
    makers_before,
    sources_of_ids,
    tables_in,
    users_of_ids,
)

OUTPUTS = keras.layers.Dense, keras.layers.EinsumDense
# What gives ids by a rule that it was made with.
FIXED = keras.layers.Hashing, keras.layers.HashedCrossing, keras.layers.Discretization


def is_lookup(layer: Any) -> bool:
    """Whether a layer of Keras turns words into ids, or ids into words."""
    return isinstance(layer, LOOKUPS)


def lookups_of(model: Any, table: Any) -> list[Any]:
    """The lookups of a model that give a table its ids.

    In a graph these are the ones whose ids reach the table. A layer that does
    not show what it calls is taken to look up in a table what fits it.

    Raises:
        ValueError: ids of a lookup reach the table in a way that is not seen
            through, and so does none that is.
    """
    seen = seen_lookups_of(model, table)
    within = lookups_beside(model, table)
    fitting = [lookup for lookup in within if lookup.vocabulary_size() == table.input_dim]
    unclear = unclear_lookups_of(model, table)
    if not seen and not fitting and unclear:
        lookup = unclear[0]
        raise ValueError(
            f"It cannot be seen which row of {describe(table)} a word of {describe(lookup)} has: "
            f"the lookup knows {lookup.vocabulary_size()} ids, the table has {table.input_dim} "
            "rows, and what lies between them may change ids. Say where words get their ids by "
            "`vocabulary=`: the lookup, if its ids are rows of the table, or a list of the words "
            "of the rows."
        )
    return seen or fitting


def seen_lookups_of(model: Any, table: Any) -> list[Any]:
    """The lookups of a graph that are seen to give a table its ids."""
    before = sources_of_ids(model, table).lookups
    return [lookup for lookup, is_seen in before.values() if is_seen and _gives_ids(lookup)]


def unclear_lookups_of(model: Any, table: Any) -> list[Any]:
    """The lookups that may give a table its ids, in a way that is not seen through."""
    before = sources_of_ids(model, table).lookups
    hidden = [lookup for lookup, is_seen in before.values() if not is_seen and _gives_ids(lookup)]
    others = {each.input_dim for each in tables_in(model) if each is not table}
    within = lookups_beside(model, table)
    return hidden + [each for each in within if each.vocabulary_size() not in others]


def check_rows_to_spare(model: Any, table: Any, found: Sequence[Any]) -> None:
    """Raises a `ValueError` if rows that lookups do not reach may be reached by other ids.

    `found` are lookups of one vocabulary.
    """
    lookup, keys = found[0], set(map(id, found))
    size = lookup.vocabulary_size()
    sources = sources_of_ids(model, table)
    is_seen = sources.lookups.get(id(lookup), (None, False))[1]
    others = [other for key, (other, _) in sources.lookups.items() if key not in keys]
    others += sources.others
    # Of what a layer around the table is called with, segments say, not all need be ids of it.
    is_shown = any(each is table for each in users_of_ids(model))
    if size < table.input_dim and is_seen and is_shown and others:
        raise ValueError(
            f"Only {describe(lookup)} may give {describe(table)} its ids, since it has rows that "
            f"the lookup does not reach, from {size} to {table.input_dim - 1}, and it must be "
            "known whether they are free. Received: a model where ids also come from "
            f"{others[0].name!r}. {by_hand(table)}"
        )


def tables_beside(
    model: Any, table: Any, instead: Mapping[int, Any], size: int, *, moves: bool
) -> list[Any]:
    """The other tables whose ids come from lookups that are exchanged, and that change likewise.

    Args:
        model: the model.
        table: the table that changes.
        instead: the lookups that stand in the place of others, by the `id` of these.
        size: how many rows the table will have.
        moves: whether words get other ids.

    Raises:
        ValueError: something else in the model reads these ids and cannot change likewise.
    """
    found = []
    for user in users_of_ids(model):
        lookups = sources_of_ids(model, user).lookups
        read = [is_seen for key, (_, is_seen) in lookups.items() if key in instead]
        if user is table or not read:
            continue
        num_rows, are_seen = getattr(user, "input_dim", None), all(read)
        if num_rows == table.input_dim and are_seen:
            found.append(user)
        elif moves or (num_rows is not None and num_rows < size + (not are_seen)):
            raise ValueError(
                f"What reads the ids of {describe(table)} must change with it. Received: a model "
                f"where {user.name!r} reads them too, and is no table of {table.input_dim} rows. "
                f"{by_hand(table)}"
            )
    return found


def fixed_source_of(model: Any, table: Any) -> Any:
    """The layer that gives a table all of its ids and can learn no words; `None` if there is none.

    Such as `keras.layers.Hashing`, whose ids are as many as its bins.
    """
    others = sources_of_ids(model, table).others
    fixed = [each for each in others if isinstance(each, FIXED)]
    return fixed[0] if fixed and len(fixed) == len(others) else None


def inverses_of(model: Any, lookup: Any) -> list[Any]:
    """The lookups of a model that turn ids of `lookup` back into its words."""
    words = lookup.get_vocabulary()
    return [
        layer for layer in layers_in(model) if is_inverse(layer) and layer.get_vocabulary() == words
    ]


def names_another_order(model: Any, inverse: Any, table: Any) -> bool:
    """Whether an inverse lookup is seen to name what a layer like `Dense(V)` scores.

    Such an output has a table of its own, which keeps its order.

    Raises:
        ValueError: the model is no graph, and has such an output.
    """
    outputs = [each for each in makers_before(model, inverse) if table not in layers_in(each)]
    scores = any(isinstance(part, OUTPUTS) for each in outputs for part in layers_in(each))
    hidden = [] if is_graph(model) else layers_in(model)
    of_size = [
        each
        for each in hidden
        if isinstance(each, OUTPUTS) and each.built and each.kernel.shape[-1] == table.input_dim
    ]
    if of_size:
        raise ValueError(
            f"It must be seen whether {describe(inverse)} names rows of {describe(table)} or what "
            f"{describe(of_size[0])} scores, which keeps its order. Received: a "
            f"{type(model).__name__}, which is no graph. Turn ids into words outside of the model."
        )
    return scores


def with_words(lookup: Any, words: Sequence[Any]) -> Any:
    """A lookup of the same kind that has other words after its reserved ids."""
    config = lookup.get_config()
    config["vocabulary_size"] = None  # it is the size at the first call
    if config["max_tokens"] is not None:
        config["max_tokens"] = max(config["max_tokens"], num_reserved(lookup) + len(words))
    if config["vocabulary"] is not None:
        config["vocabulary"] = list(words)
        return _made(lookup, config)
    new = _made(lookup, config)
    new.set_vocabulary(list(words))
    return new


def with_one_more(lookup: Any) -> Any:
    """A lookup of the same kind that has one more word, no matter which."""
    own = list(lookup.get_vocabulary(include_special_tokens=False))
    is_number = isinstance(lookup, keras.layers.IntegerLookup)
    return with_words(
        lookup, [*own, max(own, default=0) + 1 if is_number else f"{max(own, default='')}+"]
    )


def same_lookup(lookup: Any) -> Any:
    """A lookup that knows what another has learned, by `adapt` or otherwise."""
    new = _made(lookup, lookup.get_config())
    copy_words(lookup, new)
    return new


def copy_words(lookup: Any, other: Any) -> None:
    """Hands over what a lookup has learned to a copy that was made from its config."""
    words = lookup.get_vocabulary()
    if len(words) == num_reserved(lookup) or words == other.get_vocabulary():
        return
    store: dict[str, Any] = {}
    if lookup.get_config()["output_mode"] == "tf_idf":
        lookup.save_own_variables(store)
        other.set_vocabulary(words, idf_weights=store["idf_weights"][: len(words)])
        other.load_own_variables(store)
    else:
        other.set_vocabulary(lookup.get_vocabulary(include_special_tokens=False))


def saves_words(lookup: Any) -> bool:
    """Whether a lookup that is saved and loaded has its words."""
    # Of one that was made with words Keras saves those, and not what it was given since:
    # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/layers/preprocessing/index_lookup.py#L925
    config = lookup.get_config()
    made_with = config["vocabulary"]
    return made_with is None or _made(lookup, config).get_vocabulary() == lookup.get_vocabulary()


def num_reserved(lookup: Any) -> int:
    """How many ids a lookup keeps for padding and for what it does not know."""
    return lookup.vocabulary_size() - len(lookup.get_vocabulary(include_special_tokens=False))


def words_for(lookup: Any, words: Sequence[Any]) -> list[Any]:
    """Words as a lookup knows them: integers where it looks up integers.

    Raises:
        TypeError: a word is of another type than the lookup knows.
    """
    if not isinstance(lookup, keras.layers.IntegerLookup):
        if not all(isinstance(word, str) for word in words):
            raise TypeError(
                f"{describe(lookup)} knows strings only. Received: words={sample(list(words))}"
            )
        return list(words)
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise TypeError(
            f"{describe(lookup)} knows integers only. Received: words={sample(list(words))}"
        ) from error


def ids_given(lookup: Any, words: Sequence[Any]) -> np.ndarray:
    """The id that a lookup gives each word when it is called on it.

    Raises:
        ValueError: it makes something else of a word, such as two words.
    """
    ids = []
    vocabulary = lookup.get_vocabulary()
    for word in words:
        given = keras.ops.convert_to_numpy(_dense(lookup(np.array([word])))).ravel()
        found = given[given != 0] if isinstance(lookup, keras.layers.TextVectorization) else given
        if len(found) != 1 or vocabulary[found[0]] != word:
            seen_as = [str(vocabulary[id_]) for id_ in found]
            raise ValueError(
                f"No text would reach a row for {word!r}: {describe(lookup)} looks it up as "
                f"{shorten(seen_as)}. Name the word as the lookup sees it, after it has "
                "standardized and split a text, or make a lookup that leaves it whole, as by "
                "`standardize=None`."
            )
        ids.append(int(found[0]))
    return np.array(ids, dtype=np.int64)


def _dense(values: Any) -> Any:
    return values.to_tensor() if hasattr(values, "to_tensor") else values


def _made(lookup: Any, config: dict[str, Any]) -> Any:
    # A function that standardizes or splits stands in the config as it is.
    if callable(config.get("standardize")) or callable(config.get("split")):
        return type(lookup)(**config)
    return type(lookup).from_config(config)


def _gives_ids(layer: Any) -> bool:
    if not is_lookup(layer):
        return False
    config = layer.get_config()
    return config["output_mode"] == "int" and not config.get("invert", False)


def is_inverse(lookup: Any) -> bool:
    """Whether a lookup turns ids into words."""
    return is_lookup(lookup) and bool(lookup.get_config().get("invert", False))


def lookups_beside(model: Any, table: Any) -> list[Any]:
    """The lookups that are, with the table, inside of a layer that is no graph."""
    found = {}
    for layer in layers_in(model):
        if layer is not table and not is_graph(layer) and table in layers_in(layer):
            found.update({id(each): each for each in layers_in(layer) if _gives_ids(each)})
    parts = {id(part) for each in found.values() for part in layers_in(each) if part is not each}
    return [each for key, each in found.items() if key not in parts]
