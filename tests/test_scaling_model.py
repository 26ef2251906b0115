"""Laws of the model of `tests/multi_worker/scaling_model.py`, which `tests/scaling.py` measures."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.multi_worker import scaling_model
from tests.multi_worker.scaling_model import (
    DENSE,
    GATHER,
    GATHERED,
    MASKED,
    REDUCE,
    WAYS,
    Collective,
    Compute,
    Link,
    Task,
    bytes_received,
    collective_seconds,
    collectives,
    fitted_link,
    over_network,
    step_seconds,
)

sizes = st.integers(1, 10**6)
seconds = st.floats(0, 1)
tasks = st.builds(Task, rows=sizes, width=sizes, trainable=sizes, batch=sizes, length=sizes)
links = st.fixed_dictionaries(
    {kind: st.builds(Link, seconds, seconds) for kind in (REDUCE, GATHER)}
)
computing = st.builds(Compute, seconds, seconds)


def test_examples_of_the_model():
    assert doctest.testmod(scaling_model).failed == 0


def test_a_step_of_two_workers_is_what_is_computed_by_hand():
    """Rows of 2 numbers: 3 of 10 train, and a batch is 5 tokens."""
    task = Task(rows=10, width=2, trainable=3, batch=5, length=1)
    links = {REDUCE: Link(latency=1, per_byte=0.1), GATHER: Link(latency=10, per_byte=0.01)}
    compute = Compute(alone=100, per_further_worker=1000)
    # Of the head 12 bytes; of a reduction among two, each worker sends a half twice.
    small = (2 + 0.8) + (2 + 0.4) + (2 + 0.8)
    by_hand = {
        MASKED: 1100 + small + (2 + 0.1 * (24 + 12)) + 4 * 10_000,
        DENSE: 1100 + small + (2 + 0.1 * (80 + 12)) + 4 * 10_000,
        GATHERED: 1100 + small + (2 + 1.2) + (10 + 0.04) + (10 + 0.4) + (10 + 0.2) + 7 * 10_000,
    }
    for way, expected in by_hand.items():
        step = step_seconds(collectives(way, task), 2, compute, links, waiting=10_000)
        assert step == pytest.approx(expected)


@given(tasks, links, computing, seconds)
def test_more_workers_never_make_a_step_shorter(task, links, compute, waiting):
    for way in WAYS:
        exchanged = collectives(way, task)
        steps = [step_seconds(exchanged, n, compute, links, waiting) for n in range(1, 20)]
        for fewer, more in itertools.pairwise(steps):
            assert more >= fewer * (1 - 1e-12)


@given(tasks, sizes)
def test_of_a_table_only_a_dense_gradient_depends_on_how_many_rows_it_has(task, rows):
    other = task._replace(rows=rows)
    for way in (MASKED, GATHERED):
        assert collectives(way, other) == collectives(way, task)
    assert (collectives(DENSE, other) == collectives(DENSE, task)) == (rows == task.rows)


@given(tasks, sizes)
def test_of_a_batch_only_slices_depend_on_how_long_it_is(task, length):
    other = task._replace(length=length)
    for way in (MASKED, DENSE):
        assert collectives(way, other) == collectives(way, task)
    assert (collectives(GATHERED, other) == collectives(GATHERED, task)) == (length == task.length)


@given(tasks)
def test_all_rows_trainable_is_the_traffic_of_a_dense_gradient(task):
    whole = task._replace(trainable=task.rows)
    assert collectives(MASKED, whole) == collectives(DENSE, task)


@given(tasks, st.integers(2, 1000))
def test_what_a_worker_receives_of_reductions_is_bounded_and_of_slices_is_not(task, workers):
    for way in (MASKED, DENSE):
        exchanged = collectives(way, task)
        assert bytes_received(exchanged, workers) < 2 * sum(each.size for each in exchanged)
    slices = 4 * task.batch * task.length * (task.width + 1)
    assert bytes_received(collectives(GATHERED, task), workers) >= (workers - 1) * slices


@given(links, sizes, computing)
def test_one_worker_exchanges_nothing(links, size, compute):
    for kind in (REDUCE, GATHER):
        step = step_seconds([Collective(kind, size)], 1, compute, links, waiting=1)
        assert step == compute.alone
        assert collective_seconds(Collective(kind, size), 1, links[kind]) == 0
        assert bytes_received([Collective(kind, size)], 1) == 0


@pytest.mark.parametrize("kind", [REDUCE, GATHER])
@given(
    st.builds(Link, st.floats(1e-6, 1e-2), st.floats(1e-10, 1e-7)),
    st.integers(2, 64),
)
def test_a_fitted_link_is_the_one_that_made_the_times(kind, link, workers):
    bare = [Collective(kind, size) for size in (4, 2**16, 2**20, 2**24)]
    times = {each: collective_seconds(each, workers, link) for each in bare}
    assert fitted_link(times, workers) == pytest.approx(link, rel=1e-6, abs=1e-15)


@given(st.builds(Link, seconds, seconds), st.builds(Link, seconds, seconds))
def test_a_network_never_makes_a_link_faster(link, network):
    slower = over_network(link, network)
    assert slower.latency >= link.latency
    assert slower.per_byte >= max(link.per_byte, network.per_byte)
