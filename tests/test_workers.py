"""Workers are counted from the chief on, and what differs between two of them is shown."""

from types import SimpleNamespace

import pytest
import tensorflow as tf

from maskedgrad.distribute.workers import _from_difference, worker_index


@pytest.mark.parametrize(
    ("jobs", "task_type", "task_id", "index"),
    [
        ({"worker": 3}, "worker", 0, 0),
        ({"worker": 3}, "worker", 2, 2),
        ({"chief": 1, "worker": 2}, "chief", 0, 0),
        ({"chief": 1, "worker": 2}, "worker", 0, 1),
        ({"chief": 1, "worker": 2}, "worker", 1, 2),
    ],
)
def test_workers_are_counted_from_the_chief_on(jobs, task_type, task_id, index):
    addresses = {job: [f"host{n}:2222" for n in range(count)] for job, count in jobs.items()}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(addresses), task_type=task_type, task_id=task_id
    )
    assert worker_index(SimpleNamespace(cluster_resolver=resolver)) == index


@pytest.mark.parametrize(
    ("text", "other", "shown"),
    [
        ("3,7", "3,8", "3,7"),
        ("1,2", "1,2,3", "1,2"),
        ("0," * 100 + "8", "0," * 100 + "9", "..." + "0," * 10 + "8"),
        ("8" + ",0" * 100, "9" + ",0" * 100, "8" + ",0" * 29 + ",..."),
    ],
)
def test_of_a_long_text_the_part_around_the_difference_is_shown(text, other, shown):
    assert _from_difference(text, other) == shown
