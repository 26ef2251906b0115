"""The compatibility table: each row is a test, and `docs/compatibility.md` is written from them.

    python -m tests.compatibility.table

writes the page; a test compares it with what stands in the docs.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

import tests.compatibility

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

Test = TypeVar("Test", bound=Callable)

SECTIONS = [
    "Callbacks",
    "Lazy steps",
    "Precision",
    "Layers that hold tables",
    "Layers on top",
    "Whole models of keras_hub",
    "Recommenders",
    "Data",
    "Devices",
    "Saving and cloning",
]

INTRODUCTION = """\
# Compatibility

What was tried together with `MaskedOptimizer`, and what came of it. Each row is a test in
`tests/compatibility/`, and this page is written from the tests, by
`python -m tests.compatibility.table`.

*Works* means: the model trains, the trainable rows move, every frozen row keeps its bits, and the
feature does what it does without the wrapper. *Refused* means: a clear error before training
begins, which names the way round.

## Versions

Python 3.10 to 3.13, TensorFlow 2.18 or newer, Keras 3.8 or newer. Which of them the tests were run
with stands in [testing](testing.md#versions). Before 3.8, Keras did not divide the loss among the
devices of a strategy, so that steps were as many times too large; before 3.7 the variables of its
layers were no instances of `keras.Variable`. Before 3.10 it shows losses and metrics of a part of
the data under a strategy, with or without `MaskedOptimizer`; what it trains is right.

What Keras brought later works where it is there: `keras.Input(ragged=True)` and data of
`strategy.distribute_datasets_from_function` since 3.9, `Muon` since 3.10 (on TensorFlow since
3.13), `keras.layers.ReversibleEmbedding` since 3.13, `MultiOptimizer` and
`ScheduleFreeAdamW` since 3.15.
On Python 3.10 there is no Keras after 3.12.
"""


class Row(NamedTuple):
    """What was tried, in Markdown, whether it works, and what to know about it."""

    section: str
    what: str
    works: bool
    note: str


ROWS: dict[tuple[str, str], Row] = {}
TESTS: set[Callable] = set()


def works(section: str, what: str, note: str = "") -> Callable[[Test], Test]:
    """Marks a test that shows that something works. Several may mark one test."""
    return _entered(Row(section, what, works=True, note=note))


def refused(section: str, what: str, note: str) -> Callable[[Test], Test]:
    """Marks a test that shows a clear error. `note` tells what to do instead."""
    return _entered(Row(section, what, works=False, note=note))


def _entered(row: Row) -> Callable[[Test], Test]:
    assert row.section in SECTIONS, row.section
    assert ROWS.setdefault((row.section, row.what), row) == row, f"two rows for {row.what}"

    def enter(test: Test) -> Test:
        TESTS.add(test)
        return test

    return enter


def modules() -> list[ModuleType]:
    """The modules of tests, of which every test stands for a row."""
    names = [module.name for module in pkgutil.iter_modules(tests.compatibility.__path__)]
    return [
        importlib.import_module(f"tests.compatibility.{name}")
        for name in names
        if name.startswith("test_") and name != "test_page"
    ]


def page() -> str:
    """The page, from the rows of all tests."""
    modules()
    return "\n".join([INTRODUCTION, *(_section(section) for section in SECTIONS)])


def _section(section: str) -> str:
    rows = [row for row in ROWS.values() if row.section == section]
    lines = [
        f"| {row.what} | {'works' if row.works else '**refused**'} | {row.note} |"
        for row in sorted(rows, key=lambda row: (not row.works, row.what.casefold()))
    ]
    return "\n".join(
        [f"## {section}\n", "| what | result | to know |", "|---|---|---|", *lines, ""]
    )


if __name__ == "__main__":
    # Under its own name, so that the tests enter their rows into the same table.
    table = importlib.import_module("tests.compatibility.table")
    PAGE.write_text(table.page(), encoding="utf-8")
