"""How the frozen rows of a saved model compare with those of its source, in chunks of rows."""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from maskedgrad.cli.options import read_words, without_python
from maskedgrad.cli.saved_tables import SavedTable, describe, matrix_file, open_tables
from maskedgrad.files import check_no_folder
from maskedgrad.masking.tables import bits
from maskedgrad.rows.rows import Rows
from maskedgrad.vectors.arrays import is_array_with_words

NUM_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the frozen rows of a table compare with those of its source.

    `absent` are the frozen rows that the source does not hold. `furthest`
    lists the rows that differ most, each with its largest difference, which is
    `None` where it is not a number.
    """

    table: str
    trainable: int
    same: int
    different: Rows
    absent: Rows
    furthest: list[tuple[int, float | None]]

    def to_json(self) -> dict[str, object]:
        """A JSON value."""
        return {
            "table": self.table,
            "rows": self.different.num_rows,
            "trainable": self.trainable,
            "same": self.same,
            "different": len(self.different),
            "different_rows": self.different.get_config()["rows"],
            "furthest": [{"row": row, "difference": value} for row, value in self.furthest],
            "absent": len(self.absent),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.table}: {self.different.num_rows:,} rows, {self.trainable:,} of them trainable",
            f"  {_frozen_rows(self.same, 'is', 'are')} the source's, bit for bit",
        ]
        if len(self.different):
            differ = _frozen_rows(len(self.different), "differs", "differ")
            lines.append(f"  {differ}, furthest by:")
            lines += [f"    row {row}: {_number(value)}" for row, value in self.furthest]
        if len(self.absent):
            lines.append(f"  {_frozen_rows(len(self.absent), 'is', 'are')} not in the source")
        return "\n".join(lines)


def _frozen_rows(number: int, of_one: str, of_many: str) -> str:
    return f"{number:,} frozen {f'row {of_one}' if number == 1 else f'rows {of_many}'}"


def compare_files(
    model: Path, source: Path, vocabulary: Path | None = None, table: str | None = None
) -> list[Comparison]:
    """How the frozen rows of a saved model compare with their source, table by table.

    Args:
        model: the path of a `.keras` file.
        source: the path of a `.npy` file, a `.keras` file, or a file that
            `load_vectors` reads.
        vocabulary: the path of a file of the words of the rows, one a line.
        table: the name of the table to compare.

    Raises:
        ImportError: the source is a safetensors file, and the extra `patch` is
            not installed.
        ValueError: a file is not what it should be; the tables to compare
            cannot be told; or the source does not fit a table.

    Example:

    >>> import tempfile, keras
    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = keras.Model(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     np.save(f"{folder}/source.npy", words.get_weights()[0])
    ...     print(*compare_files(Path(folder, "model.keras"), Path(folder, "source.npy")))
    words: 5 rows, 0 of them trainable
      5 frozen rows are the source's, bit for bit
    """
    with open_tables(model) as tables:
        chosen = _chosen(tables, table)
        with _source(source, vocabulary) as (source_tables, absent_ids):
            if len(chosen) > 1 and source.suffix != ".keras":
                raise ValueError(
                    "One table can be compared with a source that holds one. "
                    f"Received: {describe(chosen)}. Choose by --table."
                )
            return [compare(t, _counterpart(t, source_tables), absent_ids) for t in chosen]


def compare(table: SavedTable, source: SavedTable, absent_ids: np.ndarray) -> Comparison:
    """How the frozen rows of a table compare with a source, both read in chunks.

    A source of another dtype counts as what it is in the dtype of the table.

    Args:
        table: the table.
        source: the source, whose row i belongs to row i of the table.
        absent_ids: integers of shape `(N,)`, rows that the source does not hold.

    Raises:
        ValueError: the source has rows of another shape, or lacks a frozen row.

    Example:

    >>> matrix = np.zeros((3, 2), "float32")
    >>> def read(start, stop):
    ...     return matrix[start:stop]
    >>> table = SavedTable("words", (3, 2), matrix.dtype, read, Rows([2], 3))
    >>> source = table._replace(read=lambda start, stop: matrix[start:stop] + [[0], [0.5], [9]])
    >>> comparison = compare(table, source, np.array([], int))
    >>> comparison.different, comparison.furthest
    (Rows('1', num_rows=3), [(1, 0.5)])
    """
    num_rows = table.shape[0]
    is_frozen = np.ones(num_rows, bool) if table.trainable is None else ~table.trainable.mask
    _check_fits(table, source, is_frozen)
    is_absent = np.zeros(num_rows, bool)
    is_absent[absent_ids[absent_ids < num_rows]] = True
    is_compared = is_frozen & ~is_absent
    differing: list[np.ndarray] = []
    differences: list[np.ndarray] = []
    for start in range(0, min(num_rows, source.shape[0]), table.rows_a_chunk):
        stop = min(start + table.rows_a_chunk, num_rows, source.shape[0])
        ids = start + np.flatnonzero(is_compared[start:stop])
        rows = table.read(start, stop)[ids - start].reshape(len(ids), -1)
        with np.errstate(over="ignore"):
            expected = source.read(start, stop)[ids - start].astype(table.dtype)
        expected = expected.reshape(rows.shape)
        differs = (bits(rows) != bits(expected)).any(axis=1)
        differing.append(ids[differs])
        with np.errstate(invalid="ignore"):
            gaps = np.abs(rows[differs].astype("float64") - expected[differs].astype("float64"))
        differences.append(gaps.max(axis=1, initial=0.0))
    different_ids = np.concatenate([*differing, np.zeros(0, int)])
    return Comparison(
        table=table.name,
        trainable=int(num_rows - is_frozen.sum()),
        same=int(is_compared.sum()) - len(different_ids),
        different=Rows(different_ids, num_rows),
        absent=Rows(is_frozen & is_absent, num_rows),
        furthest=_furthest(different_ids, np.concatenate([*differences, np.zeros(0)])),
    )


def _chosen(tables: list[SavedTable], name: str | None) -> list[SavedTable]:
    chosen = [table for table in tables if table.name == name] if name else tables
    masked = [table for table in tables if table.trainable is not None or table.doubt is not None]
    if name is None and masked:
        chosen = masked
    if not chosen:
        raise ValueError(
            f"Expected a table of the model. Received: --table {name}. "
            f"The model has {describe(tables)}"
        )
    doubts = [table.doubt for table in chosen if table.doubt is not None]
    if doubts:
        raise ValueError(f"{doubts[0]} Received: {describe(tables)}")
    return chosen


@contextlib.contextmanager
def _source(path: Path, vocabulary: Path | None) -> Iterator[tuple[list[SavedTable], np.ndarray]]:
    """The tables of a source, and the rows that it does not hold."""
    none_absent = np.zeros(0, int)
    if path.suffix not in (".keras", ".npy") or (vocabulary and is_array_with_words(path)):
        yield _vectors(path, vocabulary)
    elif vocabulary is not None:
        raise ValueError(
            "--vocabulary goes with a source that has words. Received: --against "
            f"{path}, which has none. Leave --vocabulary out to compare rows of one id, or write "
            "the words of its rows to a file beside it, a word a line: name.vocab.txt for name.npy."
        )
    elif path.suffix == ".keras":
        with open_tables(path) as tables:
            yield tables, none_absent
    else:
        yield [matrix_file(path)], none_absent


def _vectors(path: Path, vocabulary: Path | None) -> tuple[list[SavedTable], np.ndarray]:
    from maskedgrad.vectors.loading import load_vectors
    from maskedgrad.vectors.unpacking import archive_and_member

    check_no_folder(path, "the file of a source")
    file, _ = archive_and_member(path)
    if not file.exists():
        raise FileNotFoundError(f"Expected the file of a source. Received: {path}, which is none")
    if vocabulary is None:
        raise ValueError(
            "A source that has words needs --vocabulary, the words of the model's rows. "
            f"Received: --against {path} alone. A source without words is a .npy or a .keras file."
        )
    words = read_words(vocabulary)
    with warnings.catch_warnings():
        # The warning names an argument of Python's. Padding is a row like any other here.
        warnings.simplefilter("ignore", UserWarning)
        try:
            matrix, report = load_vectors(path, words, "zeros")
        except ValueError as error:
            raise ValueError(
                f"--against {path} and --vocabulary {vocabulary}: {without_python(str(error))}"
            ) from error
    padding = [] if report.padding_id is None else [report.padding_id]
    table = SavedTable(
        path.name, matrix.shape, matrix.dtype, lambda start, stop: matrix[start:stop], None
    )
    return [table], np.concatenate([report.missing_ids, np.array(padding, int)])


def _counterpart(table: SavedTable, sources: list[SavedTable]) -> SavedTable:
    if len(sources) == 1:
        return sources[0]
    found = [source for source in sources if source.name == table.name]
    found = found or [source for source in sources if source.shape == table.shape]
    if len(found) != 1:
        raise ValueError(
            f"The source must have one table of the name or the shape of {describe([table])}. "
            f"Received: {describe(sources)}"
        )
    return found[0]


def _check_fits(table: SavedTable, source: SavedTable, is_frozen: np.ndarray) -> None:
    if table.shape[1:] != source.shape[1:] or is_frozen[source.shape[0] :].any():
        raise ValueError(
            f"The source must hold each frozen row of {describe([table])}. "
            f"Received: {describe([source])}"
        )


def _furthest(ids: np.ndarray, differences: np.ndarray) -> list[tuple[int, float | None]]:
    largest_first = np.argsort(-np.nan_to_num(differences, nan=np.inf), kind="stable")[:NUM_SHOWN]
    return [
        (int(ids[place]), float(differences[place]) if np.isfinite(differences[place]) else None)
        for place in largest_first
    ]


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.6g}"
