"""The `MaskedOptimizer` of a model, and the tables that it masks."""

from typing import Any

import keras

from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.rows.targets import MaskedTable


def masked_optimizer_in(optimizer: Any) -> Any:
    """The `MaskedOptimizer` that `optimizer` is, or wraps at any depth; `None` if there is none."""
    while optimizer is not None and not isinstance(optimizer, MaskedOptimizer):
        optimizer = getattr(optimizer, "inner_optimizer", None)
    return optimizer


def masked_outermost(optimizer: Any) -> MaskedOptimizer:
    """The `MaskedOptimizer` in `optimizer`, with a loss scaler that was around it inside.

    Raises:
        ValueError: another optimizer is around it, or it is built.
    """
    masked = masked_optimizer_in(optimizer)
    if optimizer is masked:
        return masked
    is_scaler = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if not is_scaler or optimizer.inner_optimizer is not masked or masked.built or optimizer.built:
        raise ValueError(
            "No optimizer can be around a `MaskedOptimizer` but a `LossScaleOptimizer` that is not "
            f"built: it would see frozen rows. Received: {type(optimizer).__name__} around it. "
            "Put it inside: `MaskedOptimizer(Other(inner_optimizer), trainable_rows)`."
        )
    if not isinstance(masked.inner_optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer.inner_optimizer, masked.inner = masked.inner, optimizer
    return masked


def masked_tables(model: Any) -> list[MaskedTable]:
    """The tables that the optimizer of a model masks, with the rows that train.

    None where it masks nothing, and where neither the model nor the optimizer is built.
    """
    optimizer = masked_optimizer_in(getattr(model, "optimizer", None))
    if optimizer is None:
        return []
    return optimizer.masked_tables(model.trainable_variables if model.built else None)
