"""Which rows of which tables: sets of ids, words, what users name, and what configs say of it."""

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import AlongAxis, MaskedTable
from maskedgrad.rows.vocabulary import row_ids

__all__ = ["AlongAxis", "MaskedTable", "Rows", "row_ids"]
