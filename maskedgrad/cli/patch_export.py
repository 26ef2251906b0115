"""The rows of a patch for other programs: files of word vectors, and adapters of PEFT."""

from collections.abc import Sequence
from pathlib import Path

from maskedgrad.cli.options import check_absent
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import CONFIG_FILE, write_adapter
from maskedgrad.patches.table import TablePatch
from maskedgrad.vectors.saving import save_vectors


def export_vectors(patch: RowPatch, path: Path, table: str | None, replace: bool) -> TablePatch:
    """Writes the words and rows of a table to a file of vectors, and returns the table.

    See `save_vectors`.

    Raises:
        FileExistsError: the file exists, and `replace` is false.
        ValueError: the table is not said, its words are not known, or the format, which
            the suffix of the file names, cannot hold them.
    """
    chosen = _chosen(patch, table)
    if chosen.words is None:
        raise ValueError(
            "A patch must know the words of its rows to be written as word vectors. Received: one "
            f"without those of {chosen.path!r}. It knows them if it was made by "
            "`RowPatch.from_model(model, vocabulary=...)`."
        )
    check_absent([path], replace)
    save_vectors(path, chosen.values, chosen.words)
    return chosen


def export_adapter(patch: RowPatch, folder: Path, modules: Sequence[str], replace: bool) -> None:
    """Writes a patch as an adapter of PEFT: see `write_adapter`.

    Args:
        patch: the patch.
        folder: where to.
        modules: for each table its path, `=`, and the PyTorch module.
        replace: whether an adapter in the folder may be replaced.

    Raises:
        FileExistsError: the folder holds an adapter, and `replace` is false.
        ValueError: `modules` does not name a module for each table.
    """
    pairs = dict(module.partition("=")[::2] for module in modules)
    if not all(pairs.values()):
        raise ValueError(
            "Expected --peft TABLE=MODULE, such as words/embeddings=model.embed_tokens, for each "
            f"of {list(patch.tables)}. Received: {list(modules)}"
        )
    check_absent([folder / CONFIG_FILE], replace)
    write_adapter(patch, folder, pairs)


def _chosen(patch: RowPatch, table: str | None) -> TablePatch:
    paths = list(patch.tables) if table is None else [table]
    if len(paths) != 1 or paths[0] not in patch.tables:
        raise ValueError(
            f"Expected --table, one of {list(patch.tables)}. Received: {table or 'none'}"
        )
    return patch.tables[paths[0]]
