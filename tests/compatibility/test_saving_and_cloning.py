"""What is saved, loaded, cloned or built from a config trains the same rows."""

import copy
import json
import pickle

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
    bits,
    compiled_model,
    in_both_models,
    pooled_model,
)
from tests.compatibility.table import works


def fit(model, **options):
    return model.fit(X, Y, batch_size=4, shuffle=False, verbose=0, **options).history["loss"]


def table(model):
    return np.array(model.get_layer("words").embeddings)


def assert_trains_on_as(original, copied):
    """Both train the same rows in the same way, and each its own."""
    before = table(original)
    assert (bits(table(copied)) == bits(before)).all()
    losses = fit(copied)
    assert_only_trained(before, table(copied))
    assert (bits(table(original)) == bits(before)).all()
    assert fit(original) == losses
    variables = [*original.weights, *original.optimizer.variables]
    for ours, theirs in zip(variables, [*copied.weights, *copied.optimizer.variables], strict=True):
        assert (bits(ours) == bits(theirs)).all()


def through_a_file(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


COPIES = {
    "a .keras file": through_a_file,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),  # noqa: S301, what was just made
    "deepcopy": lambda model, _: copy.deepcopy(model),
}


@works("Saving and cloning", "`model.save` and `keras.saving.load_model`, a `.keras` file")
@works("Saving and cloning", "`pickle` of a model, `copy.deepcopy` of a model")
@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@in_both_models
def test_a_model_that_is_saved_and_loaded_trains_on(model_class, make_copy, tmp_path):
    model, _ = compiled_model(model_class)
    fit(model)
    assert_trains_on_as(model, make_copy(model, tmp_path))


@works("Saving and cloning", "`get_state_tree` and `set_state_tree`")
@in_both_models
def test_a_model_that_is_given_the_state_of_another_trains_on(model_class):
    model, _ = compiled_model(model_class)
    fit(model)
    keras.utils.clear_session(free_memory=False)  # names begin anew, as in another process
    other, _ = compiled_model(model_class)
    other.optimizer.build(other.trainable_variables)
    other.set_state_tree(model.get_state_tree("numpy_array"))
    assert_trains_on_as(model, other)


@works(
    "Saving and cloning",
    "`keras.models.clone_model`",
    "As in Keras, the clone is compiled alike and starts from fresh weights and optimizer state.",
)
@in_both_models
def test_a_clone_trains_the_same_rows_of_its_own_table(model_class):
    def clone_of(model):
        clone = keras.models.clone_model(model)
        if not clone.compiled:  # an old Keras leaves that to its caller
            clone.compile_from_config(model.get_compile_config())
        return clone

    model, _ = compiled_model(model_class)
    clone = clone_of(model)
    assert type(clone) is type(model)
    clone.set_weights(model.get_weights())
    assert_trains_on_as(model, clone)
    again = clone_of(model)
    assert int(again.optimizer.iterations) == 0
    before = table(again)
    fit(again)
    assert_only_trained(before, table(again))


@works("Saving and cloning", "an optimizer from its config, also by way of JSON")
@pytest.mark.parametrize("built", [False, True])
@in_both_models
def test_an_optimizer_from_a_config_trains_the_same_rows(model_class, built):
    model, _ = compiled_model(model_class)
    if built:
        model.optimizer.build(model.trainable_variables)
    config = json.loads(json.dumps(keras.optimizers.serialize(model.optimizer)))
    optimizer = keras.optimizers.deserialize(config)
    assert isinstance(optimizer, MaskedOptimizer)
    again, _ = pooled_model(model_class)
    again.set_weights(model.get_weights())
    again.compile(optimizer, loss="mse")
    assert_trains_on_as(model, again)


@pytest.mark.thorough
@works(
    "Saving and cloning",
    "Keras Tuner",
    "The function that builds a model makes its `MaskedOptimizer` too, with what is drawn.",
)
@in_both_models
def test_a_tuner_tries_learning_rates_of_the_rows(model_class, tmp_path):
    import keras_tuner

    def build(hyperparameters):
        rate = hyperparameters.Float("learning_rate", 0.01, 0.5)
        return compiled_model(model_class, keras.optimizers.AdamW(rate))[0]

    tuner = keras_tuner.RandomSearch(build, "loss", max_trials=2, seed=1, directory=tmp_path)
    tuner.search(X, Y, epochs=1, verbose=0)
    trials = tuner.oracle.get_best_trials(2)
    rates = [trial.hyperparameters.get("learning_rate") for trial in trials]
    assert len(set(rates)) == 2
    tables = []
    for model, rate in zip(tuner.get_best_models(2), rates, strict=True):
        assert float(model.optimizer.learning_rate) == pytest.approx(rate)
        assert_only_trained(MATRIX, table(model))
        tables.append(table(model)[IDS])
    assert (tables[0] != tables[1]).all()
