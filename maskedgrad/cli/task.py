"""What the demo's ways are trained and tried on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maskedgrad.reports.nearest import Neighbour, nearest

PADDING = "<padding>"
NUM_NEIGHBOURS = 5


class Examples(NamedTuple):
    """Sentences as ids, int32 of shape `(n, length)`, and their classes, of shape `(n,)`."""

    ids: np.ndarray
    classes: np.ndarray


class Task(NamedTuple):
    """Sentences to classify, as ids in a table of vectors.

    - `description`: what it consists of, in a few sentences.
    - `classes`: what the classes are called.
    - `vocabulary`: the V words, in the order of the table. The first stands
      for padding, and the last are the symbols that should train.
    - `num_symbols`: how many symbols there are.
    - `matrix`: the table, float32 of shape `(V, D)`, with zeros for symbols.
    - `hidden_units`: of the layer between the mean of the vectors and the
      classes; `None` for none, as in fastText's classifier.
    - `training`: what is trained on.
    - `tests`: what accuracies are of, by what each of them is called.
    """

    description: str
    classes: Sequence[str]
    vocabulary: Sequence[str]
    num_symbols: int
    matrix: np.ndarray
    hidden_units: int | None
    training: Examples
    tests: Mapping[str, Examples]

    @property
    def symbols(self) -> list[str]:
        """The symbols that should train."""
        return list(self.vocabulary[-self.num_symbols :])

    @property
    def symbol_ids(self) -> list[int]:
        """The ids of the symbols, which come last."""
        return list(range(len(self.vocabulary) - self.num_symbols, len(self.vocabulary)))


def encode(
    sentences: Sequence[Sequence[str]],
    classes: Sequence[int],
    vocabulary: Sequence[str],
    unknown: str | None = None,
) -> Examples:
    """Sentences as rows of ids of one length, with padding, id 0, after the shorter ones.

    Args:
        sentences: sequences of words.
        classes: the class of each sentence.
        vocabulary: the words in the order of their ids.
        unknown: the word that stands for those that the vocabulary lacks, which
            are left out without it.

    Example:

    >>> encode([["a", "cat"], ["dog"]], [0, 1], ["<padding>", "a", "dog"], unknown="a").ids
    array([[1, 1],
           [2, 0]], dtype=int32)
    """
    id_of = {word: index for index, word in enumerate(vocabulary)}
    rows = [
        [id_of.get(word, id_of[unknown]) if unknown else id_of[word]
         for word in words if unknown or word in id_of]
        for words in sentences
    ]  # fmt: skip
    ids = np.zeros((len(rows), max(map(len, rows))), "int32")
    for row, words in zip(ids, rows, strict=True):
        row[: len(words)] = words
    return Examples(ids, np.array(classes))


def nearest_words(
    table: np.ndarray, vocabulary: Sequence[str], symbol_ids: Sequence[int]
) -> list[list[Neighbour]]:
    """For each symbol the `NUM_NEIGHBOURS` words nearest to it, none of them a symbol.

    Args:
        table: float32 of shape `(V, D)`; row 0 stands for padding, and is zero.
        vocabulary: the V words.
        symbol_ids: the ids of the symbols.

    Example:

    >>> table = np.float32([[0, 0], [3, 4], [4, 3], [1, 2], [1, 2]])
    >>> (near, _) = nearest_words(table, [PADDING, "cat", "dog", "<a>", "<b>"], [3, 4])
    >>> [each.word for each in near]
    ['cat', 'dog']
    """
    found = nearest(table, list(symbol_ids), vocabulary, NUM_NEIGHBOURS + len(symbol_ids))
    words = ([each for each in near if each.id not in symbol_ids] for near in found.values())
    return [near[:NUM_NEIGHBOURS] for near in words]
