"""How many rows of a table are read or written at a time."""

CHUNK_BYTES = 2**23


def rows_a_chunk(row_bytes: int, chunk_bytes: int | None = None) -> int:
    """How many rows are read or written at a time: some megabytes of them, and one at least.

    Args:
        row_bytes: int, the size of a row.
        chunk_bytes: int, the size of what is read at a time; `CHUNK_BYTES` if not given.

    Example:

    >>> rows_a_chunk(300 * 4), rows_a_chunk(300 * 4, chunk_bytes=1000)
    (6990, 1)
    """
    return max(1, (chunk_bytes or CHUNK_BYTES) // max(1, row_bytes))
