"""Every precision of Keras trains the rows, and quantization takes the table as it is."""

import keras
import numpy as np
import pytest

from maskedgrad import MaskedOptimizer
from tests.compatibility.helpers import (
    IDS,
    MATRIX,
    X,
    Y,
    assert_only_trained,
    assert_step_is_that_of_a_whole_table,
    bits,
    compiled_model,
    in_both_models,
    pooled_model,
)
from tests.compatibility.table import refused, works

# The policy, and the numbers that its tables hold.
POLICIES = {
    "mixed_float16": "float32",
    "mixed_bfloat16": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float64": "float64",
}


@works("Precision", "`mixed_bfloat16`")
@works(
    "Precision",
    "`bfloat16`",
    "Rows are rounded to what it holds, so small steps vanish. Adam in Keras stands still, with or "
    "without `MaskedOptimizer`, since its `beta_2` of 0.999 is rounded to 1: give it 0.99.",
)
@works(
    "Precision",
    "`float16`",
    "As in Keras, nothing scales the loss: wrap in a `LossScaleOptimizer`, or use `mixed_float16`.",
)
@works("Precision", "`float64`")
@pytest.mark.parametrize("policy", POLICIES)
@in_both_models
def test_a_policy_trains_as_it_trains_a_whole_table(model_class, policy):
    keras.config.set_dtype_policy(policy)
    assert_step_is_that_of_a_whole_table(model_class, lambda model: model.train_on_batch(X, Y))
    model, words = compiled_model(model_class, keras.optimizers.SGD(0.1, momentum=0.9))
    before = np.array(words.embeddings)
    assert before.dtype == POLICIES[policy]
    history = model.fit(X, Y, batch_size=4, epochs=4, shuffle=False, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert_only_trained(before, words.embeddings)


@works(
    "Precision",
    "`mixed_float16`",
    "Keras scales the loss by itself. In a stock `keras.Model` a gradient of a frozen row that "
    "overflows costs a step; in a `MaskedModel` it does not.",
)
@in_both_models
def test_a_step_that_overflows_changes_the_loss_scale_only(model_class):
    keras.config.set_dtype_policy("mixed_float16")
    model, words = compiled_model(model_class)
    scaler = model.optimizer if model_class is keras.Model else model.optimizer.inner_optimizer
    assert isinstance(scaler, keras.optimizers.LossScaleOptimizer)
    model.train_on_batch(X, Y)
    assert_only_trained(MATRIX, words.embeddings)
    inner = scaler.inner_optimizer
    state = [*model.get_weights(), *[np.array(variable) for variable in inner.variables]]
    scale = float(scaler.dynamic_scale)
    model.train_on_batch(X, 1e6 * Y)
    assert float(scaler.dynamic_scale) == scale / 2
    after = [*model.get_weights(), *[np.array(variable) for variable in inner.variables]]
    for one, other in zip(state, after, strict=True):
        assert (bits(one) == bits(other)).all()
    model.train_on_batch(X, Y)
    assert int(inner.iterations) == 2


@works("Precision", '`model.quantize("int8")` after training')
@in_both_models
def test_a_trained_table_is_quantized_as_any_other(model_class):
    model, words = compiled_model(model_class)
    model.fit(X, Y, verbose=0)
    assert_only_trained(MATRIX, words.embeddings)
    stock, stock_words = pooled_model(keras.Model)
    stock.set_weights(model.get_weights())
    for each in (model, stock):
        each.quantize("int8")
    assert keras.backend.standardize_dtype(words.embeddings.dtype) == "int8"
    for one, other in zip(model.get_weights(), stock.get_weights(), strict=True):
        assert (bits(one) == bits(other)).all()
    predictions = [each.predict(X, verbose=0) for each in (model, stock)]
    assert (bits(predictions[0]) == bits(predictions[1])).all()
    assert (words.embeddings.shape, stock_words.embeddings.shape) == (MATRIX.shape,) * 2


@refused(
    "Precision",
    "training rows of a quantized table",
    "Train the rows first and quantize the model afterwards.",
)
def test_rows_of_a_quantized_table_cannot_be_chosen():
    model, words = pooled_model()
    model.quantize("int8")
    with pytest.raises(ValueError, match="Train the rows first and quantize the model afterwards"):
        MaskedOptimizer("adamw", {words: IDS})
