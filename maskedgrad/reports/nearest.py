"""`nearest`: the words whose vectors point most nearly where those of others do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import override

from maskedgrad.messages import shorten
from maskedgrad.messages.grid import Grid, cut, html_of, text_of
from maskedgrad.reports.views import TableView, before_of, view_of
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.vocabulary import ids_within, row_ids

MOST_QUERIES = 1024
MOST_SHOWN = 5
DIGITS = 7


class Neighbour(NamedTuple):
    """A row near another: its id, its word (`""` if it has none), and the cosine of their angle."""

    id: int
    word: str
    similarity: float


class Nearest(Mapping[Any, tuple[Neighbour, ...]]):
    """What `nearest` found: for each word, or id, that was asked for, its neighbours.

    A mapping from what was asked to a tuple of `Neighbour`, the nearest first.
    `before` is the same of the table as it was, or `None`.
    """

    def __init__(
        self,
        found: Mapping[Any, tuple[Neighbour, ...]],
        before: "Nearest | None" = None,
    ):
        self._found = dict(found)
        self.before = before

    @override
    def __getitem__(self, asked: Any) -> tuple[Neighbour, ...]:
        return self._found[asked]

    @override
    def __iter__(self) -> Iterator[Any]:
        return iter(self._found)

    @override
    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        return text_of(*self._grids())

    def _repr_html_(self) -> str:
        return html_of(*self._grids())

    def _grids(self) -> list[Grid]:
        shown = list(self)[:MOST_SHOWN]
        grids = [self._grid(asked) for asked in shown]
        more = len(self) - len(shown)
        last = Grid(f"... and the nearest rows of {more:,} more" if more else "Nearest to no row")
        return grids if grids and not more else [*grids, last]

    def _grid(self, asked: Any) -> Grid:
        title = f"Nearest to {cut(shown_word(asked, repr(asked)))}"
        now = _cells(self[asked])
        if self.before is None:
            return Grid(title, ["word", "cosine"], now, _notes(now, "it"))
        before = _cells(self.before[asked])
        longest = max(len(now), len(before))
        padded = [each + [("", "")] * (longest - len(each)) for each in (before, now)]
        rows = [(*one, *other) for one, other in zip(*padded, strict=True)]
        notes = [*_notes(before, "before, it"), *_notes(now, "now, it")]
        return Grid(title, ["before", "cosine", "now", "cosine"], rows, notes)


def nearest(
    table: Any, words: Any, vocabulary: Any = None, count: int = 10, *, before: Any = None
) -> Nearest:
    """The words whose vectors point most nearly where those of other words do, and how nearly.

    Equivalent to sorting all rows by `table @ row / (norm(table) * norm(row))`,
    in float64, without that array or a copy of the table: some megabytes of
    rows are read at a time. A row is no neighbour of itself. A row of zeros or
    with a number that is not finite has no direction, so it is no neighbour and
    has none. Cosines are rounded to 7 digits after the point, and rows of equal
    ones are in the order of their ids.

    Args:
        table: a layer with one table, a model whose optimizer masks one table,
            one of `optimizer.masked_tables()`, an `AlongAxis` of a layer, a
            `keras.Variable`, or an array of shape `(V, ...)`.
        words: words (a string or a list of them), or what `Rows` takes: ids,
            a mask, a slice. Also a single id.
        vocabulary: the words of the table's rows, as for `row_ids`. Without
            it neighbours have no words.
        count: int, how many neighbours of each.
        before: the table as it was, in any form that `row_report` takes. With
            it, `.before` has the neighbours there too.

    Returns:
        A `Nearest`: a mapping from each word, or id, to a tuple of
        `Neighbour`. It shows itself as a table.

    Raises:
        TypeError: an argument is of another type.
        ValueError: it is not clear which table is meant; its rows have one
            number each; or a word or id is not of it.

    Example:

    >>> table = np.float32([[0, 0], [3, 4], [4, 3], [0, 1], [-3, -4]])
    >>> near = nearest(table, ["cat"], ["", "cat", "dog", "tree", "car"], count=2)
    >>> near
    Nearest to cat
      word  cosine
      dog    0.960
      tree   0.800
    >>> [neighbour.id for neighbour in near["cat"]]
    [2, 3]
    """
    view = view_of(table)
    _check_count(count)
    word_of = words_of(view, vocabulary)
    asked = _asked(words, vocabulary, view)
    found = neighbours(view, list(asked.values()), word_of, count)
    result = Nearest(dict(zip(asked, found, strict=True)))
    if before is not None:
        earlier = neighbours(before_of(before, view), list(asked.values()), word_of, count)
        result.before = Nearest(dict(zip(asked, earlier, strict=True)))
    return result


def neighbours(
    view: TableView, ids: Sequence[int], word_of: Mapping[int, str], count: int
) -> list[tuple[Neighbour, ...]]:
    """The neighbours of each of some rows, as `nearest` finds them."""
    if view.width < 2:
        raise ValueError(
            f"The rows of {view.name} must have two numbers or more, since one alone has no "
            f"direction. Received: rows of {view.width}"
        )
    found: list[tuple[Neighbour, ...]] = []
    for start in range(0, len(ids), MOST_QUERIES):
        for near in _search(view, np.array(ids[start : start + MOST_QUERIES]), count):
            found.append(
                tuple(Neighbour(id_, word_of.get(id_, ""), cosine) for id_, cosine in near)
            )
    return found


def words_of(view: TableView, vocabulary: Any) -> dict[int, str]:
    """The word of each row of a table that has one, by id.

    Raises:
        ValueError: the vocabulary knows more ids than the table has rows.
    """
    if vocabulary is None:
        return {}
    return {row: word for word, row in ids_within(vocabulary, view.num_rows, view.name).items()}


def shown_word(word: Any, id_: Any) -> str:
    """How a row is shown: by its word, or by its id if it has none."""
    return word if isinstance(word, str) and word else f"row {id_}"


def _asked(words: Any, vocabulary: Any, view: TableView) -> dict[Any, int]:
    """The id of each word or id that is asked for."""
    if isinstance(words, str):
        words = [words]
    if isinstance(words, (int, np.integer)) and not isinstance(words, bool):
        words = [int(words)]
    if isinstance(words, (list, tuple)) and any(isinstance(word, str) for word in words):
        if vocabulary is None:
            raise ValueError(
                f"`vocabulary` must be given, since it says which rows {shorten(words)} are. "
                "Received: vocabulary=None. Ids need none."
            )
        return dict(zip(words, row_ids(words, vocabulary).tolist(), strict=True))
    return {id_: id_ for id_ in Rows(words, view.num_rows)}


def _check_count(count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ValueError(f"`count` must be a positive int. Received: count={count!r}")


def _search(view: TableView, ids: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """For each of some rows, the ids and cosines of the rows nearest to it.

    Cosines are found roughly, in float32, and those that can be among the best
    once more, in float64.
    """
    directions = _directions(view.read(ids))
    # A bound for the rounding errors of a dot product, a norm and a quotient of float32.
    margin = 4 * (view.width + 8) * np.finfo(np.float32).eps
    best: list[list[tuple[int, float]]] = [[] for _ in ids]
    # The lowest of the best cosines, once there are `count` of them.
    worst = np.full(len(ids), -np.inf)
    for start, rows in view.chunks(num_columns=len(ids)):
        rough = _rough_cosines(directions, rows)
        here = np.flatnonzero((ids >= start) & (ids < start + len(rows)))
        rough[here, ids[here] - start] = -np.inf
        most = rough.max(axis=1)
        for query in np.flatnonzero((most > -np.inf) & (most >= worst - margin)):
            least = max(worst[query], _of_rank(rough[query], count)) - margin
            places = np.flatnonzero((rough[query] >= least) & (rough[query] > -np.inf))
            cosines = _directions(rows[places]) @ directions[query]
            best[query] = _merged(best[query], places + start, cosines, count)
            if len(best[query]) == count:
                worst[query] = best[query][-1][1]
    return best


def _rough_cosines(directions: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosines in float32, of shape `(Q, n)`; infinity where they may be wrong, as for tiny rows."""
    with np.errstate(all="ignore"):
        rows = rows.astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", rows, rows)
        rough = directions.astype(np.float32) @ rows.T
        rough /= np.sqrt(squares)
        rough[:, ~((squares > 1e-30) & (squares < 1e30))] = np.inf
    # What has no direction has no neighbour.
    rough[np.isnan(directions).any(axis=1)] = -np.inf
    return rough


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of length one, float64; of NaN where a row has no direction."""
    rows = rows.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Scaled first, so that no square is too large or too small for a float.
        rows /= np.abs(rows).max(axis=1, keepdims=True)
        rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, np.newaxis]
    rows[~np.isfinite(rows).all(axis=1)] = np.nan
    return rows


def _of_rank(values: np.ndarray, rank: int) -> float:
    """The finite value of a rank, from 1 for the largest; -infinity where there are fewer."""
    values = values[np.isfinite(values)]
    return float(-np.partition(-values, rank - 1)[rank - 1]) if len(values) > rank else -np.inf


def _merged(
    best: list[tuple[int, float]], ids: np.ndarray, cosines: np.ndarray, count: int
) -> list[tuple[int, float]]:
    """The best of what was found before and of other rows; of equal ones, those of lower ids."""
    # So that equal rows are equally near, in whatever order their products are added.
    rounded = np.round(np.clip(cosines, -1, 1), DIGITS).tolist()
    found = [pair for pair in zip(ids.tolist(), rounded, strict=True) if pair[1] == pair[1]]
    # A sort is stable, so that what was found first stays before its equals.
    return sorted([*best, *found], key=lambda near: -near[1])[:count]


def _cells(found: Sequence[Neighbour]) -> list[tuple[str, str]]:
    return [(shown_word(each.word, each.id), f"{each.similarity:.3f}") for each in found]


def _notes(cells: Sequence[Any], what: str) -> list[str]:
    return [] if cells else [f"{what} has no neighbour: it is zero, not finite, or alone"]
