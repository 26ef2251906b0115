"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

from maskedgrad import callbacks
from maskedgrad.counting import summary
from maskedgrad.masking import MaskedOptimizer, mask_gradients
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.patches import RowPatch
from maskedgrad.rows import AlongAxis, Rows, row_ids
from maskedgrad.vectors import (
    change_vocabulary,
    extend,
    load_vectors,
    merge_two_tables,
    pretrained_embedding,
)
from maskedgrad.version import __version__

__all__ = [
    "AlongAxis",
    "MaskedModel",
    "MaskedOptimizer",
    "MaskedTrainStep",
    "RowPatch",
    "Rows",
    "__version__",
    "callbacks",
    "change_vocabulary",
    "extend",
    "load_vectors",
    "mask_gradients",
    "merge_two_tables",
    "pretrained_embedding",
    "row_ids",
    "summary",
]
