"""Whole files or none: atomic writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FilePath = str | os.PathLike[str]


@contextlib.contextmanager
def whole_file(path: FilePath) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of what is at `path` once it is whole.

    So at any moment, whatever happens, the old file is there or the new one. A
    process that is killed may leave a hidden file beside it.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(f"{folder}/file") as file:
    ...         _ = file.write(b"new")
    ...         os.path.exists(f"{folder}/file")
    ...     os.listdir(folder)
    False
    ['file']
    """
    # A link stays a link: what it leads to is replaced.
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_whole(path: FilePath, content: bytes) -> None:
    """Writes a file as `whole_file` does, whole or not at all.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/file", b"old")
    ...     write_whole(f"{folder}/file", b"new")
    ...     os.listdir(folder), Path(folder, "file").read_bytes()
    (['file'], b'new')
    """
    with whole_file(path) as file:
        file.write(content)


def sync(path: Path) -> None:
    """Returns once a file is on the disk; or a folder, so that a rename in it lasts."""
    if os.name != "posix":  # pragma: no cover - Windows, which flushes nothing opened to be read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
