"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

from maskedgrad import callbacks
from maskedgrad.extension import extend
from maskedgrad.gradients import mask_gradients
from maskedgrad.merging import merge_two_tables
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.optimizer import MaskedOptimizer
from maskedgrad.patch import RowPatch
from maskedgrad.pretrained import pretrained_embedding
from maskedgrad.rows import Rows
from maskedgrad.summary import summary
from maskedgrad.targets import AlongAxis
from maskedgrad.vectors import load_vectors
from maskedgrad.version import __version__
from maskedgrad.vocabulary import row_ids

__all__ = [
    "AlongAxis",
    "MaskedModel",
    "MaskedOptimizer",
    "MaskedTrainStep",
    "RowPatch",
    "Rows",
    "__version__",
    "callbacks",
    "extend",
    "load_vectors",
    "mask_gradients",
    "merge_two_tables",
    "pretrained_embedding",
    "row_ids",
    "summary",
]
