"""Whole files or none: atomic writes."""

import os
import uuid
from pathlib import Path

FilePath = str | os.PathLike[str]


def write_whole(path: FilePath, content: bytes) -> None:
    """Writes a file so that at any moment, whatever happens, it is the old one or the new one.

    A process that is killed may leave a hidden file beside it.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/file", b"old")
    ...     write_whole(f"{folder}/file", b"new")
    ...     os.listdir(folder), Path(folder, "file").read_bytes()
    (['file'], b'new')
    """
    # A link stays a link: what it leads to is replaced.
    path = Path(os.path.realpath(path))
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns once a file is on the disk; or a folder, so that a rename in it lasts."""
    if os.name != "posix":  # pragma: no cover - Windows, which flushes nothing opened to be read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
