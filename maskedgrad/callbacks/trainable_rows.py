"""`TrainableRowsMonitor`: how far the trainable rows have moved."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from maskedgrad.callbacks.tables import FollowsRows
from maskedgrad.masking.tables import bits, read_rows
from maskedgrad.reports.learning import RowReport, report_of
from maskedgrad.reports.nearest import words_of
from maskedgrad.reports.printing import print_text
from maskedgrad.reports.views import TableView, of_variable, overlaid
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable
from maskedgrad.rows.vocabulary import by_path

MOST_WITH_NEIGHBOURS = 1000


class TrainableRowsMonitor(FollowsRows):
    """Adds to the logs of each epoch how far the trainable rows have moved, and how many have not.

    Equivalent to `np.linalg.norm(table[ids] - before[ids], axis=1)`, its mean
    and its maximum, where `before` is the table when training began. For a
    layer `words` they are called `words_moved` and `words_moved_max`, and
    `words_unmoved` is the number of rows that have kept every bit. Where
    two tables would share a name, the whole path is taken.

    History and the progress line show them, and so do callbacks that come
    after this one, such as `CSVLogger`, `TensorBoard` or `EarlyStopping`.

    The distances are those of the rows that train at the end of the epoch.
    Only these are read, and one copy of each row that has trained is kept.
    Where the first batch builds the model, that step does not count.

    Args:
        vocabulary: the words of the table's rows, as for `row_report`. With
            it the report is printed, or logged where Keras logs, when the
            training ends; with neighbours, if at most 1,000 rows train.

    Raises:
        TypeError: `vocabulary` is of another type. Raised when the training begins.
        ValueError: the optimizer of the model masks nothing, or `vocabulary` does not fit the
            table. Raised when the training begins.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> history = model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0,
    ...                     callbacks=[callbacks.TrainableRowsMonitor()])
    >>> sorted(history.history)
    ['loss', 'words_moved', 'words_moved_max', 'words_unmoved']
    """

    def __init__(self, vocabulary: Any = None) -> None:
        super().__init__()
        self._vocabulary = vocabulary
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
            distances, have_moved = start.moves(table.rows)
            logs[f"{name}_moved"] = float(distances.mean())
            logs[f"{name}_moved_max"] = float(distances.max())
            logs[f"{name}_unmoved"] = float((~have_moved).sum())

    @override
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._vocabulary is not None and self._masked:
            num_rows = sum(len(table.rows) for table in self._masked)
            report = self.report(count=3 if num_rows <= MOST_WITH_NEIGHBOURS else 0)
            print_text(f"{report}\n")

    def report(self, data: Any = None, *, count: int = 3) -> RowReport:
        """The rows that train now, and what became of them since the training began.

        Equivalent to `row_report`, with the rows that this callback has kept
        as `before`, and its vocabulary.

        Args:
            data: as for `row_report`.
            count: as for `row_report`.

        Raises:
            RuntimeError: no training has begun.
        """
        if not self._masked:
            raise RuntimeError(
                "There is a report once a training has begun, since it is about what moved in "
                "it. Received: a callback that no `fit` was given."
            )
        befores = [start.view() for start in self._starts]
        return report_of(self._masked, befores, self._vocabulary, data, count)

    @override
    def rows_chosen(self, tables: Sequence[MaskedTable], num_changes: int | None) -> None:
        if num_changes is None:
            self._check_vocabulary(tables)
            self._starts = [_Start(table) for table in tables]
        self._masked = tables
        for start, table in zip(self._starts, tables, strict=True):
            start.add(table.rows)

    def _check_vocabulary(self, tables: Sequence[MaskedTable]) -> None:
        """Raises what the report would raise when the training has ended."""
        vocabularies = by_path(self._vocabulary, [table.path for table in tables])
        for table in tables:
            words_of(of_variable(table.variable, table.axis), vocabularies.get(table.path))


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

    def view(self) -> TableView:
        """The table as it was before these rows trained."""
        values = self._values.reshape(len(self._ids), -1)
        return overlaid(of_variable(self._table.variable, self._table.axis), self._ids, values)

    def moves(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Returns how far each row has moved, and whether one of its bits has changed."""
        before = self._values[np.searchsorted(self._ids, rows.ids)]
        after = read_rows(self._table.variable, rows.ids, self._table.axis)
        moves = after.astype(np.float64) - before.astype(np.float64)
        changed = (bits(after) != bits(before)).reshape(len(rows), -1)
        return np.linalg.norm(moves.reshape(len(rows), -1), axis=1), changed.any(axis=1)


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
