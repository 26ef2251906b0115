"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

from maskedgrad import callbacks
from maskedgrad.gradients import mask_gradients
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.optimizer import MaskedOptimizer
from maskedgrad.rows import Rows

__all__ = [
    "MaskedModel",
    "MaskedOptimizer",
    "MaskedTrainStep",
    "Rows",
    "callbacks",
    "mask_gradients",
]
