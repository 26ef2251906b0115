"""How Sphinx builds the site: `sphinx-build -W --keep-going docs docs/_build`."""

import importlib.metadata
import os
import re

from docutils import nodes

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

project = "maskedgrad"
release = importlib.metadata.version(project)

extensions = [
    "myst_nb",  # Markdown too
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# Notebooks are kept without outputs: what the site shows is what they print while it is built.
nb_execution_mode = "force"
nb_execution_show_tb = True  # in a warning, of which `-W` makes an error
nb_execution_timeout = 300
nb_merge_streams = True

# Docstrings put code into single backticks, as Markdown does. What is a name there is a link.
default_role = "py:obj"
# Neither Keras nor TensorFlow publishes an inventory, so the names that pages use are listed here.
# A page is built without a network.
intersphinx_mapping = {
    "keras": ("https://keras.io/api", "inventories/keras.inv"),
    "tensorflow": ("https://www.tensorflow.org/api_docs/python", "inventories/tensorflow.inv"),
}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types and shapes
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_favicon = "_static/logo.svg"
html_css_files = ["site.css"]
html_theme_options = {
    "light_logo": "logo.svg",
    "dark_logo": "logo.svg",
    "light_css_variables": {
        "color-brand-primary": "#00639c",
        "color-brand-content": "#00639c",
    },
    "dark_css_variables": {
        "color-brand-primary": "#56b4e9",
        "color-brand-content": "#56b4e9",
    },
}
html_copy_source = False
html_show_copyright = False
html_show_sourcelink = False


def is_called_by_keras(app, what, name, obj, skip, options):  # noqa: PLR0917 Sphinx calls it so
    """Skips methods that are public for Keras only, and says nothing of all others.

    These do what Keras says of the methods that they override, and have no docstring of their own.
    """
    return True if getattr(obj, "__override__", False) and not obj.__doc__ else None


def break_after_colon(app, what, name, obj, options, lines):  # noqa: PLR0917 Sphinx calls it so
    """Keeps napoleon from reading what stands before a colon as the type of a property."""
    if what in {"attribute", "property"} and lines:
        lines[:1] = lines[0].replace(": ", ":\n", 1).split("\n")


def keep_numbers_whole(app, doctree, docname):
    """A number and its per cent sign stay on one line, and so do "±" and what follows."""
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.literal | nodes.FixedTextElement):
            kept = re.sub(r"(?<=\d) (?=%)|(?<=±) ", "\N{NO-BREAK SPACE}", text)
            text.parent.replace(text, nodes.Text(kept))


def break_names_at_their_parts(app, pagename, templatename, context, doctree):
    """A long name in a table breaks after a dot or an underscore, an option of a command nowhere.

    Browsers break a name in the middle of a word otherwise, and `--jit` between its dashes. What is
    copied from the page stays the same.
    """

    def breaking(span):
        name = span[1]
        if name.startswith("-"):
            return f'<span class="pre option">{name}</span>'
        parted = re.sub(r"(?<=[A-Za-z0-9])[._(=/]+(?=\w|&quot;)", r"\g<0><wbr>", name)
        return f'<span class="pre">{parted}</span>'

    if "body" in context:
        context["body"] = re.sub(r'<span class="pre">([^<]*)</span>', breaking, context["body"])


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", break_after_colon, priority=400)  # napoleon has 500
    app.connect("autodoc-skip-member", is_called_by_keras)
    app.connect("doctree-resolved", keep_numbers_whole)
    app.connect("html-page-context", break_names_at_their_parts)
