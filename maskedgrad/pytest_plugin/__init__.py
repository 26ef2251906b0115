"""A pytest plugin: the fixture and the marker `frozen_rows`.

It is loaded in every run of pytest where maskedgrad is installed, so nothing
is imported here that takes time. For the same reason it is installed as a
package of its own, `maskedgrad_pytest`: Python imports the package around a
module first, and TensorFlow with it.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

_WATCHED = pytest.StashKey[contextlib.ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, so that `pytest -m frozen_rows` knows it."""
    config.addinivalue_line(
        "markers",
        "frozen_rows: selects tests of frozen rows by `-m frozen_rows`. The fixture of that name "
        "is what checks that they keep their bits (maskedgrad).",
    )


@pytest.fixture
def frozen_rows(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """A function that watches frozen rows from its call to the end of the test.

    Takes what `maskedgrad.testing.frozen_rows_unchanged` takes. The test fails
    if one of the rows has changed by then.
    """
    from maskedgrad.testing import frozen_rows_unchanged

    stash = request.node.stash
    stash[_WATCHED] = contextlib.ExitStack()

    def watch(model_or_variable: Any, rows: Any = None) -> None:
        stash[_WATCHED].enter_context(frozen_rows_unchanged(model_or_variable, rows))

    yield watch
    del stash[_WATCHED]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    """Compares as part of the test, so that it fails and not its teardown."""
    result = yield
    if _WATCHED in item.stash:
        item.stash[_WATCHED].close()
    return result
