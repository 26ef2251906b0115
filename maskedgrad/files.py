"""Whole files or none: atomic writes."""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

FilePath = str | os.PathLike[str]


def write_whole(path: FilePath, content: bytes) -> None:
    """Writes a file so that at any moment, whatever happens, it is the old one or the new one.

    A process that is killed may leave a hidden file beside it.

    Raises:
        OSError: the file cannot be written: there is no such folder, it may not be written to, or
            the disk is full. The old file is as it was.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(f"{folder}/file", b"old")
    ...     write_whole(f"{folder}/file", b"new")
    ...     os.listdir(folder), Path(folder, "file").read_bytes()
    (['file'], b'new')
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files as `write_whole` does, and none of them if one has no place on the disk."""
    for path in contents:
        check_no_folder(path, "the path of a file to write")
    with contextlib.ExitStack() as written:
        places = [
            (path, *written.enter_context(_beside(path, content)))
            for path, content in contents.items()
        ]
        for path, beside, target in places:
            with _errors_name(path):
                os.replace(beside, target)
                sync(target.parent)


@contextlib.contextmanager
def _beside(path: Path, content: bytes) -> Iterator[tuple[Path, Path]]:
    """A file beside another, which is gone after the context, and the one that it is to replace."""
    # A link stays a link: what it leads to is replaced.
    target = Path(os.path.realpath(path))
    # Names have at most 255 bytes, which are 63 characters or more.
    beside = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}")
    try:
        with _errors_name(path), open(beside, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield beside, target
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """A context in which errors of the system name the file that is meant."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_no_folder(path: FilePath, what: str) -> None:
    """Raises an `IsADirectoryError` if a path is of a folder, where `what` is expected."""
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"Expected {what}. Received: {os.fspath(path)!r}, which is a folder. "
            "Give the path of a file."
        )


def sync(path: Path) -> None:
    """Returns once a file is on the disk; or a folder, so that a rename in it lasts."""
    if os.name != "posix":  # pragma: no cover - Windows, which flushes nothing opened to be read
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
