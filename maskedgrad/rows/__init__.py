"""Which rows of which tables: sets of ids, words, what users name, and what configs say of it."""

from maskedgrad.rows.aliases import RowLearningRates, Target, TrainableRows
from maskedgrad.rows.gradients import mask_gradients
from maskedgrad.rows.rows import Rows, RowsLike
from maskedgrad.rows.targets import AlongAxis, MaskedTable
from maskedgrad.rows.vocabulary import row_ids

__all__ = [
    "AlongAxis",
    "MaskedTable",
    "RowLearningRates",
    "Rows",
    "RowsLike",
    "Target",
    "TrainableRows",
    "mask_gradients",
    "row_ids",
]
