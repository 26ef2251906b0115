"""A row patch applied to a saved model, in its file: some rows of it are written, and no others.

The file is copied, and the bytes of the patch's rows are written over those that
are there. So nothing of the model is loaded or run, all else in the file stays
as it is, and memory holds the rows of the patch and a few megabytes.
"""

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np

from maskedgrad.cli.options import check_absent
from maskedgrad.cli.saved_tables import WEIGHTS_FILE, SavedTable, layers, reading, saved_table
from maskedgrad.files import opened_hdf5, whole_file
from maskedgrad.masking.tables import digest_of_rows, same_bits
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.table import (
    TablePatch,
    check_apart,
    check_digest,
    check_finite,
    check_fits,
    variable_at,
)
from maskedgrad.patches.words import check_anchors, moved
from maskedgrad.rows.vocabulary import by_path

KERAS, WEIGHTS = ".keras", ".weights.h5"
COPY_BYTES = 2**20
EXPECTED = (
    "a model as `model.save(...)` writes it, or its weights as `model.save_weights(...)` does"
)


class _Stored(NamedTuple):
    """A variable in a file of weights, under the path that it has in a model."""

    path: str
    shape: tuple[int, ...]
    dataset: Any


def apply_to_file(
    patch: RowPatch,
    source: Path,
    target: Path,
    *,
    strict: bool = True,
    allow_nonfinite: bool = False,
    vocabulary: Sequence[str] | None = None,
    replace: bool = False,
) -> None:
    """Writes a saved model with a patch applied to a new file, whole or not at all.

    Equivalent to loading the model, applying the patch and saving the model, but
    that all else stays in the file as it is, bit for bit.

    Args:
        patch: the patch.
        source: the path of a `.keras` or a `.weights.h5` file.
        target: the path of the new file, of the same kind.
        strict, allow_nonfinite: as for `RowPatch.apply_to`.
        vocabulary: the words of the table's rows, in the order of their ids.
        replace: whether the new file may take the place of another.

    Raises:
        FileExistsError: `target` exists, and `replace` is not said.
        ValueError: the files are not of one of the kinds; the source is not
            as Keras writes it; or the patch does not fit it.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> patch = RowPatch.from_model(model)
    >>> words.set_weights([words.get_weights()[0] * [[1], [0], [1], [1], [0]]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     base, new = Path(folder, "base.weights.h5"), Path(folder, "new.weights.h5")
    ...     model.save_weights(base)
    ...     apply_to_file(patch, base, new)
    ...     model.load_weights(new)
    >>> words.get_weights()[0].all(axis=1).tolist()
    [True, True, True, True, True]
    """
    _check_kinds(source, target)
    check_absent([target], replace)

    def put_in(weights: BinaryIO) -> None:
        _put_in(
            weights,
            source,
            patch,
            strict=strict,
            allow_nonfinite=allow_nonfinite,
            vocabulary=vocabulary,
        )

    with whole_file(target) as new:
        if source.suffix == KERAS:
            _copy_archive(source, new, put_in)
        else:
            with open(source, "rb") as old:
                shutil.copyfileobj(old, new, COPY_BYTES)
            put_in(new)


def _check_kinds(source: Path, target: Path) -> None:
    kinds = {
        next((kind for kind in (KERAS, WEIGHTS) if path.name.endswith(kind)), None)
        for path in (source, target)
    }
    if len(kinds) != 1 or None in kinds:
        raise ValueError(
            f"Expected two files that end in {KERAS}, or two that end in {WEIGHTS}. "
            f"Received: {str(source)!r} and {str(target)!r}"
        )


def _copy_archive(source: Path, new: BinaryIO, put_in: Callable[[BinaryIO], None]) -> None:
    """Copies a `.keras` file, all members as they are but for the weights."""
    with contextlib.ExitStack() as stack:
        with reading(source, EXPECTED):
            old = stack.enter_context(zipfile.ZipFile(source))
            # Beside the new file, since a folder for temporary files may be kept in memory.
            weights = stack.enter_context(tempfile.TemporaryFile(dir=Path(new.name).parent))
            with old.open(WEIGHTS_FILE) as member:
                shutil.copyfileobj(member, weights, COPY_BYTES)
        put_in(weights)
        weights.seek(0)
        with zipfile.ZipFile(new, "w") as archive:
            archive.comment = old.comment
            for info in old.infolist():
                with contextlib.ExitStack() as members, reading(source, EXPECTED):
                    into = members.enter_context(archive.open(_same_member(info), "w"))
                    is_weights = info.filename == WEIGHTS_FILE
                    content: IO[bytes] = (
                        weights if is_weights else members.enter_context(old.open(info))
                    )
                    shutil.copyfileobj(content, into, COPY_BYTES)


def _same_member(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry of a member for a new archive: all that the old one says but its place."""
    member = zipfile.ZipInfo(info.filename, info.date_time)
    member.compress_type = info.compress_type
    member.comment = info.comment
    member.create_system = info.create_system
    member.external_attr = info.external_attr
    member.file_size = info.file_size  # by which `zipfile` chooses the format for large files
    return member


def _put_in(
    weights: BinaryIO,
    source: Path,
    patch: RowPatch,
    *,
    strict: bool,
    allow_nonfinite: bool,
    vocabulary: Sequence[str] | None,
) -> None:
    """Writes the rows of a patch over those of a file of weights."""
    vocabularies = by_path(vocabulary, list(patch.tables))
    with _opened(weights, source) as file:
        found = {each.path: _stored(each, file, source) for each in patch.tables.values()}
        # By their places: what is found is called by the last name of the path in the patch.
        check_apart({path: stored.dataset.name for path, stored in found.items()})
        tables = {path: _table(stored, source) for path, stored in found.items()}
        placed = [
            (_moved(each, tables[path], vocabularies), tables[path])
            for path, each in patch.tables.items()
        ]
        for each, table in placed:
            check_fits(each, table)
            if not allow_nonfinite:
                check_finite(each)
            if strict:
                _check_base(each, table, vocabularies)
    for each, table in placed:
        _write_rows(weights, table, each)
    weights.flush()
    with _opened(weights, source) as file:
        for each, _ in placed:
            table = _table(_stored(each, file, source), source)
            if not same_bits(_read_rows(table, each.ids), each.values):
                raise ValueError(
                    f"The table {each.path!r} must have its place in the file for itself. "
                    f"Received: {str(source)!r}, where another table has the same."
                )


def _moved(patch: TablePatch, table: SavedTable, vocabularies: Mapping[str, Any]) -> TablePatch:
    """The patch for the ids that its words have, where there is a vocabulary."""
    if patch.path not in vocabularies:
        return patch
    return moved(patch, table.shape[0], vocabularies[patch.path])


@contextlib.contextmanager
def _opened(weights: BinaryIO, source: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        with reading(source, EXPECTED):
            file = stack.enter_context(opened_hdf5(weights))
        yield file


def _stored(patch: TablePatch, file: Any, source: Path) -> _Stored:
    """The one variable of a file of weights that a patch is for.

    Such a file holds names of layers, and numbers for the variables of each. Of
    a layer that has several, the one of the right shape is meant.
    """
    with reading(source, EXPECTED):
        found = [each for name, group in layers(file) for each in _of_layer(name, group, patch)]
    stored = variable_at(patch.path, found)
    # In a model `inner/words` may have the path `words/embeddings`, as `words` has: Keras leaves
    # out the name of a functional model around a layer, and a file does not.
    alike = [each.path for each in found if f"/{each.path}".endswith(f"/{patch.path}")]
    if len(alike) > 1:
        raise ValueError(
            f"The file must have one table that can be {patch.path!r} in a model. "
            f"Received: {str(source)!r} with {alike}. Load the model, and apply the patch there."
        )
    return stored


def _table(stored: _Stored, source: Path) -> SavedTable:
    with reading(source, EXPECTED):
        return saved_table(stored.path, stored.dataset)


def _of_layer(name: str, group: Any, patch: TablePatch) -> list[_Stored]:
    shape = patch.rows.num_rows, *patch.values.shape[1:]
    datasets = [each for each in group.values() if getattr(each, "ndim", 0)]
    of_shape = [each for each in datasets if each.shape == shape]
    path = f"{name}/{patch.path.rpartition('/')[2]}"
    return [_Stored(path, each.shape, each) for each in of_shape or datasets[:1]]


def _check_base(patch: TablePatch, table: SavedTable, vocabularies: Mapping[str, Any]) -> None:
    if patch.path in vocabularies:
        words = vocabularies[patch.path]
        check_anchors(patch, words, lambda ids: _read_rows(table, ids))
    else:
        check_digest(patch, digest_of_rows(table.chunks(), ~patch.rows.mask))


def _read_rows(table: SavedTable, ids: np.ndarray) -> np.ndarray:
    """Rows by their ids, in any order."""
    rows = np.empty((len(ids), *table.shape[1:]), table.dtype)
    step = table.rows_a_chunk
    for chunk in np.unique(ids // step):
        inside = ids // step == chunk
        rows[inside] = table.read(chunk * step, min((chunk + 1) * step, table.shape[0]))[
            ids[inside] - chunk * step
        ]
    return rows


def _write_rows(weights: BinaryIO, table: SavedTable, patch: TablePatch) -> None:
    """Writes rows by their place in the file, since HDF5 would change more than their bytes."""
    if table.offset is None:
        raise ValueError(
            f"The table {patch.path!r} must lie in the file in one piece, as Keras writes it. "
            "Received: one that is packed or cut into chunks. Load the model, and save it again."
        )
    for id_, row in zip(patch.ids.tolist(), patch.values.astype(table.dtype), strict=True):
        weights.seek(table.offset + id_ * table.row_bytes)
        weights.write(row.tobytes())
