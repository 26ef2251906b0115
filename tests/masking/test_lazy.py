"""A lazy step is the inner optimizer's step on the rows that a batch touches."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import MaskedOptimizer
from maskedgrad.testing import assert_same_bits, optimizer_classes

NUM_ROWS, WIDTH = 20, 3
# What steps rows one by one; a class of Keras that is not here is tried, and must be refused.
LAZY = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Ftrl",
    "Lion",
    "Nadam",
    "RMSprop",
    "SGD",
    "ScheduleFreeAdamW",
]
REFUSED = {"Adafactor", "Lamb", "Muon"}


def table_of(values=None, name="table"):
    if values is None:
        values = np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH))
    return keras.Variable(values, name=name, dtype="float32")


def slices_of(ids, random, num_rows=NUM_ROWS):
    ids = np.asarray(ids, "int64")
    values = random.normal(size=(len(ids), WIDTH)).astype("float32")
    return tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([num_rows, WIDTH]))


class AloneOnTouchedRows:
    """What the law says: the inner optimizer on a table of the touched rows, with their state."""

    def __init__(self, make, values):
        self.make, self.values = make, np.array(values, "float32")
        # One entry for each row of the whole table; of shape (V, D) as the state of a table is.
        self.state = None
        self.others = None

    def step(self, slices):
        ids = slices.indices.numpy()
        _, first = np.unique(ids, return_index=True)
        touched = ids[np.sort(first)]
        if not len(touched):  # a step counts; Keras makes none on tensors without rows
            self.step_on_a_row_that_is_not_there()
            return
        optimizer, table = self.make(), table_of(self.values[touched])
        optimizer.build([table])
        of_rows = [tuple(v.shape) == (len(touched), WIDTH) for v in optimizer.variables]
        self.state = self.state or self.fresh_state()
        for variable, has_rows, value in zip(optimizer.variables, of_rows, self.state, strict=True):
            variable.assign(value[touched] if has_rows else value)
        places = {row: place for place, row in enumerate(touched)}
        gradient = tf.math.unsorted_segment_sum(
            slices.values, tf.constant([places[row] for row in ids], tf.int64), len(touched)
        )
        optimizer.apply([gradient], [table])
        self.values[touched] = table.numpy()
        for place, (variable, has_rows) in enumerate(
            zip(optimizer.variables, of_rows, strict=True)
        ):
            if has_rows:
                self.state[place][touched] = variable.numpy()
            else:
                self.state[place] = variable.numpy()

    def step_on_a_row_that_is_not_there(self):
        optimizer, row = self.make(), table_of(np.zeros((1, WIDTH)))
        optimizer.build([row])
        state = self.state or self.fresh_state()
        for variable, value in zip(optimizer.variables, state, strict=True):
            if tuple(variable.shape) != (1, WIDTH):
                variable.assign(value)
        optimizer.apply([tf.zeros((1, WIDTH))], [row])
        self.state = [
            value if tuple(variable.shape) == (1, WIDTH) else variable.numpy()
            for variable, value in zip(optimizer.variables, state, strict=True)
        ]

    def fresh_state(self):
        fresh = self.make()
        fresh.build([table_of(self.values)])
        return [variable.numpy() for variable in fresh.variables]


def test_each_optimizer_of_keras_is_lazy_or_refused():
    lazy = set()
    for cls in optimizer_classes():
        optimizer = MaskedOptimizer(cls(), {"table": [1, 2, 5]}, lazy=True)
        if cls.__name__ in REFUSED:
            with pytest.raises(ValueError, match="lazy"):
                optimizer.build([table_of()])
            assert not optimizer.inner_optimizer.built
        else:
            optimizer.build([table_of()])
            lazy.add(cls.__name__)
    assert lazy <= set(LAZY), "a class that is new: it is lazy, so let the law draw it"


@pytest.mark.parametrize("name", LAZY)
@given(data=st.data())
def test_a_lazy_step_is_a_step_on_the_touched_rows_alone(name, data):
    cls = getattr(keras.optimizers, name, None)
    if cls is None:
        pytest.skip(f"this Keras has no keras.optimizers.{name}")
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "weight_decay": st.just(0.1),
                "clipvalue": st.just(0.5),
                "learning_rate": st.sampled_from([0.01, 0.5]),
            },
        )
    )

    def make():
        return cls(**options)

    seed = data.draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    trainable = np.sort(random.choice(NUM_ROWS, random.integers(2, NUM_ROWS + 1), replace=False))
    table, before = table_of(), table_of().numpy()
    optimizer = MaskedOptimizer(make(), {"table": trainable}, lazy=True)
    alone = AloneOnTouchedRows(make, before)
    apply = optimizer.apply
    if data.draw(st.booleans(), label="in a graph"):
        optimizer.build([table])
        apply = tf.function(lambda slices, variables: optimizer.apply([slices], [table]))
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        ids = random.choice(NUM_ROWS, random.integers(1, 12))
        slices = slices_of(ids, random)
        apply([slices] if apply == optimizer.apply else slices, [table])
        kept = np.isin(ids, trainable)
        if kept.any():
            alone.step(
                tf.IndexedSlices(slices.values[kept], tf.constant(ids[kept]), slices.dense_shape)
            )
        else:  # a step on no rows counts
            alone.step(slices_of([], random))
        # A row is stepped among others, in lanes of the processor whose last bits differ.
        np.testing.assert_allclose(table.numpy(), alone.values, rtol=2e-6, atol=1e-7)
        frozen = np.setdiff1d(np.arange(NUM_ROWS), trainable)
        assert_same_bits(table.numpy()[frozen], before[frozen], "frozen rows")
