"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from maskedgrad import callbacks, patches, reports, rows, vectors
from maskedgrad.masking import MaskedOptimizer, mask_gradients
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.patches import RowPatch
from maskedgrad.reports import nearest, row_report, summary
from maskedgrad.rows import (
    AlongAxis,
    RowLearningRates,
    Rows,
    RowsLike,
    Target,
    TrainableRows,
    row_ids,
)
from maskedgrad.vectors import (
    change_vocabulary,
    extend,
    load_vectors,
    merge_two_tables,
    pretrained_embedding,
    save_vectors,
    write_projector,
)
from maskedgrad.version import __version__

if TYPE_CHECKING:
    from maskedgrad import testing as testing  # by the second name it counts as exported

__all__ = [
    "AlongAxis",
    "MaskedModel",
    "MaskedOptimizer",
    "MaskedTrainStep",
    "RowLearningRates",
    "RowPatch",
    "Rows",
    "RowsLike",
    "Target",
    "TrainableRows",
    "__version__",
    "callbacks",
    "change_vocabulary",
    "extend",
    "load_vectors",
    "mask_gradients",
    "merge_two_tables",
    "nearest",
    "patches",
    "pretrained_embedding",
    "reports",
    "row_ids",
    "row_report",
    "rows",
    "save_vectors",
    "summary",
    "vectors",
    "write_projector",
]


def __getattr__(name: str) -> ModuleType:
    # Imported where it is used, and no part of `__all__`: it needs the extra `testing`.
    if name == "testing":
        return importlib.import_module("maskedgrad.testing")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names: rooms that Python has imported are not all meant for users."""
    return sorted([*__all__, "testing"])
