"""Row patches: the trained rows of a model as a small file of their own."""

from maskedgrad.patches.hub import load_from_hub, push_to_hub
from maskedgrad.patches.merging import merge_patches
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import read_adapter, write_adapter
from maskedgrad.patches.registry import PatchRegistry
from maskedgrad.patches.table import TablePatch

__all__ = [
    "PatchRegistry",
    "RowPatch",
    "TablePatch",
    "load_from_hub",
    "merge_patches",
    "push_to_hub",
    "read_adapter",
    "write_adapter",
]
