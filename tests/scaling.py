"""Steps of 1, 2 and 4 workers on this machine, beside what a model says of them.

    python -m tests.scaling --figure docs/images/scaling.png

Three ways to train the same: rows by maskedgrad, and a whole table whose gradient is
sparse or dense. In each round the workers are started anew, and the model of
`tests/multi_worker/scaling_model.py` is given what was measured in that round apart from
the steps: bare collectives; steps of workers that train each for itself at the same time,
of which the slowest counts; and what a strategy adds to a step that computes next to
nothing. Steps are those of `fit`. Fails where a median of measured / predicted is
beyond 30 %.

Then the model is carried on to 1,000 workers with a larger table and a machine each. No
part of the suite: it takes some minutes, and wants a machine with nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from maskedgrad.cli.local_workers import local_workers
from tests.multi_worker.scaling_model import (
    DENSE,
    GATHER,
    GATHERED,
    LARGE_BATCH,
    MASKED,
    MEASURED,
    NEXT_TO_NOTHING,
    REALISTIC,
    REDUCE,
    WAYS,
    Collective,
    Compute,
    Link,
    Task,
    bytes_received,
    collectives,
    fitted_link,
    over_network,
    step_seconds,
)

WORKERS = (1, 2, 4)
CARRIED_ON = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
WITHIN = 1.3  # measured / predicted, or the other way round
NETWORK = Link(latency=50e-6, per_byte=8 / 10e9)  # 10 Gbit/s
LONGEST = 1800  # seconds until workers that wait for each other are given up
# What is carried on, and how it is drawn, in colours that colour-blind readers can tell apart.
LINES = {
    "maskedgrad, batch 1,024": (MASKED, LARGE_BATCH, "#56B4E9", "^"),
    MASKED: (MASKED, REALISTIC, "#0072B2", "o"),
    GATHERED: (GATHERED, REALISTIC, "#E69F00", "D"),
    DENSE: (DENSE, REALISTIC, "#D55E00", "s"),
}

Round = Mapping[int, Mapping[str, Any]]


def measured(workers: int, turns: int, steps: int) -> dict[str, Any]:
    """What the first of some workers measured."""
    command = [sys.executable, "-m", "tests.multi_worker.scaling_worker", str(turns), str(steps)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with local_workers(command, workers * [options]) as started:
        outputs = [worker.communicate(timeout=LONGEST) for worker in started]
    if any(worker.returncode for worker in started):
        sys.exit("\n".join(errors for _, errors in outputs))
    return json.loads(outputs[0][0])


def links(one_round: Round, workers: int) -> dict[str, Link]:
    """What a hop between some workers costs, by the kind of the collective."""
    if workers == 1:
        return dict.fromkeys((REDUCE, GATHER), Link(0.0, 0.0))
    bare = {Collective(kind, size): s for kind, size, s in one_round[workers]["bare"]}
    return {
        kind: fitted_link({each: s for each, s in bare.items() if each.kind == kind}, workers)
        for kind in (REDUCE, GATHER)
    }


def strategy_itself(one_round: Round, workers: int) -> float:
    """The seconds that a strategy adds to a step before anybody is talked to."""
    # It is work for a processor, of which workers may have a share only.
    return max(0.0, one_round[1]["added"]) * max(1, workers / len(os.sched_getaffinity(0)))


def waiting(one_round: Round, workers: int) -> float:
    """The seconds that workers wait for each other before a collective.

    They are what a strategy of some workers adds to a step that computes next to nothing,
    but for its own work and for the collectives. So they are all that these do not explain.
    """
    exchanged = collectives(DENSE, NEXT_TO_NOTHING)
    own = Compute(strategy_itself(one_round, workers))
    explained = step_seconds(exchanged, workers, own, links(one_round, workers), waiting=0.0)
    return max(0.0, one_round[workers]["added"] - explained) / len(exchanged)


def predicted(one_round: Round, way: str, workers: int) -> float:
    """The seconds of a step of some workers on this machine."""
    alone, further = one_round[workers]["compute"][way]
    compute = Compute(alone + strategy_itself(one_round, workers), further)
    hop, wait = links(one_round, workers), waiting(one_round, workers)
    return step_seconds(collectives(way, MEASURED), workers, compute, hop, wait)


def carried_on(one_round: Round, way: str, task: Task, workers: int) -> float:
    """The seconds of a step of some workers that have a machine each, with the larger table."""
    # Of two workers each has a core for itself here, as on a machine of its own. How long many
    # would wait for the last of them is not known: as long as two, it is assumed.
    hop = {kind: over_network(link, NETWORK) for kind, link in links(one_round, 2).items()}
    of_one = one_round[1]
    alone, further = (
        (of_one["large batch"], 0.0) if task == LARGE_BATCH else of_one["realistic"][way]
    )
    compute = Compute(alone + strategy_itself(one_round, 1), further)
    return step_seconds(collectives(way, task), workers, compute, hop, waiting(one_round, 2))


def spread(rounds: Sequence[Round], value: Callable[[Round], float], digits: int = 2) -> str:
    """A value over rounds: the median, and in parentheses the lowest and the highest."""
    values = [value(each) for each in rounds]
    low, middle, high = (f"{v:,.{digits}f}" for v in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def measured_to_predicted(one_round: Round, way: str, workers: int) -> float:
    return one_round[workers]["steps"][way] / predicted(one_round, way, workers)


def print_parameters(rounds: Sequence[Round]) -> None:
    print("\n| workers | collective | a hop, ms | a byte, ns |\n|---|---|---|---|")
    for n in WORKERS[1:]:
        for kind in (REDUCE, GATHER):
            latency = spread(rounds, lambda r, n=n, k=kind: links(r, n)[k].latency * 1e3)
            per_byte = spread(rounds, lambda r, n=n, k=kind: links(r, n)[k].per_byte * 1e9)
            print(f"| {n} | {kind} | {latency} | {per_byte} |")
    print("\n| workers | added to a step by a strategy, ms | before a collective, ms |")
    print("|---|---|---|")
    for n in WORKERS:
        added = spread(rounds, lambda r, n=n: r[n]["added"] * 1e3)
        before = spread(rounds, lambda r, n=n: waiting(r, n) * 1e3)
        print(f"| {n} | {added} | {before} |")
    print("\n| workers | way | computing, ms | a further worker's slices, ms |\n|---|---|---|---|")
    for n in WORKERS:
        for way in WAYS:
            alone, further = (
                spread(rounds, lambda r, n=n, w=way, i=i: r[n]["compute"][w][i] * 1e3)
                for i in (0, 1)
            )
            print(f"| {n} | {way} | {alone} | {further} |")
    for way in WAYS:
        alone, further = (
            spread(rounds, lambda r, w=way, i=i: r[1]["realistic"][w][i] * 1e3) for i in (0, 1)
        )
        print(f"| 1, larger table | {way} | {alone} | {further} |")
    large = spread(rounds, lambda r: r[1]["large batch"] * 1e3)
    print(f"| 1, larger table | maskedgrad, batch 1,024 | {large} | |")


def print_comparison(rounds: Sequence[Round]) -> None:
    print("\n| workers | way | measured, ms | predicted, ms | measured / predicted |")
    print("|---|---|---|---|---|")
    for n in WORKERS:
        for way in WAYS:
            step = median(r[n]["steps"][way] for r in rounds) * 1e3
            said = median(predicted(r, way, n) for r in rounds) * 1e3
            ratio = spread(rounds, lambda r, n=n, w=way: measured_to_predicted(r, w, n))
            print(f"| {n} | {way} | {step:.1f} | {said:.1f} | {ratio} |")


def print_carried_on(rounds: Sequence[Round]) -> None:
    print("\n| workers | way | step, ms | examples / s | received by a worker, MB |")
    print("|---|---|---|---|---|")
    for n in (1, 2, 10, 100, 1000):
        for label, (way, task, _, _) in LINES.items():
            step = median(carried_on(r, way, task, n) for r in rounds)
            received = bytes_received(collectives(way, task), n) / 1e6
            rate = task.batch * n / step
            print(f"| {n:,} | {label} | {step * 1e3:,.1f} | {rate:,.0f} | {received:,.2f} |")


def draw(path: Path, rounds: Sequence[Round]) -> None:
    """Draws how many examples all workers together train on in a second, over their number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label, (way, task, colour, marker) in LINES.items():
        steps = [median(carried_on(each, way, task, n) for each in rounds) for n in CARRIED_ON]
        rates = [task.batch * n / step for n, step in zip(CARRIED_ON, steps, strict=True)]
        axes.loglog(CARRIED_ON, rates, color=colour, marker=marker, label=label)
        proportional = [rates[0] * n for n in CARRIED_ON]
        axes.loglog(CARRIED_ON, proportional, color=colour, linestyle=":", alpha=0.6)
    axes.set(xlabel="workers", ylabel="examples in a second, all workers together")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=6, help="bursts of steps in a round")
    parser.add_argument("--steps", type=int, default=20, help="steps in a burst")
    parser.add_argument("--figure", type=Path, help="draws what 1 to 1,000 workers would do")
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        print(f"round {number + 1}: load {os.getloadavg()[0]:.1f}", flush=True)
        rounds.append({n: measured(n, options.turns, options.steps) for n in WORKERS})
    print_parameters(rounds)
    print_comparison(rounds)
    print_carried_on(rounds)
    if options.figure:
        draw(options.figure, rounds)
    ratios = [
        median(measured_to_predicted(r, way, n) for r in rounds) for n in WORKERS for way in WAYS
    ]
    return int(not all(1 / WITHIN <= ratio <= WITHIN for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
