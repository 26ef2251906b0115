"""Types for what users give, to annotate functions of their own with."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
import numpy.typing as npt

from maskedgrad.rows.rows import RowsLike
from maskedgrad.rows.targets import AlongAxis, MaskedTable

Target: TypeAlias = keras.Layer | str | AlongAxis | MaskedTable

# The keys are targets. `Mapping[Target, ...]` would refuse a `dict[Embedding, ...]`: a mapping is
# invariant in its keys.
TrainableRows: TypeAlias = Mapping[Any, RowsLike]

RowLearningRates: TypeAlias = Mapping[
    Any,
    Mapping[float, RowsLike]
    | Mapping[int, RowsLike]
    | Sequence[float]
    | npt.NDArray[np.floating[Any] | np.integer[Any]],
]
