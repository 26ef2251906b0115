"""`FrozenRowsCheck`: stops a training in which frozen rows change."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
from typing_extensions import override

from maskedgrad.callbacks.tables import FollowsRows
from maskedgrad.masking.tables import row_reader
from maskedgrad.rows.chunks import rows_a_chunk
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable

CHUNK_BYTES = 2**21  # of each of two threads


class FrozenRowsCheck(FollowsRows):
    """Checks that frozen rows keep their bits, and stops the training if they do not.

    Equivalent to a copy of each masked table that is compared with it bit for
    bit, but 8 bytes a row are kept instead of the copy. A row of which one
    32-bit word has changed is always found; one of which several have changed
    is missed with a probability of at most 2**-32. See `row_fingerprints`.

    The check begins with the first epoch, or once the model is built, and is
    made at the end of each epoch. Rows that trained at any time since the
    last check are not compared in the next one. Which ones did is seen before
    each step. Where rows were chosen more than once between two looks, some
    of them may have trained unseen, and the next check compares nothing. Of
    a table that is mirrored to several devices, the copy on the first is
    checked.

    Args:
        every: int, check before a step too where that many were made since
            the last check; or `None`.

    Raises:
        TypeError, ValueError: `every` is not a positive int, or the optimizer
            of the model masks nothing.
        RuntimeError: frozen rows have changed. Raised in `fit`.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adamw", loss="mse", trainable_rows={words: [1, 4]})
    >>> _ = model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0,
    ...               callbacks=[callbacks.FrozenRowsCheck()])
    """

    def __init__(self, every: int | None = None):
        super().__init__()
        if every is not None:
            if isinstance(every, bool) or not isinstance(every, (int, np.integer)):
                raise TypeError(f"`every` must be an int or None. Received: every={every!r}")
            if every < 1:
                raise ValueError(f"`every` must be positive. Received: every={every}")
        self._every = every
        self._step_of_check = 0
        self._tables: list[_WatchedTable] = []

    @override
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._tables = []

    @override
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self._step_of_check = 0

    @override
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_train_batch_begin(batch, logs)
        if self._every is not None and batch - self._step_of_check >= self._every:
            self._step_of_check = batch
            self._check(f"before step {batch} of an epoch")

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        self._check(f"at the end of epoch {epoch}")

    @override
    def rows_chosen(self, tables: Sequence[MaskedTable], num_changes: int | None) -> None:
        if num_changes is None:
            self._tables = [_WatchedTable(table) for table in tables]
            return
        for watched, table in zip(self._tables, tables, strict=True):
            watched.add_rows(table.rows, all_known=num_changes <= 1)

    def _check(self, when: str) -> None:
        changes = [(table.path, table.changed_rows()) for table in self._tables]
        found = [f"{len(ids):,} of {path!r} ({_first(ids)})" for path, ids in changes if len(ids)]
        if found:
            raise RuntimeError(
                f"Frozen rows must keep their bits. Found {when}: frozen rows have changed, "
                f"{', '.join(found)}. The optimizer does not write them, so something else did: an "
                "assignment from outside (such as `set_weights`, `load_weights`, `assign`), "
                "another optimizer that trains the same table, or a callback that assigns "
                "weights. Leave these rows out of it, or let them train."
            )


class _WatchedTable:
    """The fingerprints of a table's rows, and the rows that have trained since they were taken."""

    def __init__(self, table: MaskedTable):
        self.path = table.path
        self._table = table
        shape = table.variable.shape
        row_shape = (*shape[: table.axis], *shape[table.axis + 1 :])
        self._row_bytes = math.prod(row_shape) * tf.as_dtype(table.variable.dtype).size
        self._weights = fingerprint_weights(self._row_bytes)
        self._fingerprints = np.zeros(table.rows.num_rows, np.uint64)
        self._trainable = self._trained = table.rows
        self._all_known = True
        self._renew()

    def add_rows(self, rows: Rows, all_known: bool) -> None:
        """Takes `rows` for those that train from now on.

        Args:
            rows: the rows.
            all_known: whether they come right after those of the last call.
        """
        self._trainable = rows
        self._trained = self._trained.union(rows)
        self._all_known = self._all_known and all_known

    def changed_rows(self) -> np.ndarray:
        """The ids of the rows that were frozen all along since the last call, and changed."""
        changed = np.setdiff1d(self._renew(), self._trained.ids)
        if not self._all_known:
            changed = changed[:0]
        self._trained, self._all_known = self._trainable, True
        return changed

    def _renew(self) -> np.ndarray:
        """Computes all fingerprints. Returns the ids of the rows whose fingerprint changed."""
        read = row_reader(self._table.variable, self._table.axis)
        step = rows_a_chunk(self._row_bytes, CHUNK_BYTES)
        starts = range(0, len(self._fingerprints), step)

        def renew(start: int) -> np.ndarray:
            kept = self._fingerprints[start : start + step]
            rows = read(np.arange(start, start + len(kept)))
            now = row_fingerprints(rows, self._weights)
            changed = start + np.flatnonzero(kept != now)
            kept[:] = now
            return changed

        # NumPy and TensorFlow release the interpreter's lock while they read and hash.
        with ThreadPoolExecutor(max_workers=2) as executor:
            return np.concatenate(list(executor.map(renew, starts)))


def fingerprint_weights(row_bytes: int) -> np.ndarray:
    """Random weights for `row_fingerprints`: odd, uint64, one for each word of a row.

    Args:
        row_bytes: the size of a row.
    """
    num_words = row_bytes // _word_dtype(row_bytes).itemsize
    random = np.random.default_rng()
    return np.frombuffer(random.bytes(8 * num_words), np.uint64) | np.uint64(1)


def row_fingerprints(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """A 64-bit fingerprint of the bits of each row.

    Multilinear hashing: the words of a row times random weights, added modulo
    2**64. Two rows that differ in one word have different fingerprints, since
    an odd weight can be divided by. For two that differ in several words, let
    2**t be the largest power of two that divides all the differences. The
    fingerprints are equal with a probability of at most 2**(t - 63). Words
    are of 32 bits at most, which keeps t below 32; in 64-bit words, two top
    bits that flip would cancel. From D. Lemire and O. Kaser, "Strongly
    universal string hashing is fast", The Computer Journal 57(11), 2014.

    Args:
        rows: an array of shape `(n, ...)` of any dtype.
        weights: what `fingerprint_weights` returns for such rows.

    Returns:
        An array of shape `(n,)`, uint64.

    Example:

    >>> rows = np.float32([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]])
    >>> first, other, again = row_fingerprints(rows, fingerprint_weights(8))
    >>> bool(first == again), bool(first == other)
    (True, False)
    """
    row_size = math.prod(rows.shape[1:])
    flat = np.ascontiguousarray(rows).reshape(len(rows), row_size)
    words = flat.view(_word_dtype(row_size * rows.itemsize))
    return np.einsum("rw,w->r", words, weights, dtype=np.uint64, casting="safe")


def _word_dtype(row_bytes: int) -> np.dtype:
    size = next(size for size in (4, 2, 1) if row_bytes % size == 0)
    return np.dtype(f"uint{8 * size}")


def _first(ids: np.ndarray) -> str:
    shown = ", ".join(str(row) for row in ids[:5])
    return f"rows {shown}, ..." if len(ids) > 5 else f"rows {shown}"
