"""Measure, on this machine, the ways to train some rows of a table.

Each case runs in a process of its own, one at a time, and the cases are
interleaved over rounds, so that a noisy machine hurts all alike. The floor is
a frozen table.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from maskedgrad.cli.bench_report import FLOOR, MEANINGS, Case, Measurement, Result, cells_of, draw
from maskedgrad.cli.bench_work import REFUSED
from maskedgrad.cli.console import TIMES_MASK_NOTE, make_console, print_table
from maskedgrad.cli.options import check_absent, path_in_directory, path_of_figure, positive
from maskedgrad.files import whole_file, write_whole
from maskedgrad.messages.progress import progress_bar

WAYS = [
    FLOOR,
    "maskedgrad",
    "maskedgrad, lazy",
    "maskedgrad, stock Model",
    "two-layer recipe",
    "table trainable",
    "gradient times mask",
    "stop_gradient mix",
]
PEERS = [
    "PyTorch, table frozen",
    "PyTorch, gradient hook",
    "PyTorch, SparseAdam",
    "PyTorch, PEFT trainable tokens",
]
MODELS = ["pool", "ragged", "lstm", "transformer", "tied"]
SWEEPS = {
    "rows": (0.01, 0.1, 1, 5),
    "trainable": (1, 10, 100, 1000),
    "batch": (0.25, 1, 4, 16),
}
CASE_FIELDS = [
    *["rows", "width", "batch", "length", "trainable"],
    *["optimizer", "model", "jit", "steps_per_execution"],
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command to `parser`."""
    for name, default, meaning in [
        ("rows", 400_000, "rows of the table"),
        ("width", 300, "width of the table"),
        ("batch", 64, "texts in a batch"),
        ("length", 100, "tokens in a text"),
        ("trainable", 100, "rows that train"),
        ("rounds", 5, "times that each case is measured"),
        ("steps-per-execution", 1, "steps that Keras makes in one call"),
    ]:
        parser.add_argument(
            f"--{name}",
            type=positive,
            metavar="N",
            default=default,
            help=f"{meaning} (default: %(default)s)",
        )
    parser.add_argument(
        "--optimizer", default="adam", help="name of a Keras optimizer (default: %(default)s)"
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="pool",
        help="what reads the table; `ragged` averages ragged texts, "
        "and `tied` has an output layer tied to it (default: %(default)s)",
    )
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=WAYS,
        metavar="WAY",
        default=WAYS,
        help=f"of {', '.join(map(repr, WAYS))} (default: all of them)",
    )
    parser.add_argument(
        "--peers", action="store_true", help="PyTorch and PEFT too, where they are installed"
    )
    parser.add_argument("--sweep", choices=sorted(SWEEPS), help="how cost grows with one of these")
    parser.add_argument(
        "--json", type=path_in_directory, metavar="PATH", help="where to write the measurements"
    )
    parser.add_argument(
        "--figure", type=path_of_figure, metavar="PATH", help="where to draw the figure"
    )
    parser.add_argument("--replace", action="store_true", help="replace files that exist")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    console = make_console()
    if options.figure and not importlib.util.find_spec("matplotlib"):
        raise ImportError(
            "--figure needs matplotlib. Received: a Python without it. "
            'Install it: pip install "maskedgrad[demo]"'
        )
    check_absent([options.figure, options.json], options.replace)
    if options.trainable >= options.rows - 1:
        raise ValueError(
            "--trainable must leave rows to freeze: at most --rows less 2. "
            f"Received: {options.trainable} of {options.rows}"
        )
    ways = list(options.ways)
    if options.peers:
        missing = [name for name in ("torch", "peft") if not importlib.util.find_spec(name)]
        if missing:
            console.print(f"PyTorch is not measured: {' and '.join(missing)} not installed.")
        elif (options.model, options.optimizer, options.steps_per_execution) != ("pool", "adam", 1):
            console.print(
                "PyTorch is not measured: it has `--model pool --optimizer adam` only, "
                "one step at a time."
            )
        else:
            ways += PEERS
    cases = cases_of(options, ways)
    try:
        results = measure(cases, options.rounds)
    except subprocess.CalledProcessError as error:
        if error.returncode == REFUSED:
            raise ValueError(error.stderr.splitlines()[-1]) from error
        console.print(error.stderr)
        console.print(f"A case failed: {error.cmd[-1]}")
        return 1
    console.print(f"{_conditions(options)}, {os.cpu_count()} cores")
    for value in dict.fromkeys(result.case[options.sweep or "model"] for result in results):
        same = [r for r in results if r.case[options.sweep or "model"] == value]
        title = f"{options.sweep}: {value:,}" if options.sweep else None
        print_table(console, *cells_of(same), title)
    console.print(MEANINGS)
    if "gradient times mask" in ways:
        console.print(TIMES_MASK_NOTE)
    if options.json:
        document = {
            "cores": os.cpu_count(),
            "floor": FLOOR,
            "results": [result._asdict() for result in results],
        }
        write_whole(options.json, (json.dumps(document, indent=1) + "\n").encode())
    if options.figure:
        with whole_file(options.figure) as file:
            drawn = draw(results, options.sweep)
            drawn.savefig(file, dpi=150, format=options.figure.suffix[1:])
        console.print(f"The figure is in {options.figure}")
    return 0


def cases_of(options: argparse.Namespace, ways: Sequence[str]) -> list[Case]:
    """The cases that `options` ask for: one for each way, and for each value of a sweep."""
    base = {field: getattr(options, field) for field in CASE_FIELDS}
    cases = [{"way": way, **case} for case in _swept(base, options.sweep) for way in ways]
    return [case for case in cases if case["trainable"] < case["rows"] - 1]


def _swept(base: Case, sweep: str | None) -> Iterator[Case]:
    if sweep is None:
        yield base
        return
    values = [max(1, round(base[sweep] * factor)) for factor in SWEEPS[sweep]]
    if sweep == "trainable":
        values = [*(v for v in values if v < base["rows"] // 2), base["rows"] // 2]
    for value in dict.fromkeys(values):
        yield {**base, sweep: value}


def measure(cases: Sequence[Case], rounds: int) -> list[Result]:
    """Measures each case once a round, one after the other.

    Raises:
        subprocess.CalledProcessError: a case failed; `stderr` says how.
    """
    results = [Result(case, []) for case in cases]
    with progress_bar() as progress:
        task = progress.add_task("", total=rounds * len(cases))
        for _ in range(rounds):
            for result in results:
                progress.update(task, description=result.case["way"])
                result.measurements.append(_run_worker(result.case))
                progress.advance(task)
    return results


def _run_worker(case: Case) -> Measurement:
    finished = subprocess.run(  # noqa: S603
        [sys.executable, *_worker_of(case), json.dumps(case)],
        env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def _worker_of(case: Case) -> list[str]:
    if case["way"] in PEERS:
        return [str(Path(__file__).with_name("bench_peers.py"))]
    return ["-m", "maskedgrad.cli.bench_worker"]


def _conditions(options: argparse.Namespace) -> str:
    return (
        f"{options.rows:,} rows x {options.width}, batch {options.batch} x {options.length}, "
        f"{options.trainable:,} trainable rows, {options.optimizer}, {options.model}"
        f"{', XLA' if options.jit else ''}"
        f"{f', {spe} steps per execution' if (spe := options.steps_per_execution) > 1 else ''}"
    )
