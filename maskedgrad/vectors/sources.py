"""Reading pretrained vectors, of files and of mappings, wanted words only."""

import contextlib
import errno
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskedgrad.files import check_no_folder
from maskedgrad.messages import shorten
from maskedgrad.vectors import binary, fasttext, text
from maskedgrad.vectors.arrays import is_array_with_words, read_array
from maskedgrad.vectors.found import (
    CHUNK,
    LONGEST_RECORD,
    Slots,
    SourceVectors,
    few,
    quoted,
)
from maskedgrad.vectors.unpacking import Unpacked, unpacked

NO_SUBWORDS = (
    "`initializer='subwords'` needs a source that makes vectors of parts of words: a fastText "
    "`.bin`, or gensim's `FastTextKeyedVectors` with buckets. Received: {}. Use another initializer"
)
# The first bytes of files that hold something else, and advice for each.
OTHER_FILES = {
    rb"\x93NUMPY": (
        "it is a NumPy array, which holds no words. `dict(zip(words, numpy.load(path)))` is a "
        "source, and so is the file with its words beside it, a word a line: `name.vocab.txt` for "
        "`name.npy`"
    ),
    # Before a pickle, since a header of some lengths begins as one does.
    rb".{7}\0\{\s*\"": (
        "it is a safetensors file, which holds no words. `dict(zip(words, matrix))` is a source, "
        "and so is the file with its words beside it, a word a line: `name.vocab.txt` for "
        "`name.safetensors`"
    ),
    rb"\x80[\x02-\x05]": (
        "it is a Python pickle, as gensim writes. What "
        "`gensim.models.KeyedVectors.load(path)` returns is a source, or, if it holds a model, "
        "`gensim.models.Word2Vec.load(path).wv`"
    ),
    rb"\x89HDF": "it is an HDF5 file, and not one of vectors and words",
    rb"SQLite format 3": "it is an SQLite database, and not a file of vectors and words",
    rb"PAR1": "it is a Parquet file. A mapping from word to vector is a source",
    rb"(?i)\s*(<!doctype html|<html[ >](?! ?[-+.0-9])|<\?xml )": (
        "it is a web page, perhaps that of a failed download. Get the file anew"
    ),
    rb"\s*\{\s*\"[^\"]*\"\s*:": (
        "it is JSON. What `json.load` makes of it is a source, if that maps words to vectors"
    ),
    rb"version https://git-lfs": "it is a pointer of Git LFS. Get the file itself: `git lfs pull`",
    rb"\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!\x1a|.{257}ustar": (
        "it is an archive of a kind that is not read. Unpack it first"
    ),
}


def read_source(
    source: Any,
    slot_of: Mapping[str, int],
    num_slots: int,
    words_from_subwords: Collection[str] | None = None,
) -> SourceVectors:
    """The vectors of wanted words, from any source that `load_vectors` takes.

    Args:
        source: a path, or what answers to `word in source` and `source[word]`.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.
        words_from_subwords: words for which the source makes vectors of their
            parts if it lacks them; `None` if it is not to.

    Raises:
        TypeError, ValueError, OSError: as `load_vectors` does.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError(
            f"`source` must be on this machine. Received: the address {source!r}. Download it, and "
            "give the path of the file."
        )
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), slot_of, num_slots, words_from_subwords)
    if hasattr(source, "wv"):
        raise TypeError(
            f"`source` must be vectors, and {type(source).__name__} is a model that has them. "
            "Use its `.wv`."
        )
    if not (hasattr(source, "__contains__") and hasattr(source, "__getitem__")) or isinstance(
        source, (list, tuple, np.ndarray, bytes)
    ):
        raise TypeError(
            "`source` must be the path of a file, a gensim `KeyedVectors`, or a mapping from word "
            f"to vector. Received: {shorten(source)}. "
            "A list of words and a matrix become one by `dict(zip(words, matrix))`; "
            "a file that is open is given by its path."
        )
    return _read_mapping(source, slot_of, num_slots, words_from_subwords)


def _read_file(
    path: Path,
    slot_of: Mapping[str, int],
    num_slots: int,
    words_from_subwords: Collection[str] | None,
) -> SourceVectors:
    check_no_folder(path, "the path of a file of vectors")
    try:
        if is_array_with_words(path):
            if words_from_subwords is not None:
                raise ValueError(NO_SUBWORDS.format("a file that holds whole words"))
            return read_array(path, slot_of, num_slots)
        with unpacked(path) as content:
            return _read_content(content, slot_of, num_slots, words_from_subwords)
    except (ValueError, MemoryError) as error:
        raise _unreadable(path, str(error) or "it needs more memory than there is") from error
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        # The system raised it, and not a content that seeks a place before its beginning.
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        what = str(error) or type(error).__name__
        raise _unreadable(path, f"{what}. It is cut off or damaged: get it anew") from error


def _unreadable(path: Path, why: str) -> ValueError:
    return ValueError(f"The vectors in {str(path)!r} cannot be read: {why}.")


def _read_content(
    content: Unpacked,
    slot_of: Mapping[str, int],
    num_slots: int,
    words_from_subwords: Collection[str] | None,
) -> SourceVectors:
    """Reads a file as what its first bytes say that it is."""
    file, most_bytes = content
    head = file.read(CHUNK)
    file.seek(0)
    if head.startswith(fasttext.MAGIC):
        return fasttext.read_fasttext(
            file, most_bytes, slot_of, num_slots, words_from_subwords or ()
        )
    if words_from_subwords is not None:
        raise ValueError(NO_SUBWORDS.format("a file that holds whole words"))
    _check_kind(head)
    first_line = file.readline(LONGEST_RECORD)
    after_first_line = file.read(CHUNK)
    file.seek(0)
    header = text.header_of(first_line)
    if header is not None and not text.looks_like_rows(after_first_line):
        return binary.read_binary(file, header, most_bytes, slot_of, num_slots)
    is_all = len(after_first_line) < CHUNK
    if header is not None and is_all and not text.are_rows(after_first_line):
        # Few binary vectors may look like rows by chance, but then are as many as the header says.
        with contextlib.suppress(ValueError):
            return binary.read_binary(file, header, most_bytes, slot_of, num_slots)
        file.seek(0)
    if header is None and b"\0" in head and not text.looks_like_rows(head):
        raise ValueError(
            f"it begins with {quoted(head[:40])}. Expected text, or word2vec binary, which begins "
            "with a line of two numbers, or a fastText `.bin`"
        )
    return text.read_text(file, header, slot_of, num_slots)


def _check_kind(head: bytes) -> None:
    if not head:
        raise ValueError("it is empty. Expected lines of a word and its numbers")
    units = head[:64]
    has_mark = units.startswith((b"\xff\xfe", b"\xfe\xff"))
    is_half_empty = any(units[::2]) != any(units[1::2])
    if (has_mark and b"\0" in units) or (len(units) >= 8 and is_half_empty):
        raise ValueError(
            "it is of UTF-16 or UTF-32, and UTF-8 is expected. "
            "Write it anew: `iconv -f UTF-16 -t UTF-8`"
        )
    if b"\0" not in head and text.looks_like_rows(head):
        return  # whatever the first word is
    for beginning, what in OTHER_FILES.items():
        if re.match(beginning, head, re.DOTALL):
            raise ValueError(what)


def _read_mapping(
    source: Any,
    slot_of: Mapping[str, int],
    num_slots: int,
    words_from_subwords: Collection[str] | None,
) -> SourceVectors:
    # gensim's fastText vectors say of every word that they contain it.
    known = getattr(source, "key_to_index", source)
    found = {word: slot for word, slot in slot_of.items() if word in known}
    if not found:
        raise ValueError(
            f"`source` has none of the words that are wanted, such as {few(slot_of)}. "
            f"{_advice_for_keys(known)}"
        )
    width = np.size(source[next(iter(found))])
    slots = Slots(slot_of, num_slots, width)
    for word, slot in found.items():
        slots.fill(slot, _checked(word, source[word], width))
    return slots.found(_from_subwords(source, known, words_from_subwords))


def _advice_for_keys(known: Any) -> str:
    first = next(iter(known), "") if isinstance(known, Mapping) else ""
    if isinstance(first, str):
        return "`fallbacks=[str.lower]` finds words that are lower case there."
    as_text = "word.decode()" if isinstance(first, bytes) else "str(word)"
    return (
        f"Its words must be strings, and it has {shorten(first)}. "
        f"`{{{as_text}: vector for word, vector in source.items()}}` has strings."
    )


def _checked(word: str, value: Any, width: int) -> np.ndarray:
    try:
        vector = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"A vector must be a flat array of real numbers. Received for {word!r}: "
            f"{shorten(value)}, of which NumPy makes no array: {error}"
        ) from error
    is_real = np.can_cast(vector.dtype, np.longdouble) and vector.dtype != bool
    if vector.ndim != 1 or not is_real or not vector.size:
        raise ValueError(
            "A vector must be a flat array of real numbers. Received for "
            f"{word!r}: {shorten(value)}, of shape {vector.shape} and dtype {vector.dtype}. Leave "
            "the word out, or give its numbers alone: `numpy.asarray(vector).real` of complex ones."
        )
    if len(vector) != width:
        raise ValueError(
            f"The vectors of `source` must be of one width, {width}. "
            f"Received for {word!r}: a vector of width {len(vector)}."
        )
    return vector


def _from_subwords(source: Any, known: Any, words: Collection[str] | None) -> dict[str, np.ndarray]:
    if words is None:
        return {}
    if not getattr(source, "bucket", 0):
        raise ValueError(f"{NO_SUBWORDS.format(type(source).__name__)}.")
    made = {word: np.asarray(source[word]) for word in words if word not in known}
    # Of a word that is too short to have parts, gensim returns zeros.
    return {word: vector for word, vector in made.items() if vector.any()}
