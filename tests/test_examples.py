"""The examples of the docstrings, of the README and of the docs give what they say."""

import doctest
import importlib
import inspect
import pkgutil
import re
import tempfile
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import maskedgrad
from tests.features import skip_if_lacking

ROOT = Path(__file__).parent.parent
# Run as programs: the second by a Python that has PyTorch and need not have maskedgrad.
PROGRAMS = {"maskedgrad.__main__", "maskedgrad.cli.bench_peers"}
MODULES = [
    module.name
    for module in pkgutil.walk_packages(maskedgrad.__path__, "maskedgrad.")
    if module.name not in PROGRAMS
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    shared = {"keras": keras, "np": np, "tf": tf, "tempfile": tempfile, **vars(maskedgrad)}
    module = importlib.import_module(name)
    results = doctest.testmod(module, extraglobs=shared, optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_every_public_name_has_an_example():
    for name in maskedgrad.__all__:
        value = getattr(maskedgrad, name)
        # For Python 3.10 a type in brackets is a class.
        is_class = inspect.isclass(value) and not isinstance(value, types.GenericAlias)
        if is_class or inspect.isfunction(value):
            assert ">>>" in value.__doc__, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_pages(page, tmp_path, monkeypatch):
    """The Python blocks of a page run from top to bottom, as one program."""
    monkeypatch.chdir(tmp_path)
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S))
    skip_if_lacking(program)
    exec(compile(program, page.name, "exec"), {"__name__": "__main__"})  # noqa: S102
