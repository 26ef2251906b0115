"""Training that is killed again and again ends where uninterrupted training ends."""

import multiprocessing
import time

import numpy as np
import pytest

from maskedgrad.testing import assert_same_bits
from tests.end_to_end.backed_up_training import IDS, MATRIX, train

pytestmark = pytest.mark.processes


KILLS = 25


def test_training_that_is_killed_at_any_moment_loses_nothing_but_the_epoch_under_way(tmp_path):
    # The server imports TensorFlow once, and each run is a fork of it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.end_to_end.backed_up_training"])

    def start(run):
        process = context.Process(target=train, args=(str(tmp_path / run), tmp_path / f"{run}.npz"))
        process.start()
        return process

    start("warm up").join()
    began = time.perf_counter()
    start("uninterrupted").join()
    duration = time.perf_counter() - began
    expected = load(tmp_path / "uninterrupted.npz")
    frozen = np.setdiff1d(np.arange(len(MATRIX)), IDS)
    assert_same_bits(expected[0][frozen], MATRIX[frozen], "frozen rows")

    random = np.random.default_rng(0)
    kills = runs = 0
    while kills < KILLS:
        runs += 1
        while True:
            process = start(f"run {runs}")
            process.join(timeout=duration * random.uniform(0.3, 1.1))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
        assert process.exitcode == 0
        for value, uninterrupted in zip(load(tmp_path / f"run {runs}.npz"), expected, strict=True):
            assert_same_bits(value, uninterrupted, f"after {kills} kills")


def load(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]
