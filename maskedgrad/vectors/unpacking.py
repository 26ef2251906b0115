"""The bytes of a file, unpacked: what it is packed with is told by its content, not its name."""

import bz2
import contextlib
import gzip
import io
import lzma
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskedgrad.messages.progress import progress_bar
from maskedgrad.vectors.found import CHUNK, quoted

LARGE_FILE = 50_000_000
LARGEST_RATIO = 1032  # of the bytes that deflate makes of one
MOST_LAYERS = 3
MOST_MEMBERS_SHOWN = 10

GZIP = b"\x1f\x8b\x08"
BZ2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")
XZ = b"\xfd7zXZ\0"
ZIP = b"PK\x03\x04", b"PK\x05\x06"


class Unpacked(NamedTuple):
    """A binary file at its beginning, which can seek, and the most bytes that it may hold."""

    file: Any
    most_bytes: float


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Unpacked]:
    """The content of a file, or of a member of a zip archive, `archive.zip/member.txt`.

    A large file has a progress bar.

    Raises:
        OSError: there is no such file.
        ValueError: the archive has no such member, or several to choose from;
            the file is packed too often, or in a way that is not read.
    """
    archive, member = archive_and_member(path)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(archive))
        content = Unpacked(file, archive.stat().st_size)
        for _ in range(MOST_LAYERS):
            head = content.file.read(16)
            content.file.seek(0)
            layer = _layer(content, head, archive, member)
            if layer is None:
                break
            member = "" if head.startswith(ZIP) else member
            buffered = stack.enter_context(io.BufferedReader(layer.file, CHUNK))
            content = Unpacked(buffered, layer.most_bytes)
        else:
            raise ValueError(
                f"it is packed more than {MOST_LAYERS - 1} times, one in the other. Unpack it first"
            )
        if member:
            raise ValueError(f"it is no zip archive, and has no member {member!r}")
        yield content


def _layer(content: Unpacked, head: bytes, archive: Path, member: str) -> Unpacked | None:
    """What is inside of a packed file; none if it is not packed."""
    file = content.file
    if head.startswith(GZIP):
        # Without `mode` it takes that of the file inside, which is a number for a `GzipFile`.
        unzipped = gzip.GzipFile(fileobj=file, mode="rb")
        return Unpacked(unzipped, content.most_bytes * LARGEST_RATIO)
    if BZ2.match(head):
        return Unpacked(bz2.BZ2File(file), math.inf)
    if head.startswith(XZ):
        return Unpacked(lzma.LZMAFile(file), math.inf)
    if head.startswith(ZIP):
        try:
            return _member(zipfile.ZipFile(file), archive, member)
        except RuntimeError as error:  # a password, or a version or method that is not known
            raise ValueError(f"{error}. Unpack it first") from error
    return None


def _member(archive: zipfile.ZipFile, path: Path, member: str) -> Unpacked:
    names = [
        name
        for name in archive.namelist()
        if not name.endswith("/") and not name.startswith("__MACOSX/")
    ]
    if names and all(name.endswith(".npy") for name in names):
        raise ValueError(
            "it is an archive of NumPy arrays, which hold no words. "
            "`dict(zip(words, numpy.load(path)[name]))` is a source"
        )
    if any(name.endswith("/data.pkl") for name in names):
        raise ValueError(
            "it is what PyTorch saves, which holds no words. `dict(zip(words, matrix))` is a source"
        )
    if member and member not in names:
        raise ValueError(f"the archive has no member {member!r}. It holds {_shown(names)}")
    if not member and len(names) != 1:
        example = str(path / names[0]) if names else ""
        advice = f"Name the one that is wanted: {example!r}" if names else "It is empty"
        raise ValueError(f"it is a zip archive of {len(names)} files{_listed(names)}. {advice}")
    info = archive.getinfo(member or names[0])
    return Unpacked(archive.open(info), info.file_size)


def _listed(names: list[str]) -> str:
    return f": {_shown(names)}" if names else ""


def _shown(names: list[str]) -> str:
    more = len(names) - MOST_MEMBERS_SHOWN
    shown = ", ".join(quoted(name.encode()) for name in names[:MOST_MEMBERS_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def archive_and_member(path: Path) -> tuple[Path, str]:
    """A path as that of a file, and what is named inside of it; an empty text if nothing is.

    Example:

    >>> archive_and_member(Path("vectors.txt"))[1]
    ''
    """
    for parent in path.parents:
        if parent.is_file():
            return parent, path.relative_to(parent).as_posix()
    return path, ""


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if path.stat().st_size < LARGE_FILE:
        with path.open("rb", buffering=CHUNK) as file:
            yield file
        return
    with (
        progress_bar() as progress,
        progress.open(path, "rb", description=f"Reading {path.name}") as shown,
    ):
        # Without a buffer the bar would be moved once for each line.
        yield io.BufferedReader(shown, 1 << 20)
