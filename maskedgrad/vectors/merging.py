"""`merge_two_tables`: what the two-layer recipe trained, as one table."""

from typing import Any

import keras
import numpy as np

from maskedgrad.vectors.extension import checked_table


def merge_two_tables(
    frozen_layer: keras.layers.Embedding,
    trainable_layer: keras.layers.Embedding,
    mapping: Any,
) -> keras.layers.Embedding:
    """One layer that looks up what a model of two added layers does.

    Equivalent, to float tolerance, to `frozen_layer(ids) +
    trainable_layer(mapping(ids))`, whatever the trainable layer has learned
    for ordinary words too.

    Args:
        frozen_layer: a built embedding layer with a table of shape `(V, D)`.
        trainable_layer: a built embedding layer with a table of shape `(W, D)`.
        mapping: for each id of the frozen table the row of the trainable one
            that is added to it, or -1 for none: integers of shape `(V,)`, or
            a function of ids that returns them, such as the one that the
            model applies.

    Returns:
        A built `keras.layers.Embedding` with the name and the options of
        `frozen_layer`, trainable, with a table of shape `(V, D)`.

    Raises:
        TypeError: a layer is not a stock `keras.layers.Embedding`, or
            `mapping` does not give integers.
        ValueError: a layer is not built, the tables differ in width, or
            `mapping` does not fit them.

    Example:

    >>> frozen = keras.layers.Embedding(3, 1, weights=[np.array([[1.0], [2.0], [3.0]])])
    >>> added = keras.layers.Embedding(2, 1, weights=[np.array([[0.5], [10.0]])])
    >>> _ = frozen.build(None), added.build(None)
    >>> merged = merge_two_tables(frozen, added, lambda ids: keras.ops.relu(ids - 1))
    >>> merged.get_weights()[0].ravel().tolist()
    [1.5, 2.5, 13.0]
    """
    frozen, added = (
        keras.ops.convert_to_numpy(_checked_layer(layer).embeddings)
        for layer in (frozen_layer, trainable_layer)
    )
    if frozen.shape[1] != added.shape[1]:
        raise ValueError(
            "Tables that are added must be of one width. "
            f"Received: {frozen.shape[1]} and {added.shape[1]}"
        )
    rows = _checked_mapping(mapping, len(frozen), len(added))
    merged = frozen.copy()
    merged[rows >= 0] += added[rows[rows >= 0]]
    layer = keras.layers.Embedding.from_config({**frozen_layer.get_config(), "trainable": True})
    layer.build(None)
    layer.set_weights([merged])
    return layer


def _checked_layer(layer: Any) -> Any:
    """`layer`, if what it makes of ids is rows of its table and nothing else."""
    if type(checked_table(layer)) is not keras.layers.Embedding:
        raise TypeError(
            "Each layer must be a stock `keras.layers.Embedding`, since a class of its own may "
            f"make something else of rows. Received: a {type(layer).__name__}. If it looks rows "
            "up as they are, give one around its table: "
            "`maskedgrad.pretrained_embedding(layer.embeddings.numpy())`."
        )
    return layer


def _checked_mapping(mapping: Any, num_rows: int, num_added: int) -> np.ndarray:
    ids = np.arange(num_rows)
    rows = np.asarray(keras.ops.convert_to_numpy(mapping(ids) if callable(mapping) else mapping))
    if not np.issubdtype(rows.dtype, np.integer):
        raise TypeError(f"`mapping` must give integers. Received dtype: {rows.dtype}")
    if rows.shape != (num_rows,) or rows.min() < -1 or rows.max() >= num_added:
        raise ValueError(
            f"`mapping` must give for each of {num_rows} ids a row below {num_added}, or -1. "
            f"Received: shape {rows.shape}, values from {rows.min()} to {rows.max()}"
        )
    return rows
