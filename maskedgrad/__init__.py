"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

from maskedgrad import callbacks
from maskedgrad.counting import summary
from maskedgrad.masking.gradients import mask_gradients
from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.masking.targets import AlongAxis
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.patches.patch import RowPatch
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.vocabulary import row_ids
from maskedgrad.vectors.extension import extend
from maskedgrad.vectors.loading import load_vectors
from maskedgrad.vectors.merging import merge_two_tables
from maskedgrad.vectors.pretrained import pretrained_embedding
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
    "extend",
    "load_vectors",
    "mask_gradients",
    "merge_two_tables",
    "pretrained_embedding",
    "row_ids",
    "summary",
]
