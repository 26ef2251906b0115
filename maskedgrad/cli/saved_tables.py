"""The tables of a saved model, read from its file some rows at a time, without loading it."""

import contextlib
import itertools
import json
import math
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from maskedgrad.files import check_no_folder, opened_hdf5
from maskedgrad.masking.tables import digest_of_rows
from maskedgrad.rows.chunks import rows_a_chunk
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.saved import decode_trainable_rows

WEIGHTS_FILE = "model.weights.h5"
LARGEST_CONFIG = 2**28  # bytes; it holds which rows train, as text


class SavedTable(NamedTuple):
    """A table in a file.

    `name` is the path of its layer among the model's, with its number where
    the layer has several; `shape` and `dtype` are the table's; `read(start,
    stop)` returns rows; `trainable` are the rows that the model's
    `MaskedOptimizer` trains, or `None` if it names none; `offset` is the place
    of its first byte in the file of weights, or `None` if its bytes are not
    there in one piece. `doubt` says why it is not known whether rows of it
    train.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    trainable: Rows | None
    offset: int | None = None
    doubt: str | None = None

    @property
    def row_bytes(self) -> int:
        """The number of bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def rows_a_chunk(self) -> int:
        """How many rows are read at a time: some megabytes of them."""
        return rows_a_chunk(self.row_bytes)

    def chunks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The whole table, some rows at a time, each with the id of its first row."""
        for start in range(0, self.shape[0], self.rows_a_chunk):
            yield start, self.read(start, min(start + self.rows_a_chunk, self.shape[0]))


@contextlib.contextmanager
def open_tables(path: Path) -> Iterator[list[SavedTable]]:
    """The variables of rank 2 or more of a `.keras` file, while the context lasts.

    Args:
        path: of the file.

    Raises:
        ValueError: the file is not what `model.save` writes.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> model.optimizer.build(model.trainable_variables)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(f"{folder}/model.keras")
    ...     with open_tables(Path(folder, "model.keras")) as tables:
    ...         [(table.name, table.shape, table.trainable) for table in tables]
    [('words', (5, 2), Rows('1,4', num_rows=5))]
    """
    with contextlib.ExitStack() as stack:
        expected = "a model as `model.save(...)` writes it, in one file that ends in .keras"
        with reading(path, expected):
            archive = stack.enter_context(zipfile.ZipFile(path))
            _check_size(archive, "config.json", LARGEST_CONFIG)
            config = json.loads(archive.read("config.json"))
            # HDF5 reads here and there, which is slow within an archive.
            weights = stack.enter_context(tempfile.TemporaryFile())
            _check_size(archive, WEIGHTS_FILE, shutil.disk_usage(tempfile.gettempdir()).free)
            with archive.open(WEIGHTS_FILE) as member:
                shutil.copyfileobj(member, weights, 2**20)
            file = stack.enter_context(opened_hdf5(weights))
            tables = _tables(file, _trained(config, file))
        yield tables


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """A context in which an error says what a file is expected to be, unless it is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and HDF5 do not say what they raise for damaged files
        raise ValueError(f"Expected {expected}. Received: {str(path)!r} ({error})") from error


def layers(file: Any) -> list[tuple[str, Any]]:
    """Returns the names of each layer and those around it, as a path, with its variables."""
    found: list[tuple[str, Any]] = []

    def visit(group: Any, names: tuple[str, ...]) -> None:
        own = group.get("vars")
        is_root = group.name == "/"
        if own is not None:
            name = own.attrs.get("name", group.name.rpartition("/")[2])
            found.append(("/".join((*names, name)), own))
            # Paths of functional models do not begin with the name of the model.
            names = names if is_root else (*names, name)
        for key in group:
            is_left_out = key == "vars" or (is_root and key == "optimizer")
            if not is_left_out and hasattr(group[key], "items"):
                visit(group[key], names)

    visit(file, ())
    return found


def saved_table(name: str, dataset: Any) -> SavedTable:
    """Returns a variable in a file of weights as a table.

    Raises:
        ValueError: the file does not hold all of it, or it is not of numbers.
    """
    return SavedTable(
        name,
        _shape(dataset),
        _dtype(dataset),
        _reader(dataset),
        None,
        dataset.id.get_offset(),
    )


def matrix_file(path: Path) -> SavedTable:
    """The array of a `.npy` file as a table.

    Raises:
        ValueError: the file holds no array of numbers of rank 2 or more.

    Example:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/vectors.npy", np.eye(3))
    ...     matrix_file(Path(folder, "vectors.npy")).read(1, 2)
    array([[0., 1., 0.]])
    """

    def read(start: int, stop: int) -> np.ndarray:
        # Opened anew, since pages once read stay in memory as long as a file is mapped.
        return np.array(np.lib.format.open_memmap(path, mode="r")[start:stop])

    check_no_folder(path, "an array as `numpy.save` writes it")
    try:
        matrix = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy does not say what it raises for damaged files
        raise ValueError(
            f"Expected an array as `numpy.save` writes it. Received: {str(path)!r} ({error})"
        ) from error
    if matrix.ndim < 2 or matrix.dtype.kind != "f":
        raise ValueError(
            "Expected an array of floating point numbers of rank 2 or more. "
            f"Received: {str(path)!r}, which holds an array of shape {matrix.shape} and dtype "
            f"{matrix.dtype}"
        )
    return SavedTable(path.name, matrix.shape, matrix.dtype, read, None)


def describe(tables: Sequence[SavedTable]) -> str:
    """Returns a list of tables for messages: their names and shapes."""
    return ", ".join(f"{table.name} {table.shape}" for table in tables) or "no table"


def _check_size(archive: zipfile.ZipFile, name: str, most: int) -> None:
    """Raises a `ValueError` if a member is too large when it is unpacked."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise ValueError(f"its {name} is of {size} bytes, and can be of {most}")


class _Trained(NamedTuple):
    """What is saved of a table of which rows train.

    `digest` is that of these rows as they were saved, if it is known.
    """

    path: str
    rows: Rows
    shape: tuple[int, ...] | None
    digest: str | None


def _tables(file: Any, trained: Sequence[_Trained]) -> list[SavedTable]:
    found = [
        (layer, name, dataset)
        for layer, group in layers(file)
        for name, dataset in _named(layer, [d for d in group.values() if d.ndim >= 2])
    ]
    names = Counter(name for _, name, _ in found)
    tables = [
        saved_table(name if names[name] == 1 else f"{name}@{_place_in_file(dataset)}", dataset)
        for _, name, dataset in found
    ]
    for each in trained:
        places = _places_of(each, tables, [layer for layer, _, _ in found])
        is_known = len(places) == trained.count(each)
        for place in places:
            tables[place] = tables[place]._replace(
                trainable=each.rows if is_known else tables[place].trainable,
                doubt=None if is_known else _doubt(each),
            )
    return tables


def _named(layer: str, datasets: Sequence[Any]) -> list[tuple[str, Any]]:
    """Returns each variable of a layer with its name: the layer's own, if it has one variable."""
    if len(datasets) == 1:
        return [(layer, datasets[0])]
    return [(f"{layer}/{place}", dataset) for place, dataset in enumerate(datasets)]


def _place_in_file(dataset: Any) -> str:
    return dataset.name.removeprefix("/").replace("/vars/", "/")


def _doubt(trained: _Trained) -> str:
    return (
        f"The model must have one table of {trained.rows.num_rows} rows in the layer of "
        f"{trained.path!r}, which its optimizer trains."
    )


def _places_of(trained: _Trained, tables: Sequence[SavedTable], layers: Sequence[str]) -> list[int]:
    """Returns the indices of the tables that may be the one that is trained.

    A file of weights holds names of layers and no paths. Those tables are taken that share most
    names with the path, counted from the end, and of several those whose rows are the ones that
    were saved.

    Raises:
        ValueError: there is none.
    """
    layer = trained.path.split("/")[:-1]
    common = [
        _num_common(layer, name.split("/")) if _may_be(trained, table) else 0
        for name, table in zip(layers, tables, strict=True)
    ]
    best = max(common, default=0)
    places = [place for place, number in enumerate(common) if number == best > 0]
    if len(places) > 1 and trained.digest is not None:
        places = [place for place in places if _digest(tables[place], trained) == trained.digest]
    if not places:
        raise ValueError(f"{_doubt(trained)} Received: {describe(tables)}")
    return places


def _may_be(trained: _Trained, table: SavedTable) -> bool:
    return table.shape[0] == trained.rows.num_rows and trained.shape in (None, table.shape)


def _num_common(layer: Sequence[str], name: Sequence[str]) -> int:
    """Returns how many names two paths have in common, counted from the end."""
    pairs = zip(reversed(layer), reversed(name), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _digest(table: SavedTable, trained: _Trained) -> str:
    """Returns the digest of the rows of a table that are trained."""
    return digest_of_rows(table.chunks(), trained.rows.mask)


def _shape(dataset: Any) -> tuple[int, ...]:
    # Where a file lacks numbers, HDF5 returns zeros, as many as the header claims.
    num_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if not 0 < num_bytes <= dataset.id.get_storage_size():
        raise ValueError(
            f"a variable of shape {dataset.shape} must have {num_bytes} bytes, and has "
            f"{dataset.id.get_storage_size()}"
        )
    return dataset.shape


def _dtype(dataset: Any) -> np.dtype:
    # HDF5 has no bfloat16: Keras writes the bits, and the name beside them.
    dtype = np.dtype(getattr(ml_dtypes, dataset.attrs.get("dtype", ""), dataset.dtype))
    is_number = dtype.kind in "biuf" or hasattr(ml_dtypes, dtype.name)
    if not is_number or dtype.itemsize != dataset.dtype.itemsize or dtype.itemsize > 8:
        raise ValueError(f"a variable must be of numbers, and one is of dtype {dtype}")
    return dtype


def _reader(dataset: Any) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: dataset[start:stop].view(_dtype(dataset))


def _trained(config: Mapping[str, Any], file: Any) -> list[_Trained]:
    """Returns what is saved of the tables that the model's `MaskedOptimizer` masks.

    None if it is not built. Rows along another axis than the first are no rows of a table of
    vectors.
    """
    optimizer = (config.get("compile_config") or {}).get("optimizer")
    while isinstance(optimizer, dict) and optimizer.get("class_name") != "MaskedOptimizer":
        optimizer = optimizer.get("config", {}).get("inner_optimizer")
    if not isinstance(optimizer, dict):
        return []
    targets = decode_trainable_rows(optimizer["config"]["trainable_rows"])
    digests = _saved_digests(file)
    return [
        _Trained(target.path, rows, target.shape, digests.get(target))
        for target, rows in targets.items()
        if target.path is not None and isinstance(rows, Rows) and target.axis == 0
    ]


def _saved_digests(file: Any) -> dict[Any, Any]:
    """Returns the digests of the rows that train, by their tables, of the state of an optimizer."""
    group = file.get("optimizer", {})
    while "chosen_row_ids" not in group and "inner_optimizer" in group:
        group = group["inner_optimizer"]
    for key in ("chosen_row_ids", "vars", "tables"):
        if key not in group:
            return {}
        group = group[key]
    _shape(group)
    return {
        table: entry.get("digest")
        for entry in json.loads(group[:].tobytes())
        for table in decode_trainable_rows([entry])
    }
