"""What goes together with `lazy=True`."""

import keras
import numpy as np
import pytest

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer
from maskedgrad.testing import bits
from tests.compatibility.helpers import NUM_ROWS, X, Y, pooled_model
from tests.compatibility.table import refused, works
from tests.features import needs

LAZY = "Lazy steps"
INSTEAD = "Leave `lazy` out, or take an optimizer that steps each row by itself."
LOOKED_UP = np.unique(X[:4])


def lazy_model(optimizer, target=None, **options):
    model, words = pooled_model(MaskedModel)
    rows = {words if target is None else target: slice(None)}
    model.compile(MaskedOptimizer(optimizer, rows, lazy=True), loss="mse", **options)
    return model, words


@works(LAZY, "`Adadelta`, `Adagrad`, `Adam`, `AdamW`, `Adamax`, `Ftrl`, `Lion`, `Nadam`, `RMSprop`")
@works(LAZY, "`SGD`, with momentum too")
@works(LAZY, "Weight decay", "A row decays in the steps that look it up.")
@works(LAZY, "`clipnorm`, `clipvalue`, `global_clipnorm`", "Norms are of what a step touches.")
@works(LAZY, "`LossScaleOptimizer` inside")
@pytest.mark.parametrize(
    "make",
    [
        keras.optimizers.Adadelta,
        keras.optimizers.Adagrad,
        keras.optimizers.Adam,
        keras.optimizers.AdamW,
        keras.optimizers.Adamax,
        keras.optimizers.Ftrl,
        keras.optimizers.Lion,
        keras.optimizers.Nadam,
        keras.optimizers.RMSprop,
        lambda: keras.optimizers.SGD(momentum=0.9),
        lambda: keras.optimizers.SGD(weight_decay=0.1, clipnorm=1.0),
        lambda: keras.optimizers.Adam(global_clipnorm=1.0, clipvalue=None),
        lambda: keras.optimizers.Adam(clipvalue=1.0),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    ],
)
def test_a_lazy_step_moves_what_the_batch_looks_up(make):
    model, words = lazy_model(make())
    before = words.get_weights()[0]
    model.train_on_batch(X[:4], Y[:4])
    moved = (bits(words.get_weights()[0]) != bits(before)).any(axis=1)
    assert np.flatnonzero(moved).tolist() == LOOKED_UP.tolist()
    assert len(LOOKED_UP) < NUM_ROWS


@refused(LAZY, "`Lamb`", INSTEAD)
@refused(LAZY, "`Adafactor`", INSTEAD)
@refused(LAZY, "`Muon` on a kernel", INSTEAD)
@refused(LAZY, "`use_ema`", "Averages are of all rows that train. " + INSTEAD)
@refused(LAZY, "`gradient_accumulation_steps`", "Take larger batches, or leave `lazy` out.")
@pytest.mark.parametrize(
    "make",
    [
        keras.optimizers.Lamb,
        keras.optimizers.Adafactor,
        pytest.param(
            lambda: keras.optimizers.Muon(exclude_embeddings=False), marks=needs("optimizers.Muon")
        ),
        lambda: keras.optimizers.Adam(use_ema=True),
        lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
    ],
)
def test_what_is_about_other_rows_too_is_refused(make):
    model, words = lazy_model(make())
    before = words.get_weights()[0]
    with pytest.raises(ValueError, match="lazy"):
        model.train_on_batch(X[:4], Y[:4])
    assert (bits(words.get_weights()[0]) == bits(before)).all()


@refused(LAZY, "`AlongAxis`, with any axis but the first", "Leave `lazy` out.")
def test_rows_along_another_axis_are_refused():
    model, _ = lazy_model("adam", AlongAxis("head/kernel", -1))
    with pytest.raises(ValueError, match="another axis"):
        model.train_on_batch(X[:4], Y[:4])


@refused(LAZY, "XLA", "`compile(jit_compile=False)`, which is the default of a lazy `MaskedModel`.")
def test_xla_is_refused():
    model, _ = lazy_model("adam", jit_compile=True)
    with pytest.raises(ValueError, match="jit_compile=False"):
        model.train_on_batch(X[:4], Y[:4])
