"""How long a training step takes on some workers: a model of bytes and latency.

A step is what a worker computes, and then collectives one after the other, each in a
ring: TensorFlow has no other algorithm for processors. Before each of them workers wait
for the last. All numbers are those of `fit` of a table, an average and a `Dense(1)`,
with no metric beside the loss.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

MASKED = "maskedgrad"
GATHERED = "table trainable"
DENSE = "table trainable, dense gradient"
WAYS = (MASKED, GATHERED, DENSE)
REDUCE, GATHER = "CollectiveReduceV2", "CollectiveGatherV2"


class Task(NamedTuple):
    """What is trained, and on how much in a step. Each worker has a batch of its own."""

    rows: int
    width: int
    trainable: int
    batch: int
    length: int


# What is measured is small enough that even its dense gradient leaves the machine some room.
MEASURED = Task(rows=20_000, width=64, trainable=100, batch=64, length=100)
REALISTIC = Task(rows=400_000, width=300, trainable=100, batch=64, length=100)
LARGE_BATCH = REALISTIC._replace(batch=1_024)
NEXT_TO_NOTHING = Task(rows=2, width=1, trainable=1, batch=1, length=1)


class Collective(NamedTuple):
    """One exchange among all workers: its operation, and the bytes that each worker puts in."""

    kind: str
    size: int


class Link(NamedTuple):
    """What a hop from one worker to the next costs: seconds a message, and seconds a byte."""

    latency: float
    per_byte: float


class Compute(NamedTuple):
    """Seconds that a worker computes in a step, and those that each further worker adds."""

    alone: float
    per_further_worker: float = 0.0


def collectives(way: str, task: Task) -> list[Collective]:
    """What workers exchange in a step of `fit`, in its order.

    TensorFlow packs all dense gradients into one all-reduce. Of slices it gathers how
    many each worker has, then values and ids. Keras asks whether any worker has a batch
    left, and reduces the sum and the count of each value that a step logs.

    Example:

    >>> task = Task(rows=1000, width=10, trainable=5, batch=2, length=3)
    >>> [each.size for each in collectives("maskedgrad", task)]
    [8, 244, 4, 8]
    >>> [each.size for each in collectives("table trainable, dense gradient", task)]
    [8, 40044, 4, 8]
    >>> [(each.kind[10:16], each.size) for each in collectives("table trainable", task)[1:5]]
    [('Reduce', 44), ('Gather', 4), ('Gather', 240), ('Gather', 24)]
    """
    head = 4 * (task.width + 1)
    tokens = task.batch * task.length
    gradient = {
        MASKED: [Collective(REDUCE, 4 * task.trainable * task.width + head)],
        DENSE: [Collective(REDUCE, 4 * task.rows * task.width + head)],
        GATHERED: [
            Collective(REDUCE, head),
            Collective(GATHER, 4),
            Collective(GATHER, 4 * tokens * task.width),
            Collective(GATHER, 4 * tokens),
        ],
    }
    return [
        Collective(REDUCE, 8),
        *gradient[way],
        Collective(REDUCE, 4),
        Collective(REDUCE, 8),
    ]


def collective_seconds(collective: Collective, workers: int, link: Link) -> float:
    """The time of a collective in a ring of workers.

    A reduction goes round twice, a part of 1 / workers at a time; a gathering once, with
    what each worker puts in.

    Example:

    >>> collective_seconds(Collective(REDUCE, 1000), 4, Link(latency=1, per_byte=0.01))
    21.0
    >>> collective_seconds(Collective(GATHER, 1000), 4, Link(latency=1, per_byte=0.01))
    33.0
    """
    hops, size = _hops(collective, workers)
    return hops * (link.latency + size * link.per_byte)


def step_seconds(
    exchanged: Sequence[Collective],
    workers: int,
    compute: Compute,
    links: Mapping[str, Link],
    waiting: float,
) -> float:
    """The time of a step: computing, and then each collective, after a wait for the last worker.

    Example:

    >>> links = {REDUCE: Link(latency=0.1, per_byte=0.001)}
    >>> step_seconds([Collective(REDUCE, 1000)], 2, Compute(3, 0.5), links, waiting=0.25)
    4.95
    """
    computing = compute.alone + (workers - 1) * compute.per_further_worker
    talking = sum(collective_seconds(each, workers, links[each.kind]) for each in exchanged)
    return computing + talking + (len(exchanged) * waiting if workers > 1 else 0.0)


def bytes_received(exchanged: Sequence[Collective], workers: int) -> float:
    """The bytes that reach each worker in a step.

    Example:

    >>> bytes_received([Collective(REDUCE, 1000), Collective(GATHER, 10)], 2)
    1010.0
    """
    return float(sum(np.prod(_hops(each, workers)) for each in exchanged))


def fitted_link(measured: Mapping[Collective, float], workers: int) -> Link:
    """The link that best explains the times of bare collectives among some workers.

    It is that of the least squares of relative errors, so that small messages count too.

    Example:

    >>> true = Link(latency=0.001, per_byte=1e-9)
    >>> bare = [Collective(REDUCE, 4), Collective(REDUCE, 10**6), Collective(REDUCE, 10**7)]
    >>> link = fitted_link({each: collective_seconds(each, 2, true) for each in bare}, 2)
    >>> [float(f"{number:.6g}") for number in link]
    [0.001, 1e-09]
    """
    hops = np.array([_hops(each, workers) for each in measured])
    shares = np.stack([hops[:, 0], hops.prod(axis=1)], axis=1)
    shares /= np.array(list(measured.values()))[:, None]
    latency, per_byte = np.linalg.lstsq(shares, np.ones(len(shares)), rcond=None)[0]
    return Link(max(latency, 0.0), max(per_byte, 0.0))


def over_network(link: Link, network: Link) -> Link:
    """A link as it was measured within a machine, with a network in between.

    What a message takes on the way is added to what programs take to send it; of the
    bytes, the slower of the two sets the pace.

    Example:

    >>> over_network(Link(0.25, per_byte=1e-9), Link(0.5, per_byte=8e-10))
    Link(latency=0.75, per_byte=1e-09)
    """
    return Link(link.latency + network.latency, max(link.per_byte, network.per_byte))


def _hops(collective: Collective, workers: int) -> tuple[int, float]:
    """How often a message is passed on, and its bytes."""
    if collective.kind == REDUCE:
        return 2 * (workers - 1), collective.size / workers
    return workers - 1, float(collective.size)
