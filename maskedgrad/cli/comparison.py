"""The same classifier, trained in several ways, once for each seed."""

from collections.abc import Callable, Sequence
from statistics import fmean, median, pstdev
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.cli.recipes import (
    RECIPES,
    WITH_OTHER_ROWS,
    Change,
    Head,
    Recipe,
    StepTimes,
    frozen_change,
)
from maskedgrad.cli.task import Examples, Task
from maskedgrad.distribute.workers import is_chief
from maskedgrad.messages.progress import progress_bar
from maskedgrad.reports.counting import count_parameters, state_bytes

BATCH_SIZE = 32
UNTIMED_STEPS = 10


class Training(NamedTuple):
    """How each way is trained.

    `seeds` is how often; `follow` is whether the first test is tried after each
    epoch too.
    """

    ways: Sequence[str]
    seeds: int
    epochs: int
    learning_rate: float
    follow: bool


class Outcome(NamedTuple):
    """The results of one training.

    `accuracies` are those of the task's tests, after the last epoch, and
    `curve` is that of the first test after each epoch, if it was followed.
    `table` is kept of the first seed only.
    """

    accuracies: dict[str, float]
    curve: list[float]
    trainable_parameters: int
    step_seconds: float
    optimizer_bytes: int
    change: Change
    symbol_distances: list[float]
    table: np.ndarray | None


def compare(
    task: Task, training: Training, strategy: tf.distribute.Strategy
) -> dict[str, list[Outcome]]:
    """Trains each way on the task, once for each seed; the chief shows the progress."""
    outcomes: dict[str, list[Outcome]] = {way: [] for way in training.ways}
    with progress_bar(is_shown=is_chief(strategy)) as progress:
        total = training.seeds * len(training.ways) * training.epochs
        epochs_done = progress.add_task("", total=total)
        # The outer loop is over seeds, so that other work of the machine slows all ways alike.
        for seed in range(training.seeds):
            for way in training.ways:
                progress.update(epochs_done, description=f"{way}, seed {seed + 1}")
                with strategy.scope():
                    recipe = make_recipe(way, task, training.learning_rate, seed)
                outcome = train(
                    recipe,
                    task,
                    training,
                    seed,
                    lambda: progress.advance(epochs_done),
                )
                # Tables are large, and only that of the first seed is drawn.
                outcomes[way].append(outcome._replace(table=None) if seed else outcome)
    return outcomes


def make_recipe(way: str, task: Task, learning_rate: float, seed: int) -> Recipe:
    """The classifier, made one way, with the seed for all that is random."""
    keras.utils.set_random_seed(seed)
    return {**RECIPES, **WITH_OTHER_ROWS}[way](
        task.matrix,
        task.symbol_ids,
        _head(task, seed),
        keras.optimizers.AdamW(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


def train(
    recipe: Recipe,
    task: Task,
    training: Training,
    seed: int,
    on_epoch_end: Callable[[], None],
) -> Outcome:
    """Trains the classifier on batches that the seed shuffles, and tries it on the task's tests."""
    step_times = StepTimes()
    tests = {
        name: _batches(examples).batch(len(examples.ids)) for name, examples in task.tests.items()
    }
    history = recipe.model.fit(
        _batches(task.training).shuffle(len(task.training.ids), seed=seed).batch(BATCH_SIZE),
        validation_data=next(iter(tests.values())) if training.follow else None,
        epochs=training.epochs,
        shuffle=False,  # `_batches` are shuffled already
        verbose=0,
        callbacks=[
            step_times,
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch_end()),
        ],
    )
    accuracies = {
        name: recipe.model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
        for name, test in tests.items()
    }
    table = recipe.table()
    moves = (table - task.matrix)[task.symbol_ids]
    return Outcome(
        accuracies=accuracies,
        curve=history.history.get("val_accuracy", []),
        trainable_parameters=count_parameters(recipe.model).trainable.parameters,
        step_seconds=step_times.median(skip=UNTIMED_STEPS),
        optimizer_bytes=state_bytes(recipe.model.optimizer),
        change=frozen_change(task.matrix, table, task.symbol_ids),
        symbol_distances=np.linalg.norm(moves, axis=1).tolist(),
        table=table,
    )


def summarize(outcomes: Sequence[Outcome], symbols: Sequence[str]) -> dict[str, Any]:
    """The numbers of one way: means over the seeds, and the worst of what should not change."""
    distances = np.mean([outcome.symbol_distances for outcome in outcomes], axis=0)
    accuracies = {
        name: [outcome.accuracies[name] for outcome in outcomes] for name in outcomes[0].accuracies
    }
    return {
        "accuracies": {name: fmean(values) for name, values in accuracies.items()},
        "accuracy_deviations": {name: pstdev(values) for name, values in accuracies.items()},
        "trainable_parameters": outcomes[0].trainable_parameters,
        "step_seconds": median(outcome.step_seconds for outcome in outcomes),
        "optimizer_bytes": outcomes[0].optimizer_bytes,
        "frozen_rows_changed": max(outcome.change.rows for outcome in outcomes),
        "largest_change": max(outcome.change.largest for outcome in outcomes),
        "symbol_distances": dict(zip(symbols, distances.tolist(), strict=True)),
    }


def _head(task: Task, seed: int) -> Head:
    # Seeds of their own, since the ways draw different amounts of other numbers.
    def head(embedded: Any) -> Any:
        features = keras.layers.GlobalAveragePooling1D()(embedded)
        if task.hidden_units is not None:
            features = keras.layers.Dense(
                task.hidden_units, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed)
            )(features)
        return keras.layers.Dense(
            len(task.classes),
            "softmax",
            kernel_initializer=keras.initializers.GlorotUniform(seed + 1),
        )(features)

    return head


def _batches(examples: Examples) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tuple(examples))
