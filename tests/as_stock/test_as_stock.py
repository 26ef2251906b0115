"""Whatever stock Keras does, the same model does with a `MaskedOptimizer` of all rows."""

import subprocess
import sys

import pytest

from tests.as_stock import callbacks, inputs, losses, optimizers, places, running, saving
from tests.as_stock.harness import (
    DIFFER,
    MODEL,
    OFTEN,
    OPTIMIZER,
    SITUATIONS,
    STOCK,
    as_stock,
    differences,
    outcome,
)
from tests.features import feature

MODULES = (callbacks, inputs, losses, optimizers, places, running, saving)
# What is met often runs before a change is taken, a sixth of it in the default lane.
DEFAULT = set(sorted(OFTEN)[::6])


def lane(name):
    if name in DEFAULT:
        return []
    return [pytest.mark.processes if name in OFTEN else pytest.mark.thorough]


@pytest.mark.parametrize("name", [pytest.param(each, marks=lane(each)) for each in SITUATIONS])
def test_a_masked_model_of_all_rows_is_as_stock(name):
    assert_as_stock(name, MODEL)


@pytest.mark.thorough
@pytest.mark.parametrize("name", SITUATIONS)
def test_a_stock_model_with_a_masked_optimizer_of_all_rows_is_as_stock(name):
    assert_as_stock(name, OPTIMIZER)


def assert_as_stock(name, way):
    situation = SITUATIONS[name]
    found = differences(outcome(situation, way), as_stock(situation))
    assert bool(found) == (name in DIFFER), found


@pytest.mark.thorough
@pytest.mark.parametrize("name", SITUATIONS)
def test_stock_keras_is_as_itself(name):
    assert not differences(outcome(SITUATIONS[name], STOCK), as_stock(SITUATIONS[name]))


AFTER_THE_MAIN_THREAD = """
import threading
from tests.as_stock.harness import MODEL, STOCK, differences, fitted, outcome

def train():
    threading.main_thread().join()
    results = [outcome(lambda way: fitted(way.small(run_eagerly=False)), w) for w in (MODEL, STOCK)]
    print(results[1]["error"], differences(*results), flush=True)

threading.Thread(target=train).start()
"""


@pytest.mark.processes
def test_training_in_a_thread_after_the_main_thread_has_ended_is_as_stock():
    command = [sys.executable, "-c", AFTER_THE_MAIN_THREAD]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["[]"], ended.stderr


def test_there_are_situations_of_every_callback_and_schedule():
    known = callbacks.CALLBACKS.keys() | callbacks.NOT_HERE.keys()
    assert callbacks.callback_classes() == {n for n in known if feature(f"callbacks.{n}")}
    assert optimizers.schedule_classes() == optimizers.SCHEDULES.keys()


def test_there_are_enough_situations():
    assert len(SITUATIONS) >= 60
    assert all(module.__doc__ for module in MODULES)
