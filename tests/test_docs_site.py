"""The site builds without a warning, is whole, and needs nothing from elsewhere."""

import contextlib
import importlib.util
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import maskedgrad
from tests.features import skip_if_lacking

DOCS = Path(__file__).parent.parent / "docs"
SITE_EXTRA = ("sphinx", "myst_parser", "furo")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [name for name in SITE_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the site needs the extra `docs`, of which is missing: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.processes
def test_every_page_is_built(site):
    assert {page.stem for page in DOCS.glob("*.md")} <= {page.stem for page in site.glob("*.html")}


@pytest.mark.processes
def test_a_page_loads_nothing_from_elsewhere(site):
    """No script, style, font or picture of another host: what a browser fetches by itself."""
    for page in site.glob("**/*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text("utf-8"))
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:\w+:)?//""", tag)]
    for style in site.glob("**/*.css"):
        remote = r"""(?:url\(|@import)\s*["']?(?:https?:)?//"""
        assert not re.search(remote, style.read_text("utf-8"))


def documented_names():
    directive = r"^\.\. (?:auto(?:class|function)|py:type):: (\S+)$"
    return set(re.findall(directive, (DOCS / "api.md").read_text(), re.M))


def test_every_public_name_is_documented():
    public = {
        f"maskedgrad.{name}"
        for name in maskedgrad.__all__
        if name != "__version__" and not inspect.ismodule(getattr(maskedgrad, name))
    }
    callbacks = {name: getattr(maskedgrad.callbacks, name) for name in dir(maskedgrad.callbacks)}
    public |= {
        f"maskedgrad.callbacks.{name}"
        for name, value in callbacks.items()
        if inspect.isclass(value) and issubclass(value, keras.callbacks.Callback)
    }
    assert public <= documented_names()


def blocks(page):
    """The Python blocks of a page, each with the text block that follows it, or an empty string."""
    block = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    return re.findall(block, (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.processes
@pytest.mark.parametrize("page", ["faq.md", "tutorial.md", "why_zeroing_is_not_enough.md"])
def test_a_page_shows_what_it_prints(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    skip_if_lacking((DOCS / page).read_text())
    names = {"__name__": "__main__"}
    for code, shown in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page, "exec"), names)  # noqa: S102
        assert printed.getvalue() == shown
