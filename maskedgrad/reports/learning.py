"""`row_report`: which rows have learned, how far they moved, and where to."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from maskedgrad.masking.of_model import masked_tables
from maskedgrad.masking.tables import bits
from maskedgrad.messages import shorten
from maskedgrad.messages.grid import Grid, html_of, listed, text_of
from maskedgrad.reports.figure import draw_moves
from maskedgrad.reports.nearest import Neighbour, neighbours, shown_word, words_of
from maskedgrad.reports.seen import times_seen
from maskedgrad.reports.views import TableView, before_of, check_holds, of_variable
from maskedgrad.rows.targets import MaskedTable, describe
from maskedgrad.rows.vocabulary import by_path

NUM_SHOWN_NEIGHBOURS = 3
MOST_BARS = 20


class RowChange(NamedTuple):
    """What became of a trainable row.

    - `path`, `id`, `word`: which one it is; the word is `""` if it has none.
    - `distance`: how far it moved, the length of the difference.
    - `has_moved`: whether one of its bits is another than before.
    - `seen`: how often the data holds it; `None` if no data was given.
    - `before`, `now`: its nearest rows, a tuple of `Neighbour` each.
    """

    path: str
    id: int
    word: str
    distance: float
    has_moved: bool
    seen: int | None
    before: tuple[Neighbour, ...]
    now: tuple[Neighbour, ...]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RowReport:
    """What `row_report` found. It shows itself as a table, the rows that moved most first.

    Example:

    >>> words = keras.layers.Embedding(5, 2, "zeros", name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile(keras.optimizers.SGD(1.0), loss="mse", trainable_rows={words: [1, 4]})
    >>> before = RowPatch.from_model(model)
    >>> x = np.array([[0, 1, 1]])
    >>> _ = model.fit(x, np.ones((1, 3, 2)), verbose=0)
    >>> report = row_report(model, before, ["", "<city>", "cat", "dog", "<name>"], x, count=0)
    >>> print(report)
    words/embeddings: 1 of 2 trainable rows moved
      id  word    moved  seen
       1  <city>   0.94     2
       4  <name>      0     0
      did not move, because the data never holds them: <name>
    """

    rows: tuple[RowChange, ...]
    """A `RowChange` for each trainable row, by table and id."""

    @property
    def unmoved(self) -> tuple[RowChange, ...]:
        """The rows that kept every bit."""
        return tuple(row for row in self.rows if not row.has_moved)

    @property
    def unseen(self) -> tuple[RowChange, ...]:
        """The rows that the data never holds; none if no data was given."""
        return tuple(row for row in self.rows if row.seen == 0)

    def plot(self, axes: Any = None) -> Any:
        """Draws how far rows moved, and from which neighbour to which.

        Rows that did not move are told apart. Of more than 20 rows
        the 20 that moved most are drawn.

        Args:
            axes: axes of matplotlib to draw on; new ones if none are given.

        Returns:
            The axes.

        Raises:
            ImportError: the extra `plot` is not installed.
        """
        shown = by_distance(self.rows)[:MOST_BARS]
        labels = [shown_word(row.word, row.id) for row in shown]
        distances = [row.distance for row in shown]
        return draw_moves(
            axes, labels, distances, [row.has_moved for row in shown], map(_way, shown)
        )

    def __str__(self) -> str:
        return text_of(*self._grids())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_of(*self._grids())

    def _grids(self) -> list[Grid]:
        paths = dict.fromkeys(row.path for row in self.rows)
        return [_grid(path, [row for row in self.rows if row.path == path]) for path in paths]


def row_report(
    model: keras.Model, before: Any, vocabulary: Any = None, data: Any = None, *, count: int = 3
) -> RowReport:
    """Which trainable rows have learned: how far each moved, and its neighbours before and now.

    The first thing to look at after a training. A row that never moved shows
    up, and so does, with `data`, whether that is because no batch held it.

    Args:
        model: a built model that is compiled with a `MaskedOptimizer`.
        before: the trainable rows as they were. A `RowPatch` that
            `RowPatch.from_model` took before the training, or one that has
            these rows as its `original`; an array of shape `(K, ...)`, a copy
            of the trainable rows in the order of their ids; an array of shape
            `(V, ...)`, such as the pretrained matrix; another model with the
            table; or a layer. For several tables, also a mapping from the
            path of each to one of these.
        vocabulary: the words of the table's rows, as for `row_ids`. For
            several tables a mapping from the path of each to its vocabulary.
        data: the ids that the training held, to count how often each row was
            looked up: an array or a tensor of integers, or a `tf.data.Dataset`
            or another iterable of batches of them. Of a batch that is a tuple
            the first part counts. For several tables a mapping from the path
            of each to its ids.
        count: int, how many neighbours of each row. To find them costs
            `K * V * D` multiplications; 0 leaves them out.

    Returns:
        A `RowReport`, with a `RowChange` for each trainable row.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the model masks nothing or is not built; `before` or
            `vocabulary` does not fit; it is not said of which table `data` is.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> before = RowPatch.from_model(model)
    >>> x = np.array([[0, 1, 1]])
    >>> _ = model.fit(x, np.ones((1, 3, 2)), verbose=0)
    >>> report = row_report(model, before, ["", "<city>", "cat", "dog", "<name>"], x)
    >>> [(row.word, row.has_moved, row.seen) for row in report.rows]
    [('<city>', True, 2), ('<name>', False, 0)]
    >>> [neighbour.word for neighbour in report.rows[0].now]  # doctest: +SKIP
    ['dog', 'cat', '<name>']
    """
    tables = masked_tables(model)
    if not tables:
        raise ValueError(
            "`model` must be built and compiled with a `MaskedOptimizer`, which says which rows "
            f"train. Received: {describe(model)}, with "
            f"optimizer={shorten(getattr(model, 'optimizer', None))}"
        )
    views = [of_variable(table.variable, table.axis, table.rows) for table in tables]
    befores = [before_of(_of_table(before, view, len(views)), view) for view in views]
    return report_of(tables, befores, vocabulary, data, count)


def report_of(
    tables: Sequence[MaskedTable],
    befores: Sequence[TableView],
    vocabulary: Any,
    data: Any,
    count: int,
) -> RowReport:
    """The report of tables whose rows before the training are known. See `row_report`."""
    paths = [table.path for table in tables]
    vocabularies = by_path(vocabulary, paths)
    batches = _data_by_path(data, tables)
    rows: list[RowChange] = []
    for table, before in zip(tables, befores, strict=True):
        words = vocabularies.get(table.path)
        rows += _changes(table, before, words, batches.get(table.path), count)
    return RowReport(tuple(rows))


def _changes(
    table: MaskedTable, before: TableView, vocabulary: Any, data: Any, count: int
) -> list[RowChange]:
    view = of_variable(table.variable, table.axis, table.rows)
    ids = table.rows.ids
    check_holds(before, ids, view)
    word_of = words_of(view, vocabulary)
    distances, have_moved = _moves(before, view, ids)
    seen = [None] * len(ids) if data is None else times_seen(data, ids).tolist()
    near = [
        neighbours(each, ids.tolist(), word_of, count)
        if count and view.width > 1
        else [()] * len(ids)
        for each in (before, view)
    ]
    return [
        RowChange(table.path, id_, word_of.get(id_, ""), *rest)
        for id_, *rest in zip(ids.tolist(), distances, have_moved, seen, *near, strict=True)
    ]


def _moves(before: TableView, now: TableView, ids: np.ndarray) -> tuple[list[float], list[bool]]:
    """How far each row has moved, and whether a bit of it has changed."""
    old, new = before.read(ids), now.read(ids)
    distances = np.linalg.norm(new.astype(np.float64) - old.astype(np.float64), axis=1)
    return distances.tolist(), (bits(old) != bits(new)).any(axis=1).tolist()


def _of_table(before: Any, view: TableView, num_tables: int) -> Any:
    """What is given for one of several tables, which an array or a layer cannot be."""
    is_of_all = isinstance(before, (Mapping, keras.Model)) or hasattr(before, "tables")
    if num_tables > 1 and not is_of_all:
        raise ValueError(
            "`before` must be a patch, a model, or a mapping from the path of each table to its "
            f"rows where a model has several tables. Received: {shorten(before)} "
            f"for {num_tables} tables, one of which is {view.name}"
        )
    return before


def _data_by_path(data: Any, tables: Sequence[MaskedTable]) -> dict[str, Any]:
    """The ids that were looked up in each table; none of those along another axis."""
    looked_up = [
        table.path for table in tables if table.axis == 0 and len(table.variable.shape) > 1
    ]
    if data is None:
        return {}
    if isinstance(data, Mapping):
        if not data or not set(data) <= set(looked_up):
            raise ValueError(
                "`data` must be ids, or a mapping from the path of a table to ids. "
                f"Received: a mapping with {list(data)}; the tables are {looked_up}"
            )
        return dict(data)
    if len(looked_up) != 1:
        raise ValueError(
            "`data` must be a mapping from the path of a table to its ids where ids are looked up "
            f"in several tables, {looked_up}. Received: {shorten(data)}"
        )
    return {looked_up[0]: data}


def by_distance(rows: Sequence[RowChange]) -> list[RowChange]:
    """Rows, those that moved most first."""
    return sorted(rows, key=lambda row: -row.distance if row.distance == row.distance else -np.inf)


def _grid(path: str, rows: Sequence[RowChange]) -> Grid:
    has_seen = any(row.seen is not None for row in rows)
    has_near = any(row.now or row.before for row in rows)
    columns = ["id", "word", "moved"]
    columns += ["seen"] if has_seen else []
    columns += ["nearest before", "nearest now"] if has_near else []
    cells = []
    for row in by_distance(rows):
        cell = [str(row.id), row.word, f"{row.distance:.2g}"]
        cell += [f"{row.seen:,}"] if has_seen and row.seen is not None else []
        cell += [_near(row.before), _near(row.now)] if has_near else []
        cells.append(cell)
    num_moved = sum(row.has_moved for row in rows)
    title = f"{path}: {num_moved:,} of {len(rows):,} trainable rows moved"
    return Grid(title, columns, cells, _notes(rows))


def _notes(rows: Sequence[RowChange]) -> list[str]:
    """What is odd about rows, in words."""
    kinds: dict[str, tuple[bool, bool | None]] = {
        "did not move, because the data never holds them": (False, False),
        "did not move, though the data holds them (masked, or without a gradient)": (False, True),
        "moved, though the data never holds them (weight decay, or other data)": (True, False),
    }
    if all(row.seen is None for row in rows):
        kinds = {"did not move": (False, None)}
    notes = []
    for what, (has_moved, is_seen) in kinds.items():
        of_kind = [
            shown_word(row.word, row.id)
            for row in rows
            if (row.has_moved, None if row.seen is None else row.seen > 0) == (has_moved, is_seen)
        ]
        notes += [f"{what}: {listed(of_kind)}"] if of_kind else []
    return notes


def _way(row: RowChange) -> str:
    if not row.has_moved:
        return "never in the data" if row.seen == 0 else "did not move"
    return " → ".join(filter(None, map(_near, (row.before, row.now))))


def _near(found: Sequence[Neighbour]) -> str:
    return ", ".join(shown_word(each.word, each.id) for each in found[:NUM_SHOWN_NEIGHBOURS])
