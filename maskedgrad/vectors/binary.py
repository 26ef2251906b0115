"""Vectors in word2vec's binary format: a header, then words, each with the bytes of its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from maskedgrad.vectors.found import CHUNK, LONGEST_RECORD, Slots, SourceVectors, quoted
from maskedgrad.vectors.text import Header

NEWLINE = 10


def read_binary(
    file: Any, header: Header, most_bytes: float, slot_of: Mapping[str, int], num_slots: int
) -> SourceVectors:
    """The vectors of the wanted words in a file of word2vec binary.

    Equivalent to what `gensim.models.KeyedVectors.load_word2vec_format(path,
    binary=True)` reads, if the file holds what its header says.

    Args:
        file: a binary file at its beginning.
        header: of the first line.
        most_bytes: the most that the file may hold.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.

    Raises:
        ValueError: the file holds more or less than the header says.
    """
    num_bytes = 4 * header.width
    _check_size(header, num_bytes, most_bytes)
    file.readline()
    slots = Slots(slot_of, num_slots, header.width)
    chunk, start = b"", 0
    ends_lines = False
    for number in range(1, header.num_rows + 1):
        while (space := chunk.find(b" ", start)) < 0 or space + 1 + num_bytes > len(chunk):
            more = file.read(CHUNK)
            if not more or (space < 0 and len(chunk) - start > LONGEST_RECORD):
                raise ValueError(f"{header}, and its record {number} is not complete. {_ADVICE}")
            chunk, start = chunk[start:] + more, 0
        word = chunk[start:space].lstrip(b"\n")
        # Some programs end every record with a newline, and others none: if they differ, a number
        # is longer or shorter than it should be.
        ends_line = chunk[start] == NEWLINE
        if b"\n" in word or (number > 2 and ends_line != ends_lines):
            raise ValueError(
                f"{header}, and its record {number} begins with {quoted(word)}. {_ADVICE}"
            )
        ends_lines = ends_line
        slot = slots.slot_to_fill(word)
        if slot is not None:
            slots.fill(slot, np.frombuffer(chunk, "<f4", header.width, space + 1))
        start = space + 1 + num_bytes
    if chunk[start:] + file.read(2) not in (b"", b"\n"):
        raise ValueError(f"{header}, and it goes on after them. {_ADVICE}")
    return slots.found()


_ADVICE = (
    "The file is damaged, its header is of another one, or a word holds a space, which the format "
    "has no way to tell"
)


def _check_size(header: Header, num_bytes: int, most_bytes: float) -> None:
    # Memory is allocated by the width in the header, so the first record must confirm it.
    if not 0 < num_bytes * max(header.num_rows, 1) < most_bytes or num_bytes > LONGEST_RECORD:
        raise ValueError(f"{header}, and it is too short for that. Get the file anew")
