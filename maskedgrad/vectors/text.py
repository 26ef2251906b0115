"""Vectors in text, as GloVe, word2vec and fastText write them: a word and its numbers a line."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from maskedgrad.vectors.found import CHUNK, LONGEST_RECORD, Slots, SourceVectors, few, quoted

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NUM_SAMPLED = 100
LONGEST_HEADER = 100
# Python's `float` takes `1_000` too, which is a word rather than a number.
is_number = re.compile(
    rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)", re.IGNORECASE
).fullmatch
# What a word may end in: `Formula 1`, `1 000`, `not a nan`.
is_plain = re.compile(rb"\d+|nan|inf|infinity", re.IGNORECASE).fullmatch
NUMBER_STARTS = frozenset(b"+-.0123456789nNiI")


class Header(NamedTuple):
    """What the first line of a file says that the file holds."""

    num_rows: int
    width: int

    def __str__(self) -> str:
        return f"its header says {self.num_rows} vectors of width {self.width}"


class _Line(NamedTuple):
    number: int
    text: bytes

    def __str__(self) -> str:
        return f"line {self.number}, {quoted(self.text)}"


def header_of(line: bytes) -> Header | None:
    """The header of a file, if its first line is one: two whole numbers."""
    parts = line[:LONGEST_HEADER].removeprefix(BYTE_ORDER_MARK).split()
    if len(parts) != 2 or not all(part.isdigit() and len(part) < 20 for part in parts):
        return None
    return Header(int(parts[0]), int(parts[1]))


def looks_like_rows(content: bytes) -> bool:
    """Whether the beginning of a file, without its header, is rows of text: they end in numbers.

    Bytes of binary vectors that do are rare; of most lines they never do.
    """
    *whole, rest = content.split(b"\n")
    rows = [line.rstrip() for line in whole[:NUM_SAMPLED] if line.strip()]
    # Without a whole line: what is cut off here may end in a piece of a number.
    rows = rows or [rest if len(content) < CHUNK else rest.rpartition(b" ")[0]]
    return not content.strip() or 2 * sum(map(_is_row, rows)) >= len(rows)


def are_rows(content: bytes) -> bool:
    """Whether all lines of a file, without its header, are rows of text.

    A last one without its end is none if bytes below a tab come after its first space: they are
    of a binary number, since a file of text would be refused for the end that it lacks.
    """
    numbers = content.rpartition(b"\n")[2].partition(b" ")[2]
    lines = filter(None, map(bytes.rstrip, content.split(b"\n")))
    return min(numbers, default=ord("\t")) >= ord("\t") and all(map(_is_row, lines))


def _is_row(line: bytes) -> bool:
    _, space, last = line.rpartition(b" ")
    return bool(space and is_number(last))


def without_mark(word: bytes, slot_of: Mapping[str, int]) -> bytes:
    """A first word without the mark that some editors begin a file with.

    The mark may be of the word too, if that is a wanted one.
    """
    rest = word.removeprefix(BYTE_ORDER_MARK)
    is_of_word = _decoded(word) in slot_of and _decoded(rest) not in slot_of
    return word if is_of_word else rest


def read_text(
    file: Any, header: Header | None, slot_of: Mapping[str, int], num_slots: int
) -> SourceVectors:
    """The vectors of the wanted words in a file of text.

    Equivalent to what `gensim.models.KeyedVectors.load_word2vec_format` reads,
    where that reads the file. The last D fields of a line are its numbers, and
    the word is what stands before them. D is what the header says, or else
    what most of the first lines end in. Of lines whose word is not wanted the
    numbers are counted and not parsed.

    Args:
        file: a binary file at its beginning.
        header: of the first line, if that is one.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.

    Raises:
        ValueError: a line is not a word and D numbers, the last one has no
            end, the header says something else, or no wanted word was found.
    """
    lines = _lines(file)
    if header is not None:
        next(lines)
    sample = _sample(lines)
    width = _width(sample, header)
    rows = _Rows(Slots(slot_of, num_slots, width), slot_of, width)
    for line in itertools.chain(sample, lines):
        rows.add(line)
    rows.check(header)
    return rows.slots.found()


class _Rows:
    """The rows of a file that were gone through, of which those of wanted words are kept."""

    def __init__(self, slots: Slots, slot_of: Mapping[str, int], width: int):
        self.slots = slots
        self._slot_of = slot_of
        self._width = width
        self._num_rows = 0
        self._num_wanted = 0
        self._first_words: list[str] = []
        self._longer: dict[str, _Line] = {}

    def add(self, line: _Line) -> None:
        text, width = line.text, self._width
        num_spaces = text.count(b" ")
        if num_spaces == width:
            end = text.index(b" ")
            # A look at the first and at the last of many numbers.
            last = text[text.rindex(b" ") + 1 :]
            is_row = text[end + 1] in NUMBER_STARTS and bool(is_number(last))
        else:
            end = len(text.rsplit(b" ", width)[0])
            is_row = num_spaces > width and all(map(is_number, text[end + 1 :].split(b" ")))
        if not is_row:
            raise _not_a_row(line, width)
        self._num_rows += 1
        word = text[:end]
        if line.number == 1:
            word = without_mark(word, self._slot_of)
        if self._num_rows <= 5:
            self._first_words.append(quoted(word))
        if num_spaces > width:
            self._note_longer(line, word)
        slot = self.slots.slot_to_fill(word)
        if slot is not None:
            self.slots.fill(slot, _numbers(line, text[end + 1 :]))
            self._num_wanted += 1

    def check(self, header: Header | None) -> None:
        if header is not None and header != (self._num_rows, self._width):
            raise ValueError(
                f"{header}, and it holds {self._num_rows} rows of width {self._width}. "
                "Correct the first line, or get the file anew if it is cut off"
            )
        for word, line in self._longer.items():
            if not self.slots.is_filled(word):
                raise ValueError(
                    f"{line}, is of another word than {word!r}, has a space too many, or more "
                    f"numbers than the {self._width} of other lines. Correct that line, or remove "
                    "it"
                )
        if not self._num_wanted:
            raise ValueError(
                f"it has none of the words that are wanted, such as {few(self._slot_of)}; it "
                f"begins with {', '.join(self._first_words)}. `fallbacks=[str.lower]` finds words "
                f"that are lower case there{self._hint()}"
            )

    def _note_longer(self, line: _Line, word: bytes) -> None:
        """Notes a wanted word whose vector this may be, if it has too many numbers or spaces.

        `Formula 1` before numbers such as 0.5 is a word, and `cat 0.1 0.2` and ` cat` are none.
        """
        stripped = _decoded(word.strip(b" "))
        if stripped in self._slot_of and _decoded(word) not in self._slot_of:
            self._longer.setdefault(stripped, _Line(line.number, line.text[:300]))
        first, *others = word.split(b" ")
        if _decoded(word) in self._slot_of or not any(map(is_number, others)):
            return
        tail = line.text[len(line.text.rsplit(b" ", self._width)[0]) + 1 :].split(b" ")
        looks_like_numbers = is_number if all(map(is_plain, tail)) else _is_decimal
        before = list(itertools.takewhile(lambda field: not looks_like_numbers(field), others))
        shorter = _decoded(b" ".join([first, *before]))
        if len(before) < len(others) and shorter in self._slot_of:
            self._longer.setdefault(shorter, _Line(line.number, line.text[:300]))

    def _hint(self) -> str:
        if any("\\t" in word for word in self._first_words):
            return ". A tab is read as part of a word: words and numbers are separated by spaces"
        if any(", " in word for word in self._first_words):
            return ". A comma is read as part of a word: words and numbers are separated by spaces"
        return ""


def _lines(file: Any) -> Iterator[_Line]:
    """The lines that are not blank, without the white space at their end."""
    read_line = functools.partial(file.readline, LONGEST_RECORD)
    for number, line in enumerate(iter(read_line, b""), 1):
        if line[-1] != 10:  # the end of a line
            raise _without_end(_Line(number, line))
        text = line.rstrip()
        if text and text != BYTE_ORDER_MARK:
            yield _Line(number, text)


def _without_end(line: _Line) -> ValueError:
    if len(line.text) == LONGEST_RECORD:
        return ValueError(
            f"{line}, has more than {LONGEST_RECORD} bytes. Expected a word and its numbers"
        )
    if b"\r" in line.text.strip():
        return ValueError(
            f"{line}, ends in a carriage return alone, as on an old Mac. "
            "Write it with newlines: `tr '\\r' '\\n'`"
        )
    if line.number == 1 and not _possible_widths(line.text.rstrip()):
        return _not_a_row(line, 0)  # a newline would not help
    return ValueError(
        f"its last line, line {line.number}, has no end, so it may be cut off in a number: "
        f"{quoted(line.text)}. If it is complete, end it with a newline"
    )


def _sample(lines: Iterable[_Line]) -> list[_Line]:
    sample, num_bytes = [], 0
    for line in itertools.islice(lines, NUM_SAMPLED):
        sample.append(line)
        num_bytes += len(line.text)
        if num_bytes > LONGEST_RECORD:
            break
    return sample


def _width(sample: list[_Line], header: Header | None) -> int:
    """How many numbers a row has, by the header or by most of the first lines."""
    if not sample:
        raise ValueError("it has no rows. Expected lines of a word and its numbers")
    rows = [(line, widths) for line in sample if (widths := _possible_widths(line.text))]
    if not rows:
        raise _not_a_row(sample[0], 0)
    votes = Counter(width for _, widths in rows for width in widths)
    common = max(votes, key=lambda width: (votes[width], width))
    width = common if header is None else header.width
    if 2 * votes[width] > len(rows):
        return width
    others = [_with_width(line, widths) for line, widths in rows if width not in widths]
    if header is not None:
        raise ValueError(f"{header}, and {others[0]}. Correct the first line, or that one")
    agreeing = [_with_width(line, widths) for line, widths in rows if width in widths]
    raise ValueError(
        f"its lines differ in how many numbers they have: {others[0]}, and {agreeing[0]}. "
        "Correct one of them, or begin the file with a header: the number of rows and their width"
    )


def _with_width(line: _Line, widths: range) -> str:
    return f"{line}, has {widths[-1]} numbers"


def _possible_widths(text: bytes) -> range:
    """How many numbers a line may hold: those at its end, some of which may be of the word.

    None if it is not a word and numbers.
    """
    _, *fields = text.split(b" ")
    numbers = list(itertools.takewhile(is_number, reversed(fields)))
    most = len(numbers)
    if fields[: len(fields) - most][-1:] == [b""] and any(map(is_number, fields[:-most])):
        return range(0)  # numbers are separated by more than one space
    num_plain = len(list(itertools.takewhile(is_plain, reversed(numbers))))
    return range(max(1, most - num_plain if num_plain < most else most), most + 1)


def _not_a_row(line: _Line, width: int) -> ValueError:
    numbers = f"{width} numbers" if width else "its numbers"
    return ValueError(
        f"{line}, must be a word and {numbers}, separated by single spaces{_advice(line)}"
    )


def _advice(line: _Line) -> str:
    if line.number == 1 and re.match(rb"\d+\s+\d+\s", line.text):
        return ". A header is of two numbers: how many rows there are, and their width"
    if line.text.startswith((b"<<<<<<<", b"|||||||", b"=======", b">>>>>>>")):
        return ". It is the mark of a conflict of versions: resolve that"
    if b"\t" in line.text:
        return ". It has tabs: `tr '\\t' ' '` makes spaces of them"
    if b"  " in line.text:
        return ". It has several spaces in a row: `tr -s ' '` makes one of them"
    if re.search(rb"\d,", line.text):
        return ". It has commas"
    return ". Correct that line, or remove it"


def _numbers(line: _Line, text: bytes) -> list[float]:
    fields = text.split(b" ")
    try:
        if b"_" not in text:
            return list(map(float, fields))
    except ValueError:
        pass
    odd = next((field for field in fields if not is_number(field)), text)
    raise ValueError(f"{line}, has {quoted(odd)} where a number is expected. Correct that line")


def _is_decimal(field: bytes) -> bool:
    return bool(is_number(field)) and not is_plain(field)


def _decoded(word: bytes) -> str:
    return word.decode("utf-8", "surrogateescape")
