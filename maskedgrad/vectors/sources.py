"""Reading pretrained vectors: of files by gensim, and of mappings, wanted words only."""

import contextlib
import functools
import gzip
import importlib
import io
import itertools
import os
import types
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGE_FILE = 50_000_000
BINARY_CHUNK = 100 * 1024
LARGEST_RATIO = 1032  # of the bytes that deflate makes of one
END_WORD = "\0end\0"


class SourceVectors(NamedTuple):
    """The vectors of the wanted words.

    Each wanted word has a slot. `vectors` is float32 of shape `(S, D)`;
    `filled`, boolean of shape `(S,)`, says which slots the source filled;
    `repeated` and `num_undecodable` are what was skipped.
    """

    vectors: np.ndarray
    filled: np.ndarray
    repeated: tuple[str, ...] = ()
    num_undecodable: int = 0


def read_source(source: Any, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    """The vectors of wanted words, from any source that `load_vectors` takes.

    Args:
        source: a path, or what answers to `word in source` and `source[word]`.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.

    Raises:
        TypeError, ValueError, ImportError: as `load_vectors` does.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(Path(source), slot_of, num_slots)
    if not (hasattr(source, "__contains__") and hasattr(source, "__getitem__")) or isinstance(
        source, (list, tuple, np.ndarray, bytes)
    ):
        raise TypeError(
            "`source` must be the path of a file, a gensim `KeyedVectors`, or a mapping from word "
            f"to vector. Received: {type(source).__name__}. "
            "A list of words and a matrix become one by `dict(zip(words, matrix))`."
        )
    return _read_mapping(source, slot_of, num_slots)


class _Slots:
    """What gensim's readers fill in place of a `KeyedVectors`: only the wanted words stay."""

    next_index = 0

    def __init__(self, slot_of: Mapping[str, int], num_slots: int, width: int):
        self._slot_of = slot_of
        self.vectors = np.zeros((num_slots, width), dtype=np.float32)
        self.filled = np.zeros(num_slots, dtype=bool)
        self.repeated: list[str] = []
        self.num_undecodable = 0
        self.last_word = ""

    def has_index_for(self, word: str) -> bool:
        # gensim would log and drop a repeated word. It is counted here.
        return False

    def add_vector(self, word: str, vector: Any) -> int:
        self.last_word = word
        slot = None if _is_undecodable(word) else self._slot_of.get(word)
        if slot is None:
            self.num_undecodable += _is_undecodable(word)
        elif self.filled[slot]:
            self.repeated.append(word)
        else:
            width = self.vectors.shape[1]
            if len(vector) != width:
                raise ValueError(
                    f"the vector of {word!r} has the width {len(vector)}, and the others {width}"
                )
            self.vectors[slot] = vector
            self.filled[slot] = True
        return self.next_index

    def set_vecattr(self, word: str, attribute: str, value: Any) -> None:
        """Drops the counts that gensim makes up."""


class _Scan(NamedTuple):
    """What a look at each line of a text file, and at none of its numbers, tells.

    `is_wanted` holds a byte for each line: 1 if it is the first line of a
    wanted word.
    """

    is_wanted: bytearray
    num_rows: int
    ends_in_newline: bool
    first_words: list[str]
    repeated: list[str]
    num_undecodable: int


class _EndedFile:
    """A binary file with one more record at its end, which no file holds.

    gensim arrives at that record intact only if every record before it has
    the width that the header says.
    """

    def __init__(self, file: Any, width: int):
        self._file = file
        self._end = END_WORD.encode() + b" " + bytes(4 * width)

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            data, self._end = data + self._end, b""
        return data


def _read_file(path: Path, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    is_binary = path.name.removesuffix(".gz").endswith(".bin")
    read = _read_binary if is_binary else _read_text
    try:
        return read(path, slot_of, num_slots)
    except (EOFError, gzip.BadGzipFile, zlib.error, MemoryError, ValueError) as error:
        raise ValueError(
            f"The vectors in {str(path)!r} cannot be read: {str(error) or type(error).__name__}. "
            "Expected a complete file of GloVe text, word2vec text or fastText `.vec`, or, if its "
            "name ends in `.bin` or `.bin.gz`, of word2vec binary."
        ) from error


def _read_text(path: Path, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    with _opened(path, "Looking through") as file:
        first_line = file.readline()
        header = _header(first_line)
        first_row = first_line if header is None else file.readline()
        width = first_row.rstrip().count(b" ")
        scan = _scan(itertools.chain([first_row], file), slot_of, num_slots)
    _check_text(scan, header, width)
    num_wanted = sum(scan.is_wanted)
    if not num_wanted:
        raise ValueError(
            f"it has none of the words that are wanted, such as {_some(slot_of)}; it begins with "
            f"{scan.first_words}. `fallbacks=[str.lower]` finds words that are lower case there"
        )
    slots = _Slots(slot_of, num_slots, width)
    with _opened(path, "Reading") as file:
        if header is not None:
            file.readline()
        _fill_from_text(slots, itertools.compress(file, scan.is_wanted), num_wanted)
    return SourceVectors(slots.vectors, slots.filled, tuple(scan.repeated), scan.num_undecodable)


def _scan(lines: Iterable[bytes], slot_of: Mapping[str, int], num_slots: int) -> _Scan:
    is_wanted, is_seen = bytearray(), bytearray(num_slots)
    first_words: list[str] = []
    repeated: list[str] = []
    num_rows = num_undecodable = 0
    line = b"\n"
    for line in lines:
        is_wanted.append(False)
        if line.isspace():
            continue
        num_rows += 1
        word = line[: line.find(b" ")].decode("utf-8", "surrogateescape")
        slot = slot_of.get(word)
        if num_rows <= 5:
            first_words.append(word)
        if _is_undecodable(word):
            num_undecodable += 1
        elif slot is not None and is_seen[slot]:
            repeated.append(word)
        elif slot is not None:
            is_wanted[-1] = is_seen[slot] = True
    return _Scan(is_wanted, num_rows, line.endswith(b"\n"), first_words, repeated, num_undecodable)


def _read_binary(path: Path, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    with _opened(path, "Reading") as file:
        # A file of another kind may hold no end of line at all.
        header = _header(file.readline(1000))
        if header is None:
            raise ValueError(
                "word2vec binary begins with a line of two numbers, and this does not. fastText's "
                "own .bin is read by `gensim.models.fasttext.load_facebook_vectors`, whose result "
                "is a `source` too"
            )
        num_records, width = header
        _check_size(path, num_records, width)
        slots = _Slots(slot_of, num_slots, width)
        _fill_from_binary(slots, _EndedFile(file, width), num_records + 1)
        if slots.last_word != END_WORD or file.read(1):
            raise ValueError(
                f"its header says {num_records} vectors of width {width}, and it holds others"
            )
    return SourceVectors(slots.vectors, slots.filled, tuple(slots.repeated), slots.num_undecodable)


def _fill_from_text(slots: _Slots, lines: Iterator[bytes], num_lines: int) -> None:
    file = types.SimpleNamespace(readline=functools.partial(next, lines, b""))
    width = slots.vectors.shape[1]
    _gensim()._word2vec_read_text(
        file, slots, None, num_lines, width, np.float32, "strict", "utf-8"
    )


def _fill_from_binary(slots: _Slots, file: _EndedFile, num_records: int) -> None:
    width = slots.vectors.shape[1]
    # Ignoring or replacing bytes would turn one word into another.
    _gensim()._word2vec_read_binary(
        file,
        slots,
        None,
        num_records,
        width,
        np.float32,
        "surrogateescape",
        BINARY_CHUNK,
        "utf-8",
    )


def _gensim() -> Any:
    # Of gensim, the readers alone are used: its public loader keeps every
    # word, and does not notice a file that goes on after its last vector.
    return _extra("gensim.models.keyedvectors")


@contextlib.contextmanager
def _opened(path: Path, doing: str) -> Iterator[Any]:
    """The bytes of a file, unzipped, with a progress bar if the file is large."""
    with _extra("rich.progress").open(
        path,
        "rb",
        description=f"{doing} {path.name}",
        console=_extra("rich.console").Console(stderr=True),
        transient=True,
        disable=path.stat().st_size < LARGE_FILE,
    ) as shown:
        # Without a buffer the bar would be moved once for each line.
        buffered: Any = io.BufferedReader(shown, 1 << 20)
        yield gzip.GzipFile(fileobj=buffered) if path.suffix == ".gz" else buffered


def _extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"Files of vectors are read with {module.partition('.')[0]}, which is not installed: "
            '`pip install "maskedgrad[vectors]"`.'
        ) from error


def _header(line: bytes) -> tuple[int, int] | None:
    """Number of vectors and width, if that is what the first line of a file says."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def _check_text(scan: _Scan, header: tuple[int, int] | None, width: int) -> None:
    if not width:
        raise ValueError("its first row must be a word and its numbers, separated by single spaces")
    if not scan.ends_in_newline:
        raise ValueError(
            "its last line has no end, so it may be cut off in a number; if it is complete, "
            "end it with a newline"
        )
    if header is not None and header != (scan.num_rows, width):
        raise ValueError(
            f"its header says {header[0]} vectors of width {header[1]}, and it holds "
            f"{scan.num_rows} rows, of which the first has the width {width}"
        )


def _check_size(path: Path, num_records: int, width: int) -> None:
    # What a header says is believed only after this, since its width is allocated.
    largest = path.stat().st_size * (LARGEST_RATIO if path.suffix == ".gz" else 1)
    if not 0 < 4 * width * max(num_records, 1) < largest:
        raise ValueError(
            f"its header says {num_records} vectors of width {width}, and it is too short for that"
        )


def _read_mapping(source: Any, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    found = {word: slot for word, slot in slot_of.items() if word in source}
    if not found:
        raise ValueError(
            f"`source` has none of the words that are wanted, such as {_some(slot_of)}. "
            "`fallbacks=[str.lower]` finds words that are lower case there."
        )
    width = np.size(source[next(iter(found))])
    vectors = np.zeros((num_slots, width), dtype=np.float32)
    filled = np.zeros(num_slots, dtype=bool)
    for word, slot in found.items():
        vector = np.asarray(source[word])
        if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.number) or not vector.size:
            raise ValueError(
                f"A vector must be a flat array of numbers. Received for {word!r}: "
                f"an array of shape {vector.shape} and dtype {vector.dtype}."
            )
        if len(vector) != width:
            raise ValueError(
                f"The vectors of `source` must be of one width, {width}. "
                f"Received for {word!r}: a vector of width {len(vector)}."
            )
        with np.errstate(over="ignore"):  # becomes infinite, and is reported
            vectors[slot] = vector
        filled[slot] = True
    return SourceVectors(vectors, filled)


def _is_undecodable(word: str) -> bool:
    """Whether the bytes of a word, decoded with "surrogateescape", were not UTF-8."""
    return not word.isascii() and any("\udc80" <= letter <= "\udcff" for letter in word)


def _some(words: Mapping[str, int]) -> list[str]:
    return [word for word, _ in zip(words, range(5), strict=False)]
