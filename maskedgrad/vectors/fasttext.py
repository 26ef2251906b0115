"""Vectors in fastText's own `.bin`: words, and the parts that any word is made of."""

import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from maskedgrad.vectors.found import CHUNK, LONGEST_RECORD, Slots, SourceVectors

MAGIC = b"\xba\x16\x4f\x2f"
SUPERVISED = 3
LARGEST_FILE = 1 << 62  # `seek` takes no larger place
END_OF_SENTENCE = "</s>"
# https://github.com/facebookresearch/fastText/blob/main/src/args.cc, `Args::save`
_SETTINGS = struct.Struct("<ii12id")
# https://github.com/facebookresearch/fastText/blob/main/src/dictionary.cc, `Dictionary::save`
_SIZES = struct.Struct("<3i2q")
_AFTER_WORD = struct.Struct("<qb")
# https://github.com/facebookresearch/fastText/blob/main/src/densematrix.cc, `DenseMatrix::save`
_MATRIX = struct.Struct("<?2q")


class _Model(NamedTuple):
    """What a file says of itself. Its matrix has a row for each word, then the buckets of parts."""

    width: int
    bucket: int
    shortest: int
    longest: int
    num_words: int

    def parts(self, word: str) -> list[int]:
        """The rows of the parts of a word, by their hashes.

        As `Dictionary::computeSubwords` of fastText's `dictionary.cc` does.
        """
        if not self.bucket or word == END_OF_SENTENCE:
            return []
        marked = f"<{word}>"
        return [
            self.num_words + _hash(marked[start:stop].encode()) % self.bucket
            for start in range(len(marked))
            # A damaged file may say that parts are of thousands of millions of letters.
            for stop in range(
                start + max(1, self.shortest), min(start + self.longest, len(marked)) + 1
            )
            if not (stop == start + 1 and (start == 0 or stop == len(marked)))
        ]


def read_fasttext(
    file: Any,
    most_bytes: float,
    slot_of: Mapping[str, int],
    num_slots: int,
    words_from_parts: Collection[str] = (),
) -> SourceVectors:
    """The vectors of the wanted words in a fastText model.

    The vector of a word is the mean of its own row and those of its parts, as
    `fasttext.load_model(path)[word]` is. Only the rows that are needed are
    read.

    Args:
        file: a binary file at its beginning, which can seek forward.
        most_bytes: the most that the file may hold.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.
        words_from_parts: words to make of parts if the file lacks them.

    Raises:
        ValueError: the file is cut off, contradicts itself, or is compressed
            by fastText (`.ftz`).
    """
    model, words, num_undecodable = _read_words(file, slot_of, most_bytes)
    made = [word for word in words_from_parts if word not in words] if model.bucket else []
    parts = [[row, *model.parts(word)] for word, row in words.items()]
    parts += [model.parts(word) for word in made]
    vectors = _means(file, model, parts, most_bytes)
    slots = Slots(slot_of, num_slots, model.width)
    for word, vector in zip(words, vectors, strict=False):
        slots.fill(slot_of[word], vector)
    of_parts = zip(made, vectors[len(words) :], parts[len(words) :], strict=True)
    found = slots.found({word: vector for word, vector, rows in of_parts if rows})
    return found._replace(num_undecodable=num_undecodable)


def _read_words(
    file: Any, slot_of: Mapping[str, int], most_bytes: float
) -> tuple[_Model, dict[str, int], int]:
    _, version, width, *_, model, bucket, shortest, longest, _, _ = _read(file, _SETTINGS)
    num_entries, num_words, num_labels, _, num_pruned = _read(file, _SIZES)
    if version not in (11, 12):
        raise ValueError(f"it is of fastText's format {version}. Expected 11 or 12")
    if version == 11 and model == SUPERVISED:
        longest = 0  # https://github.com/facebookresearch/fastText/blob/main/src/fasttext.cc#L269
    if min(width, num_words) <= 0 or bucket < 0 or num_entries != num_words + num_labels:
        raise ValueError(
            f"it says that it has {num_words} words and {num_labels} labels, {num_entries} in all, "
            f"{bucket} buckets, and the width {width}, which cannot be. {_ADVICE}"
        )
    if num_pruned > 0:
        raise _compressed()
    words: dict[str, int] = {}
    num_undecodable = 0
    for row, encoded in enumerate(_entries(file, num_entries)):
        try:
            word = encoded.decode()
        except UnicodeDecodeError:
            num_undecodable += row < num_words
            continue
        if row < num_words and word in slot_of:
            words.setdefault(word, row)
    return _Model(width, bucket, shortest, longest, num_words), words, num_undecodable


def _entries(file: Any, num_entries: int) -> Iterator[bytes]:
    """The words and labels; afterwards the file stands behind them."""
    begin, chunk, start = file.tell(), b"", 0
    for _ in range(num_entries):
        while (end := chunk.find(b"\0", start)) < 0 or end + 1 + _AFTER_WORD.size > len(chunk):
            more = file.read(CHUNK)
            if not more or len(chunk) - start > LONGEST_RECORD:
                raise _cut_off()
            begin += start
            chunk, start = chunk[start:] + more, 0
        yield chunk[start:end]
        start = end + 1 + _AFTER_WORD.size
    file.seek(begin + start)


def _means(file: Any, model: _Model, parts: list[list[int]], most_bytes: float) -> np.ndarray:
    """For each list of rows of the file's matrix their mean, float32 of shape `(len, D)`."""
    is_compressed, num_rows, width = _read(file, _MATRIX)
    if is_compressed:
        raise _compressed()
    if (num_rows, width) != (model.num_words + model.bucket, model.width):
        raise ValueError(
            f"it says that it has {model.num_words} words, {model.bucket} buckets and the width "
            f"{model.width}, and holds {num_rows} rows of width {width}. {_ADVICE}"
        )
    num_bytes, begin = 4 * width, file.tell()
    if num_bytes * num_rows >= most_bytes or num_bytes > LONGEST_RECORD:
        raise _cut_off()
    sums = np.zeros((len(parts), width))
    row, vector = -1, np.zeros(width, np.float32)
    # Rows are read in ascending order, since a packed file goes back only by beginning anew.
    for needed, index in sorted((row, index) for index, rows in enumerate(parts) for row in rows):
        if needed != row:
            row = needed
            file.seek(begin + row * num_bytes)
            vector = np.frombuffer(_read_bytes(file, num_bytes), "<f4")
        sums[index] += vector
    _check_end(file, begin + num_rows * num_bytes, most_bytes)
    counts = np.array([max(1, len(rows)) for rows in parts])
    with np.errstate(over="ignore"):
        return (sums / counts[:, np.newaxis]).astype(np.float32)


def _check_end(file: Any, end_of_input: int, most_bytes: float) -> None:
    """Raises if the file is cut off in the second matrix, which holds nothing of words."""
    file.seek(end_of_input)
    is_compressed, num_rows, width = _read(file, _MATRIX)
    if is_compressed:
        return
    num_bytes = 4 * num_rows * width
    if min(num_rows, width) < 0 or num_bytes > min(most_bytes, LARGEST_FILE):
        raise _cut_off()
    if num_bytes:
        file.seek(file.tell() + num_bytes - 1)
        _read_bytes(file, 1)


def _read(file: Any, form: struct.Struct) -> tuple[Any, ...]:
    return form.unpack(_read_bytes(file, form.size))


def _read_bytes(file: Any, num_bytes: int) -> bytes:
    content = file.read(num_bytes)
    if len(content) < num_bytes:
        raise _cut_off()
    return content


def _hash(part: bytes) -> int:
    """FNV-1a of 32 bits, with bytes as signed numbers: `Dictionary::hash` of `dictionary.cc`."""
    value = 2166136261
    for byte in part:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


_ADVICE = "Get the file anew"


def _cut_off() -> ValueError:
    return ValueError(f"it is a fastText model that is cut off. {_ADVICE}")


def _compressed() -> ValueError:
    return ValueError(
        "it is a fastText model that is compressed (`.ftz`), which holds its vectors only roughly. "
        "Use the `.bin` or `.vec` that it was made of"
    )
