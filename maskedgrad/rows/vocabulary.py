"""Vocabularies: which word has which row."""

import difflib
import os
import re
from collections import Counter
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from maskedgrad.messages import shorten

LOOKUPS = keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization

# What lookups of Keras list for what they do not know, once for each row that they keep for it:
# `[UNK]` and -1, or what `oov_token` says.
is_unknown = re.compile(r"[\W_]*(unk|unknown|oov)[\W_]*|-\d+", re.IGNORECASE).fullmatch

_TURN_ROUND = (
    "A mapping from id to word is turned round by "
    "`{word: row for row, word in vocabulary.items()}`."
)


def row_ids(words: Sequence[str], vocabulary: Any) -> npt.NDArray[np.int64]:
    """The ids of words in a vocabulary.

    Equivalent to `numpy.array([vocabulary.index(word) for word in words])` for
    a list.

    Args:
        words: a sequence of strings, K of them.
        vocabulary: a list or tuple of words in the order of their ids, such as
            `get_vocabulary()` of a lookup; a mapping from word to id; a
            `keras.layers.StringLookup`, `IntegerLookup` or `TextVectorization`
            that holds its words; or a tokenizer of Hugging Face or keras_hub.

    Returns:
        An int64 array of shape `(K,)`, in the order of `words`.

    Raises:
        TypeError: `words` is not a sequence of strings, or `vocabulary` is of
            another type.
        ValueError: the vocabulary does not hold one of the words, or gives one
            word two ids or one id two words.

    Example:

    >>> row_ids(["<city>", "cat"], ["", "the", "cat", "<city>"]).tolist()
    [3, 2]
    """
    checked = check_words(words)
    id_of = ids_by_word(vocabulary)
    absent = [word for word in checked if word not in id_of]
    if absent:
        raise ValueError(
            f"The vocabulary of {len(id_of)} words must hold each of `words`. "
            f"Received: {_with_nearest(absent, id_of)}. "
            "Correct the spelling, or add the word to the vocabulary."
        )
    return np.array([id_of[word] for word in checked], dtype=np.int64)


def ids_by_word(vocabulary: Any) -> dict[str, int]:
    """A vocabulary, of any type that `row_ids` takes, as a dict from word to id.

    Example:

    >>> ids_by_word(keras.layers.StringLookup(vocabulary=["cat"]))
    {'[UNK]': 0, 'cat': 1}
    """
    if isinstance(vocabulary, LOOKUPS):
        return _ids_of_lookup(vocabulary)
    if hasattr(vocabulary, "get_vocab"):  # a tokenizer of Hugging Face
        return _checked_ids(vocabulary.get_vocab())
    if hasattr(vocabulary, "get_vocabulary") and hasattr(vocabulary, "token_to_id"):
        return {
            str(word): int(vocabulary.token_to_id(word)) for word in vocabulary.get_vocabulary()
        }
    if isinstance(vocabulary, Mapping) and not isinstance(vocabulary, Counter):
        return _checked_ids(vocabulary)
    if isinstance(vocabulary, (list, tuple)):
        return _ids_of_list(vocabulary)
    raise TypeError(
        "A vocabulary must be a list or tuple of words, a mapping from word to id, a "
        "`StringLookup`, `IntegerLookup` or `TextVectorization`, or a tokenizer. "
        f"Received: {shorten(vocabulary)}. {_advice_for(vocabulary)}"
    )


def _advice_for(vocabulary: Any) -> str:
    if isinstance(vocabulary, (str, os.PathLike)):
        return "A file of a word a line is read by `path.read_text(encoding='utf-8').splitlines()`."
    if isinstance(vocabulary, Set) and not isinstance(vocabulary, KeysView):
        return "A set has no order: give its words the ids that the table has for them."
    if isinstance(vocabulary, Counter):
        return "A `Counter` has counts and no ids: give what makes ids of words."
    if isinstance(vocabulary, Iterable):
        return "What has words in the order of their ids becomes one by `list(vocabulary)`."
    return "Give what made the ids of the texts."


def ids_within(vocabulary: Any, num_rows: int, what: str) -> dict[str, int]:
    """A vocabulary as a dict from word to id, if it fits a table of `num_rows` rows.

    Raises:
        ValueError: it knows more ids than the table, which messages call
            `what`, has rows.
    """
    id_of = ids_by_word(vocabulary)
    size = max(id_of.values(), default=-1) + 1
    if size > num_rows:
        raise ValueError(
            f"`vocabulary` must fit {what}, which has {num_rows} rows. "
            f"Received: a vocabulary of {size} ids"
        )
    return id_of


def by_path(vocabulary: Any, paths: Sequence[str]) -> dict[str, Any]:
    """The vocabulary of each table, by path, of one vocabulary or a mapping from path to them.

    Raises:
        ValueError: it is not said which table a vocabulary is of.
    """
    if vocabulary is None:
        return {}
    if isinstance(vocabulary, Mapping) and vocabulary and set(vocabulary) <= set(paths):
        return dict(vocabulary)
    is_of_tables = isinstance(vocabulary, Mapping) and any(
        isinstance(each, (list, tuple, Mapping, *LOOKUPS)) for each in vocabulary.values()
    )
    if len(paths) != 1 or is_of_tables:
        raise ValueError(
            "`vocabulary` must be a mapping from the path of a table to its vocabulary where there "
            f"are several tables or paths are named, {list(paths)}. Received: {shorten(vocabulary)}"
        )
    return {paths[0]: vocabulary}


def check_words(words: Any, what: str = "`words`") -> Sequence[str]:
    """`words`, if it is a sequence of strings; a `TypeError` that calls it `what` if not."""
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise TypeError(
            f"{what} must be a list or tuple of strings. Received: {sample(words)}. "
            f"{advice_for_words(words)}"
        )
    return words


def advice_for_words(words: Any) -> str:
    """What to do where words are no list or tuple of strings."""
    if isinstance(words, str):
        return "A single word goes in a list: `[word]`."
    if isinstance(words, (list, tuple)):
        return "Give each word as a string."
    return "Words in another sequence become one by `list(words)`."


def sample(words: Any) -> str:
    """How error messages show words: a few of them."""
    if not isinstance(words, (list, tuple)):
        text = repr(words)
        return text if len(text) <= 200 else f"{text[:197]}..."
    # Lookups list strings of NumPy, which would be shown as `np.str_('cat')`.
    shown = [str(word) if isinstance(word, str) else word for word in words[:5]]
    if len(words) <= 5:
        text = repr(shown if isinstance(words, list) else tuple(shown))
        return text if len(text) <= 200 else f"{text[:197]}..."
    return f"[{', '.join(map(repr, shown))}, ...] ({len(words)} in all)"


def _ids_of_list(vocabulary: Sequence[Any]) -> dict[str, int]:
    are_integers = all(isinstance(word, (int, np.integer)) for word in vocabulary)
    words = list(map(str, vocabulary)) if are_integers else vocabulary  # of an `IntegerLookup`
    check_words(words, "The words of a vocabulary")
    id_of: dict[str, int] = {}
    for row, word in enumerate(words):
        id_of.setdefault(word, row)
    counts = Counter(words)
    if repeated := [word for word in counts if counts[word] > 1 and not is_unknown(word)]:
        raise ValueError(
            "The words of a vocabulary must not be repeated, because each names one row. "
            f"Received more than once: {sample(repeated)}. Give each row a word of its own, or a "
            "mapping from word to id."
        )
    return id_of


def _ids_of_lookup(lookup: Any) -> dict[str, int]:
    id_of: dict[str, int] = {}
    for row, word in enumerate(lookup.get_vocabulary()):
        # With several out-of-vocabulary rows, Keras lists the same symbol for each.
        id_of.setdefault(str(word), row)
    return id_of


def _checked_ids(vocabulary: Mapping[Any, Any]) -> dict[str, int]:
    if not all(isinstance(word, str) for word in vocabulary):
        raise TypeError(
            "A vocabulary that is a mapping must go from word to id. Received, for words: "
            f"{sample([word for word in vocabulary if not isinstance(word, str)])}. {_TURN_ROUND}"
        )
    ids = list(vocabulary.values())
    if not all(isinstance(row, (int, np.integer)) and not isinstance(row, bool) for row in ids):
        raise TypeError(
            "The ids of a vocabulary must be integers. "
            f"Received: {sample([row for row in ids if not isinstance(row, (int, np.integer))])}. "
            f"{_TURN_ROUND}"
        )
    if any(row < 0 for row in ids):
        raise ValueError(
            "The ids of a vocabulary must not be negative. "
            f"Received: {sample([row for row in ids if row < 0])}"
        )
    if len(set(ids)) != len(ids):
        raise ValueError(
            "The ids of a vocabulary must differ, because each row stands for one word. "
            f"Received: {len(ids)} words and {len(set(ids))} different ids."
        )
    return {word: int(row) for word, row in vocabulary.items()}


def _with_nearest(absent: list[str], id_of: dict[str, int]) -> str:
    nearest = [(word, difflib.get_close_matches(word, id_of, n=3)) for word in absent[:5]]
    parts = [
        f"{word!r} (nearest: {', '.join(map(repr, near))})" if near else repr(word)
        for word, near in nearest
    ]
    return ", ".join(parts) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
