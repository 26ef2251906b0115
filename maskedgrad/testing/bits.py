"""Values as bits, which is how rows that must not change are compared."""

from typing import Any

import numpy as np


def bits(value: Any) -> np.ndarray:
    """The bits of an array, a tensor or a variable, as unsigned integers.

    Tells apart what `==` does not, such as 0 and -0, and takes a NaN for equal
    to itself.

    Example:

    >>> bits(np.float32([1.0, -0.0])).tolist()
    [1065353216, 2147483648]
    """
    array = np.asarray(value)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def assert_same_bits(actual: Any, expected: Any, what: str) -> None:
    """Raises an `AssertionError` that calls the values `what` if their bits differ.

    Example:

    >>> assert_same_bits(np.float32([np.nan]), np.float32([np.nan]), "the table")
    """
    received, wanted = np.asarray(actual), np.asarray(expected)
    if not np.array_equal(bits(received), bits(wanted)):
        raise AssertionError(
            f"The bits of {what} differ. Expected:\n{wanted}\nReceived:\n{received}"
        )
