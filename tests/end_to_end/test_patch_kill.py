"""A process that is killed while it saves a patch leaves the old file or the new one, whole."""

import itertools
import multiprocessing
import os
import random
import signal
import sys

import numpy as np
import pytest

pytest.importorskip("safetensors")

from maskedgrad import files
from maskedgrad.patches import file as patch_file
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.table import TablePatch
from maskedgrad.rows.rows import Rows

NUM_KILLS = 30
NUM_ROWS = 1_000_000
LONGEST = 0.05  # seconds from the first save to the kill

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here"),
]


def patch_number(number):
    """A patch of 100 rows, whose values all tell its number."""
    values = np.full((100, 300), number, "float32")
    return RowPatch(TablePatch("words", Rows(range(100), NUM_ROWS), values, values, "0" * 64))


def save_over_and_over(path, first_number, is_saving):
    for number in itertools.count(first_number):
        patch_number(number).save(path)
        is_saving.set()


def save_until_line(path, line):
    """Saves, and dies by SIGKILL when as many lines of what writes files have been run."""
    num_lines = itertools.count(1)

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in {patch_file.__file__, files.__file__}:
            return None
        if event == "line" and next(num_lines) == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    patch = patch_number(2)
    sys.settrace(trace)
    patch.save(path)


@pytest.fixture(scope="module")
def context():
    # Forked from a server that has imported everything, a process starts in an instant.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def test_a_process_killed_at_any_moment_leaves_a_whole_file(context, tmp_path):
    path = tmp_path / "rows.safetensors"
    number = 0
    patch_number(number).save(path)
    moments = random.Random(0)  # noqa: S311 -- no secret
    for _ in range(NUM_KILLS):
        is_saving = context.Event()
        process = context.Process(target=save_over_and_over, args=(path, number + 1, is_saving))
        process.start()
        is_saving.wait()
        process.join(timeout=moments.uniform(0, LONGEST))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        saved = RowPatch.load(path)
        # At least the first save of the killed process was done.
        assert saved.tables["words"].values[0, 0] > number
        number = int(saved.tables["words"].values[0, 0])
        assert saved == patch_number(number)


def test_a_process_killed_at_any_line_leaves_the_old_file_or_the_new_one(context, tmp_path):
    path = tmp_path / "rows.safetensors"
    old, new = patch_number(1), patch_number(2)
    found = []
    for line in itertools.count(1):
        old.save(path)
        process = context.Process(target=save_until_line, args=(path, line))
        process.start()
        process.join()
        found.append(RowPatch.load(path))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    num_old = found.count(old)
    assert found == [old] * num_old + [new] * (len(found) - num_old)
    # It was killed before the file was replaced, and after.
    assert 0 < num_old < len(found) - 1
