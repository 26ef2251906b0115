"""What a row patch says in its file: a header for each table, and tensors; and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from maskedgrad.masking.tables import same_bits
from maskedgrad.messages import shorten
from maskedgrad.patches.table import TablePatch
from maskedgrad.rows.rows import Rows


def parts_of(tables: Iterable[TablePatch]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file says of tables.

    Returns:
        A JSON value of each table, by its path; and arrays, by name.

    Example:

    >>> table = TablePatch("words", Rows([3], 9), np.ones((1, 2)), None, "0" * 64)
    >>> headers, tensors = parts_of([table])
    >>> headers["words"]["num_rows"], list(tensors)
    (9, ['words/ids', 'words/values'])
    """
    headers: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    for table in tables:
        path = table.path
        headers[path] = {"num_rows": table.rows.num_rows, "digest": table.digest}
        if table.words is not None:
            headers[path] |= {"words": list(table.words), "anchors": dict(table.anchors or {})}
        tensors[f"{path}/ids"] = table.ids
        tensors[f"{path}/values"] = table.values
        if table.original is not None:
            tensors[f"{path}/original"] = table.original
    return headers, tensors


def tables_of(headers: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> list[TablePatch]:
    """The inverse of `parts_of`.

    Raises:
        KeyError, TypeError, ValueError: these are not what `parts_of` makes of any tables.
    """
    tables = [
        TablePatch(
            path=path,
            rows=Rows(tensors[f"{path}/ids"], header["num_rows"]),
            values=tensors[f"{path}/values"],
            original=tensors.get(f"{path}/original"),
            digest=_digest(header),
            words=tuple(header["words"]) if "words" in header else None,
            anchors=header.get("anchors"),
        )
        for path, header in headers.items()
    ]
    _check_says_the_same(tables, headers, tensors)
    return tables


def _digest(header: Mapping[str, Any]) -> str:
    digest = header["digest"]
    if not isinstance(digest, str):
        raise TypeError(f"a digest must be a string, and one is {shorten(digest)}")
    return digest


def _check_says_the_same(
    tables: Iterable[TablePatch], headers: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Raises a `ValueError` if tables that were read are written otherwise.

    Whoever writes such a file by another program can forget to put the ids in order: each row
    would get the values of another one.
    """
    told, held = parts_of(tables)
    if told != headers:
        raise ValueError("its header says more or something else than that of a row patch")
    if held.keys() != tensors.keys():
        raise ValueError(f"it holds something else too: {sorted(tensors.keys() - held.keys())}")
    differ = [name for name in held if not same_bits(held[name], tensors[name])]
    if differ:
        raise ValueError(f"ids must be ascending and int64, and {differ} are not")
