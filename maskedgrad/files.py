"""Files: written whole or not at all, and read without being led out of them."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from maskedgrad.messages import shorten

FilePath = str | os.PathLike[str]
Writer = Callable[[BinaryIO], object]


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
    write_together({Path(path): lambda file: file.write(content)})


def write_together(writers: Mapping[Path, Writer]) -> None:
    """Writes files that belong together, and none of them if one cannot be written.

    No reader finds old and new ones together: while they take the places of the old ones, there
    is at most the first. A process that is killed just then may leave the old ones as hidden files.

    Args:
        writers: what writes each file.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     a, b = Path(folder, "a"), Path(folder, "b")
    ...     write_together({a: lambda file: file.write(b"1"), b: lambda file: file.write(b"2")})
    ...     a.read_bytes(), b.read_bytes()
    (b'1', b'2')
    """
    with contextlib.ExitStack() as written:
        places = []
        for path, write in writers.items():
            file, put_in_place = written.enter_context(_beside(path))
            with _errors_name(path):
                write(file)
                _write_out(file)
            places.append(put_in_place)
        # A single file takes the place of the old one at once.
        with _moved_aside(list(writers) if len(writers) > 1 else []):
            for put_in_place in places:
                put_in_place()


@contextlib.contextmanager
def _moved_aside(paths: Sequence[Path]) -> Iterator[None]:
    """A context that begins without files at `paths`: the old ones come back if it fails."""
    targets = [Path(os.path.realpath(path)) for path in paths]
    aside = []
    with contextlib.ExitStack() as undo:
        for target in reversed(targets):
            with contextlib.suppress(FileNotFoundError):
                os.replace(target, hidden := _hidden_beside(target))
                undo.callback(os.replace, hidden, target)
                aside.append(hidden)
        # The new ones go before any old one comes back.
        for target in targets:
            undo.callback(target.unlink, missing_ok=True)
        yield
        undo.pop_all()
    for hidden in aside:
        with contextlib.suppress(OSError):
            hidden.unlink()


@contextlib.contextmanager
def opened_hdf5(file: FilePath | BinaryIO) -> Iterator[Any]:
    """Opens an HDF5 file to read, in which no name leads to another file or round in a circle.

    HDF5 follows links by itself, to any file that the process may read. Keras writes none.

    Raises:
        OSError: there is no such file, or it is no HDF5 file.
        ValueError: something in it is a link, is in more than one place, or has its numbers in
            another file.

    Example:

    >>> import tempfile, h5py
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(f"{folder}/weights.h5", "w") as file:
    ...         file["table"] = [1, 2]
    ...     with opened_hdf5(f"{folder}/weights.h5") as file:
    ...         file["table"][:].tolist()
    [1, 2]
    """
    import h5py

    with h5py.File(file, "r") as opened:
        _check_leads_nowhere(opened)
        yield opened


def _check_leads_nowhere(file: Any) -> None:
    import h5py

    groups, found = [file], {hash(file.id)}
    while groups:
        group = groups.pop()
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ValueError(f"{key!r} in the group {group.name!r} is a link")
            child = group[key]
            # Thirty groups, each of which holds the next one twice, have a thousand million paths.
            if hash(child.id) in found:
                raise ValueError(f"{child.name!r} is in more than one place")
            found.add(hash(child.id))
            if isinstance(child, h5py.Group):
                groups.append(child)
            elif isinstance(child, h5py.Dataset) and (child.external or child.is_virtual):
                raise ValueError(f"the numbers of {child.name!r} are in another file")


@contextlib.contextmanager
def _beside(path: FilePath) -> Iterator[tuple[BinaryIO, Callable[[], None]]]:
    """A file beside another, which is gone after the context, and what puts it in its place."""
    check_no_folder(path, "the path of a file to write")
    # A link stays a link: what it leads to is replaced.
    target = Path(os.path.realpath(path))
    beside = _hidden_beside(target)
    try:
        with _errors_name(path, beside), open(beside, "x+b") as file:

            def put_in_place() -> None:
                file.close()  # since Windows moves no file that is open
                os.replace(beside, target)
                sync(target.parent)

            yield file, put_in_place
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def _hidden_beside(target: Path) -> Path:
    # Names have at most 255 bytes, which are 63 characters or more.
    return target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}")


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


def checked_path(path: Any, name: str = "path") -> Path:
    """A path that a user gives, if it is one; a `TypeError` that calls it `name` if not."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"`{name}` must be the path of a file or folder, a string or a `pathlib.Path`. "
            f"Received: {name}={shorten(path)}"
        )
    return Path(path)


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
