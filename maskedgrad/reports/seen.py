"""How often data holds each of some ids."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from maskedgrad.messages import shorten

ADVICE_FOR_TEXTS = "Texts become ids by the lookup that the model reads by: `lookup(texts)`. "
ADVICE = (
    "Give the ids as the table looks them up: an array of integers, or batches of them, such as "
    "`dataset.map(lambda x, y: x['token_ids'])`."
)


def times_seen(data: Any, ids: np.ndarray) -> np.ndarray:
    """How often each id occurs in the data: int64 of the shape of `ids`.

    Args:
        data: integers in an array, a tensor (ragged ones too), a list of such;
            or a `tf.data.Dataset` or another iterable of batches of them. Of
            a batch that is a tuple, as `fit` takes it, the first part counts.
        ids: ascending, int64 of shape `(K,)`.

    Raises:
        TypeError: something in it is no integer, or it is a tuple, which may be
            inputs with their labels.
        ValueError: the dataset never ends.

    Example:

    >>> times_seen([[0, 4, 4], [1, 4, 0]], np.array([2, 4])).tolist()
    [0, 3]
    """
    counts = np.zeros(len(ids), np.int64)
    for batch in _batches(data):
        found, times = np.unique(_ids_in(batch), return_counts=True)
        places = np.searchsorted(ids, found)
        places[places == len(ids)] = 0
        known = ids[places] == found if len(ids) else np.zeros(len(found), bool)
        counts[places[known]] += times[known]
    return counts


def _batches(data: Any) -> Iterable[Any]:
    if isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "`data` must end, since all of it is counted. Received: a dataset that is repeated "
            "for ever. Give it as it was before, or `dataset.take(n)`."
        )
    if isinstance(data, tuple):
        raise TypeError(
            "`data` must be integers, or batches of them. Received: a tuple, which may be batches, "
            f"or inputs with their labels: {shorten(data)}. Give the inputs alone, or "
            "`iter(batches)`."
        )
    is_one = isinstance(data, (np.ndarray, tf.Tensor, tf.RaggedTensor, list))
    if not is_one and not isinstance(data, Iterable):
        raise TypeError(f"`data` must be integers, or batches of them. Received: {shorten(data)}")
    return [data] if is_one else (_first(batch) for batch in data)


def _first(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple) else batch


def _ids_in(batch: Any) -> np.ndarray:
    values = batch.flat_values if isinstance(batch, tf.RaggedTensor) else batch
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"A batch must be integers. Received: {shorten(batch)}. {ADVICE}"
        ) from error
    if array.dtype.kind not in "iu" and array.size:
        are_texts = array.dtype.kind in "USO"
        raise TypeError(
            f"A batch must be integers. Received: {array.dtype}, {shorten(batch)}. "
            f"{ADVICE_FOR_TEXTS if are_texts else ''}{ADVICE}"
        )
    return array.astype(np.int64).ravel()
