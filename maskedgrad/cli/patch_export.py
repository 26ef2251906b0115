"""The rows of a patch for other programs: word vectors as text, and adapters of PEFT."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskedgrad.files import write_whole
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import CONFIG_FILE, write_adapter
from maskedgrad.patches.table import TablePatch


def export_vectors(patch: RowPatch, path: Path, table: str | None, replace: bool) -> None:
    """Writes the words and rows of a table in word2vec's text format.

    Numbers have as many digits as it takes to read the same bits.

    Raises:
        FileExistsError: the file exists, and `replace` is false.
        ValueError: the table is not said, or cannot be written as such text.
    """
    _check_new(path, path, replace)
    write_whole(path, vectors_as_text(_chosen(patch, table)).encode())


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
    _check_new(folder, folder / CONFIG_FILE, replace)
    write_adapter(patch, folder, pairs)


def vectors_as_text(table: TablePatch) -> str:
    """The rows of a patch in word2vec's text format.

    Example:

    >>> from maskedgrad.patches import TablePatch
    >>> rows = np.float32([[0.1, 2.0]])
    >>> print(vectors_as_text(TablePatch("words", Rows([3], 9), rows, None, "", ("<city>",))))
    1 2
    <city> 0.1 2.0
    <BLANKLINE>
    """
    if table.words is None:
        raise ValueError(
            "A patch must know the words of its rows to be written as word vectors. Received: one "
            f"without those of {table.path!r}. It knows them if it was made by "
            "`RowPatch.from_model(model, vocabulary=...)`."
        )
    unfit = [word for word in table.words if word.split() != [word]]
    if unfit or table.values.ndim != 2 or not np.isfinite(table.values).all():
        raise ValueError(
            "Word vectors as text must be finite rows of rank 2, and words without white space. "
            f"Received: {table.path!r} with values of shape {table.values.shape}"
            + (f" and the words {unfit[:5]}" if unfit else "")
        )
    # Of float16 and bfloat16 the digits are those of the same number in float32.
    values = table.values.astype(np.promote_types(table.values.dtype, "float32"))
    lines = [f"{len(values)} {values.shape[1]}"]
    lines += [
        " ".join([word, *map(str, row)]) for word, row in zip(table.words, values, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _chosen(patch: RowPatch, table: str | None) -> TablePatch:
    paths = list(patch.tables) if table is None else [table]
    if len(paths) != 1 or paths[0] not in patch.tables:
        raise ValueError(
            f"Expected --table, one of {list(patch.tables)}. Received: {table or 'none'}"
        )
    return patch.tables[paths[0]]


def _check_new(path: Path, file: Path, replace: bool) -> None:
    if file.exists() and not replace:
        raise FileExistsError(
            f"What is written must not exist. Received: {str(path)!r}, which does. Give another "
            "name, or say that it may be replaced (--replace)."
        )
