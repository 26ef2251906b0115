"""The file of a row patch: safetensors, written whole or not at all, with a checksum.

safetensors is what the neighbours use: a header in JSON, then plain arrays, no
code. It has no checksum of its own, so the header carries one, of everything
that the file says.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskedgrad.files import FilePath, check_no_folder, write_whole
from maskedgrad.messages import shorten

VERSION = 1
LONGEST_HEADER = 100_000_000  # that safetensors reads

Tensors = Mapping[str, np.ndarray]


def write_patch_file(path: FilePath, tables: Mapping[str, Any], tensors: Tensors) -> None:
    """Writes what a patch holds to a file, whole or not at all.

    Args:
        path: where to; a file there is replaced.
        tables: a JSON value of each table, by its path.
        tensors: contiguous arrays, by name.

    Raises:
        ImportError: the extra `patch` is not installed.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_patch_file(f"{folder}/patch", {"words": 1}, {"words/ids": np.arange(2)})
    ...     read_patch_file(f"{folder}/patch")
    ({'words': 1}, {'words/ids': array([0, 1])})
    """
    header = {"version": VERSION, "tables": tables, "sha256": checksum(tables, tensors)}
    metadata = {"row_patch": json.dumps(header, sort_keys=True)}
    write_whole(path, to_safetensors(tensors, metadata))


def read_patch_file(path: FilePath) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The inverse of `write_patch_file`.

    Returns:
        The JSON value of each table, and the tensors.

    Raises:
        ImportError: the extra `patch` is not installed.
        FileNotFoundError: there is no such file.
        ValueError: the file is no row patch, or not as it was written.
    """
    metadata, tensors = read_safetensors(path)
    header = _header(path, metadata)
    version, tables = header.get("version"), header.get("tables")
    if version != VERSION:
        raise ValueError(
            f"A row patch must be of version {VERSION} to be read. Received: {os.fspath(path)!r} "
            f"of version {version!r}. A newer maskedgrad may read it."
        )
    if not isinstance(tables, dict) or header.get("sha256") != _checksum(tables, tensors):
        raise ValueError(
            "A row patch must be as it was written. Received: "
            f"{os.fspath(path)!r}, whose checksum does not fit what it holds: the file was "
            "damaged or changed. Copy it again from where it came."
        )
    return tables, tensors


def checksum(tables: Mapping[str, Any], tensors: Tensors) -> str:
    """The SHA-256 of everything that a patch says, as 64 hexadecimal digits.

    Example:

    >>> len(checksum({}, {"ids": np.arange(3)}))
    64
    """
    digest = hashlib.sha256(_json_line(VERSION, tables))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_json_line(name, tensor.dtype.name, tensor.shape))
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def to_safetensors(tensors: Tensors, metadata: Mapping[str, str]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    _check_extra()
    from safetensors.numpy import save

    return save(dict(tensors), metadata=dict(metadata))


def read_safetensors(path: FilePath) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the tensors of a safetensors file.

    Raises:
        ImportError: the extra `patch` is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or one that was cut or lies
            about its shapes.
    """
    _check_extra()
    import safetensors

    check_no_folder(path, "a safetensors file")
    try:
        # A file that is mapped into memory would end the process if another one cut it meanwhile.
        with safetensors.safe_open(path, framework="numpy", backend="pread") as file:
            names = file.keys()
            _check_names_differ(path)
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise ValueError(
            "Expected a whole safetensors file. "
            f"Received: {os.fspath(path)!r}, which is none, or was cut or damaged ({error})."
        ) from error


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in which no object has a name twice.

    Raises:
        ValueError: it is not JSON, nested too deep, or says two things of one name.

    Example:

    >>> parse_json('{"rows": [1, 2]}')
    {'rows': [1, 2]}
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _check_names_differ(path: FilePath) -> None:
    """Raises a `ValueError` if a header speaks twice of one tensor, where safetensors takes one."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        parse_json(file.read(min(size, LONGEST_HEADER)))


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = Counter(name for name, _ in pairs)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise ValueError(f"it says two things of {shorten(repeated[0])}")
    return dict(pairs)


def _header(path: FilePath, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        header = parse_json(metadata["row_patch"])
    except (KeyError, ValueError):
        header = None
    if not isinstance(header, dict):
        raise ValueError(
            "Expected a row patch, as `RowPatch.save` writes it. "
            f"Received: {os.fspath(path)!r}, a safetensors file of something else or a damaged one."
        )
    return header


def _checksum(tables: Mapping[str, Any], tensors: Tensors) -> str | None:
    try:
        return checksum(tables, tensors)
    except RecursionError:  # nested as deep as can be read, and too deep to be written
        return None


def _json_line(*parts: Any) -> bytes:
    return json.dumps(parts, sort_keys=True).encode() + b"\n"


def _check_extra() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Row patches are kept in safetensors files, which need the library safetensors. "
            'Install it: pip install "maskedgrad[patch]"'
        ) from error
