"""`RowPatch`: the trained rows of a model as a value, and as a small file of its own."""

import contextlib
import dataclasses
import functools
import os
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras

from maskedgrad.files import FilePath, checked_path
from maskedgrad.masking.of_model import masked_optimizer_in, masked_tables
from maskedgrad.masking.tables import read_rows
from maskedgrad.messages.grid import Grid, html_of, listed
from maskedgrad.patches.file import checksum, read_patch_file, write_patch_file
from maskedgrad.patches.parts import parts_of, tables_of
from maskedgrad.patches.placement import AppliedRowPatch, check_bases, placements, revert
from maskedgrad.patches.table import (
    TablePatch,
    check_apart,
    check_finite,
    frozen_digest,
    variable_at,
)
from maskedgrad.patches.words import with_words
from maskedgrad.rows.targets import MaskedTable, describe
from maskedgrad.rows.vocabulary import by_path


class RowPatch:
    """The trained rows of a model: an immutable value that is saved, loaded and applied.

    Like a patch of source code, it holds what was there, what is there now,
    and a digest of all that must not differ around it. Applying it to a model
    with the same frozen rows is equivalent to training that model, and costs
    what K rows cost, whatever V is.

    Args:
        *tables: the `TablePatch` of each table, of different paths.

    Raises:
        ValueError: there is no table, or two have one path.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> before = RowPatch.from_model(model)
    >>> _ = model.fit(np.array([[0, 1, 4]]), np.ones((1, 3, 2)), verbose=0)
    >>> RowPatch.from_model(model, original=before)
    RowPatch({'words/embeddings': Rows('1,4', num_rows=5)})
    """

    def __init__(self, *tables: TablePatch):
        by_path = {table.path: table for table in tables}
        if not tables or len(by_path) != len(tables):
            raise ValueError(
                "A row patch must hold at least one table, and each path once. "
                f"Received: {[table.path for table in tables]}"
            )
        self._tables = MappingProxyType(by_path)

    @property
    def tables(self) -> Mapping[str, TablePatch]:
        """The `TablePatch` of each table, by path."""
        return self._tables

    @functools.cached_property
    def checksum(self) -> str:
        """The SHA-256 of all that the patch holds; patches of one checksum are equal."""
        return checksum(*parts_of(self.tables.values()))

    @classmethod
    def from_model(
        cls, model: keras.Model, original: "RowPatch | None" = None, *, vocabulary: Any = None
    ) -> "RowPatch":
        """The rows that the model's `MaskedOptimizer` trains, as they are now.

        Args:
            model: a built model, compiled with a `MaskedOptimizer`.
            original: what `from_model` returned before the training. With it
                the patch holds the original values, and can be reverted also
                in a model that was saved with the patch applied.
            vocabulary: the words of the table's rows, as for `row_ids`. With
                it the patch knows its words, and can be applied to a model of
                another vocabulary. For several tables a mapping from the path
                of each to its vocabulary.

        Raises:
            TypeError: `original` is no `RowPatch`.
            ValueError: the model is not built or has no `MaskedOptimizer`; it
                trains rows along another axis than the first; `original`
                is of other rows, or of other frozen rows; or a row has no word
                in `vocabulary`.

        Example:

        >>> words = keras.layers.Embedding(5, 2, name="words")
        >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
        >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
        >>> patch = RowPatch.from_model(model)
        >>> np.array_equal(patch.tables["words/embeddings"].values, words.get_weights()[0][[1, 4]])
        True
        """
        optimizer = masked_optimizer_in(getattr(model, "optimizer", None))
        if optimizer is None:
            raise ValueError(
                "`model` must be compiled with a `MaskedOptimizer`, which says which rows train. "
                f"Received: {describe(model)}, with "
                f"optimizer={getattr(model, 'optimizer', None)!r}"
            )
        tables = masked_tables(model)
        _check_can_be_patched(model, tables)
        vocabularies = by_path(vocabulary, [table.path for table in tables])
        patches = []
        for table in tables:
            taken = TablePatch(
                path=table.path,
                rows=table.rows,
                values=read_rows(table.variable, table.rows.ids),
                original=None,
                digest=frozen_digest(table.variable, table.rows),
            )
            if table.path in vocabularies:
                taken = with_words(taken, table.variable, vocabularies[table.path])
            patches.append(taken)
        patch = cls(*patches)
        return patch if original is None else _with_original(patch, original, model.weights)

    def save(self, path: FilePath) -> None:
        """Writes the patch to a safetensors file, whole or not at all.

        Args:
            path: where to; a file there is replaced.

        Raises:
            ImportError: the extra `patch` is not installed.

        Example:

        >>> import tempfile
        >>> patch = RowPatch(TablePatch("words", Rows([3], 9), np.ones((1, 2)), None, "0" * 64))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     patch.save(f"{folder}/city.safetensors")
        ...     RowPatch.load(f"{folder}/city.safetensors") == patch
        True
        """
        write_patch_file(checked_path(path), *parts_of(self.tables.values()))

    @classmethod
    def load(cls, path: FilePath) -> "RowPatch":
        """The patch that `save` wrote; see there for an example.

        Args:
            path: of the file.

        Raises:
            ImportError: the extra `patch` is not installed.
            FileNotFoundError: there is no such file.
            ValueError: the file is no row patch, or not as it was written.
        """
        headers, tensors = read_patch_file(checked_path(path))
        try:
            return cls(*tables_of(headers, tensors))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "A row patch must hold ids, values and a digest for each of its tables. "
                f"Received: {os.fspath(path)!r}, which does not: {error}"
            ) from error

    def applied(
        self,
        model: keras.Model,
        strict: bool = True,
        allow_nonfinite: bool = False,
        *,
        vocabulary: Any = None,
    ) -> AppliedRowPatch:
        """A context in which the patch is applied to a model, and after which it is reverted.

        The model is checked here, once. The context can be entered again and
        again, and a switch between patches then costs what their rows cost,
        whatever V is.

        Args:
            model: a built model with the tables of the patch, compiled or not.
            strict: whether the frozen rows must be those that the patch was
                trained over. That reads the tables as a whole. Where it is
                left out a `UserWarning` says so.
            allow_nonfinite: whether values may be infinite or NaN.
            vocabulary: the words of the model's rows, as in `from_model`. With
                it the rows go by their words, to whatever ids they have here,
                and the frozen rows are compared by word too: those of some
                words that the patch noted, and not the table as a whole.

        Raises:
            ValueError: the model lacks a table, or has it in another shape or
                dtype or with other frozen rows; values are not finite; or the
                vocabulary lacks a word, or is not that of the table. On
                entering, if one of the rows is patched already.

        Example:

        >>> words = keras.layers.Embedding(5, 2, name="words")
        >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
        >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
        >>> before = RowPatch.from_model(model)
        >>> _ = model.fit(np.array([[0, 1, 4]]), np.ones((1, 3, 2)), verbose=0)
        >>> trained = words.get_weights()[0]
        >>> switch = before.applied(model)
        >>> with switch:
        ...     (words.get_weights()[0] != trained).any(axis=1).tolist()
        [False, True, False, False, True]
        >>> np.array_equal(words.get_weights()[0], trained)
        True
        """
        return self._applied(model, strict, allow_nonfinite, vocabulary)

    def apply_to(
        self,
        model: keras.Model,
        strict: bool = True,
        allow_nonfinite: bool = False,
        *,
        vocabulary: Any = None,
    ) -> None:
        """Overwrites rows of a model's tables with the values of the patch.

        Args and errors are those of `applied`. The rows that are overwritten
        are remembered for `revert`. Patches over the same base that have no
        row in common can be applied together.

        Example:

        >>> words = keras.layers.Embedding(5, 2, name="words")
        >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
        >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
        >>> patch = RowPatch.from_model(model)
        >>> words.set_weights([words.get_weights()[0] * [[1], [0], [1], [1], [0]]])
        >>> patch.apply_to(model)
        >>> words.get_weights()[0].all(axis=1).tolist()
        [True, True, True, True, True]
        >>> patch.revert(model)
        >>> words.get_weights()[0].all(axis=1).tolist()
        [True, False, True, True, False]
        """
        self._applied(model, strict, allow_nonfinite, vocabulary).__enter__()

    def revert(self, model: keras.Model, *, vocabulary: Any = None) -> None:
        """Restores the rows that `apply_to` overwrote; see there for an example.

        In a model that was saved with the patch applied, and then loaded, the
        rows become the original values that the patch holds.

        Args:
            model: a model that the patch is applied to.
            vocabulary: that by which it was applied.

        Raises:
            ValueError: the patch is not applied to it; or it was not applied
                in this process, and holds no original values.
        """
        vocabularies = by_path(vocabulary, list(self.tables))
        revert(model, placements(self.tables.values(), model, vocabularies))

    def _applied(
        self, model: keras.Model, strict: bool, allow_nonfinite: bool, vocabulary: Any
    ) -> AppliedRowPatch:
        vocabularies = by_path(vocabulary, list(self.tables))
        placed = placements(self.tables.values(), model, vocabularies)
        if not allow_nonfinite:
            for patch, _ in placed:
                check_finite(patch)
        if strict:
            check_bases(placed, vocabularies)
        else:
            warnings.warn(
                "strict=False: it was not checked whether the frozen rows are those that the "
                "patch was trained over.",
                stacklevel=3,
            )
        return AppliedRowPatch(model, placed)

    def __eq__(self, other: object) -> bool:
        return self.checksum == other.checksum if isinstance(other, RowPatch) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.checksum)

    def __repr__(self) -> str:
        rows = {path: table.rows for path, table in self.tables.items()}
        return f"RowPatch({rows})"

    def _repr_html_(self) -> str:
        columns = ["table", "rows", "of", "shape of a row", "dtype", "words"]
        rows = [
            (
                path,
                f"{len(table.rows):,}",
                f"{table.rows.num_rows:,}",
                str(table.values.shape[1:]),
                table.dtype,
                listed(table.words or []),
            )
            for path, table in self.tables.items()
        ]
        return html_of(Grid(f"Row patch {self.checksum[:12]}", columns, rows))


def _check_can_be_patched(model: keras.Model, tables: list[MaskedTable]) -> None:
    if not tables:
        raise ValueError(
            f"The model {model.name!r} must be built, since a table that does not exist has no "
            "rows. Received: a model that its first batch builds. Call it on a batch of data first."
        )
    for table in tables:
        if table.axis:
            raise ValueError(
                "A row patch holds rows along the first axis. Received: a model that trains "
                f"{table.path!r} along axis {table.axis}. Save the weights of the "
                "model: `model.save_weights(path)`."
            )


def _with_original(
    patch: RowPatch, original: RowPatch, variables: Sequence[keras.Variable]
) -> RowPatch:
    if not isinstance(original, RowPatch):
        raise TypeError(
            "`original` must be the `RowPatch` that `from_model` returned before the training. "
            f"Received: original={original!r}"
        )
    earlier_at = _by_path_now(original, variables)
    for path, table in patch.tables.items():
        earlier = earlier_at.get(path)
        if earlier is None or earlier.rows != table.rows:
            raise ValueError(
                f"`original` must be of the rows that are trained now: {patch!r}. "
                f"Received: original={original!r}"
            )
        if earlier.digest != table.digest:
            raise ValueError(
                "`original` must be of a model with the same frozen rows. Received: one whose "
                f"frozen rows of {path!r} differ: other vectors were loaded since, or rows that "
                "do not train now were trained."
            )
    return RowPatch(
        *(
            dataclasses.replace(table, original=earlier_at[path].values)
            for path, table in patch.tables.items()
        )
    )


def _by_path_now(patch: RowPatch, variables: Sequence[keras.Variable]) -> dict[str, TablePatch]:
    """The tables of a patch by the paths that they have in a model that was loaded since."""
    found = {}
    for table in patch.tables.values():
        with contextlib.suppress(ValueError):  # of a table that the model does not have
            found[table.path] = variable_at(table.path, variables)
    check_apart({path: id(variable) for path, variable in found.items()})
    return {variable.path: patch.tables[path] for path, variable in found.items()}
