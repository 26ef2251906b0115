"""Property tests that users of maskedgrad run on models of their own.

What draws needs the extra `testing`; `frozen_rows_unchanged` and what compares bits need none.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maskedgrad.testing.bits import assert_same_bits, bits
from maskedgrad.testing.compact_twin import (
    CompactTwin,
    assert_trains_like_compact,
    compact_variable,
    selected_gradient,
)
from maskedgrad.testing.frozen_rows import frozen_rows_unchanged

if TYPE_CHECKING:
    from maskedgrad.testing.strategies import (
        TABLE_PATH,
        OptimizerSpec,
        Table,
        gradients,
        gradients_of,
        optimizer_classes,
        optimizers,
        row_sets,
        tables,
    )
    from maskedgrad.testing.walks import Walk, check_model

__all__ = [
    "TABLE_PATH",
    "CompactTwin",
    "OptimizerSpec",
    "Table",
    "Walk",
    "assert_same_bits",
    "assert_trains_like_compact",
    "bits",
    "check_model",
    "compact_variable",
    "frozen_rows_unchanged",
    "gradients",
    "gradients_of",
    "optimizer_classes",
    "optimizers",
    "row_sets",
    "selected_gradient",
    "tables",
]


def _imported(name: str) -> Any:
    """What is exported under a name, imported now."""
    # What draws is imported where it is used, since it needs Hypothesis.
    if name in __all__:
        # The first says which extra is missing.
        for module in ("strategies", "walks"):
            found = vars(importlib.import_module(f"maskedgrad.testing.{module}")).get(name)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:
    # Hidden from type checkers, which would let any name pass.
    __getattr__ = _imported


def __dir__() -> list[str]:
    return sorted(__all__)
