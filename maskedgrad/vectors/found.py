"""The vectors of the wanted words, as a source is gone through."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

# A line of text or a binary record that is longer is refused, so that what a file
# claims, or what a small compressed file becomes, cannot fill the memory.
LONGEST_RECORD = 1 << 22
CHUNK = 1 << 17
MOST_REPETITIONS = 100  # of a word that are reported


class SourceVectors(NamedTuple):
    """The vectors of the wanted words.

    Each wanted word has a slot. `vectors` is float32 of shape `(S, D)`;
    `filled`, boolean of shape `(S,)`, says which slots the source filled;
    `repeated` and `num_undecodable` are what was skipped. `from_subwords` are
    vectors that the source makes of the parts of words that it lacks.
    """

    vectors: np.ndarray
    filled: np.ndarray
    repeated: tuple[str, ...] = ()
    num_undecodable: int = 0
    from_subwords: Mapping[str, np.ndarray] = {}


class Slots:
    """A slot for the vector of each wanted word, filled by the first one that is found.

    Args:
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.
        width: int, the width of the vectors, D.
    """

    def __init__(self, slot_of: Mapping[str, int], num_slots: int, width: int):
        self._slot_of = slot_of
        self._vectors = np.zeros((num_slots, width), dtype=np.float32)
        self._filled = np.zeros(num_slots, dtype=bool)
        self._repeated: Counter[str] = Counter()
        self._num_undecodable = 0

    def is_filled(self, word: str) -> bool:
        """Whether a vector of a wanted word was found."""
        return bool(self._filled[self._slot_of[word]])

    def slot_to_fill(self, encoded_word: bytes) -> int | None:
        """The slot of a word that the source has; `None` if its vector is not needed."""
        try:
            word = encoded_word.decode()
        except UnicodeDecodeError:
            # Ignoring or replacing bytes would turn one word into another.
            self._num_undecodable += 1
            return None
        slot = self._slot_of.get(word)
        if slot is not None and self._filled[slot]:
            self._repeated[word] = min(self._repeated[word] + 1, MOST_REPETITIONS)
            return None
        return slot

    def fill(self, slot: int, vector: Any) -> None:
        """Puts a vector, an array or a list of numbers, into a slot."""
        with np.errstate(over="ignore"):  # becomes infinite, and is reported
            self._vectors[slot] = vector
        self._filled[slot] = True

    def found(self, from_subwords: Mapping[str, np.ndarray] | None = None) -> SourceVectors:
        """What was found up to now."""
        return SourceVectors(
            self._vectors,
            self._filled,
            tuple(self._repeated.elements()),
            self._num_undecodable,
            from_subwords or {},
        )


def quoted(encoded: bytes) -> str:
    """How error messages show a piece of a file: the first of it, on one line."""
    text = encoded[:200].decode("utf-8", "backslashreplace")
    return repr(text if len(text) <= 60 and len(encoded) <= 200 else f"{text[:57]}...")


def few(words: Mapping[str, int]) -> list[str]:
    """How error messages show which words are wanted."""
    return [word for word, _ in zip(words, range(5), strict=False)]
