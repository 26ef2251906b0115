"""Row patches: the trained rows of a model as a small file of their own."""

from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import read_adapter, write_adapter
from maskedgrad.patches.table import TablePatch

__all__ = ["RowPatch", "TablePatch", "read_adapter", "write_adapter"]
