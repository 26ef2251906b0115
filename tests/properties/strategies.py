"""What our own property tests draw beside what `maskedgrad.testing` has for everyone's."""

from hypothesis import settings
from hypothesis import strategies as st

from maskedgrad.testing import Table, gradients

# For laws that take a millisecond to check.
cheap = settings(max_examples=10 * settings().max_examples)


def kernel_gradients(table: Table) -> st.SearchStrategy:
    """Gradients of `oracle.kernel_variable(table)`."""
    return gradients((2, 3), table.values.dtype, kinds=("dense",))
