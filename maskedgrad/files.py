"""Whole files or none: atomic writes."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

FilePath = str | os.PathLike[str]


@contextlib.contextmanager
def whole_file(path: FilePath) -> Iterator[BinaryIO]:
    """A file to write and read, which takes the place of what is at `path` once it is whole.

    So at any moment, whatever happens, the old file is there or the new one. A
    process that is killed may leave a hidden file beside it.

    Raises:
        OSError: the file cannot be written: there is no such folder, it may not be written to, or
            the disk is full. The old file is as it was.

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
    with _beside(path) as (file, put_in_place):
        yield file
        _write_out(file)
        put_in_place()


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
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Writes files as `write_whole` does, and none of them if one has no place on the disk."""
    with contextlib.ExitStack() as written:
        places = []
        for path, content in contents.items():
            file, put_in_place = written.enter_context(_beside(path))
            with _errors_name(path):
                file.write(content)
                _write_out(file)
            places.append(put_in_place)
        for put_in_place in places:
            put_in_place()


@contextlib.contextmanager
def _beside(path: FilePath) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """A file beside another, which is gone after the context, and what puts it in its place."""
    check_no_folder(path, "the path of a file to write")
    # A link stays a link: what it leads to is replaced.
    target = Path(os.path.realpath(path))
    # Names have at most 255 bytes, which are 63 characters or more.
    beside = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}")
    try:
        with _errors_name(path, beside), open(beside, "x+b") as file:

            def put_in_place() -> None:
                file.close()  # or Windows would not let it be moved
                os.replace(beside, target)
                sync(target.parent)

            yield file, put_in_place
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _write_out(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _errors_name(path: FilePath, beside: Path | None = None) -> Iterator[None]:
    """A context in which errors of the system name the file that is meant."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in {None, str(beside)}:
            raise  # of another file
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


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
