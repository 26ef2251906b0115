"""Which rows of a table are meant: sets of row ids, their text form, and words by their ids."""

from maskedgrad.rows.rows import Rows
from maskedgrad.rows.vocabulary import row_ids

__all__ = ["Rows", "row_ids"]
