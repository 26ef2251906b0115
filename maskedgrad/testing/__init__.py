"""Property tests that users of maskedgrad run on models of their own. Needs the extra `testing`."""

from maskedgrad.testing.bits import assert_same_bits, bits
from maskedgrad.testing.compact_twin import (
    CompactTwin,
    assert_trains_like_compact,
    compact_variable,
    selected_gradient,
)
from maskedgrad.testing.frozen_rows import frozen_rows_unchanged
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
