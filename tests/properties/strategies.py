"""What our own property tests draw beside what `maskedgrad.testing` has for everyone's."""

import tensorflow as tf
from hypothesis import settings
from hypothesis import strategies as st

from maskedgrad.testing import Table, gradients

# For laws that take a millisecond to check.
cheap = settings(max_examples=10 * settings().max_examples)


def mirrored_strategy() -> tf.distribute.Strategy:
    """Two devices of this machine. The collectives of several strategies in one process collide."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def kernel_gradients(table: Table) -> st.SearchStrategy:
    """Gradients of `oracle.kernel_variable(table)`."""
    return gradients((2, 3), table.values.dtype, kinds=("dense",))
