"""What every test shares: quiet TensorFlow, and the Hypothesis profiles."""

import collections
import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, settings

# Two devices, for the tests of `tf.distribute`; TensorFlow wants that said before its first op.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

COMMON = {
    "deadline": None,  # the first example of a shape pays for what TensorFlow compiles
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "phases": [phase for phase in Phase if phase is not Phase.explain],  # slow, and rarely used
    "print_blob": True,
}
# `python -m pytest --hypothesis-profile=thorough` draws sixty times as many examples.
settings.register_profile(
    "default", max_examples=3, stateful_step_count=10, derandomize="CI" in os.environ, **COMMON
)
settings.register_profile("thorough", max_examples=200, stateful_step_count=30, **COMMON)
settings.load_profile("default")

# Grids of fewer cases run whole.
SMALLEST_GRID = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a grid of parameters, each value runs in one case; the other cases are `thorough`."""
    grids = collections.defaultdict(list)
    for item in items:
        if hasattr(item, "callspec"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for cases in grids.values():
        tried = set()
        for case in _by_what_they_add(cases) if len(cases) >= SMALLEST_GRID else []:
            if _values_of(case) <= tried:
                case.add_marker(pytest.mark.thorough)
            tried |= _values_of(case)


def pytest_collection_finish():
    """What is imported by now lives on, and the collector of garbage need not walk it again."""
    gc.freeze()


def _by_what_they_add(cases):
    """The cases of a grid, those first that differ in most from all before."""
    cases, tried = list(cases), set()
    while cases:
        best = max(cases, key=lambda case: len(_values_of(case) - tried))
        tried |= _values_of(best)
        cases.remove(best)
        yield best


def _values_of(case):
    return set(enumerate(case.callspec.id.split("-")))


@pytest.fixture(autouse=True)
def _fresh_keras():
    """Names, seeds and policies of one test do not reach the next."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
