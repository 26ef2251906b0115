"""Random walks over everything that can happen to a table between two steps."""

import keras
import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from maskedgrad import MaskedOptimizer
from maskedgrad.testing import TABLE_PATH, gradients_of, optimizer_classes, optimizers, tables
from tests.properties.oracle import drawn_pair
from tests.properties.strategies import kernel_gradients


class Walk(RuleBasedStateMachine):
    """After each move the frozen rows hold their bits, and all else is as in the oracle."""

    @initialize(data=st.data(), cls=st.sampled_from(optimizer_classes()))
    def begin(self, data, cls):
        self.spec = data.draw(optimizers(cls))
        self.pair = drawn_pair(data, self.spec, data.draw(tables()))

    def _step(self, data, kind):
        table = self.pair.table
        gradient = data.draw(gradients_of(table, kinds=(kind,)))
        self.pair.apply(*gradient, data.draw(kernel_gradients(table)))

    @rule(data=st.data())
    def dense_step(self, data):
        self._step(data, "dense")

    @rule(data=st.data())
    def sparse_step(self, data):
        self._step(data, "sparse")

    @rule(data=st.data())
    def poisoned_step(self, data):
        table = self.pair.table
        gradient = data.draw(gradients_of(table, kinds=("dense", "sparse"), poisoned=True))
        self.pair.apply(*gradient, data.draw(kernel_gradients(table)))

    @rule(data=st.data())
    def none_step(self, data):
        self._step(data, "none")

    @precondition(lambda self: self.spec.has_settable_learning_rate)
    @rule(learning_rate=st.sampled_from([0.0, 0.01, 1.0]))
    def change_learning_rate(self, learning_rate):
        self.pair.twin_optimizer.learning_rate = learning_rate
        self.pair.optimizer.learning_rate = learning_rate

    @rule(seed=st.integers(0, 2**32 - 1))
    def assign_a_trainable_row(self, seed):
        table, random = self.pair.table, np.random.default_rng(seed)
        row = random.integers(len(table.ids))
        value = random.normal(size=table.values.shape[1:]).astype(table.values.dtype)
        for variable, index in zip(
            [self.pair.variables[0], self.pair.twin_variables[0]],
            [table.ids[row], row],
            strict=True,
        ):
            values = variable.numpy()
            values[index] = value
            variable.assign(values)

    @rule()
    def finalize(self):
        self.pair.finalize()

    @rule()
    def save_and_restore(self):
        # The twin too: of a Nadam in a loss scaler Keras itself does not list all state.
        pair = self.pair
        pair.twin_optimizer = restored(pair.twin_optimizer, pair.twin_variables)
        pair.optimizer = restored(pair.optimizer, pair.variables)
        assert isinstance(pair.optimizer, MaskedOptimizer)

    @rule(others=st.sets(st.integers(0, 8)))
    def let_other_rows_join_and_leave_again(self, others):
        table = self.pair.table
        more = sorted({*table.ids.tolist(), *(row for row in others if row < len(table.values))})
        self.pair.optimizer.set_trainable_rows({TABLE_PATH: more})
        self.pair.optimizer.set_trainable_rows({TABLE_PATH: table.ids})

    @invariant()
    def nothing_but_what_trains_has_changed(self):
        self.pair.check()


def restored(optimizer, variables):
    """The same optimizer, made of its config and its state."""
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    again.build(variables)
    for variable, saved in zip(again.variables, optimizer.variables, strict=True):
        variable.assign(saved.numpy())
    return again


TestWalk = Walk.TestCase
