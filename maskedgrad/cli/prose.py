"""The prose that Python ships with: sentences to classify, as ids in a table of vectors."""

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maskedgrad.cli.task import Examples, Task, encode

NAME, NUMBER, UNKNOWN = "<name>", "<number>", "<unknown>"
SPECIAL = [NAME, NUMBER, UNKNOWN]
SHORTEST, LONGEST = 5, 40  # words a sentence
NUM_CLASSES = 8
TRAINING_SIZE, VALIDATION_SIZE = 100, 200  # sentences a package

VALIDATION = "validation"

Sentence = tuple[str, ...]


def read_prose(stdlib: Path) -> dict[str, list[Sentence]]:
    """The distinct sentences of each package of the standard library, the largest first.

    They come from docstrings and, for the package `pydoc_data`, from the
    topics of Python's manual. Sources are parsed and not imported, since
    importing has effects. A sentence that several packages share belongs to
    the first.

    Args:
        stdlib: the directory of the standard library's sources.

    Returns:
        A dict from the name of a package to its sentences, tuples of
        `SHORTEST` to `LONGEST` words.

    Raises:
        FileNotFoundError: this Python comes without its manual.
    """
    package_of: dict[Sentence, str] = {}
    for package, text in [*_topics(), *_docstrings(stdlib)]:
        for sentence in sentences_in(text):
            package_of.setdefault(sentence, package)
    prose = defaultdict(list)
    for sentence, package in package_of.items():
        prose[package].append(sentence)
    return {p: prose[p] for p in sorted(prose, key=lambda p: (-len(prose[p]), p))}


def sentences_in(text: str) -> Iterator[Sentence]:
    """The sentences of a text as words and symbols, without those in doctests.

    Args:
        text: paragraphs, with empty lines between them.

    Yields:
        Tuples of `SHORTEST` to `LONGEST` words. Shorter sentences are left
        out, and longer ones cut off.

    Example:

    >>> list(sentences_in("Return the value of sys.maxsize, or 42."))
    [('return', 'the', 'value', 'of', '<name>', 'or', '<number>')]
    """
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph:
            continue
        for sentence in re.split(r"(?<=[.!?:;])\s+", paragraph):
            tokens = re.findall(r"\w+(?:[.']\w+)*(?:\(\))?", sentence)
            if len(tokens) >= SHORTEST:
                yield tuple(word_or_symbol(token) for token in tokens[:LONGEST])


@functools.cache
def word_or_symbol(token: str) -> str:
    """The word that a token is, in lower case, or the symbol that stands for it.

    Args:
        token: a run of letters, digits and underscores, with dots or
            apostrophes inside and `()` after it.

    Returns:
        `NUMBER`, `NAME` for what only code spells that way, or the word.

    Example:

    >>> [word_or_symbol(token) for token in ["Reads", "read_csv", "os.path", "0x1F", "e.g"]]
    ['reads', '<name>', '<name>', '<number>', 'e.g']
    """
    if re.fullmatch(r"0[xob][\da-f_]+|\d[\d_]*(\.\d+)*(e[+-]?\d+)?", token.lower()):
        return NUMBER
    if re.search(r"_|\d|\(|[a-z][A-Z]|[A-Z]{2}[a-z]{2}|[^\W\d]{2}\.[^\W\d]{2}", token):
        return NAME
    return token.lower()


class Split(NamedTuple):
    """Sentences of the largest packages, some to train on and some that nothing else may see.

    `training` and `validation` pair sentences with the place of their package
    in `packages`; `for_vectors` are all sentences but those of `validation`,
    and `words` the words of all.
    """

    packages: list[str]
    training: list[tuple[Sentence, int]]
    validation: list[tuple[Sentence, int]]
    for_vectors: list[Sentence]
    words: list[str]


def split(prose: Mapping[str, Sequence[Sentence]]) -> Split:
    """Splits the sentences of the first packages.

    Args:
        prose: sentences by package, the largest first.

    Raises:
        ValueError: `prose` is too small.
    """
    packages = list(prose)[:NUM_CLASSES]
    _check_sizes([len(prose[package]) for package in packages])
    training, validation = [], []
    random = np.random.default_rng(0)
    for label, package in enumerate(packages):
        chosen = [prose[package][i] for i in random.permutation(len(prose[package]))]
        training += [(sentence, label) for sentence in chosen[:TRAINING_SIZE]]
        validation += [(sentence, label) for sentence in chosen[TRAINING_SIZE:][:VALIDATION_SIZE]]
    sentences = [sentence for package in prose for sentence in prose[package]]
    unseen = {sentence for sentence, _ in validation}
    words = {word for sentence in sentences for word in sentence} - set(SPECIAL)
    return Split(
        packages, training, validation, [s for s in sentences if s not in unseen], sorted(words)
    )


def make_task(split: Split, vocabulary: Sequence[str], matrix: np.ndarray) -> Task:
    """Sentences to be told apart by their package.

    Args:
        split: the sentences.
        vocabulary: words, in the order of their rows. The first stands for padding.
        matrix: their vectors, float32 of shape `(V, D)`.
    """
    words = [*vocabulary, *SPECIAL]
    return Task(
        description=(
            "A real task, where training the whole table is the better choice: "
            f"{len(split.training)} sentences to train on and {len(split.validation)} to validate, "
            f"to be told apart by their package: {', '.join(split.packages)}. The table has "
            f"{len(words):,} rows of width {matrix.shape[1]}, of which {', '.join(SPECIAL)} should "
            "train."
        ),
        classes=split.packages,
        vocabulary=words,
        num_symbols=len(SPECIAL),
        matrix=np.pad(matrix, [(0, len(SPECIAL)), (0, 0)]),
        hidden_units=64,
        training=_encoded(split.training, words),
        tests={VALIDATION: _encoded(split.validation, words)},
    )


def _topics() -> Iterator[tuple[str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "The demo reads the topics of Python's manual, from `pydoc_data.topics`. "
            f"Received: {error}. Run it with a Python that was installed with its manual."
        ) from error
    for topic in sorted(topics):
        yield "pydoc_data", topics[topic]


def _docstrings(stdlib: Path) -> Iterator[tuple[str, str]]:
    for path in _sources(stdlib):
        source = path.read_bytes()
        if b'"""' in source:
            package = path.relative_to(stdlib).with_suffix("").parts[0]
            for docstring in _docstrings_in(ast.parse(source)):
                yield package, docstring


def _sources(directory: Path) -> Iterator[Path]:
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    for path in sorted(directory.iterdir()):
        if path.is_dir() and path.name not in skipped:
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _docstrings_in(node: ast.AST) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, documented):
        yield ast.get_docstring(node) or ""
        for child in node.body:
            yield from _docstrings_in(child)


def _check_sizes(sizes: Sequence[int]) -> None:
    size = TRAINING_SIZE + VALIDATION_SIZE
    num_large = sum(n >= size for n in sizes)
    if num_large < NUM_CLASSES:
        raise ValueError(
            f"The demo needs {NUM_CLASSES} packages of the standard library with {size} sentences "
            f"each in their docstrings. Received: {num_large} of them. "
            "Run it with a Python that was installed with its sources."
        )


def _encoded(labelled: Sequence[tuple[Sentence, int]], vocabulary: Sequence[str]) -> Examples:
    sentences, classes = zip(*labelled, strict=True)
    return encode(sentences, classes, vocabulary, unknown=UNKNOWN)
