"""The tables of a saved model, read from its file some rows at a time, without loading it."""

import contextlib
import itertools
import json
import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.saved import decode_trainable_rows

WEIGHTS_FILE = "model.weights.h5"


class SavedTable(NamedTuple):
    """A table in a file.

    `name` is the path of its layer among the model's; `shape` and `dtype` are
    the table's; `read(start, stop)` returns rows; `trainable` are the rows
    that the model's `MaskedOptimizer` trains, or `None` if it names none;
    `offset` is the place of its first byte in the file of weights, or `None`
    if its bytes are not there in one piece.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[int, int], np.ndarray]
    trainable: Rows | None
    offset: int | None = None


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
    import h5py

    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            config = json.loads(archive.read("config.json"))
            # Compressed or not, an archive cannot be searched fast; a file can.
            weights = stack.enter_context(tempfile.TemporaryFile())
            with archive.open(WEIGHTS_FILE) as member:
                shutil.copyfileobj(member, weights, 2**20)
            file = stack.enter_context(h5py.File(weights, "r"))
            tables = _tables(file, _trainable_rows(config))
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile and HDF5 do not say what they raise for damaged files
            raise ValueError(
                "Expected a model as `model.save(...)` writes it, in one file that ends in "
                f".keras. Received: {str(path)!r} ({error})"
            ) from error
        yield tables


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
        for key, child in group.items():
            if hasattr(child, "items") and key != "vars" and not (is_root and key == "optimizer"):
                visit(child, names)

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


def _tables(file: Any, trainable_rows: Mapping[str, Rows]) -> list[SavedTable]:
    by_layer = [
        (name, datasets)
        for name, group in layers(file)
        if (datasets := [dataset for dataset in group.values() if dataset.ndim >= 2])
    ]
    tables = [
        saved_table(name if len(datasets) == 1 else f"{name}/{place}", dataset)
        for name, datasets in by_layer
        for place, dataset in enumerate(datasets)
    ]
    for path, rows in trainable_rows.items():
        place = _place_of(path, rows, tables)
        tables[place] = tables[place]._replace(trainable=rows)
    return tables


def _place_of(path: str, rows: Rows, tables: list[SavedTable]) -> int:
    """Returns the index of the table that has the path of a variable.

    A file of weights holds names of layers and no paths: the table is taken that shares most
    names with the path, counted from the end.
    """
    layer = path.split("/")[:-1]
    common = [
        _num_common(layer, table.name.split("/")) if table.shape[0] == rows.num_rows else 0
        for table in tables
    ]
    best = max(common, default=0)
    if best == 0 or common.count(best) > 1:
        raise ValueError(
            f"The model must have one table of {rows.num_rows} rows in the layer of {path!r}, "
            f"which its optimizer trains. Received: {describe(tables)}"
        )
    return common.index(best)


def _num_common(layer: Sequence[str], name: Sequence[str]) -> int:
    """Returns how many names two paths have in common, counted from the end."""
    pairs = zip(reversed(layer), reversed(name), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shape(dataset: Any) -> tuple[int, ...]:
    # HDF5 makes up numbers that a file does not hold, as many as its header says.
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


def _trainable_rows(config: Mapping[str, Any]) -> dict[str, Rows]:
    """Returns the rows that the model's `MaskedOptimizer` trains, by path; none if it is not built.

    Rows along another axis than the first are no rows of a table of vectors.
    """
    optimizer = (config.get("compile_config") or {}).get("optimizer")
    while isinstance(optimizer, dict) and optimizer.get("class_name") != "MaskedOptimizer":
        optimizer = optimizer.get("config", {}).get("inner_optimizer")
    if not isinstance(optimizer, dict):
        return {}
    targets = decode_trainable_rows(optimizer["config"]["trainable_rows"])
    return {
        target.path: rows
        for target, rows in targets.items()
        if target.path is not None and isinstance(rows, Rows) and target.axis == 0
    }
