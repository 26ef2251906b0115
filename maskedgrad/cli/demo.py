"""Watch special symbols learn in real text, five ways.

The prose is what Python ships with: the docstrings of its standard library
and the topics of its manual. Sentences are classified by the package that they
come from. Identifiers and numbers become the symbols <name> and <number>, and
words without a vector <unknown>, which no pretrained vector knows. The same
classifier is then trained five ways, and a table tells what each of them did:
to the accuracy, and to the rows that should keep their bits. With `--workers 2`
all of that is done by two processes of this machine that train together; with
`TF_CONFIG` in the environment, by the machines that it names.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.cli.figure import draw
from maskedgrad.cli.local_workers import local_workers
from maskedgrad.cli.prose import SPECIAL, Examples, Task, make_task, read_prose
from maskedgrad.cli.recipes import (
    RECIPES,
    Change,
    Head,
    Recipe,
    StepTimes,
    frozen_change,
)
from maskedgrad.distribute.workers import is_chief
from maskedgrad.reports.counting import count_parameters, state_bytes

WAYS = ["table frozen", "table trainable", "two-layer recipe", "gradient times mask", "maskedgrad"]
BATCH_SIZE = 32
LEARNING_RATE = 3e-3
UNTIMED_STEPS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to `parser`."""
    parser.add_argument(
        "--vectors",
        type=_existing_file,
        metavar="PATH",
        help="pretrained vectors in the text format of GloVe, word2vec or fastText "
        "(default: Word2Vec, trained on the same prose)",
    )
    parser.add_argument(
        "--figure",
        type=_path_in_directory,
        metavar="PATH",
        default=Path("demo.png"),
        help="where to draw the learning curves and the places of the symbols "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--json",
        type=_path_in_directory,
        metavar="PATH",
        help="where to write the numbers of the table (default: nowhere)",
    )
    parser.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        default=3,
        help="how often each way is trained (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        default=8,
        help="epochs of each training (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        metavar="N",
        default=1,
        help="how many processes of this machine train together (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status.

    Args:
        options: what `add_arguments` parses.

    Raises:
        ImportError: the extra `demo` is not installed.
        FileNotFoundError, ValueError: this Python comes without its manual or
            its sources, or the vectors are not of the words of its prose.
    """
    _check_extras()
    if options.workers > 1 and "TF_CONFIG" not in os.environ:
        return _run_workers(options.workers, options.arguments)
    from rich.console import Console

    # Made before anything else of TensorFlow's, as it demands.
    strategy = _strategy()
    console = Console(highlight=False, quiet=not is_chief(strategy))
    with console.status("Reading the prose of Python's standard library"):
        prose = read_prose(Path(sysconfig.get_path("stdlib")))
    with console.status("Reading the vectors" if options.vectors else "Training Word2Vec"):
        task = make_task(prose, options.vectors)
    console.print(task.description())
    outcomes = compare(task, options.seeds, options.epochs, strategy)
    if not is_chief(strategy):
        return 0
    summaries = {way: summarize(outcomes[way]) for way in WAYS}
    console.print(_rich_table(summaries, options.seeds))
    console.print(conclusion(summaries, len(task.matrix) - len(SPECIAL)))
    if options.json:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
    _draw(options.figure, task, outcomes)
    console.print(f"The figure is in {options.figure}")
    return 0


class Outcome(NamedTuple):
    """What one training came to."""

    accuracies: list[float]
    trainable_parameters: int
    step_seconds: float
    optimizer_bytes: int
    change: Change
    symbol_distances: list[float]
    table: np.ndarray


def compare(
    task: Task, seeds: int, epochs: int, strategy: tf.distribute.Strategy
) -> dict[str, list[Outcome]]:
    """Trains each way on the task, once for each seed; the chief shows the progress."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    outcomes: dict[str, list[Outcome]] = {way: [] for way in WAYS}
    with Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not (console.is_terminal and is_chief(strategy)),
    ) as progress:
        epochs_done = progress.add_task("", total=seeds * len(WAYS) * epochs)
        # Seeds outside, so that what else the machine does meets every way alike.
        for seed in range(seeds):
            for way in WAYS:
                progress.update(epochs_done, description=f"{way}, seed {seed + 1}")
                with strategy.scope():
                    recipe = make_recipe(way, task, seed)
                outcomes[way].append(
                    train(recipe, task, seed, epochs, lambda: progress.advance(epochs_done))
                )
    return outcomes


def make_recipe(way: str, task: Task, seed: int) -> Recipe:
    """The classifier, made one way, with the seed for all that is random."""
    keras.utils.set_random_seed(seed)
    return RECIPES[way](
        task.matrix,
        task.special_ids,
        _head(len(task.packages), seed),
        keras.optimizers.AdamW(LEARNING_RATE),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


def train(
    recipe: Recipe, task: Task, seed: int, epochs: int, on_epoch_end: Callable[[], None]
) -> Outcome:
    """Trains the classifier on batches that the seed shuffles."""
    step_times = StepTimes()
    history = recipe.model.fit(
        _batches(task.training).shuffle(len(task.training.ids), seed=seed).batch(BATCH_SIZE),
        validation_data=_batches(task.validation).batch(len(task.validation.ids)),
        epochs=epochs,
        shuffle=False,  # the batches are
        verbose=0,
        callbacks=[
            step_times,
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch_end()),
        ],
    )
    table = recipe.table()
    moves = (table - task.matrix)[task.special_ids]
    return Outcome(
        accuracies=history.history["val_accuracy"],
        trainable_parameters=count_parameters(recipe.model).trainable.parameters,
        step_seconds=step_times.median(skip=UNTIMED_STEPS),
        optimizer_bytes=state_bytes(recipe.model.optimizer),
        change=frozen_change(task.matrix, table, task.special_ids),
        symbol_distances=np.linalg.norm(moves, axis=1).tolist(),
        table=table,
    )


def summarize(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The numbers of one way: means over the seeds, and the worst of what should not change."""
    accuracies = [outcome.accuracies[-1] for outcome in outcomes]
    distances = np.mean([outcome.symbol_distances for outcome in outcomes], axis=0)
    return {
        "accuracy": fmean(accuracies),
        "accuracy_deviation": pstdev(accuracies),
        "trainable_parameters": outcomes[0].trainable_parameters,
        "step_seconds": median(outcome.step_seconds for outcome in outcomes),
        "optimizer_bytes": outcomes[0].optimizer_bytes,
        "frozen_rows_changed": max(outcome.change.rows for outcome in outcomes),
        "largest_change": max(outcome.change.largest for outcome in outcomes),
        "symbol_distances": dict(zip(SPECIAL, distances.tolist(), strict=True)),
    }


def conclusion(summaries: Mapping[str, Mapping[str, Any]], num_frozen: int) -> str:
    """What a newcomer should see in the table, in three lines.

    Args:
        summaries: what `summarize` says of each way, maskedgrad among them.
        num_frozen: how many rows should not change.

    Example:

    >>> kept = {"frozen_rows_changed": 0, "symbol_distances": {"<a>": 0.5, "<b>": 1.0}}
    >>> print(conclusion({"maskedgrad": kept, "a leak": {"frozen_rows_changed": 7}}, 7))
    7 rows should keep every bit. They do with: maskedgrad. Some change with: a leak.
    With maskedgrad the symbols moved by 0.75 on average from zero, where they started.
    Which way is the most accurate depends on the task: this is about what may not change.
    """
    changing = [way for way in summaries if summaries[way]["frozen_rows_changed"]]
    keeping = [way for way in summaries if way not in changing]
    distance = fmean(summaries["maskedgrad"]["symbol_distances"].values())
    return (
        f"{num_frozen:,} rows should keep every bit. They do with: "
        f"{', '.join(keeping) or 'none'}. Some change with: {', '.join(changing) or 'none'}.\n"
        f"With maskedgrad the symbols moved by {distance:.2f} on average from zero, "
        "where they started.\n"
        "Which way is the most accurate depends on the task: this is about what may not change."
    )


def _strategy() -> tf.distribute.Strategy:
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def _run_workers(num_workers: int, arguments: Sequence[str]) -> int:
    """Runs the same command as several workers, of which the first is seen."""
    command = [sys.executable, "-m", "maskedgrad", *arguments]
    with contextlib.ExitStack() as stack:
        outputs = [
            stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(num_workers - 1)
        ]
        seen = [{}, *({"stdout": output, "stderr": subprocess.STDOUT} for output in outputs)]
        workers = stack.enter_context(local_workers(command, seen))
        statuses = [worker.wait() for worker in workers]
        for output, status in zip(outputs, statuses[1:], strict=True):
            if status:
                output.seek(0)
                sys.stderr.write(output.read())
    return max(abs(status) for status in statuses)


def _head(num_classes: int, seed: int) -> Head:
    # Seeds of their own, since the ways draw different amounts of other numbers.
    def head(embedded: Any) -> Any:
        pooled = keras.layers.GlobalAveragePooling1D()(embedded)
        hidden = keras.layers.Dense(
            64, "relu", kernel_initializer=keras.initializers.GlorotUniform(seed)
        )(pooled)
        return keras.layers.Dense(
            num_classes, "softmax", kernel_initializer=keras.initializers.GlorotUniform(seed + 1)
        )(hidden)

    return head


def _batches(examples: Examples) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(tuple(examples))


def _rich_table(summaries: Mapping[str, Mapping[str, Any]], seeds: int) -> Any:
    from rich import box
    from rich.table import Table

    # It fits into 80 columns, which is what there is where output is no terminal.
    table = Table(box=box.SIMPLE_HEAD, padding=0, caption_justify="left")
    table.add_column("")
    for heading in (
        "validation\naccuracy",
        "trainable\nparameters",
        "training\nstep",
        "optimizer\nmemory",
        "frozen\nrows\nchanged",
        "largest\nchange",
    ):
        table.add_column(heading, justify="right")
    for way, summary in summaries.items():
        table.add_row(
            way,
            f"{100 * summary['accuracy']:.1f} ± {100 * summary['accuracy_deviation']:.1f} %",
            f"{summary['trainable_parameters']:,}",
            f"{1000 * summary['step_seconds']:.1f} ms",
            f"{summary['optimizer_bytes'] / 1000:,.0f} KB",
            f"{summary['frozen_rows_changed']:,}",
            f"{summary['largest_change']:.1g}",
        )
    table.caption = (
        "Accuracy after the last epoch: mean and standard deviation "
        f"of {seeds} seeds. Step: the median."
    )
    return table


def _draw(path: Path, task: Task, outcomes: Mapping[str, list[Outcome]]) -> None:
    accuracies = {
        f"{way}: {max(run.change.rows for run in runs):,} frozen rows changed": np.array(
            [run.accuracies for run in runs]
        )
        for way, runs in outcomes.items()
    }
    table = outcomes["maskedgrad"][0].table
    draw(path, accuracies, table, task.vocabulary, task.special_ids)


def _existing_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"Expected a file. Received: {text}, which is none.")
    return path


def _path_in_directory(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(
            f"Expected a path in a directory that exists. Received: {text}"
        )
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"Expected a whole number above 0. Received: {text}")
    return int(text)


def _check_extras() -> None:
    missing = [
        name for name in ("gensim", "matplotlib", "rich") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            "The demo needs gensim, matplotlib and rich. "
            f"Received: a Python without {', '.join(missing)}. "
            'Install them: pip install "maskedgrad[demo]"'
        )
