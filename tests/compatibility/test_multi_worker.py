"""Workers hold the same bits, and train what one process trains on the joined batches.

Each law is that of a scenario in `tests/multi_worker/training.py`. The scenarios of two
workers run one after the other in two processes that are started once, because starting
them is most of what they cost.
"""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from maskedgrad.cli.local_workers import local_workers
from maskedgrad.testing import assert_same_bits
from tests.compatibility.helpers import assert_only_trained
from tests.compatibility.table import refused, works
from tests.features import metrics_are_of_all_devices, takes_distributed_datasets
from tests.multi_worker import training
from tests.multi_worker.training import IDS, MATRIX, NUM_ROWS

pytestmark = pytest.mark.processes


LONGEST = 900  # seconds, and far less on a machine that does nothing else
SAME_AS_ALONE = [
    "functional_model",
    "lazy_model",
    "mixin",
    "several_steps_a_call",
    "lazy_steps",
    "rows_change",
    "own_loop",
    "small_last_batch",
    "empty_last_batch",
    "no_trainable_id_on_one_worker",
    "one_worker_runs_out",
]
NOT_WATCHED = {"own_loop", "one_worker_runs_out"}  # nobody notes what an epoch leaves
NEED_DISTRIBUTED_DATASETS = {"one_worker_runs_out"}
OTHERS = ["no_row_at_all", "exact_sums", "traffic", "files", "differing_workers", "stock"]

MULTI_WORKER = (
    "Devices",
    "`tf.distribute.MultiWorkerMirroredStrategy`",
    "In a `MaskedModel` or a `MaskedTrainStep`. Keras by itself cannot `fit` there (keras issue "
    "20585). Files are written by the chief alone.",
)
KILLED = (
    "Devices",
    "A worker that is killed",
    "The others stop with an error that names it, once TensorFlow misses it: some seconds later. "
    "Start all of them again with `maskedgrad.callbacks.BackupAndRestore`.",
)
DIFFERING = (
    "Devices",
    "Workers with different tables, rows, versions or numbers of batches",
    "Refused when training starts, by an error that names the difference.",
)


def run(folder, num_workers, *scenarios):
    """The output and exit status of each worker; what they are left with is in `folder`."""
    command = [sys.executable, "-m", "tests.multi_worker.training", str(folder), *scenarios]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with local_workers(command, num_workers * [options]) as workers:
        outputs = [worker.communicate(timeout=LONGEST)[0] for worker in workers]
    return outputs, [worker.returncode for worker in workers]


def trained(folder, num_workers, *scenarios):
    """By scenario, what each worker is left with."""
    outputs, statuses = run(folder, num_workers, *scenarios)
    assert not any(statuses), "\n".join(outputs)
    return {
        name: [dict(np.load(folder / f"{name} {i}.npz")) for i in range(num_workers)]
        for name in scenarios
    }


class Scenarios(dict):
    """By scenario, what each worker is left with; skips a test of one that Keras cannot run."""

    def __missing__(self, name):
        if name not in NEED_DISTRIBUTED_DATASETS:
            raise KeyError(name)
        pytest.skip(f"this Keras does not take the data of `{name}`, which are for each worker")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    names = [*SAME_AS_ALONE, *OTHERS]
    if not takes_distributed_datasets():
        names = [name for name in names if name not in NEED_DISTRIBUTED_DATASETS]
    return Scenarios(trained(tmp_path_factory.mktemp("two"), 2, *names))


def alone(name):
    """What one process is left with of a scenario."""
    keras.utils.clear_session(free_memory=False)  # as before each scenario of the workers
    return getattr(training, name)(None)


def of(workers):
    """What each worker says of a scenario beside its arrays."""
    return [json.loads(str(worker["json"])) for worker in workers]


def table_after_one_epoch(worker):
    (table,) = (v for name, v in worker.items() if re.fullmatch("0 .*words/embeddings", name))
    return table


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one.keys() - {"json"}:
        assert_same_bits(one[name], other[name], name)


def assert_same_on_all(workers):
    for worker in workers[1:]:
        assert_same(worker, workers[0])


def assert_like(worker, by_itself):
    """Shares of a batch are averaged apart and then added, so the order of a sum differs."""
    assert worker.keys() == by_itself.keys()
    for name in worker.keys() - {"json"}:
        np.testing.assert_allclose(
            worker[name], by_itself[name], rtol=1e-4, atol=1e-5, err_msg=name
        )


@works(*MULTI_WORKER)
@pytest.mark.parametrize("name", SAME_AS_ALONE)
def test_workers_hold_the_same_bits_and_train_what_one_process_trains(two_workers, name):
    workers = two_workers[name]
    assert_same_on_all(workers)
    ids = [3, 7, 8, 9] if name == "rows_change" else IDS
    assert_only_trained(MATRIX, workers[0]["table"], ids)
    if name not in NOT_WATCHED:
        # When `fit` ends, averages are written to the rows: what steps did shows before.
        assert_only_trained(MATRIX, table_after_one_epoch(workers[0]), IDS)
    assert_like(workers[0], alone(name))


@works(*MULTI_WORKER)
def test_workers_make_a_step_that_touches_no_row(two_workers):
    workers = two_workers["no_row_at_all"]
    assert_same_on_all(workers)
    assert_only_trained(MATRIX, workers[0]["table"], [])
    assert_like(workers[0], alone("no_row_at_all"))


@works(*MULTI_WORKER)
def test_where_sums_have_no_rounding_the_bits_are_those_of_one_process(two_workers):
    assert_same_on_all([alone("exact_sums"), *two_workers["exact_sums"]])


@works(*MULTI_WORKER)
@pytest.mark.parametrize("name", ["functional_model", "lazy_model", "several_steps_a_call"])
def test_all_workers_return_the_same_history_which_is_that_of_one_process(two_workers, name):
    first, second = of(two_workers[name])
    assert first == second
    (by_itself,) = of([alone(name)])
    assert first["history"].keys() == by_itself["history"].keys()
    if metrics_are_of_all_devices():  # an old Keras shows those of a part of what is trained on
        for metric, values in by_itself["history"].items():
            np.testing.assert_allclose(first["history"][metric], values, rtol=1e-4, err_msg=metric)
        np.testing.assert_allclose(first["evaluated"], by_itself["evaluated"], rtol=1e-4)


@works(
    "Devices",
    "`steps_per_execution` under `MultiWorkerMirroredStrategy`",
    "Steps are made one by one, and callbacks are called for several at once.",
)
def test_several_steps_in_one_call_are_as_many_calls(two_workers):
    one_by_one, together = (
        two_workers["functional_model"][0],
        two_workers["several_steps_a_call"][0],
    )
    assert one_by_one.keys() == together.keys()
    for name in one_by_one.keys() - {"json"}:
        # TensorFlow optimizes the step as another graph, which rounds otherwise.
        np.testing.assert_allclose(together[name], one_by_one[name], rtol=1e-6, err_msg=name)


def without_metrics(collectives):
    """The collectives without those of single numbers, where Keras reduces metrics in the step."""
    if metrics_are_of_all_devices():
        return collectives
    return [each for each in collectives if each[-1] != [1]]


@works(*MULTI_WORKER)
def test_what_crosses_workers_for_a_table_is_its_trainable_rows(two_workers):
    """Read off the traced graph: what goes into each collective, with -1 for any length."""
    from tests.multi_worker.traffic import BATCH, LENGTH, WIDTH

    shapes = of(two_workers["traffic"])[0]
    head = WIDTH + 1  # kernel and bias; TensorFlow packs what it reduces into one vector
    for num_rows in ("10000", "1000000"):
        # A graph is traced for any number of trainable rows. Of a whole table it knows the length.
        packed = [["CollectiveReduceV2", "float32", [-1]]]
        assert without_metrics(shapes["maskedgrad"][num_rows]) == packed
        slices = ["CollectiveGatherV2", "float32", [BATCH // 2 * LENGTH, WIDTH]]
        assert slices in shapes["table trainable"][num_rows]
        whole = [["CollectiveReduceV2", "float32", [int(num_rows) * WIDTH + head]]]
        dense = shapes["table trainable, dense gradient"][num_rows]
        assert without_metrics(dense) == whole


@works(*MULTI_WORKER)
def test_only_the_chief_writes_files(two_workers):
    chief, other = of(two_workers["files"])
    written = {"board", "by place.csv", "checkpoint.keras", "log.csv", "model.keras"}
    assert set(chief["names"]) == {*written, "model.weights.h5"}
    assert other["names"] == []


@refused(
    "Devices",
    "`keras.callbacks.BackupAndRestore` under `MultiWorkerMirroredStrategy`",
    "Each worker would write over the others. Use `maskedgrad.callbacks.BackupAndRestore`.",
)
def test_backups_that_workers_do_not_share_are_refused(two_workers):
    for worker in of(two_workers["files"]):
        stock, apart = worker["refusals"]
        assert "`maskedgrad.callbacks.BackupAndRestore`" in stock
        assert "one of 1 epochs on worker 0, none on worker 1" in apart


@refused(*DIFFERING)
def test_workers_that_know_of_other_numbers_of_batches_are_refused(two_workers):
    for worker in of(two_workers["one_worker_runs_out"]):
        assert "4 on worker 0, 2 on worker 1" in worker["refusal"]


@refused(*DIFFERING)
def test_workers_that_differ_are_refused_by_an_error_that_names_the_difference(two_workers):
    first, second = (worker["messages"] for worker in of(two_workers["differing_workers"]))
    assert first == second
    rows, more_rows, lazy, values, version, change = first
    assert "for the rows of 'words/embeddings' that train: 3,7 of axis 0 on worker 0" in rows
    assert "3,8 of axis 0 on worker 1" in rows
    assert "3,8:10 of axis 0 on worker 1" in more_rows
    assert "3,8:10 of axis 0 on worker 1" in lazy
    assert "for the values of 'words/embeddings', by their SHA-256" in values
    assert f"the version of Keras: {keras.__version__} on worker 0" in version
    assert "0.0.1 on worker 1" in version
    assert "1,3 of axis 0 on worker 0, and 1:3 of axis 0 on worker 1" in change


@refused(*DIFFERING)
def test_tables_of_other_shapes_are_refused_when_they_are_made(tmp_path):
    """By TensorFlow, whose first collective this is."""
    outputs, statuses = run(tmp_path, 2, "other_shape")
    assert all(statuses)
    assert any(f"[{NUM_ROWS - 1},4]" in out and f"[{NUM_ROWS},4]" in out for out in outputs)


@works(*MULTI_WORKER)
def test_four_workers_train_what_one_process_trains(tmp_path):
    names = ["functional_model", "no_trainable_id_on_one_worker"]
    for name, workers in trained(tmp_path, 4, *names).items():
        assert_same_on_all(workers)
        assert_only_trained(MATRIX, workers[0]["table"], IDS)
        assert_like(workers[0], alone(name))


@refused(
    "Devices",
    "`MultiWorkerMirroredStrategy` in a stock `keras.Model`",
    "By Keras itself, whatever the optimizer.",
)
def test_keras_by_itself_cannot_fit(two_workers):
    """Once it can, `MultiWorkerSteps` has served its time."""
    for errors in of(two_workers["stock"]):
        assert all(errors)


@works(*KILLED)
def test_training_goes_on_from_the_backup_after_a_worker_was_killed(tmp_path):
    (tmp_path / "uninterrupted").mkdir()
    (uninterrupted,) = trained(tmp_path / "uninterrupted", 2, "backed_up").values()
    outputs, (first, second) = run(tmp_path, 2, "second_killed")
    assert (first, second) == (1, -9)
    assert "UnavailableError" in outputs[0]
    assert "/job:worker/replica:0/task:1" in outputs[0]
    (resumed,) = trained(tmp_path, 2, "backed_up").values()
    assert [each["epochs"] for each in of(resumed)] == [[1, 2, 3]] * 2
    assert_same(resumed[0], uninterrupted[0])


@works(*KILLED)
def test_the_other_workers_stop_when_the_chief_is_killed(tmp_path):
    outputs, (first, second) = run(tmp_path, 2, "first_killed")
    assert (first, second) == (-9, 1)
    assert "UnavailableError" in outputs[1]
    assert "task:0" in outputs[1]
