"""Train some rows of a pretrained table in Keras; every other row keeps its bits."""

import importlib
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskedgrad.version import __version__, check_tensorflow

if TYPE_CHECKING:
    from maskedgrad import callbacks, patches, reports, rows, vectors
    from maskedgrad import testing as testing  # by the second name it counts as exported
    from maskedgrad.masking import MaskedOptimizer
    from maskedgrad.model import MaskedModel, MaskedTrainStep
    from maskedgrad.patches import RowPatch
    from maskedgrad.reports import nearest, row_report, summary
    from maskedgrad.rows import (
        AlongAxis,
        RowLearningRates,
        Rows,
        RowsLike,
        Target,
        TrainableRows,
        mask_gradients,
        row_ids,
    )
    from maskedgrad.vectors import (
        change_vocabulary,
        extend,
        load_vectors,
        merge_two_tables,
        pretrained_embedding,
        save_vectors,
        write_projector,
    )

__all__ = [
    "AlongAxis",
    "MaskedModel",
    "MaskedOptimizer",
    "MaskedTrainStep",
    "RowLearningRates",
    "RowPatch",
    "Rows",
    "RowsLike",
    "Target",
    "TrainableRows",
    "__version__",
    "callbacks",
    "change_vocabulary",
    "extend",
    "load_vectors",
    "mask_gradients",
    "merge_two_tables",
    "nearest",
    "patches",
    "pretrained_embedding",
    "reports",
    "row_ids",
    "row_report",
    "rows",
    "save_vectors",
    "summary",
    "vectors",
    "write_projector",
]


_ROOMS = {"callbacks", "patches", "reports", "rows", "testing", "vectors"}
# Each other name is exported by one of these, which are imported in this order until it is found.
_WITH_NAMES = ("rows", "masking", "reports", "model", "vectors", "patches")


def _imported(name: str) -> Any:
    """What is exported under a name, imported now."""
    if name in _ROOMS:
        return importlib.import_module(f"maskedgrad.{name}")
    if name in __all__:
        rooms = (importlib.import_module(f"maskedgrad.{room}") for room in _WITH_NAMES)
        return next(getattr(room, name) for room in rooms if name in room.__all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:
    # Hidden from type checkers, which would let any name pass.
    __getattr__ = _imported


def __dir__() -> list[str]:
    """The public names: rooms that Python has imported are not all meant for users."""
    return sorted([*__all__, "testing"])


def _runs_a_command() -> bool:
    """Whether this is imported for the command `maskedgrad`, or for `python -m maskedgrad`."""
    program = sys.argv[0] if sys.argv else ""
    # So it is while Python looks for what `-m` names:
    # https://docs.python.org/3/using/cmdline.html#cmdoption-m
    if program == "-m":
        return ("-m", __name__) in itertools.pairwise(sys.orig_argv)
    return Path(program).stem == __name__


# Keras loads what is registered with it, so the whole package is there once it is imported. A
# command answers `--help` without the seconds that this takes, and imports the rest when it runs.
if not _runs_a_command():
    check_tensorflow()
    # `testing` is no part of `__all__`: most of it needs an extra.
    globals().update({name: _imported(name) for name in __all__ if name != "__version__"})
