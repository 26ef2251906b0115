"""Vectors in an array, `.npy` or safetensors, with their words in a file beside it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maskedgrad.vectors.found import CHUNK, Slots, SourceVectors
from maskedgrad.vectors.text import without_mark

TENSOR_NAME = "embeddings"
SAFETENSORS_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NPY = b"\x93NUMPY"


def words_beside(path: Path) -> Path:
    """The file of the words of an array: one a line, as `vocab.txt` of BERT and of Keras has them.

    Example:

    >>> words_beside(Path("words.npy")).name
    'words.vocab.txt'
    """
    return path.with_suffix(".vocab.txt")


def is_array_with_words(path: Path) -> bool:
    """Whether a file holds an array, and there is a file of words beside it."""
    if not words_beside(path).is_file() or not path.is_file():
        return False
    head = _head(path)
    return head.startswith(NPY) or head[7:] == b"\0{"


def read_array(path: Path, slot_of: Mapping[str, int], num_slots: int) -> SourceVectors:
    """The vectors of the wanted words in an array with words beside it.

    Only some rows are in memory at a time, beside those that are wanted.

    Args:
        path: of a `.npy` file, or of a safetensors file with one matrix.
        slot_of: the wanted words, each with its slot.
        num_slots: int, how many slots there are, S.

    Raises:
        ImportError: it is a safetensors file, and the extra `patch` is not
            installed.
        ValueError: it is no matrix of floats, or has more or fewer rows than
            there are words.
    """
    matrix = _npy(path) if _head(path).startswith(NPY) else _safetensors(path)
    shape = tuple(matrix.shape)
    words = _words(words_beside(path), slot_of)
    if len(shape) != 2 or len(words) != shape[0]:
        raise ValueError(
            f"its words, in {words_beside(path).name!r}, are {len(words)}, and it is of shape "
            f"{shape}. Expected a row for each word"
        )
    slots = Slots(slot_of, num_slots, shape[1])
    for start, rows in _chunks(matrix, shape):
        for word, row in zip(words[start : start + len(rows)], rows, strict=True):
            slot = slots.slot_to_fill(word)
            if slot is not None:
                slots.fill(slot, row)
    return slots.found()


def _words(path: Path, slot_of: Mapping[str, int]) -> list[bytes]:
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"its words, in {path.name!r}, are of UTF-16, and UTF-8 is expected")
    # Editors of Windows end lines so. No word that was written has a carriage return.
    first, *others = content.replace(b"\r\n", b"\n").split(b"\n")
    words = [without_mark(first, slot_of), *others]
    if words.pop():
        raise ValueError(
            f"its words, in {path.name!r}, do not end in a newline, so the last one may be cut off"
        )
    return words


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _npy(path: Path) -> Any:
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy does not say what it raises for damaged files
        raise ValueError(f"it is no array as `numpy.save` writes it ({error})") from error
    if matrix.dtype.kind != "f":
        raise ValueError(f"it is an array of {matrix.dtype}. Expected floats")
    return matrix


def _safetensors(path: Path) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ImportError(
            "Vectors in a safetensors file are read by the library safetensors. "
            'Install it: pip install "maskedgrad[patch]"'
        ) from error
    try:
        file: Any = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is no whole safetensors file ({error})") from error
    names = list(file.keys())
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} tensors, {names[:5]}. Expected one matrix")
    return _Slice(file.get_slice(names[0]))


class _Slice:
    """A tensor of a safetensors file, as an array that is read by slices of rows."""

    def __init__(self, tensor: Any):
        self._tensor = tensor
        self.shape = tuple(tensor.get_shape())
        if tensor.get_dtype() not in SAFETENSORS_DTYPES.values():
            raise ValueError(f"it is a tensor of {tensor.get_dtype()}. Expected floats")

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._tensor[rows]


def _chunks(matrix: Any, shape: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield start, matrix[start : min(start + step, shape[0])]
