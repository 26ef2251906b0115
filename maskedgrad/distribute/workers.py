"""The workers of a strategy that trains on several machines, and whether they agree."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

SHOWN = 60  # characters shown of a value that workers do not agree on


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy trains on several machines.

    Example:

    >>> spans_workers(tf.distribute.get_strategy())
    False
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs if job in {"chief", "worker"}) > 1


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files; true where there is but one.

    Example:

    >>> is_chief(tf.distribute.get_strategy())
    True
    """
    return not spans_workers(strategy) or worker_index(strategy) == 0


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """Returns the index of this process among the workers of a strategy; the chief has 0."""
    resolver = strategy.cluster_resolver
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_id + (has_chief and resolver.task_type == "worker")


def gathered(strategy: tf.distribute.Strategy, value: Any) -> list[Any]:
    """Returns the values of all workers, in the order of the workers.

    Each worker calls this with a value of its own, eagerly and outside of `strategy.run`.

    Args:
        strategy: one that spans workers.
        value: a JSON value.
    """
    text = json.dumps([worker_index(strategy), value]).encode()
    content = tf.constant(np.frombuffer(text, np.uint8), tf.int32)
    lengths = _gathered_numbers(strategy, tf.constant([len(text)]))
    numbers = np.split(_gathered_numbers(strategy, content), np.cumsum(lengths)[:-1])
    # A worker of several devices sends its value once for each device.
    by_worker = dict(json.loads(bytes(each.tolist())) for each in numbers)
    return [by_worker[index] for index in sorted(by_worker)]


def difference(strategy: tf.distribute.Strategy, value: Any) -> str:
    """Returns how the values of workers differ, as text; an empty one if they are equal.

    Each worker calls this with a value of its own. The text is such as
    `"3 on worker 0, 4 on worker 1"`.

    Args:
        strategy: one that spans workers.
        value: a number, a text or `None`.
    """
    values = gathered(strategy, value)
    if set(values) == {values[0]}:
        return ""
    return ", ".join(f"{each} on worker {worker}" for worker, each in enumerate(values))


def check_workers_agree(strategy: tf.distribute.Strategy, facts: Mapping[str, str]) -> None:
    """Raises a `ValueError` where workers would train different things.

    Each worker calls this with its own facts.

    Args:
        strategy: one that spans workers.
        facts: what must be the same on each worker, by what it is called.

    Raises:
        ValueError: a fact differs, on every worker alike. It says which.
    """
    first, *others = gathered(strategy, dict(facts))
    for worker, other in enumerate(others, start=1):
        for name in {**first, **other}:
            here, there = first.get(name, "nothing"), other.get(name, "nothing")
            if here != there:
                raise ValueError(
                    "Workers must be started with the same tables, rows and versions. Received, "
                    f"for {name}: {_from_difference(here, there)} on worker 0, and "
                    f"{_from_difference(there, here)} on worker {worker}. Start each worker by "
                    "the same script, with the same data and packages."
                )


def _gathered_numbers(strategy: tf.distribute.Strategy, numbers: tf.Tensor) -> np.ndarray:
    values = strategy.experimental_distribute_values_from_function(lambda context: numbers)
    return strategy.gather(values, axis=0).numpy()


def _from_difference(text: str, other: str) -> str:
    """Returns the part of `text` that begins shortly before it differs from `other`."""
    same = next(
        (place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]),
        min(len(text), len(other)),
    )
    start = max(0, same - SHOWN // 3)
    shown = text[start : start + SHOWN]
    return f"{'...' if start else ''}{shown}{'...' if start + SHOWN < len(text) else ''}"
