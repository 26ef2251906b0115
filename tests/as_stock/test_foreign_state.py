"""State of one optimizer loaded into another: Keras warns and skips it, so it does here too."""

import functools
import itertools
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer
from maskedgrad.testing import assert_same_bits, optimizer_classes
from tests.as_stock.harness import STOCK, TABLES, Way, X, Y, unwrapped
from tests.features import feature

ROWS = [1, 2, 5]


def routed():
    routes = {".*/kernel": keras.optimizers.SGD(0.1, momentum=0.9)}
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.1), routes)
    )


OPTIMIZERS = {
    **{cls.__name__: cls for cls in optimizer_classes()},
    "momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "averages": lambda: keras.optimizers.Adam(use_ema=True),
    "scaled Adam": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
    "scaled SGD": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
    **({"routed": routed} if feature("optimizers.MultiOptimizer") else {}),
}
WAYS = {
    "stock": STOCK,
    "some rows": Way(MaskedModel, STOCK.sequential, lambda o: MaskedOptimizer(o, {TABLES: ROWS})),
    "all rows": Way(
        MaskedModel, STOCK.sequential, lambda o: MaskedOptimizer(o, {TABLES: slice(None)})
    ),
}
FORMATS = {
    ".weights.h5": lambda model, path: model.save_weights(path),
    ".keras": lambda model, path: model.save(path),
}


class Trained(NamedTuple):
    """A model that has trained a step, what it holds, and its files by their format."""

    model: Any
    values: list[np.ndarray]
    files: dict[str, str]

    def variables(self):
        """Weights and state."""
        return [*self.model.weights, *self.model.optimizer.variables]

    def restore(self):
        """Makes it as it was."""
        for variable, value in zip(self.variables(), self.values, strict=True):
            variable.assign(value)

    def state(self):
        """What its optimizer, or the one inside, holds."""
        return [variable.numpy() for variable in unwrapped(self.model.optimizer).variables]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function of an optimizer and a way, which makes each model once."""

    @functools.cache
    def make(optimizer, way):
        keras.utils.set_random_seed(len(optimizer))
        model = WAYS[way].small(OPTIMIZERS[optimizer]())
        model.train_on_batch(X, Y)
        folder = tmp_path_factory.mktemp("state")
        files = {suffix: str(folder / f"model{suffix}") for suffix in FORMATS}
        for suffix, save in FORMATS.items():
            save(model, files[suffix])
        checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        files["checkpoint"] = checkpoint.save(folder / "checkpoint")
        made = Trained(model, [], files)
        return made._replace(values=[variable.numpy() for variable in made.variables()])

    return make


def load(into, file):
    """What loading a file raises, and of what it warns; the state that it leaves."""
    error = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if "checkpoint" in file:
                target = tf.train.Checkpoint(model=into.model, optimizer=into.model.optimizer)
                target.restore(file).expect_partial()
            else:
                into.model.load_weights(file)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    state = into.state()
    return error, [str(each.message) for each in caught if each.category is UserWarning], state


OFTEN = ["Adam", "SGD", "scaled Adam"]
one_way = pytest.mark.parametrize("one_way", [("stock", "some rows"), ("some rows", "stock")])
each_pair = pytest.mark.parametrize(
    ("saved", "loading"), list(itertools.product(OPTIMIZERS, OPTIMIZERS))
)


@one_way
def test_state_of_another_optimizer_is_skipped_with_a_warning(one_way, trained):
    for saved, loading in itertools.product(OFTEN, OFTEN):
        assert_foreign_state_is_skipped(saved, loading, one_way, trained)


@pytest.mark.thorough
@one_way
@each_pair
def test_state_of_any_other_optimizer_is_skipped_with_a_warning(saved, loading, one_way, trained):
    assert_foreign_state_is_skipped(saved, loading, one_way, trained)


def assert_foreign_state_is_skipped(saved, loading, one_way, trained):
    before, after = one_way
    other, into = trained(saved, before), trained(loading, after)
    for suffix in (*FORMATS, "checkpoint"):
        error, messages, state = load(into, other.files[suffix])
        into_values = into.values[len(into.model.weights) :]
        into.restore()
        assert not error
        assert messages or suffix == "checkpoint"  # of which TensorFlow says nothing
        # A checkpoint has each number by its name, and each optimizer counts its steps.
        first = 1 if suffix == "checkpoint" else 0
        for value, expected in list(zip(state, into_values, strict=False))[first:]:
            assert_same_bits(value, expected, f"state after loading {suffix}")


@pytest.mark.thorough
@each_pair
def test_state_is_taken_from_a_masked_optimizer_of_all_rows_as_from_stock(saved, loading, trained):
    for suffix in FORMATS:
        outcomes = []
        for way in ("all rows", "stock"):
            into = trained(loading, way)
            error, _, state = load(into, trained(saved, way).files[suffix])
            into.restore()
            outcomes.append((error.partition(":")[0], state))
        (our_error, ours), (error, theirs) = outcomes
        assert our_error == error
        for our_value, value in zip(ours, theirs, strict=True):
            assert_same_bits(our_value, value, f"state after loading {suffix}")
