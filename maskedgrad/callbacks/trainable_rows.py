"""`TrainableRowsMonitor`: how far the trainable rows have moved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from maskedgrad.callbacks.tables import FollowsRows
from maskedgrad.masking.tables import read_rows
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable


class TrainableRowsMonitor(FollowsRows):
    """Adds to the logs of each epoch how far the trainable rows have moved.

    Equivalent to `np.linalg.norm(table[ids] - before[ids], axis=1)`, its mean
    and its maximum, where `before` is the table when training began. For a
    layer `words` they are called `words_moved` and `words_moved_max`. Where
    two tables would share a name, the whole path is taken.

    History and the progress line show them, and so do callbacks that come
    after this one, such as `CSVLogger`, `TensorBoard` or `EarlyStopping`.

    The distances are those of the rows that train at the end of the epoch.
    Only these are read, and one copy of each row that has trained is kept.
    Where the first batch builds the model, that step does not count.

    Raises:
        ValueError: the optimizer of the model masks nothing.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> history = model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0,
    ...                     callbacks=[callbacks.TrainableRowsMonitor()])
    >>> sorted(history.history)
    ['loss', 'words_moved', 'words_moved_max']
    """

    def __init__(self) -> None:
        super().__init__()
        self._masked: Sequence[MaskedTable] = []
        self._starts: list[_Start] = []

    @override
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        self._masked = []

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        if logs is None:
            return
        names = log_names([table.path for table in self._masked])
        for name, start, table in zip(names, self._starts, self._masked, strict=False):
            distances = start.distances(table.rows)
            logs[f"{name}_moved"] = float(distances.mean())
            logs[f"{name}_moved_max"] = float(distances.max())

    @override
    def rows_chosen(self, tables: Sequence[MaskedTable], num_changes: int | None) -> None:
        if num_changes is None:
            self._starts = [_Start(table) for table in tables]
        self._masked = tables
        for start, table in zip(self._starts, tables, strict=True):
            start.add(table.rows)


class _Start:
    """The values that rows of a table had before they trained."""

    def __init__(self, table: MaskedTable):
        self._table = table
        self._ids = np.zeros(0, np.int64)
        self._values = read_rows(table.variable, self._ids, table.axis)

    def add(self, rows: Rows) -> None:
        """Keeps the values of those of `rows` that have not trained before."""
        joining = np.setdiff1d(rows.ids, self._ids)
        ids = np.concatenate([self._ids, joining])
        values = np.concatenate(
            [self._values, read_rows(self._table.variable, joining, self._table.axis)]
        )
        order = np.argsort(ids)
        self._ids, self._values = ids[order], values[order]

    def distances(self, rows: Rows) -> np.ndarray:
        """Returns how far each row has moved: float64 of shape `(K,)`."""
        before = self._values[np.searchsorted(self._ids, rows.ids)]
        after = read_rows(self._table.variable, rows.ids, self._table.axis)
        moves = after.astype(np.float64) - before.astype(np.float64)
        return np.linalg.norm(moves.reshape(len(rows), -1), axis=1)


def log_names(paths: Sequence[str]) -> list[str]:
    """Returns a name for each table: that of its layer, or its path where layers share a name.

    Example:

    >>> log_names(["words/embeddings", "a/tags/embeddings", "b/tags/embeddings"])
    ['words', 'a_tags_embeddings', 'b_tags_embeddings']
    """
    names = [path.split("/")[-2:][0] for path in paths]
    names = [
        name if names.count(name) == 1 else path.replace("/", "_")
        for name, path in zip(names, paths, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name}_{place}" for place, name in enumerate(names)
    ]
