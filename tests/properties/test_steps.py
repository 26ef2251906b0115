"""Frozen rows keep their bits, and what trains follows the oracle, for every Keras optimizer."""

import keras
import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from maskedgrad import MaskedOptimizer
from maskedgrad.testing import (
    TABLE_PATH,
    Table,
    assert_same_bits,
    gradients_of,
    optimizer_classes,
    optimizers,
    tables,
)
from tests.properties.oracle import drawn_pair, kernel_variable
from tests.properties.strategies import kernel_gradients


@pytest.mark.parametrize("cls", optimizer_classes(), ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_optimizer_freezes_and_follows_the_oracle(cls, data):
    pair = drawn_pair(data, data.draw(optimizers(cls)), data.draw(tables()))
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        pair.apply(*data.draw(gradients_of(pair.table)), data.draw(kernel_gradients(pair.table)))
        pair.check()
    pair.finalize()
    pair.check()


@given(data=st.data())
def test_a_loss_scaler_outside_freezes_whatever_the_gradients_hold(data):
    cls = data.draw(st.sampled_from(optimizer_classes()))
    spec = data.draw(optimizers(cls, wrappers=("",)))
    table = data.draw(tables(dtypes=("float32",)))  # the dtype of variables under mixed_float16
    variable, kernel = table.variable(), kernel_variable(table)
    optimizer = keras.optimizers.LossScaleOptimizer(
        MaskedOptimizer(spec.make(), {TABLE_PATH: table.ids})
    )
    for _ in range(data.draw(st.integers(1, 4), label="steps")):
        gradient, _ = data.draw(gradients_of(table))
        optimizer.apply([gradient, data.draw(kernel_gradients(table))], [variable, kernel])
        frozen = variable.numpy()[table.frozen]
        assert_same_bits(frozen, table.values[table.frozen], "frozen rows")


@given(data=st.data())
def test_with_all_rows_trainable_it_is_the_bare_optimizer(data):
    cls = data.draw(st.sampled_from(optimizer_classes()))
    drawn = data.draw(tables())
    table = Table(
        np.random.default_rng(0).normal(size=drawn.values.shape), np.arange(len(drawn.values))
    )
    spec = data.draw(optimizers(cls))
    variable, bare = table.variable(), table.variable()
    optimizer, oracle = MaskedOptimizer(spec.make(), {TABLE_PATH: slice(None)}), spec.make()
    for _ in range(3):
        gradient, _ = data.draw(gradients_of(table, kinds=("dense",)))
        try:
            oracle.apply([gradient], [bare])
        except Exception:
            reject()
        optimizer.apply([gradient], [variable])
        assert_same_bits(variable, bare, "the table")


@given(data=st.data())
def test_several_tables_have_rows_of_their_own(data):
    cls = data.draw(st.sampled_from(optimizer_classes()))
    spec = data.draw(optimizers(cls, wrappers=("", "loss_scale")))
    drawn = data.draw(st.lists(tables(dtypes=("float32",)), min_size=2, max_size=3))
    with_names = [(f"table_{i}", table) for i, table in enumerate(drawn)]
    variables = [keras.Variable(table.values, name=name) for name, table in with_names]
    compacts = [keras.Variable(table.values[table.ids], name=name) for name, table in with_names]
    optimizer = MaskedOptimizer(spec.make(), {name: table.ids for name, table in with_names})
    oracle = spec.make()
    for _ in range(data.draw(st.integers(1, 3), label="steps")):
        pairs = [data.draw(gradients_of(table, kinds=("dense", "sparse"))) for table in drawn]
        try:
            oracle.apply([compact for _, compact in pairs], compacts)
        except Exception:
            reject()
        optimizer.apply([gradient for gradient, _ in pairs], variables)
        for table, variable, compact in zip(drawn, variables, compacts, strict=True):
            after = variable.numpy()
            assert_same_bits(after[table.frozen], table.values[table.frozen], "frozen rows")
            assert_same_bits(after[table.ids], compact, "trainable rows")
