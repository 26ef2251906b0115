"""Callbacks do what they do without the wrapper, in a stock model and in a masked one."""

import csv
import importlib.util

import keras
import numpy as np
import pytest

from maskedgrad import MaskedModel, callbacks
from tests.compatibility.helpers import (
    IDS,
    MATRIX,
    X,
    Y,
    assert_only_trained,
    bits,
    compiled_model,
    in_both_models,
)
from tests.compatibility.table import refused, works
from tests.features import needs


class Tables(keras.callbacks.Callback):
    """Remembers the table as it is after each epoch."""

    def __init__(self, words):
        super().__init__()
        self.words, self.after_epoch = words, []

    def on_epoch_end(self, epoch, logs=None):
        self.after_epoch.append(np.array(self.words.embeddings))


class Grades(keras.callbacks.Callback):
    """Logs what an epoch is said to be worth, for the callbacks after it to look at."""

    def __init__(self, grades):
        super().__init__()
        self.grades = grades

    def on_epoch_end(self, epoch, logs=None):
        logs["grade"] = self.grades[epoch]


class Crash(keras.callbacks.Callback):
    """Stops the process, as far as a test can, when the third epoch begins."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise InterruptedError


def fit(model, *called, epochs=3, y=Y, **options):
    options = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, y, callbacks=called, **options).history


@works("Callbacks", "`LearningRateScheduler`", "Sets the learning rate of the inner optimizer.")
@in_both_models
def test_a_scheduled_learning_rate_is_the_one_that_is_used(model_class):
    model, words = compiled_model(model_class, "sgd")
    tables, rates = Tables(words), [0.5, 0.0]
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, _: rates[epoch])
    history = fit(model, scheduler, tables, epochs=2)
    assert history["learning_rate"] == rates
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.0
    first, second = tables.after_epoch
    assert_only_trained(MATRIX, first)
    assert (bits(first) == bits(second)).all()


@works(
    "Callbacks",
    "`LearningRateScheduler` with an inner `MultiOptimizer`",
    "Sets the learning rate of each of its optimizers.",
)
@needs("optimizers.MultiOptimizer")
@in_both_models
def test_the_learning_rates_of_several_optimizers_are_scheduled(model_class):
    first, second = keras.optimizers.SGD(1.0), keras.optimizers.SGD(2.0)
    routes = keras.optimizers.OptimizerMap(first, {".*/kernel": second})
    model, words = compiled_model(model_class, keras.optimizers.MultiOptimizer(routes))
    fit(model, keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 4), epochs=1)
    rates = [float(one.learning_rate) for one in model.optimizer.inner_optimizer.optimizers]
    assert sorted(rates) == [0.25, 0.5]
    assert_only_trained(MATRIX, words.embeddings)


@works("Callbacks", "`ReduceLROnPlateau`", "Sets the learning rate of the inner optimizer.")
@in_both_models
def test_a_learning_rate_is_reduced_on_a_plateau(model_class):
    model, words = compiled_model(model_class, keras.optimizers.SGD(0.5))
    reduce = keras.callbacks.ReduceLROnPlateau("grade", factor=0.5, patience=1, mode="min")
    history = fit(model, Grades([1.0, 1.0, 1.0]), reduce)
    assert history["learning_rate"] == [0.5, 0.5, 0.25]
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.125
    assert_only_trained(MATRIX, words.embeddings)


@works(
    "Callbacks",
    "`EarlyStopping(restore_best_weights=True)`",
    "Keras keeps a copy of all weights, the whole table among them.",
)
@in_both_models
def test_early_stopping_restores_the_rows_of_the_best_epoch(model_class):
    model, words = compiled_model(model_class, "sgd")
    tables = Tables(words)
    stopping = keras.callbacks.EarlyStopping(
        "grade", patience=2, mode="min", restore_best_weights=True
    )
    fit(model, tables, Grades([3.0, 1.0, 2.0, 2.0, 0.0]), stopping, epochs=5)
    _, best, *_, last = tables.after_epoch
    assert len(tables.after_epoch) == 4
    assert_only_trained(best, last)
    assert_only_trained(MATRIX, words.embeddings)
    assert (bits(words.embeddings) == bits(best)).all()
    model.optimizer.learning_rate = 0.0
    fit(model, epochs=1)
    assert (bits(words.embeddings) == bits(best)).all(), "training went on from other rows"


@works("Callbacks", "`ModelCheckpoint`, the whole model")
@in_both_models
def test_a_checkpoint_of_the_model_holds_the_rows_of_its_epoch(model_class, tmp_path):
    model, words = compiled_model(model_class)
    tables = Tables(words)
    fit(model, tables, keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras"), epochs=2)
    for epoch, table in enumerate(tables.after_epoch, 1):
        loaded = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        loaded_words = loaded.get_layer("words")
        assert (bits(loaded_words.embeddings) == bits(table)).all()
        fit(loaded, epochs=1)
        assert_only_trained(table, loaded_words.embeddings)


@works("Callbacks", "`ModelCheckpoint(save_weights_only=True)`")
@in_both_models
def test_a_checkpoint_of_the_weights_holds_the_rows_of_the_best_epoch(model_class, tmp_path):
    model, words = compiled_model(model_class)
    tables, path = Tables(words), tmp_path / "best.weights.h5"
    checkpoint = keras.callbacks.ModelCheckpoint(
        path, "grade", mode="min", save_best_only=True, save_weights_only=True
    )
    fit(model, tables, Grades([3.0, 1.0, 2.0]), checkpoint)
    restored, restored_words = compiled_model(model_class)
    restored.optimizer.build(restored.trainable_variables)
    restored.load_weights(path)
    assert_only_trained(MATRIX, restored_words.embeddings)
    assert (bits(restored_words.embeddings) == bits(tables.after_epoch[1])).all()
    fit(restored, epochs=1)
    assert (bits(restored_words.embeddings) == bits(words.embeddings)).all()


@works("Callbacks", "`CSVLogger`")
@in_both_models
def test_a_csv_file_has_a_row_for_each_epoch(model_class, tmp_path):
    model, words = compiled_model(model_class)
    history = fit(model, keras.callbacks.CSVLogger(tmp_path / "log.csv"))
    rows = list(csv.DictReader((tmp_path / "log.csv").open(encoding="utf-8")))
    assert [float(row["loss"]) for row in rows] == history["loss"]
    assert_only_trained(MATRIX, words.embeddings)


@works("Callbacks", "`TerminateOnNaN`", "Trainable rows are NaN then, as all that trains is.")
@in_both_models
def test_a_loss_that_is_nan_ends_training_and_leaves_frozen_rows(model_class):
    model, words = compiled_model(model_class)
    y = np.concatenate([Y[:8], np.full_like(Y[8:], np.nan)])
    fit(model, keras.callbacks.TerminateOnNaN(), epochs=3, y=y)
    assert int(model.optimizer.iterations) == 2
    assert_only_trained(MATRIX, words.embeddings)
    assert np.isnan(np.array(words.embeddings)[IDS]).all()


@works(
    "Callbacks",
    "`BackupAndRestore` of Keras",
    "`maskedgrad.callbacks.BackupAndRestore` is also safe against a crash while it writes.",
)
@works("Callbacks", "`maskedgrad.callbacks.BackupAndRestore`")
@pytest.mark.parametrize("backup", [keras.callbacks.BackupAndRestore, callbacks.BackupAndRestore])
@in_both_models
def test_training_that_is_restored_trains_the_rows_of_training_without_a_crash(
    model_class, backup, tmp_path
):
    def fresh():
        keras.utils.set_random_seed(1)
        return compiled_model(model_class)

    uninterrupted, expected = fresh()
    losses = fit(uninterrupted, epochs=4)["loss"]
    crashed, _ = fresh()
    with pytest.raises(InterruptedError):
        fit(crashed, backup(str(tmp_path)), Crash(), epochs=4)
    restored, words = fresh()
    assert fit(restored, backup(str(tmp_path)), epochs=4)["loss"] == losses[2:]
    assert (bits(words.embeddings) == bits(expected.embeddings)).all()
    assert_only_trained(MATRIX, words.embeddings)


class Looks(keras.callbacks.Callback):
    """Remembers the table as it is after each step, and as it is when it is evaluated."""

    def __init__(self, words):
        super().__init__()
        self.words, self.after_step, self.evaluated = words, [], []

    def on_train_batch_end(self, batch, logs=None):
        self.after_step.append(np.array(self.words.embeddings))

    def on_test_begin(self, logs=None):
        self.evaluated.append(np.array(self.words.embeddings))


def averaging():
    return keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5)


@works(
    "Callbacks",
    "`maskedgrad.callbacks.SwapEMAWeights`",
    "In the place of `keras.callbacks.SwapEMAWeights`.",
)
@in_both_models
def test_averaged_rows_are_evaluated_and_others_are_trained_on(model_class):
    keras.utils.set_random_seed(1)
    model, words = compiled_model(model_class, averaging())
    looks = Looks(words)
    validation = {"validation_data": (X, Y)}
    fit(model, callbacks.SwapEMAWeights(), looks, epochs=2, **validation)
    first, second, *_ = looks.after_step
    assert_only_trained(MATRIX, looks.evaluated[0])
    # Keras averages step by step, which rounds otherwise.
    np.testing.assert_allclose(looks.evaluated[0], (first + second) / 2, rtol=1e-5, atol=1e-6)
    keras.utils.set_random_seed(1)
    unswapped, unswapped_words = compiled_model(model_class, averaging())
    fit(unswapped, epochs=2, **validation)
    assert (bits(words.embeddings) == bits(unswapped_words.embeddings)).all()
    assert_only_trained(MATRIX, words.embeddings)


@works("Callbacks", "`maskedgrad.callbacks.SwapEMAWeights(swap_on_epoch=True)`")
@in_both_models
def test_averaged_rows_are_saved_after_each_epoch_and_others_are_trained_on(model_class):
    tables = {}
    for name, swaps in {"plain": [], "swapped": [callbacks.SwapEMAWeights(True)]}.items():
        keras.utils.set_random_seed(1)
        model, words = compiled_model(model_class, averaging())
        seen = Tables(words)
        fit(model, *swaps, seen, epochs=2)
        tables[name] = [*seen.after_epoch, words.embeddings.numpy()]
        assert_only_trained(MATRIX, words.embeddings)
    assert (bits(tables["swapped"][0]) != bits(tables["plain"][0])).any()
    # Keras leaves the averages in a model whose training is over.
    for after in tables["swapped"][1:]:
        assert (bits(after) == bits(tables["plain"][-1])).all()


@works(
    "Callbacks",
    "`maskedgrad.callbacks.SwapEMAWeights`",
    "In the place of `keras.callbacks.SwapEMAWeights`.",
)
@in_both_models
def test_rows_are_as_they_were_after_averages_have_predicted(model_class):
    model, _ = compiled_model(model_class, averaging())
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    before, swap = model.get_weights(), callbacks.SwapEMAWeights()
    predicted = model.predict(X, verbose=0)
    assert (model.predict(X, verbose=0, callbacks=[swap]) != predicted).any()
    for weight, after in zip(before, model.get_weights(), strict=True):
        assert (bits(weight) == bits(after)).all()


@refused(
    "Callbacks",
    "`keras.callbacks.SwapEMAWeights` in a `MaskedModel`",
    "It would swap every weight but the tables. Use `maskedgrad.callbacks.SwapEMAWeights`, in a "
    "stock `keras.Model` too, where nothing can refuse it.",
)
def test_a_swap_that_leaves_out_the_tables_is_refused():
    model, words = compiled_model(MaskedModel, averaging())
    with pytest.raises(ValueError, match=r"Use `maskedgrad\.callbacks\.SwapEMAWeights`"):
        fit(model, keras.callbacks.SwapEMAWeights())
    assert (bits(words.embeddings) == bits(MATRIX)).all()


@refused(
    "Callbacks",
    "`OrbaxCheckpoint` where `orbax-checkpoint` is not installed",
    "Keras says what to install, with or without `MaskedOptimizer`.",
)
@needs("callbacks.OrbaxCheckpoint")
@pytest.mark.skipif(importlib.util.find_spec("orbax") is not None, reason="it is installed")
def test_an_orbax_checkpoint_says_that_it_needs_orbax(tmp_path):
    with pytest.raises(ImportError, match="pip install orbax-checkpoint"):
        keras.callbacks.OrbaxCheckpoint(tmp_path)


@works(
    "Callbacks",
    "`TensorBoard`, with histograms and `embeddings_freq`",
    "Needs the package `tensorboard`, which TensorFlow does not bring along.",
)
@in_both_models
def test_tensorboard_gets_metrics_histograms_and_the_table(model_class, tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    model, words = compiled_model(model_class)
    tables = Tables(words)
    board = keras.callbacks.TensorBoard(
        tmp_path, histogram_freq=1, embeddings_freq=1, embeddings_metadata={"words": "words.tsv"}
    )
    fit(model, tables, board, epochs=2)
    events = event_accumulator.EventAccumulator(str(tmp_path / "train")).Reload()
    tags = events.Tags()["tensors"]
    assert {"epoch_loss", "epoch_learning_rate"} <= set(tags)
    assert any(tag.endswith("embeddings/histogram") for tag in tags)
    assert "words.tsv" in (tmp_path / "projector_config.pbtxt").read_text(encoding="utf-8")
    for epoch, table in enumerate(tables.after_epoch):
        restored, restored_words = compiled_model(model_class)
        restored.load_weights(tmp_path / "train" / f"keras_embedding.ckpt-{epoch}.weights.h5")
        assert (bits(restored_words.embeddings) == bits(table)).all()
    assert_only_trained(MATRIX, words.embeddings)
