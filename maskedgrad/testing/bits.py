"""Values as bits, which is how rows that must not change are compared."""

from typing import Any

import numpy as np

from maskedgrad.masking.tables import bits, same_bits

__all__ = ["assert_same_bits", "bits"]


def assert_same_bits(actual: Any, expected: Any, what: str) -> None:
    """Raises an `AssertionError` that calls the values `what` if their bits differ.

    Example:

    >>> assert_same_bits(np.float32([np.nan]), np.float32([np.nan]), "the table")
    """
    received, wanted = np.asarray(actual), np.asarray(expected)
    if not same_bits(received, wanted):
        raise AssertionError(
            f"The bits of {what} differ. "
            f"Expected, {wanted.dtype} of shape {wanted.shape}:\n{wanted}\n"
            f"Received, {received.dtype} of shape {received.shape}:\n{received}"
        )
