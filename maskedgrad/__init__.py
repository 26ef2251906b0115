"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

from maskedgrad.gradients import mask_gradients
from maskedgrad.model import MaskedModel, MaskedTrainStep
from maskedgrad.optimizer import MaskedOptimizer
from maskedgrad.rows import Rows

__all__ = ["MaskedModel", "MaskedOptimizer", "MaskedTrainStep", "Rows", "mask_gradients"]
