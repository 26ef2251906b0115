"""`write_projector`: a table for TensorBoard's projector, with its words."""

import json
from typing import Any, BinaryIO

from maskedgrad.files import FilePath, checked_path, write_together
from maskedgrad.messages.grid import cut
from maskedgrad.reports.nearest import shown_word, words_of
from maskedgrad.reports.views import view_of
from maskedgrad.rows.rows import Rows, RowsLike
from maskedgrad.vectors.saving import chunks_of, decimals

TENSOR_FILE, METADATA_FILE = "vectors.tsv", "words.tsv"
CONFIG_FILE = "projector_config.pbtxt"


def write_projector(
    log_dir: FilePath, table: Any, vocabulary: Any, rows: RowsLike | None = None
) -> None:
    """Writes a table, or some of its rows, for the projector of TensorBoard, with its words.

    `tensorboard --logdir log_dir` shows it under "Projector": points that can be
    searched by word, and coloured by whether they train. What
    `keras.callbacks.TensorBoard(embeddings_freq=...)` writes cannot be read
    there, since Keras 3 saves weights in another format.

    Args:
        log_dir: the folder; it is made if there is none. A table that was
            written to it before is replaced, so each needs a folder of its own.
        table: as for `nearest`. Of a model, and of one of
            `optimizer.masked_tables()`, it is known which rows train.
        vocabulary: the words of the table's rows, as for `row_ids`; or `None`.
        rows: the rows to write, as `Rows` takes them; all of them if not given.
            The projector draws up to 100,000.

    Raises:
        TypeError, ValueError: as `nearest` does.

    Example:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_projector(folder, np.float32([[0, 1], [2, 3]]), ["cat", "dog"])
    ...     print(open(f"{folder}/words.tsv").read().expandtabs(), end="")
    word    id
    cat     0
    dog     1
    """
    folder = checked_path(log_dir, "log_dir")
    view = view_of(table)
    ids = Rows(slice(None) if rows is None else rows, view.num_rows).ids
    word_of = words_of(view, vocabulary)
    trained = view.rows and set(view.rows)

    def write_vectors(file: BinaryIO) -> None:
        for _, values in chunks_of(view, ids):
            file.writelines(b"\t".join(row) + b"\n" for row in decimals(values))

    def write_words(file: BinaryIO) -> None:
        file.write(b"word\tid\n" if trained is None else b"word\tid\ttrains\n")
        for id_ in ids.tolist():
            cells = [cut(shown_word(word_of.get(id_), id_)), str(id_)]
            cells += [] if trained is None else ["yes" if id_ in trained else "no"]
            file.write("\t".join(cells).encode("utf-8", "backslashreplace") + b"\n")

    folder.mkdir(parents=True, exist_ok=True)
    write_together(
        {
            folder / TENSOR_FILE: write_vectors,
            folder / METADATA_FILE: write_words,
            folder / CONFIG_FILE: lambda file: file.write(_config(view.name).encode()),
        }
    )


def _config(name: str) -> str:
    """What the projector reads: a protocol buffer as text, whose strings are written as JSON's."""
    fields = {"tensor_name": name, "tensor_path": TENSOR_FILE, "metadata_path": METADATA_FILE}
    lines = [f"  {field}: {json.dumps(value)}" for field, value in fields.items()]
    return "\n".join(["embeddings {", *lines, "}", ""])
