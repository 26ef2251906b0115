"""A registry serves many patches over one base, and no request sees another's rows."""

import contextlib
import functools
import itertools
import random
import threading
import time

import keras
import numpy as np
import pytest

pytest.importorskip("safetensors")

from maskedgrad.patches import PatchRegistry, RowPatch, TablePatch
from maskedgrad.patches.table import frozen_digest
from maskedgrad.rows.rows import Rows
from maskedgrad.testing import assert_same_bits
from tests.sealable import Sealable, sealed

NUM_ROWS, WIDTH, K = 400, 8, 100
IDS = np.arange(0, 4 * K, 4)
MATRIX = np.zeros((NUM_ROWS, WIDTH), "float32")


def two_tables():
    """A model of two tables that it looks up one after the other."""
    inputs = keras.Input((K,), dtype="int32")
    layers = [
        keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name=name)
        for name in ("users", "items")
    ]
    return keras.Model(inputs, [layer(inputs) for layer in layers])


@functools.cache
def patch_of(number):
    """A patch whose rows, of both tables, hold its number."""
    rows = Rows(IDS, NUM_ROWS)
    digest = frozen_digest(keras.Variable(MATRIX), rows)
    values = np.full((K, WIDTH), number, "float32")
    return RowPatch(
        *(
            TablePatch(f"{name}/embeddings", rows, values, None, digest)
            for name in ("users", "items")
        )
    )


def numbers_seen(model):
    """The numbers in the rows of a request, each looked up once: one number, if none is torn."""
    found = model(IDS[None])
    return set(np.concatenate([np.ravel(rows) for rows in found]).tolist())


def run_threads(*functions):
    """Runs functions side by side; raises what one of them raised."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("num_switches", [50, pytest.param(10_000, marks=pytest.mark.thorough)])
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_no_request_sees_a_torn_row_while_patches_switch(tmp_path, num_switches):
    """Four threads look up, each what it asked for, while a fifth switches without end."""
    model = two_tables()
    for number in range(1, 5):
        patch_of(number).save(tmp_path / f"{number}")
    registry = PatchRegistry(model, {str(number): tmp_path / f"{number}" for number in range(1, 5)})
    is_done, all_are_there = threading.Event(), threading.Barrier(5, timeout=60)
    num_lookups = itertools.count()

    def look_up(seed):
        names = random.Random(seed)  # noqa: S311 -- no secret
        try:
            all_are_there.wait()
            while not is_done.is_set():
                name = names.choice(["1", "2", "3", "4", None])
                with registry.use(name) as served:
                    assert numbers_seen(served) == {float(name or 0)}
                next(num_lookups)
        finally:
            is_done.set()

    def switch():
        try:
            all_are_there.wait()
            for turn in range(num_switches):
                if is_done.is_set():
                    return  # a thread has seen what it must not see
                name = "12"[turn % 2]  # so that each turn is a switch at least
                with registry.use(name) as served:
                    assert numbers_seen(served) == {float(name)}
        finally:
            is_done.set()

    run_threads(switch, *(functools.partial(look_up, seed) for seed in range(4)))
    assert next(num_lookups) >= num_switches / 4
    with registry.use(None):
        for variable in model.weights:
            assert_same_bits(variable, MATRIX, variable.path)


def wait_until(registry, told):
    """Returns once the registry tells something. If it never does, the test ends all the same."""
    given_up = time.monotonic() + 60
    while told not in repr(registry):
        assert time.monotonic() < given_up, registry


def test_who_waits_longest_is_next_and_takes_along_who_wants_the_same():
    registry = PatchRegistry(two_tables(), {"a": patch_of(1), "b": patch_of(2)})
    for name in ("a", "b", None):  # they are checked at their first use
        with registry.use(name):
            pass
    seen = []
    both_inside = threading.Barrier(2, timeout=60)

    def first():
        with registry.use("a") as model:
            wait_until(registry, "1 inside, 3 waiting")
            seen.append(("a", numbers_seen(model)))

    def after(told, name, meet):
        wait_until(registry, told)
        with registry.use(name) as model:
            meet()
            seen.append((name, numbers_seen(model)))

    run_threads(
        first,
        functools.partial(after, "1 inside, 0 waiting", "b", both_inside.wait),
        functools.partial(after, "1 inside, 1 waiting", "a", lambda: None),
        functools.partial(after, "1 inside, 2 waiting", "b", both_inside.wait),
    )
    assert [name for name, _ in seen] == ["a", "b", "b", "a"]
    assert all(numbers == {1.0 if name == "a" else 2.0} for name, numbers in seen)
    assert repr(registry) == "PatchRegistry(['a', 'b'], 0 inside, 0 waiting)"


def test_a_patch_is_read_when_it_is_first_used(tmp_path):
    model = two_tables()
    registry = PatchRegistry(model)
    registry.add("city", tmp_path / "city")
    assert registry.names == ("city",)
    with pytest.raises(FileNotFoundError), registry.use("city"):
        pass
    patch_of(1).save(tmp_path / "city")
    with registry.use("city"):
        assert numbers_seen(model) == {1.0}
    (tmp_path / "city").unlink()
    with registry.use(None):
        assert numbers_seen(model) == {0.0}
    with registry.use("city"):
        assert numbers_seen(model) == {1.0}


def test_a_patch_is_replaced_and_removed_from_the_next_request_on():
    model = two_tables()
    registry = PatchRegistry(model, {"city": patch_of(1)})
    with registry.use("city"):
        registry.add("city", patch_of(2))
        assert numbers_seen(model) == {1.0}
    with registry.use("city"):
        assert numbers_seen(model) == {2.0}
        registry.remove("city")
    with pytest.raises(KeyError, match="must have been added"):
        registry.remove("city")
    with pytest.raises(KeyError, match="must have been added"), registry.use("city"):
        pass
    with registry.use(None):
        assert numbers_seen(model) == {0.0}


def test_a_patch_that_does_not_fit_is_refused_and_others_are_served():
    model = two_tables()
    table = patch_of(1).tables["users/embeddings"]
    other_base = RowPatch(TablePatch(table.path, table.rows, table.values, None, "0" * 64))
    registry = PatchRegistry(model, {"other": other_base, "city": patch_of(1)})
    with registry.use("city"):
        pass
    with pytest.raises(ValueError, match="frozen rows"), registry.use("other"):
        pass
    with registry.use("city"):
        assert numbers_seen(model) == {1.0}
    lenient = PatchRegistry(two_tables(), {"other": other_base}, strict=False)
    with pytest.warns(UserWarning, match="strict=False"), lenient.use("other"):
        pass


def test_a_row_that_is_patched_otherwise_is_refused_and_the_base_is_served():
    model = two_tables()
    registry = PatchRegistry(model, {"city": patch_of(1)})
    patch_of(2).apply_to(model)
    with pytest.raises(ValueError, match="Revert the other one first"), registry.use("city"):
        pass
    patch_of(2).revert(model)
    for name, number in ((None, 0.0), ("city", 1.0)):
        with registry.use(name):
            assert numbers_seen(model) == {number}


def test_a_patch_that_cannot_be_taken_out_is_still_known_to_be_in_place():
    model = two_tables()
    model.weights[1].__class__ = Sealable
    registry = PatchRegistry(model, {"one": patch_of(1), "two": patch_of(2)})
    with registry.use("one"):
        assert numbers_seen(model) == {1}
    with sealed():
        for name in ("two", None):
            with pytest.raises(PermissionError), registry.use(name):
                pass
        with registry.use("one"):
            assert numbers_seen(model) == {1}
    with registry.use(None):
        assert numbers_seen(model) == {0}


def test_a_thread_uses_one_patch_at_a_time_and_an_error_ends_its_turn():
    model = two_tables()
    registry = PatchRegistry(model, {"city": patch_of(1), "food": patch_of(2)})
    with (
        pytest.raises(RuntimeError, match="`use` within `use`"),
        registry.use("city"),
        registry.use("food"),
    ):
        pass
    with contextlib.suppress(ZeroDivisionError), registry.use("city"):
        raise ZeroDivisionError
    with registry.use("food"):
        assert numbers_seen(model) == {2.0}
