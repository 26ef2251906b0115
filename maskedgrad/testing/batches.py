"""What users give as data: batches, and not one batch."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def batches_of(data: Iterable[Any]) -> list[Any]:
    """The batches of `data`, of which there is one at least.

    Raises:
        TypeError: `data` is one batch, a tuple of arrays as `fit` takes them.
        ValueError: there is no batch, so nothing would be checked.

    Example:

    >>> len(batches_of([(np.ones((4, 3)), np.ones(4))]))
    1
    """
    if isinstance(data, tuple) and any(isinstance(part, np.ndarray) for part in data):
        raise TypeError(
            "`data` must be batches. Received: a tuple with an array, which looks like one batch. "
            "One batch is `[(x, y)]`."
        )
    batches = list(data)
    if not batches:
        raise ValueError("`data` must hold at least one batch. Received: none")
    return batches
