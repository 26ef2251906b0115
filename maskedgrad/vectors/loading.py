"""Pretrained vectors aligned to a vocabulary, and a report of what was found."""

import dataclasses
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from maskedgrad.messages import shorten
from maskedgrad.messages.grid import Grid, html_of, text_of
from maskedgrad.rows.vocabulary import check_words, ids_by_word, sample
from maskedgrad.vectors.found import SourceVectors
from maskedgrad.vectors.initial_values import CHUNK, check_initializer, first_values
from maskedgrad.vectors.sources import read_source

SUBWORDS = "subwords"
is_padding_token = re.compile(r"[\[<({|_]*pad(ding)?[\]>)}|_]*", re.IGNORECASE).fullmatch


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VectorReport:
    """What `load_vectors` found, and what it did not.

    Every word of the vocabulary but the padding is in `found`, a key of
    `found_as`, or in `missing`.

    Example:

    >>> _, report = load_vectors({"cat": [1.0, 2.0]}, ["", "cat", "<city>"])
    >>> print(report)
    1 of 2 words have a vector (50.0% of the words)
      under another spelling: 0
      missing: ['<city>']
      skipped: 0 not finite, 0 repeated, 0 not UTF-8
    """

    found: tuple[str, ...]
    """Words whose vector the source holds under the same spelling."""

    found_as: dict[str, str]
    """Words found under another spelling only, and that spelling."""

    missing: tuple[str, ...]
    """Words without a vector, in the order of their ids."""

    missing_ids: npt.NDArray[np.int64]
    """The ids to train: those of `missing`, and ids below V that no word has.
    A read-only, ascending int64 array."""

    padding_id: int | None
    """The id of the row that stays zero."""

    not_finite: tuple[str, ...]
    """Spellings skipped because their vector holds NaN or infinity."""

    repeated: tuple[str, ...]
    """Spellings that the source repeats, each as often as it was skipped, up to a hundred times:
    the first vector counts."""

    num_undecodable: int
    """How many rows of the file were skipped because their word is not UTF-8."""

    type_coverage: float
    """The share of the words of the vocabulary, padding aside, that have a vector."""

    token_coverage: float | None
    """The same, each word weighed by its count; `None` if no counts were given."""

    def __str__(self) -> str:
        return text_of(self._grid())

    def __repr__(self) -> str:
        return f"VectorReport({self._num_found} of {self._num_words} words have a vector)"

    def _repr_html_(self) -> str:
        return html_of(self._grid())

    @property
    def _num_found(self) -> int:
        return len(self.found) + len(self.found_as)

    @property
    def _num_words(self) -> int:
        return self._num_found + len(self.missing)

    def _grid(self) -> Grid:
        tokens = "" if self.token_coverage is None else f", {self.token_coverage:.1%} of the tokens"
        title = (
            f"{self._num_found} of {self._num_words} words have a vector "
            f"({self.type_coverage:.1%} of the words{tokens})"
        )
        notes = [
            f"under another spelling: {len(self.found_as)}",
            f"missing: {sample(list(self.missing))}",
            f"skipped: {len(self.not_finite)} not finite, {len(self.repeated)} repeated, "
            f"{self.num_undecodable} not UTF-8",
        ]
        return Grid(title, notes=notes)


def load_vectors(
    source: Any,
    vocabulary: Any,
    initializer: Any = "normal",
    *,
    noise: float = 0.0,
    fallbacks: Sequence[Callable[[str], str]] = (),
    counts: Mapping[str, float] | None = None,
    padding: str | int | None = None,
    seed: int | None = None,
) -> tuple[npt.NDArray[np.float32], VectorReport]:
    """Pretrained vectors as the table of a vocabulary, and which words have none.

    The row of a word that is found is the source's vector, bit for bit as
    gensim reads it in float32. Of a file only the wanted rows are kept in
    memory, and of text only they are parsed.

    Args:
        source: the path of a file of GloVe text, word2vec text, fastText
            `.vec`, word2vec binary or a fastText `.bin`, plain or packed by
            gzip, bz2, xz or zip (`archive.zip/member.txt` if it has several
            members), which is told by its content; a gensim `KeyedVectors`;
            or a mapping from word to vector.
        vocabulary: as for `row_ids`. V is one more than its largest id.
        initializer: first values of the missing rows: `"zeros"`; `"mean"`, the
            mean of the vectors found; `"normal"`, drawn with the mean and the
            variance of each of their columns; a mapping from a missing word
            to words that describe it, `{"<city>": ["town", "place"]}`, whose
            mean it starts from, while missing words that it lacks are drawn
            as by `"normal"`; `"subwords"`, what a fastText source makes of
            the parts of a missing word, while a word without parts is drawn
            as by `"normal"`; a `keras.initializers.Initializer` or the name
            of one, called for the shape `(K, D)` of the missing rows; or a
            function of the missing words (a list, `""` for an id without a
            word) and the table so far that returns an array of shape
            `(K, D)`. Rows of zeros count for no mean.
        noise: float, the deviation of noise on zeros, means and vectors made
            of subwords, in units of the deviation of each column.
        fallbacks: functions from a word to another spelling, such as
            `str.lower` and `str.strip`, tried in order for a word that the
            source does not hold.
        counts: a mapping from word to how often it occurs.
        padding: the word or the id whose row stays zero. Without it, that of
            the word `""`, else row 0 if no word has it, else none. A warning
            hints at it if row 0 is of a word such as `[PAD]`.
        seed: int, makes drawn rows the same each time.

    Returns:
        The table, float32 of shape `(V, D)`, and a `VectorReport`, whose
        `missing_ids` go straight into `trainable_rows`.

    Raises:
        OSError: there is no such file.
        TypeError: an argument is of another type.
        ValueError: the file is of another kind, is cut off, has a header that
            does not fit it, or a line that is not a word and its numbers; no
            word of the vocabulary has a vector; or an argument is not valid.

    Example:

    >>> vectors = {"cat": [1.0, 2.0], "dog": [3.0, 4.0]}
    >>> matrix, report = load_vectors(vectors, ["", "cat", "Dog", "<city>"], "mean",
    ...                               fallbacks=[str.lower])
    >>> matrix.tolist()
    [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]
    >>> report.missing, report.missing_ids.tolist(), report.found_as
    (('<city>',), [3], {'Dog': 'dog'})
    """
    wants_subwords = isinstance(initializer, str) and initializer == SUBWORDS
    check_initializer({} if wants_subwords else initializer, noise)
    _check_counts(counts)
    words = ids_by_word(vocabulary)
    num_rows = max(words.values(), default=-1) + 1
    padding_id = _padding_id(padding, words, num_rows)
    for word in [word for word, row in words.items() if row == padding_id]:
        del words[word]
    if not words:
        raise ValueError(
            f"The vocabulary must hold a word beside the padding. Received: {vocabulary!r}"
        )
    descriptions = _descriptions(initializer, words)
    spellings_of = _spellings(words, fallbacks)
    slot_of = _slots(words, num_rows, [*spellings_of.values(), *descriptions.values()])
    num_slots = num_rows + len(slot_of) - len(words)
    read = read_source(source, slot_of, num_slots, list(words) if wants_subwords else None)
    not_finite = _drop_not_finite(read, slot_of)

    matrix = read.vectors[:num_rows]
    has_vector = read.filled[:num_rows].copy()
    found_as = _found_as(words, spellings_of, slot_of, read.filled)
    for word, spelling in found_as.items():
        matrix[words[word]] = read.vectors[slot_of[spelling]]
        has_vector[words[word]] = True
    _check_any(has_vector, words, not_finite)

    missing_ids = _missing_ids(has_vector, padding_id)
    word_of = {row: word for word, row in words.items() if not has_vector[row]}
    missing = [word_of.get(row, "") for row in missing_ids.tolist()]
    if wants_subwords:
        initializer = read.from_subwords
    elif isinstance(initializer, Mapping):
        initializer = {
            word: _center(word, descriptions[word], slot_of, read)
            for word in missing
            if word in descriptions
        }
    matrix[missing_ids] = first_values(
        initializer, missing, matrix, np.flatnonzero(has_vector), noise=noise, seed=seed
    )
    return matrix, VectorReport(
        found=tuple(word for word, row in words.items() if read.filled[row]),
        found_as=found_as,
        missing=tuple(word_of[row] for row in sorted(word_of)),
        missing_ids=missing_ids,
        padding_id=padding_id,
        not_finite=not_finite,
        repeated=read.repeated,
        num_undecodable=read.num_undecodable,
        type_coverage=1 - len(word_of) / len(words),
        token_coverage=None if counts is None else _coverage(words, has_vector, counts),
    )


def _padding_id(padding: str | int | None, id_of: Mapping[str, int], num_rows: int) -> int | None:
    if padding is None:
        found = id_of.get("", None if 0 in id_of.values() else 0)
        _hint_at_padding(id_of, found)
        return found
    if isinstance(padding, str) and padding in id_of:
        return id_of[padding]
    is_id = isinstance(padding, (int, np.integer)) and not isinstance(padding, bool)
    if is_id and 0 <= int(padding) < num_rows:
        return int(padding)
    raise ValueError(
        f"`padding` must be a word of the vocabulary or an id below {num_rows}. "
        f"Received: padding={padding!r}"
    )


def _hint_at_padding(id_of: Mapping[str, int], padding_id: int | None) -> None:
    if padding_id == 0:
        return
    first = next((word for word, row in id_of.items() if row == 0), "")
    if is_padding_token(first):
        warnings.warn(
            f"Row 0 is of {first!r}, which looks like padding, and it is read as any other word: "
            f"it does not stay zero, and trains if it has no vector. `padding={first!r}` makes it "
            "the padding row.",
            stacklevel=4,
        )


def _descriptions(initializer: Any, words: Mapping[str, int]) -> dict[str, Sequence[str]]:
    if not isinstance(initializer, Mapping):
        return {}
    unknown = [word for word in initializer if word not in words]
    if unknown:
        raise ValueError(
            "`initializer` must describe words of the vocabulary, and not the padding. "
            f"Received a description of: {sample(unknown)}"
        )
    for word, description in initializer.items():
        if not check_words(description, f"What describes {word!r}"):
            raise ValueError(f"{word!r} must be described by at least one word. Received: none")
    return dict(initializer)


def _check_counts(counts: Any) -> None:
    if counts is None:
        return
    if not isinstance(counts, Mapping):
        raise TypeError(
            "`counts` must be a mapping from word to how often it occurs. "
            f"Received: {shorten(counts)}. `collections.Counter(words)` counts words."
        )
    for word, count in counts.items():
        if not isinstance(count, (int, float, np.integer, np.floating)) or not 0 <= count < np.inf:
            raise ValueError(
                "`counts` must hold numbers that are not negative. "
                f"Received: {shorten(count)} for {word!r}. Leave a word that does not occur out."
            )


def _spellings(
    words: Iterable[str], fallbacks: Sequence[Callable[[str], str]]
) -> dict[str, list[str]]:
    """The other spellings of each word; nothing where there are no fallbacks."""
    if not isinstance(fallbacks, (list, tuple)) or not all(map(callable, fallbacks)):
        raise TypeError(
            "`fallbacks` must be a list of functions from a word to another spelling. "
            f"Received: {shorten(fallbacks)}. A single one goes in a list: `[str.lower]`."
        )
    spellings_of: dict[str, list[str]] = {}
    for word in words if fallbacks else ():
        spellings_of[word] = [fallback(word) for fallback in fallbacks]
        for fallback, spelling in zip(fallbacks, spellings_of[word], strict=True):
            if not isinstance(spelling, str):
                raise TypeError(
                    "A function of `fallbacks` must return a string. Received: "
                    f"{shorten(spelling)} for {word!r} of {shorten(fallback)}. Return the word "
                    "where it has no other spelling."
                )
    return spellings_of


def _slots(
    words: dict[str, int], num_rows: int, more_words: Iterable[Sequence[str]]
) -> dict[str, int]:
    """A slot for each wanted word: its row, and for one that has none a slot after all rows."""
    more = dict.fromkeys(
        word for word in itertools.chain.from_iterable(more_words) if word not in words
    )
    # A dict of a large vocabulary is half as large as its table: no copy without need.
    return {**words, **dict(zip(more, itertools.count(num_rows)))} if more else words


def _drop_not_finite(read: SourceVectors, slot_of: Mapping[str, int]) -> tuple[str, ...]:
    not_finite = np.zeros_like(read.filled)
    for start in range(0, len(not_finite), CHUNK):
        rows = slice(start, start + CHUNK)
        not_finite[rows] = ~np.isfinite(read.vectors[rows]).all(axis=1)
    slots = np.flatnonzero(not_finite)
    read.vectors[slots] = 0.0
    read.filled[slots] = False
    return tuple(word for word, slot in slot_of.items() if not_finite[slot]) if len(slots) else ()


def _found_as(
    words: Mapping[str, int],
    spellings_of: Mapping[str, Sequence[str]],
    slot_of: Mapping[str, int],
    filled: np.ndarray,
) -> dict[str, str]:
    found = {
        word: next((spelling for spelling in spellings if filled[slot_of[spelling]]), None)
        for word, spellings in spellings_of.items()
        if not filled[words[word]]
    }
    return {word: spelling for word, spelling in found.items() if spelling is not None}


def _check_any(has_vector: np.ndarray, words: Mapping[str, int], not_finite: Sequence[str]) -> None:
    if not has_vector.any():
        raise ValueError(
            "At least one word of the vocabulary must have a finite vector in `source`. "
            f"Received the words {sample(list(words))}, of which {len(not_finite)} have a vector "
            "that is not finite, and the others none. "
            "`fallbacks=[str.lower]` finds words that are lower case there."
        )


def _center(
    word: str, description: Sequence[str], slot_of: Mapping[str, int], read: SourceVectors
) -> np.ndarray:
    slots = [slot_of[describing] for describing in description]
    if not read.filled[slots].all():
        absent = [d for d, slot in zip(description, slots, strict=True) if not read.filled[slot]]
        raise ValueError(
            f"The words that describe {word!r} must have a finite vector in `source`. "
            f"Received words that have none: {sample(absent)}"
        )
    return read.vectors[slots].mean(axis=0, dtype=np.float64)


def _missing_ids(has_vector: np.ndarray, padding_id: int | None) -> npt.NDArray[np.int64]:
    is_missing = ~has_vector
    if padding_id is not None:
        is_missing[padding_id] = False
    missing_ids = np.flatnonzero(is_missing)
    missing_ids.setflags(write=False)
    return missing_ids


def _coverage(
    words: Mapping[str, int], has_vector: np.ndarray, counts: Mapping[str, float]
) -> float:
    total = sum(counts.get(word, 0) for word in words)
    covered = sum(counts.get(word, 0) for word, row in words.items() if has_vector[row])
    return covered / total if total else 0.0
