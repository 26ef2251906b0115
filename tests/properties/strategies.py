"""What the property tests draw: what the kit for users has, and a little of our own."""

import tensorflow as tf
from hypothesis import settings
from hypothesis import strategies as st

from maskedgrad import testing
from maskedgrad.testing import (
    TABLE_PATH,
    OptimizerSpec,
    Table,
    assert_same_bits,
    bits,
    optimizer_classes,
    optimizers,
    row_sets,
    tables,
)
from maskedgrad.testing import gradients_of as gradients

__all__ = [
    "TABLE_PATH",
    "OptimizerSpec",
    "Table",
    "assert_same_bits",
    "bits",
    "cheap",
    "gradients",
    "kernel_gradients",
    "mirrored_strategy",
    "optimizer_classes",
    "optimizers",
    "row_sets",
    "tables",
]

# For laws that take a millisecond to check.
cheap = settings(max_examples=10 * settings().max_examples)


def mirrored_strategy() -> tf.distribute.Strategy:
    """Two devices of this machine. The collectives of several strategies in one process collide."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def kernel_gradients(table: Table) -> st.SearchStrategy:
    """Gradients of `oracle.kernel_variable(table)`."""
    return testing.gradients((2, 3), table.values.dtype, kinds=("dense",))
