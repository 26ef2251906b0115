"""Putting patches into the tables of a model in memory, and taking them out: all or nothing."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from maskedgrad.masking.tables import read_rows, row_reader, same_bits, write_rows
from maskedgrad.masking.variables import SparselyRead, read_sparsely
from maskedgrad.messages import shorten
from maskedgrad.patches.table import (
    InPlace,
    TablePatch,
    check_apart,
    check_base,
    check_fits,
    patches_in,
    rows_in_place,
    variable_at,
)
from maskedgrad.patches.words import check_anchors, moved
from maskedgrad.rows.rows import Rows


class Placement(NamedTuple):
    """A patch, and the variable that it goes into."""

    patch: TablePatch
    variable: keras.Variable


def check_holds_tables(model: Any) -> None:
    """Raises a `TypeError` if something is neither a model nor a layer."""
    if not isinstance(model, keras.Layer):
        raise TypeError(
            f"`model` must be a `keras.Model`. Received: {shorten(model)}. A model in a file is "
            "loaded first: `keras.saving.load_model(path)`."
        )


def placements(
    tables: Iterable[TablePatch], model: keras.Model, vocabularies: Mapping[str, Any]
) -> list[Placement]:
    """Where patches go in a model: to the ids of their words where there is a vocabulary.

    Raises:
        ValueError: the model lacks a table, has it in another shape or dtype,
            or has one for two of the patches; or a vocabulary lacks a word.
    """
    check_holds_tables(model)
    variables = model.weights
    placed = []
    for table in tables:
        variable = variable_at(table.path, variables)
        if table.path in vocabularies:
            patch = moved(table, int(variable.shape[0]), vocabularies[table.path])
        else:
            patch = table
        placed.append(Placement(patch, variable))
    check_apart({patch.path: id(variable) for patch, variable in placed})
    for placement in placed:
        check_fits(*placement)
    return placed


def check_bases(placed: Iterable[Placement], vocabularies: Mapping[str, Any]) -> None:
    """Raises a `ValueError` if frozen rows are not those that patches were trained over."""
    for patch, variable in placed:
        if patch.path in vocabularies:
            words = vocabularies[patch.path]
            check_anchors(patch, words, row_reader(variable), rows_in_place(variable))
        else:
            check_base(patch, variable)


class AppliedRowPatch:
    """A patch and a model that it fits: the context that `RowPatch.applied` returns.

    Can be entered again and again, though not while it is entered.
    """

    def __init__(self, model: keras.Model, placements: list[Placement]):
        self._model = model
        self._placements = placements

    def __enter__(self) -> keras.Model:
        for patch, variable in self._placements:
            _check_unpatched(patch, variable)
        _look_up_sparsely(self._model, [variable for _, variable in self._placements])
        _change_all([_put_in(placement) for placement in self._placements])
        return self._model

    def __exit__(self, *exception: object) -> None:
        revert(self._model, self._placements)


def revert(model: keras.Model, placements: list[Placement]) -> None:
    """Restores the rows that patches took the place of.

    Raises:
        ValueError: one of the patches is not applied; or it was not applied
            in this process, and holds no original values.
    """
    originals = [_rows_beneath(placement) for placement in placements]
    _look_up_sparsely(model, [variable for _, variable in placements])
    _change_all([_taken_out(*each) for each in zip(placements, originals, strict=True)])


def _check_unpatched(patch: TablePatch, variable: keras.Variable) -> None:
    """Raises a `ValueError` if a row of the patch is patched already."""
    for other, _ in patches_in(variable):
        overlap = np.intersect1d(patch.ids, other.ids)
        if len(overlap):
            raise ValueError(
                "Patches can be applied together when they have no row in common. Received: one "
                f"for {patch.rows} of {patch.path!r}, while one for {other.rows} is applied. "
                f"Both overwrite {Rows(overlap, patch.rows.num_rows)}. Revert the other one first."
            )


def _look_up_sparsely(model: keras.Model, variables: Sequence[keras.Variable]) -> None:
    """Makes lookups in tables read the rows alone, since rows are written one by one from now on.

    See `read_sparsely`. What the model has traced reads densely, so it traces
    again; where it is training this goes on with the next step.
    """
    dense = [variable for variable in variables if not isinstance(variable, SparselyRead)]
    for variable in dense:
        read_sparsely(variable)
    for kind in ("train", "test", "predict"):
        if dense and getattr(model, f"{kind}_function") is not None:
            getattr(model, f"make_{kind}_function")(force=True)


class _Held(NamedTuple):
    """What some rows of a table hold, and the patches that are in the table."""

    variable: keras.Variable
    ids: np.ndarray
    values: np.ndarray
    patches: tuple[InPlace, ...]

    def write(self) -> None:
        """Makes the table hold it."""
        write_rows(self.variable, self.ids, self.values)
        self.variable.row_patches = self.patches


def _change_all(changes: Iterable[tuple[_Held, _Held]]) -> None:
    """Makes tables hold the second of each pair. Where one cannot, all hold the first again."""
    with contextlib.ExitStack() as undo:
        for before, after in changes:
            undo.callback(before.write)
            after.write()
        undo.pop_all()


def _held_now(placement: Placement) -> _Held:
    patch, variable = placement
    return _Held(variable, patch.ids, read_rows(variable, patch.ids), patches_in(variable))


def _put_in(placement: Placement) -> tuple[_Held, _Held]:
    """What the rows of a patch hold, and what they hold with it."""
    before, patch = _held_now(placement), placement.patch
    patches = *before.patches, InPlace(patch, before.values)
    return before, before._replace(values=patch.values, patches=patches)


def _taken_out(placement: Placement, original: np.ndarray) -> tuple[_Held, _Held]:
    """What the rows of a patch hold, and what they hold without it."""
    before, patch = _held_now(placement), placement.patch
    others = tuple(other for other in before.patches if not _are_same(other.patch, patch))
    return before, before._replace(values=original, patches=others)


def _rows_beneath(placement: Placement) -> np.ndarray:
    """What the rows of a patch were before it was applied.

    Remembered if it was applied to this table in this process, else, in a
    table that was saved with the patch applied, its original values.

    Raises:
        ValueError: the patch is not applied, or holds no original values.
    """
    patch, variable = placement
    for other in patches_in(variable):
        if _are_same(other.patch, patch):
            return other.overwritten
    _check_unpatched(patch, variable)
    if not same_bits(read_rows(variable, patch.ids), patch.values):
        raise ValueError(
            "A patch can be reverted where it is applied. Received: a model whose table "
            f"{patch.path!r} does not hold the values of the patch in {patch.rows}."
        )
    if patch.original is None:
        raise ValueError(
            f"The patch must hold the original values of {patch.path!r} to be reverted in a model "
            "that it was not applied to here. Received: a patch without them. It holds them if "
            "it was made by `RowPatch.from_model(model, original=before)`, where `before` is what "
            "`RowPatch.from_model` returned before the training."
        )
    return patch.original


def _are_same(patch: TablePatch, other: TablePatch) -> bool:
    if patch is other:  # which takes no time, where many rows are switched
        return True
    return patch.rows == other.rows and same_bits(patch.values, other.values)
