"""What tests of compatibility share: a small model, its data, and the laws that hold for all."""

import keras
import ml_dtypes
import numpy as np
import pytest

from maskedgrad import MaskedModel, MaskedOptimizer
from maskedgrad.testing import bits

NUM_ROWS, WIDTH, LENGTH = 20, 4, 5
IDS = [3, 7]
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
X = RANDOM.integers(0, NUM_ROWS, size=(16, LENGTH))
X[:, 0] = np.resize(IDS, len(X))  # every batch of two holds every trainable row
Y = RANDOM.normal(size=(16, 1)).astype("float32")

# `tests/test_model.py` trains stock models too, in every way.
in_both_models = pytest.mark.parametrize(
    "model_class", [MaskedModel, pytest.param(keras.Model, marks=pytest.mark.thorough)]
)


def pooled_model(model_class=MaskedModel, **embedding_options):
    """A table, an average and a `Dense` layer, not compiled; and the layer that owns the table."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = keras.layers.Embedding(
        NUM_ROWS, WIDTH, name="words", **{"weights": [MATRIX], **embedding_options}
    )
    average = keras.layers.GlobalAveragePooling1D()(words(inputs))
    return model_class(inputs, keras.layers.Dense(1, name="head")(average)), words


def compiled_model(model_class=MaskedModel, optimizer="adamw", **compile_options):
    """`pooled_model`, compiled, with the rows `IDS` trainable."""
    model, words = pooled_model(model_class)
    options = {"loss": "mse", **compile_options}
    model.compile(MaskedOptimizer(optimizer, {words: IDS}), **options)
    return model, words


def assert_only_trained(before, after, ids=IDS) -> None:
    """Every row of `ids` has moved, and every other row has kept its bits."""
    changed = (bits(before) != bits(after)).any(axis=tuple(range(1, np.ndim(before))))
    assert np.flatnonzero(changed).tolist() == sorted(ids)


def assert_step_is_that_of_a_whole_table(model_class, step) -> None:
    """A step moves rows as gradient descent by Keras moves them in a table that trains whole.

    Args:
        model_class: the class of the model that is trained with `MaskedOptimizer`.
        step: a function that trains a compiled model for one step.
    """
    rate = 64.0  # rows move by far more then than the numbers of any precision are rounded by
    keras.utils.set_random_seed(1)
    model, words = compiled_model(model_class, keras.optimizers.SGD(rate))
    keras.utils.set_random_seed(1)
    whole, _ = pooled_model(keras.Model)
    whole.compile(keras.optimizers.SGD(rate), loss="mse")
    before = np.array(words.embeddings)
    for each in (model, whole):
        step(each)
        optimizer = each.optimizer
        while hasattr(optimizer, "inner_optimizer"):
            # A `LossScaleOptimizer` of an old Keras counts no steps itself.
            optimizer = optimizer.inner_optimizer
        assert int(optimizer.iterations) == 1
    assert_only_trained(before, words.embeddings)
    # About a dozen slices are added up for a row, each rounded, in another order.
    tolerance = 8 * float(ml_dtypes.finfo(model.compute_dtype).eps)
    table, *head = [weight.astype("float64") for weight in model.get_weights()]
    whole_table, *whole_head = [weight.astype("float64") for weight in whole.get_weights()]
    for ours, theirs in zip([table[IDS], *head], [whole_table[IDS], *whole_head], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)
