"""Several workers train what one process trains on the joined batch, and keep the same bits."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.compatibility.table import refused, works
from tests.features import metrics_are_of_all_devices
from tests.multi_worker_training import IDS, MATRIX

LONGEST = 240  # seconds; a worker that waits for another in vain ends too


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def train(kind, folder, num_workers):
    """What each worker is left with. No worker stands for training without a strategy."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(num_workers)]
    processes = []
    for index in range(max(1, num_workers)):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        environment = {"TF_CONFIG": json.dumps(config)} if workers else {}
        arguments = ["-m", "tests.multi_worker_training", kind, str(folder / f"{index}.npz")]
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=LONGEST)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
    return [dict(np.load(folder / f"{index}.npz")) for index in range(len(processes))]


@works(
    "Devices",
    "`tf.distribute.MultiWorkerMirroredStrategy`, two workers",
    "In a `MaskedModel` or a `MaskedTrainStep`. Keras by itself cannot `fit` there (keras issue "
    "20585).",
)
@refused(
    "Devices",
    "`steps_per_execution` under `MultiWorkerMirroredStrategy`",
    "Leave it at 1: workers cannot reduce in the loop that Keras runs several steps in.",
)
@pytest.mark.parametrize("kind", ["functional", "lazy"])
def test_workers_keep_the_same_bits_and_train_what_one_process_trains(kind, tmp_path):
    (tmp_path / "alone").mkdir()
    (alone,) = train(kind, tmp_path / "alone", num_workers=0)
    first, second = train(kind, tmp_path, num_workers=2)
    assert first.keys() == second.keys() == alone.keys()
    for name in first.keys() - {"results"}:
        assert first[name].tobytes() == second[name].tobytes(), name
    changed = (first["table"].view("uint32") != MATRIX.view("uint32")).any(axis=1)
    assert np.flatnonzero(changed).tolist() == IDS
    for name in first.keys() - {"results"}:
        # Halves of a batch are averaged apart and then added: the order of a sum differs.
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-4, atol=1e-5, err_msg=name)
    ours, others, theirs = (json.loads(str(each["results"])) for each in (first, second, alone))
    assert ours == others
    assert "must be 1 under `MultiWorkerMirroredStrategy`" in ours["refusal"]
    assert ours["history"].keys() == theirs["history"].keys()
    if metrics_are_of_all_devices():  # an old Keras shows those of a part of what is trained on
        for name, values in theirs["history"].items():
            np.testing.assert_allclose(ours["history"][name], values, rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(ours["evaluated"], theirs["evaluated"], rtol=1e-4)
