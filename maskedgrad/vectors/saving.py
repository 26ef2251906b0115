"""`save_vectors`: rows of a table as a file of vectors, with their words."""

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maskedgrad.files import FilePath, checked_path, whole_file, write_together
from maskedgrad.masking.tables import bits
from maskedgrad.messages.progress import progress_bar
from maskedgrad.reports.nearest import words_of
from maskedgrad.reports.views import CHUNK_NUMBERS, TableView, view_of
from maskedgrad.rows.rows import Rows, RowsLike
from maskedgrad.rows.vocabulary import sample
from maskedgrad.vectors.arrays import SAFETENSORS_DTYPES, TENSOR_NAME, words_beside
from maskedgrad.vectors.text import BYTE_ORDER_MARK, is_number
from maskedgrad.vectors.unpacking import LARGE_FILE

WHITE_SPACE = set(" \t\n\r\v\f")
GZIP = ".gz"


class Chosen(NamedTuple):
    """What is written: the rows of these ids, each with its word, which is UTF-8."""

    view: TableView
    ids: np.ndarray
    words: Sequence[bytes]

    def chunks(self) -> Iterator[tuple[Sequence[bytes], np.ndarray]]:
        """The words and the rows, some of them at a time, with a bar if they are many."""
        chunks = chunks_of(self.view, self.ids)
        for start, rows in _shown(chunks, len(self.ids) * self.view.width):
            yield self.words[start : start + len(rows)], rows


class Format(NamedTuple):
    """A format: what it is called, how it is written, and why it cannot hold a word.

    One that `is_matrix` holds numbers alone, also those that are not finite,
    and its words are in a file beside, which can be empty.
    """

    title: str
    write: Callable[[Any, Chosen], None]
    fault: Callable[[bytes], str | None]
    is_matrix: bool = False


def save_vectors(
    path: FilePath,
    table: Any,
    vocabulary: Any,
    *,
    rows: RowsLike | None = None,
    format: str | None = None,  # noqa: A002 as in pandas and Keras
) -> None:
    """Writes a table, or some of its rows, to a file of vectors, whole or not at all.

    `load_vectors` reads it again to the same bits, and so does gensim what is
    of GloVe or word2vec. Some megabytes of rows are held at a time.

    Args:
        path: where to; a file there is replaced. Its suffix names the format:
            `.txt` GloVe text, `.vec` word2vec text, `.bin` word2vec binary,
            each also with `.gz` after it; `.safetensors`; `.npy`. The last two
            hold no words: these go to a file beside, a word a line, in the
            order of the rows: `words.vocab.txt` for `words.npy`.
        table: as for `nearest`.
        vocabulary: the words of the table's rows, as for `row_ids`.
        rows: the rows to write, as `Rows` takes them; all of them if not given.
            Of a `MaskedTable`, `table.rows` are the trained ones.
        format: `"glove"`, `"word2vec"`, `"word2vec_binary"`, `"safetensors"` or
            `"npy"`, where the suffix does not say it.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a row has no word, or one that the format cannot hold; a
            number is not finite in a format whose readers skip that; the format
            is not known; or the numbers are float64, and word2vec binary has
            float32.

    Example:

    >>> matrix = np.float32([[0, 0], [0.1, 1], [2, -3]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_vectors(f"{folder}/words.vec.gz", matrix, ["", "cat", "dog"])
    ...     loaded, report = load_vectors(f"{folder}/words.vec.gz", ["", "cat", "dog"])
    ...     save_vectors(f"{folder}/dog.txt", matrix, ["", "cat", "dog"], rows=[2])
    ...     print(open(f"{folder}/dog.txt").read(), end="")
    dog 2.0 -3.0
    >>> (loaded == matrix).all(), report.found
    (np.True_, ('cat', 'dog'))
    """
    path = checked_path(path)
    kind = _format(path, format)
    view = view_of(table)
    ids = Rows(slice(None) if rows is None else rows, view.num_rows).ids
    chosen = _with_words(view, ids, vocabulary, kind)
    _check_numbers(chosen, kind)
    if kind.is_matrix:
        write_together(
            {
                path: lambda file: kind.write(file, chosen),
                words_beside(path): lambda file: file.writelines(
                    word + b"\n" for word in chosen.words
                ),
            }
        )
        return
    with whole_file(path) as file:
        if path.suffix == GZIP:
            # Without its name and the time, so that the same vectors make the same file.
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                kind.write(packed, chosen)
        else:
            kind.write(file, chosen)


def chunks_of(view: TableView, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of a table, some of them at a time, each with the place of its first among `ids`."""
    # As text a number takes some ten times as much as a float64.
    step = max(1, CHUNK_NUMBERS // 16 // max(1, view.width))
    for start in range(0, len(ids), step):
        yield start, view.read(ids[start : start + step])


def _format(path: Path, name: str | None) -> Format:
    if name is not None:
        if name not in FORMATS:
            raise ValueError(f"`format` must be one of {list(FORMATS)}. Received: format={name!r}")
        kind = FORMATS[name]
    else:
        suffix = path.with_suffix("").suffix if path.suffix == GZIP else path.suffix
        if suffix not in FORMAT_OF_SUFFIX:
            raise ValueError(
                f"The suffix of the path must be one of {list(FORMAT_OF_SUFFIX)}, which say the "
                f"format. Received: {os.fspath(path)!r}. In Python `format=` says it too: "
                f"{list(FORMATS)}"
            )
        kind = FORMATS[FORMAT_OF_SUFFIX[suffix]]
    if path.suffix == GZIP and kind.is_matrix:
        raise ValueError(
            f"Only files of GloVe and word2vec are packed. Received: {os.fspath(path)!r}, of "
            f"{kind.title}"
        )
    return kind


def _with_words(view: TableView, ids: np.ndarray, vocabulary: Any, kind: Format) -> Chosen:
    """The rows with their words, if the format can hold each of them."""
    if not len(ids):
        raise ValueError("`rows` must select at least one row. Received: none")
    word_of = words_of(view, vocabulary)
    nameless = [row for row in ids.tolist() if row not in word_of]
    if nameless:
        raise ValueError(
            f"`vocabulary` must have a word for each row that is written, {len(ids)} of "
            f"{view.name}. Received: {len(word_of)} words, and none for "
            f"{Rows(nameless, view.num_rows)}. "
            "`rows=` names the rows to write."
        )
    if not kind.is_matrix:
        ids = _without_padding(view, ids, word_of, kind)
    faults = {}
    words = []
    for row in ids.tolist():
        word = word_of[row].encode("utf-8", "surrogatepass")
        if (fault := _fault(word, kind)) is not None:
            faults[row] = f"row {row} is {word_of[row]!r}, which {fault}"
        words.append(word)
    if faults:
        raise ValueError(
            f"Each word must be one that {kind.title} can hold. Received: {len(faults)} that "
            f"it cannot: {sample(list(faults.values()))}. Leave these rows out by `rows=`, or "
            + (
                "give them other words."
                if kind.is_matrix
                else "write `.safetensors` or `.npy`, which hold any word on one line."
            )
        )
    return Chosen(view, ids, words)


def _without_padding(
    view: TableView, ids: np.ndarray, word_of: dict[int, str], kind: Format
) -> np.ndarray:
    """The rows but that of the empty word, which readers make of zeros where a file lacks it."""
    empty = np.array([row for row in ids.tolist() if not word_of[row]], dtype=np.int64)
    if len(empty) and bits(view.read(empty)).any():
        raise ValueError(
            f"The row of the empty word must be zero to be left out, since {kind.title} cannot "
            f"hold that word. Received: row {int(empty[0])} with other numbers. Leave it out by "
            "`rows=`, give it a word, or write `.safetensors` or `.npy`, which hold it."
        )
    if len(empty) == len(ids):
        raise ValueError(
            f"{kind.title} must hold one word at least. Received: the row of the empty word alone"
        )
    return np.setdiff1d(ids, empty)


def _fault(word: bytes, kind: Format) -> str | None:
    try:
        word.decode()
    except UnicodeDecodeError:
        return "is no UTF-8"
    return kind.fault(word)


def _check_numbers(chosen: Chosen, kind: Format) -> None:
    dtype = chosen.view.dtype
    if dtype.kind not in "f" and dtype.name != "bfloat16":
        raise TypeError(
            f"Vectors must be of floats. Received: {chosen.view.name} of {dtype}. "
            "`table.astype('float32')` are."
        )
    if kind is FORMATS["word2vec_binary"] and dtype.itemsize > 4:
        raise ValueError(
            f"{kind.title} holds float32. Received: {chosen.view.name} of {dtype}. Write "
            "`table.astype('float32')`, or another format."
        )
    if kind.is_matrix:
        return
    for start, rows in chunks_of(chosen.view, chosen.ids):
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            bad = [
                chosen.words[start + place].decode() for place in np.flatnonzero(~finite).tolist()
            ]
            raise ValueError(
                f"Numbers must be finite, since readers of {kind.title} skip words whose are not. "
                f"Received: infinity or NaN for {sample(bad)}. Leave these rows out by "
                "`rows=`, or write `.safetensors` or `.npy`, which hold any number."
            )


def decimals(rows: np.ndarray) -> list[list[bytes]]:
    """Numbers as text, of each row a list: as few digits as make the same bits again.

    What is read is first a float64 and then a float32, as `float` and then
    NumPy make it. Numbers of 16 bits are written as the float32 that they are.

    Example:

    >>> decimals(np.float32([[0.1, -0.0]]))
    [[b'0.1', b'-0.0']]
    """
    exact = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
    # Bytes of NumPy are cut at their end if they are too long: the longest float64 has 24.
    texts = exact.astype("S32")
    again = texts.astype(np.float64).astype(exact.dtype)
    for place in np.argwhere(bits(again) != bits(exact)):
        # Readers round to float64 and then to float32, which few digits may not survive; 9 do.
        texts[tuple(place)] = b"%.9g" % exact[tuple(place)]
    return texts.tolist()


def _write_glove(file: Any, chosen: Chosen) -> None:
    for words, rows in chosen.chunks():
        lines = zip(words, decimals(rows), strict=True)
        file.writelines(b" ".join([word, *numbers]) + b"\n" for word, numbers in lines)


def _write_word2vec(file: Any, chosen: Chosen) -> None:
    file.write(b"%d %d\n" % (len(chosen.ids), chosen.view.width))
    _write_glove(file, chosen)


def _write_word2vec_binary(file: Any, chosen: Chosen) -> None:
    file.write(b"%d %d\n" % (len(chosen.ids), chosen.view.width))
    for words, rows in chosen.chunks():
        numbers = rows.astype("<f4")
        records = zip(words, numbers, strict=True)
        file.writelines(b"%b %b" % (word, row.tobytes()) for word, row in records)


def _write_safetensors(file: Any, chosen: Chosen) -> None:
    # The library writes what lies in memory as a whole; its format is a header and the numbers.
    dtype, shape = chosen.view.dtype, (len(chosen.ids), chosen.view.width)
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    tensor = {
        "dtype": SAFETENSORS_DTYPES[dtype.name],
        "shape": shape,
        "data_offsets": (0, num_bytes),
    }
    header = json.dumps({TENSOR_NAME: tensor}).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    _write_numbers(file, chosen, dtype)


def _write_npy(file: Any, chosen: Chosen) -> None:
    # NumPy's files know no bfloat16.
    dtype = np.dtype(np.float32) if chosen.view.dtype.name == "bfloat16" else chosen.view.dtype
    shape = (len(chosen.ids), chosen.view.width)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype.newbyteorder("<")),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    _write_numbers(file, chosen, dtype)


def _write_numbers(file: Any, chosen: Chosen, dtype: np.dtype[Any]) -> None:
    for _, rows in chosen.chunks():
        file.write(np.ascontiguousarray(rows.astype(dtype.newbyteorder("<"))).tobytes())


def _spoils_glove(word: bytes) -> str | None:
    _, *others = word.split(b" ")
    if b"\n" in word:
        return "holds a newline"
    if word.startswith(BYTE_ORDER_MARK):
        return "begins with a byte order mark"
    if others and (not others[-1] or any(map(is_number, others))):
        return "holds a space before an end that reads as a number, or as nothing"
    return None


def _spoils_word2vec(word: bytes) -> str | None:
    if set(word.decode()) & WHITE_SPACE:
        return "holds white space, which ends a word there"
    return "begins with a byte order mark" if word.startswith(BYTE_ORDER_MARK) else None


def _spoils_a_line(word: bytes) -> str | None:
    return "holds the end of a line" if set(word) & set(b"\n\r") else None


FORMATS = {
    "glove": Format("GloVe text", _write_glove, _spoils_glove),
    "word2vec": Format("word2vec text", _write_word2vec, _spoils_word2vec),
    "word2vec_binary": Format("word2vec binary", _write_word2vec_binary, _spoils_word2vec),
    "safetensors": Format("safetensors", _write_safetensors, _spoils_a_line, is_matrix=True),
    "npy": Format("NumPy's .npy", _write_npy, _spoils_a_line, is_matrix=True),
}
FORMAT_OF_SUFFIX = {
    ".txt": "glove",
    ".vec": "word2vec",
    ".bin": "word2vec_binary",
    ".safetensors": "safetensors",
    ".npy": "npy",
}


def _shown(chunks: Iterator[Any], num_numbers: int) -> Iterator[Any]:
    """Chunks, with a bar if they are of a large file."""
    total = -(-num_numbers * 16 // CHUNK_NUMBERS)
    with progress_bar(is_shown=4 * num_numbers >= LARGE_FILE) as progress:
        yield from progress.track(chunks, total=total, description="Writing vectors")
