"""Changes of rows in the middle of training count from the next step on, however it runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer
from maskedgrad.testing import bits
from tests.devices import mirrored_strategy
from tests.features import needs_muon

NUM_ROWS = 12
X = np.random.default_rng(0).integers(0, NUM_ROWS, (48, 3))
Y = np.ones((48, 1))
WAYS = {
    "eager": {"run_eagerly": True},
    "graph": {"jit_compile": False},
    "XLA": {"jit_compile": True},
    "two steps a call": {"jit_compile": False, "steps_per_execution": 2},
}
OF_ANY_LENGTH = {
    "Adam": lambda: keras.optimizers.Adam(0.1),
    "AdamW with averages": lambda: keras.optimizers.AdamW(0.1, use_ema=True),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
}
OF_FIXED_LENGTH = {
    "accumulation": lambda: keras.optimizers.Adam(0.1, gradient_accumulation_steps=2),
    "Muon": pytest.param(
        lambda: keras.optimizers.Muon(0.1, exclude_embeddings=False), marks=needs_muon()
    ),
}


def compiled(base, optimizer, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, 4, name="words")
    model = base(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs))))
    model.compile(MaskedOptimizer(optimizer, {words: [1, 2]}), loss="mse", **options)
    return model, words


class Changes(keras.callbacks.Callback):
    """Lets other rows train after some batches and when an epoch begins; notes what moves."""

    def __init__(self, words, seed, num_rows=None):
        super().__init__()
        self.words, self.num_rows = words, num_rows
        self.random = np.random.default_rng(seed)
        self.rows, self.moved = [1, 2], []
        self.before = words.get_weights()[0]

    def change(self):
        number = self.num_rows or self.random.integers(1, 6)
        self.rows = sorted(self.random.choice(NUM_ROWS, number, replace=False).tolist())
        self.model.optimizer.set_trainable_rows({self.words: self.rows})

    def on_epoch_begin(self, epoch, logs=None):
        self.change()

    def on_train_batch_end(self, batch, logs=None):
        after = self.words.get_weights()[0]
        moved = np.flatnonzero((bits(after) != bits(self.before)).any(axis=1))
        self.moved.append((self.rows, moved.tolist()))
        self.before = after
        if self.random.random() < 0.5:
            self.change()

    def check(self):
        for rows, moved in self.moved:
            assert set(moved) <= set(rows)
        return {row for _, moved in self.moved for row in moved}


def count_traces(model):
    traces, call = [], model.call

    def counted(*args, **kwargs):
        traces.append(1)
        return call(*args, **kwargs)

    model.call = counted
    return traces


@pytest.mark.parametrize("base", [keras.Model, MaskedModel])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", OF_ANY_LENGTH.values(), ids=OF_ANY_LENGTH)
def test_only_rows_that_train_now_move_and_nothing_is_traced_again(make, way, base):
    model, words = compiled(base, make(), **WAYS[way])
    model.fit(X[:8], Y[:8], batch_size=4, verbose=0)
    traces, changes = count_traces(model), Changes(words, seed=1)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[changes])
    assert len(changes.check()) > NUM_ROWS // 2
    assert model.optimizer.fixed_lengths == (None,)
    assert way == "eager" or not traces


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", OF_FIXED_LENGTH.values(), ids=OF_FIXED_LENGTH)
def test_a_masked_model_renews_its_function_where_the_number_of_rows_is_fixed(make, way):
    model, words = compiled(MaskedModel, make(), **WAYS[way])
    changes = Changes(words, seed=2)
    model.fit(X[:32], Y[:32], batch_size=4, verbose=0, callbacks=[changes])
    assert len(changes.check()) > NUM_ROWS // 2
    assert model.optimizer.fixed_lengths == (len(changes.rows),)


@pytest.mark.parametrize("way", ["graph", "XLA", "two steps a call"])
@pytest.mark.parametrize("make", OF_FIXED_LENGTH.values(), ids=OF_FIXED_LENGTH)
def test_a_stock_model_stops_before_anything_moves_until_its_function_is_renewed(make, way):
    model, words = compiled(keras.Model, make(), **WAYS[way])
    model.fit(X[:8], Y[:8], batch_size=4, verbose=0)
    traces = count_traces(model)
    changes = Changes(words, seed=3, num_rows=2)
    model.fit(X[:16], Y[:16], batch_size=4, verbose=0, callbacks=[changes])
    assert changes.check()
    assert not traces
    model.optimizer.set_trainable_rows({words: [3, 4, 5]})
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises((ValueError, tf.errors.OpError)):
        model.fit(X[:8], Y[:8], batch_size=4, verbose=0)
    for weight, old in zip(model.get_weights(), before, strict=True):
        assert (bits(weight) == bits(old)).all()
    model.make_train_function(force=True)
    model.fit(X[:8], Y[:8], batch_size=4, verbose=0)
    moved = np.flatnonzero((words.get_weights()[0] != before[0]).any(axis=1))
    assert set(moved.tolist()) <= {3, 4, 5}
    assert len(moved)


@pytest.mark.parametrize("base", [keras.Model, MaskedModel])
def test_changes_count_on_several_devices(base):
    with mirrored_strategy().scope():
        model, words = compiled(base, keras.optimizers.Adam(0.1), jit_compile=False)
    changes = Changes(words, seed=4)
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0, callbacks=[changes])
    assert len(changes.check()) > NUM_ROWS // 2


@pytest.mark.processes
def test_changes_leave_nothing_behind():
    """Each makes copies of the state; what is kept would show in the count of live tensors."""
    import gc

    model, words = compiled(MaskedModel, keras.optimizers.Adam(0.1))
    random = np.random.default_rng(5)

    def change(times):
        for _ in range(times):
            rows = np.sort(random.choice(NUM_ROWS, random.integers(1, 6), replace=False))
            model.set_trainable_rows({words: rows})
            model.train_on_batch(X[:4], Y[:4])
        gc.collect()
        return sum(isinstance(each, (tf.Tensor, tf.Variable)) for each in gc.get_objects())

    live = change(50)
    assert change(300) <= live + 10  # a few of Keras's own come and go
