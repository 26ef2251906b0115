"""Two patches of one base as one."""

import dataclasses
from typing import Any

import keras
import numpy as np

from maskedgrad.masking.tables import bits, same_bits
from maskedgrad.messages import shorten
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.placement import Placement, check_bases, placements
from maskedgrad.patches.table import TablePatch, frozen_digest
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.vocabulary import by_path


def merge_patches(
    first: RowPatch,
    second: RowPatch,
    model: keras.Model,
    weight: float | None = None,
    *,
    vocabulary: Any = None,
) -> RowPatch:
    """The rows of two patches of one base, as one patch.

    Where they have no row in common, applying it is equivalent to applying
    both. The digest of a patch is of all rows around its own, so two digests
    cannot be compared without the rows between: `model` has them, and both
    patches must fit it.

    Args:
        first: a patch.
        second: a patch.
        model: a built model that both can be applied to. It stays as it is.
        weight: `None`, or a number from 0 to 1. With it a row that both have
            becomes `weight * first + (1 - weight) * second`, and keeps its
            bits where these are the same in both.
        vocabulary: the words of the model's rows, as for `RowPatch.apply_to`.
            With it the patches are merged by their words.

    Returns:
        A `RowPatch` for the tables of `model`. It knows its words, and the
        original values of a table, if both patches know those.

    Raises:
        TypeError: a patch is of another type.
        ValueError: `weight` is not a number from 0 to 1; one of the patches does not
            fit the model, or was trained over other frozen rows; they have
            rows in common, and there is no `weight`; or they know a word by
            two ids, and there is no `vocabulary`.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1]})
    >>> one = RowPatch.from_model(model)
    >>> model.set_trainable_rows({words: [3, 4]})
    >>> patches.merge_patches(one, RowPatch.from_model(model), model)
    RowPatch({'words/embeddings': Rows('1,3:5', num_rows=5)})
    """
    for patch in (first, second):
        if not isinstance(patch, RowPatch):
            raise TypeError(
                f"A patch must be a `RowPatch`. Received: {shorten(patch)}. `RowPatch.load(path)` "
                "reads one from its file."
            )
    is_number = isinstance(weight, (int, float, np.integer, np.floating))
    if weight is not None and not (is_number and 0 <= weight <= 1):
        raise ValueError(
            f"`weight` must be a number from 0 to 1, the share of the first patch. Received: "
            f"weight={shorten(weight)}"
        )
    vocabularies = by_path(vocabulary, list({**first.tables, **second.tables}))
    of_tables: dict[int, list[Placement]] = {}
    for patch in (first, second):
        placed = placements(patch.tables.values(), model, vocabularies)
        check_bases(placed, vocabularies)
        for placement in placed:
            of_tables.setdefault(id(placement.variable), []).append(placement)
    return RowPatch(*(_as_one(placed, weight) for placed in of_tables.values()))


def _as_one(placed: list[Placement], weight: float | None) -> TablePatch:
    """The patches of one table as one."""
    variable = placed[0].variable
    patches = [patch for patch, _ in placed]
    patch = patches[0] if len(patches) == 1 else _joined(patches[0], patches[1], weight)
    digest = frozen_digest(variable, patch.rows)
    return dataclasses.replace(patch, path=variable.path, digest=digest)


def _joined(first: TablePatch, second: TablePatch, weight: float | None) -> TablePatch:
    words = _words(first, second)
    ids, overlap = np.union1d(first.ids, second.ids), np.intersect1d(first.ids, second.ids)
    ours, theirs = np.searchsorted(first.ids, overlap), np.searchsorted(second.ids, overlap)
    if len(overlap) and weight is None:
        known = "" if first.words is None else f", {[first.words[place] for place in ours]}"
        raise ValueError(
            "Patches that are merged must have no row in common, unless a `weight` says what "
            f"becomes of it. Received: two for {Rows(overlap, first.rows.num_rows)}{known} of "
            f"{first.path!r}. Say `weight=0.5` for the mean, or `weight=1.0` to take the first."
        )
    values = _stacked(ids, (second.ids, second.values), (first.ids, first.values))
    if weight is not None:
        averages = _averages(first.values[ours], second.values[theirs], weight)
        values[np.searchsorted(ids, overlap)] = averages
    original = None
    if first.original is not None and second.original is not None:
        original = _stacked(ids, (second.ids, second.original), (first.ids, first.original))
        agree = same_bits(first.original[ours], second.original[theirs])
        original = original if agree else None
    anchors = {**(first.anchors or {}), **(second.anchors or {})}
    return TablePatch(
        path=first.path,
        rows=Rows(ids, first.rows.num_rows),
        values=values,
        original=original,
        digest=first.digest,
        words=words,
        # A word that is an anchor of one patch may train in the other.
        anchors=None if words is None else {w: anchors[w] for w in anchors if w not in words},
    )


def _stacked(ids: np.ndarray, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Rows of several parts in the order of `ids`. Of a row in two parts, that of the last."""
    stacked = np.empty((len(ids), *parts[0][1].shape[1:]), parts[0][1].dtype)
    for part_ids, values in parts:
        stacked[np.searchsorted(ids, part_ids)] = values
    return stacked


def _averages(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    if weight in (0, 1):  # by selection, since 0 * inf is NaN
        return first if weight else second
    with np.errstate(invalid="ignore"):
        averages = weight * first.astype("float64") + (1 - weight) * second.astype("float64")
    return np.where(bits(first) == bits(second), first, averages.astype(first.dtype))


def _words(first: TablePatch, second: TablePatch) -> tuple[str, ...] | None:
    """The words of the rows of both, in the order of their ids."""
    if first.words is None or second.words is None:
        return None
    pairs = {
        *zip(first.ids.tolist(), first.words, strict=True),
        *zip(second.ids.tolist(), second.words, strict=True),
    }
    id_of, word_of = {word: id_ for id_, word in pairs}, dict(pairs)
    if not len(id_of) == len(word_of) == len(pairs):
        differ = sorted(word for id_, word in pairs if (id_of[word], word_of[id_]) != (id_, word))
        raise ValueError(
            f"Patches of {first.path!r} that are merged by ids must know each word by one id, and "
            f"each id by one word. Received: two that differ about {differ}. They are of two "
            "vocabularies: say `vocabulary`, that of the model, to merge them by their words."
        )
    return tuple(word_of[id_] for id_ in sorted(word_of))
