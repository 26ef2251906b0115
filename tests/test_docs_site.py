"""The site builds without a warning, is whole, and needs nothing from elsewhere."""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import maskedgrad
from tests.features import skip_if_lacking

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
SITE_EXTRA = ("furo", "keras_hub", "matplotlib", "myst_nb", "sphinx", "sphinx_copybutton")


def built_site(folder):
    missing = [name for name in SITE_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the site needs the extra `docs`, of which is missing: {', '.join(missing)}")
    # This runs the notebooks, and fails where one fails.
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, folder]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.mark.processes
def test_the_site_is_built_and_whole(tmp_path):
    """One test, so that workers of pytest do not build it twice."""
    site = built_site(tmp_path)
    assert_every_page_is_built(site)
    assert_notebooks_are_shown_with_what_they_print(site)
    assert_a_page_loads_nothing_from_elsewhere(site)
    assert_a_page_has_the_version_links_to_the_source_and_buttons_that_copy(site)
    assert_names_of_keras_and_tensorflow_are_links(site)
    assert_lines_break_where_a_reader_would(site)


def assert_every_page_is_built(site):
    pages = [*DOCS.glob("*.md"), *NOTEBOOKS]
    assert all((site / page.relative_to(DOCS)).with_suffix(".html").exists() for page in pages)


def assert_notebooks_are_shown_with_what_they_print(site):
    """Printed while the site is built, and nothing that warns."""
    for notebook in NOTEBOOKS:
        shown = (site / "notebooks" / f"{notebook.stem}.html").read_text("utf-8")
        assert shown.count('class="cell_output') >= 3
        assert "output stderr" not in shown


def assert_a_page_loads_nothing_from_elsewhere(site):
    """No script, style, font or picture of another host: what a browser fetches by itself."""
    for page in site.glob("**/*.html"):
        tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", page.read_text("utf-8"))
        assert not [tag for tag in tags if re.search(r"""(?:src|href)=["']?(?:\w+:)?//""", tag)]
    for style in site.glob("**/*.css"):
        remote = r"""(?:url\(|@import)\s*["']?(?:https?:)?//"""
        assert not re.search(remote, style.read_text("utf-8"))


def assert_a_page_has_the_version_links_to_the_source_and_buttons_that_copy(site):
    page = (site / "api.html").read_text("utf-8")
    assert f"maskedgrad {importlib.metadata.version('maskedgrad')}" in page
    assert "copybutton.js" in page
    links = re.findall(r'href="(_modules/[^"#]*)', page)
    assert "_modules/maskedgrad/masking/optimizer.html" in links
    assert all((site / link).exists() for link in links)


def assert_names_of_keras_and_tensorflow_are_links(site):
    page = (site / "api.html").read_text("utf-8")
    assert 'href="https://keras.io/api/models/model/#keras.Model"' in page
    assert 'href="https://www.tensorflow.org/api_docs/python/tf/IndexedSlices#' in page


def assert_lines_break_where_a_reader_would(site):
    page = (site / "performance.html").read_text("utf-8")
    assert '<span class="pre option">--jit</span>' in page
    assert "pretrained_<wbr>embedding" in page
    text = re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "13\N{NO-BREAK SPACE}%" in text
    assert not re.search(r"\d %", text)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_is_kept_without_outputs(notebook):
    """What was printed by another version, or on another machine, would be taken for true."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not [cell for cell in code if cell["outputs"] or cell["execution_count"]]


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
@pytest.mark.parametrize(
    "page", ["faq.md", "tutorial.md", "what_learned.md", "why_zeroing_is_not_enough.md"]
)
def test_a_page_shows_what_it_prints(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    skip_if_lacking((DOCS / page).read_text())
    names = {"__name__": "__main__"}
    for code, shown in blocks(page):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, page, "exec"), names)  # noqa: S102
        assert printed.getvalue() == shown


def test_the_page_quotes_what_is_said_of_a_layer_of_tf_keras():
    """Of an object that says that it is one, since tests do not install `tf_keras`."""
    layer = type("Embedding", (), {"trainable_weights": (), "__module__": "tf_keras.src.layers"})()
    with pytest.raises(TypeError) as raised:
        maskedgrad.MaskedOptimizer("sgd", {layer: [1]})
    before, _, after = str(raised.value).partition("<tf_keras")
    page = " ".join((DOCS / "faq.md").read_text("utf-8").split())
    assert before in page
    assert after.partition(">")[2] in page
