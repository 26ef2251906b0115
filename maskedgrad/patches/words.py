"""The words of a patch: by them its rows are found in a model of another vocabulary."""

import dataclasses
import hashlib
from collections.abc import Callable, Collection
from typing import Any

import keras
import numpy as np

from maskedgrad.masking.tables import read_rows
from maskedgrad.patches.table import TablePatch, rows_in_place
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.vocabulary import ids_by_word, ids_within, sample

NUM_ANCHORS = 64


def with_words(patch: TablePatch, variable: keras.Variable, vocabulary: Any) -> TablePatch:
    """A patch that knows the words of its rows, and some words of the frozen rows around them.

    Raises:
        ValueError: a row has no word, or the vocabulary knows more ids than
            the table has rows.
    """
    id_of = ids_within(vocabulary, patch.rows.num_rows, f"the table {patch.path!r}")
    word_of = {id_: word for word, id_ in id_of.items()}
    nameless = [id_ for id_ in patch.ids.tolist() if id_ not in word_of]
    if nameless:
        raise ValueError(
            f"`vocabulary` must have a word for each row of the patch. Received: {len(id_of)} "
            f"words, and none for the rows {Rows(nameless, patch.rows.num_rows)} of {patch.path!r}"
        )
    words = tuple(word_of[id_] for id_ in patch.ids.tolist())
    taken = {*patch.ids.tolist(), *rows_in_place(variable)}
    around = sorted(id_ for id_ in word_of if id_ not in taken)
    chosen = [
        around[int(i)] for i in np.linspace(0, len(around) - 1, min(NUM_ANCHORS, len(around)))
    ]
    ids = list(dict.fromkeys(chosen))
    digests = _digests(read_rows(variable, np.array(ids, dtype=np.int64)))
    anchors = {word_of[id_]: digest for id_, digest in zip(ids, digests, strict=True)}
    return dataclasses.replace(patch, words=words, anchors=anchors)


def moved(patch: TablePatch, num_rows: int, vocabulary: Any) -> TablePatch:
    """A patch for a table of `num_rows` rows, whose words have the ids of another vocabulary.

    Raises:
        ValueError: the patch does not know its words, or the vocabulary lacks
            one of them, or does not fit the table.
    """
    if patch.words is None:
        raise ValueError(
            f"The patch must know the words of its rows of {patch.path!r} to go by a vocabulary. "
            "Received: one without. It knows them if it was made by "
            "`RowPatch.from_model(model, vocabulary=...)`."
        )
    id_of = ids_within(vocabulary, num_rows, f"the table {patch.path!r}")
    absent = [word for word in patch.words if word not in id_of]
    if absent:
        raise ValueError(
            f"`vocabulary` must hold each word of the patch of {patch.path!r}. Received: "
            f"{len(id_of)} words, without {sample(absent)}"
        )
    ids = np.array([id_of[word] for word in patch.words], dtype=np.int64)
    order = np.argsort(ids)
    return dataclasses.replace(
        patch,
        rows=Rows(ids, num_rows),
        values=patch.values[order],
        original=None if patch.original is None else patch.original[order],
        words=tuple(patch.words[place] for place in order),
    )


def check_anchors(
    patch: TablePatch,
    vocabulary: Any,
    read: Callable[[np.ndarray], np.ndarray],
    patched: Collection[int] = (),
) -> None:
    """Raises a `ValueError` if frozen rows are not, by word, those that a patch was trained over.

    Of a table in another order not every row can be compared, only those of
    the words that the patch noted: enough to see a vocabulary that is shifted,
    or other vectors. `read` returns rows of the table by their ids; those of
    the ids `patched` are not compared.
    """
    id_of = ids_by_word(vocabulary)
    found = {
        word: digest
        for word, digest in (patch.anchors or {}).items()
        if word in id_of and id_of[word] not in patched
    }
    rows = read(np.array([id_of[word] for word in found], dtype=np.int64))
    digests = zip(found, _digests(rows), strict=True)
    differ = [word for word, digest in digests if found[word] != digest]
    if differ or not found:
        told = f"other rows for {sample(differ)}" if differ else "none of the words around them"
        raise ValueError(
            f"The frozen rows of {patch.path!r} must be, by word, those that the patch was trained "
            f"over. Received: a model and a vocabulary with {told}. Is the vocabulary the one of "
            "this table, in its order? To apply the patch over other vectors all the same: "
            "strict=False."
        )


def _digests(rows: np.ndarray) -> list[str]:
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]
