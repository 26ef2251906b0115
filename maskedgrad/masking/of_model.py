"""The `MaskedOptimizer` of a model, and the tables that it masks."""

from typing import Any

import keras

from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.rows.targets import MaskedTable


def masked_optimizer_in(optimizer: Any) -> Any:
    """The `MaskedOptimizer` that `optimizer` is, or wraps at any depth; `None` if there is none."""
    while optimizer is not None and not isinstance(optimizer, MaskedOptimizer):
        around = getattr(optimizer, "masked_optimizer_around", None)
        optimizer = around() if around else getattr(optimizer, "inner_optimizer", None)
    return optimizer


def masked_outermost(optimizer: Any) -> MaskedOptimizer:
    """The `MaskedOptimizer` in `optimizer`, with a loss scaler that is around it moved inside.

    One that is there already, since a model was compiled with it before, stays.

    Raises:
        ValueError: another optimizer is around it, or it is built.
    """
    masked = masked_optimizer_in(optimizer)
    if optimizer is masked or optimizer is masked.inner_optimizer:
        return masked
    is_around = getattr(optimizer, "inner_optimizer", None) is masked and not optimizer.built
    is_scaled = isinstance(masked.inner_optimizer, keras.optimizers.LossScaleOptimizer)
    can_move = is_around and isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if not can_move or (masked.built and not is_scaled):
        raise ValueError(
            "No optimizer can be around a `MaskedOptimizer` but a `LossScaleOptimizer` that is not "
            f"built: it would see frozen rows. Received: {type(optimizer).__name__} around it. "
            "Put it inside: `MaskedOptimizer(Other(inner_optimizer), trainable_rows)`."
        )
    if not is_scaled:
        optimizer.inner_optimizer, masked.inner = masked.inner, optimizer
        # Who made the scaler may compile with it again. Keras does not look into a function.
        optimizer.masked_optimizer_around = lambda: masked
    return masked


def masked_tables(model: Any) -> list[MaskedTable]:
    """The tables that the optimizer of a model masks, with the rows that train.

    None where it masks nothing, and where neither the model nor the optimizer is built.
    """
    optimizer = masked_optimizer_in(getattr(model, "optimizer", None))
    if optimizer is None:
        return []
    return optimizer.masked_tables(model.trainable_variables if model.built else None)
