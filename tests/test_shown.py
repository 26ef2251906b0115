"""What is shown of values: short, whatever they hold, and the same in a terminal and a notebook."""

import html
import re

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import MaskedModel, RowPatch, Rows, load_vectors, nearest, row_report
from maskedgrad.messages.grid import MOST_ROWS, Grid, html_of, listed, text_of
from maskedgrad.patches import TablePatch
from maskedgrad.rows import MaskedTable
from tests.properties.strategies import cheap

NUM_ROWS = 50_000
LONGEST = 5_000


@pytest.fixture(scope="module")
def values():
    """Each kind of value that is shown, of a large table with a large vocabulary of long words."""
    words = [f"<a word of its own, number {row}>" for row in range(NUM_ROWS)]
    matrix = np.random.default_rng(0).normal(size=(NUM_ROWS, 2)).astype("float32")
    layer = keras.layers.Embedding(NUM_ROWS, 2, weights=[matrix], name="words")
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), layer(inputs))
    model.compile("sgd", loss="mse", trainable_rows={layer: slice(0, None, 2)})
    model.optimizer.build(model.trainable_variables)
    (table,) = model.optimizer.masked_tables()
    patch = RowPatch.from_model(model, vocabulary=words)
    _, report = load_vectors(dict(zip(words[::2], matrix, strict=False)), words)
    return {
        "VectorReport": report,
        "Rows": table.rows,
        "MaskedTable": MaskedTable(table.variable, table.rows, 0, np.ones(len(table.rows))),
        "RowPatch": patch,
        "TablePatch": patch.tables["words/embeddings"],
        "Nearest": nearest(matrix, range(100), words),
        "RowReport": row_report(model, matrix + 1, words, count=0),
    }


KINDS = ["VectorReport", "Rows", "MaskedTable", "RowPatch", "TablePatch", "Nearest", "RowReport"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_large_is_shown_in_a_few_lines(values, kind):
    value = values[kind]
    assert type(value).__name__ == kind
    assert len(repr(value)) < LONGEST
    assert len(str(value)) < LONGEST
    if hasattr(value, "_repr_html_"):
        assert len(value._repr_html_()) < 3 * LONGEST


@pytest.mark.parametrize("kind", ["VectorReport", "Rows", "RowPatch", "Nearest", "RowReport"])
def test_a_notebook_shows_words_as_they_are(values, kind):
    """No word is taken for a tag."""
    text = values[kind]._repr_html_()
    assert text.startswith("<p>")
    assert set(re.findall(r"<(\w+)", text)) <= {"p", "table", "tr", "th", "td"}


cells = st.text(max_size=50)


@cheap
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[cells] * n), max_size=30)))
def test_the_text_of_a_grid_has_a_line_for_each_row_whatever_it_holds(rows):
    columns = [f"column {place}" for place in range(len(rows[0]))] if rows else ["word"]
    grid = Grid("Title", columns, rows, ["a note"])
    shown = min(len(rows), MOST_ROWS)
    lines = text_of(grid).split("\n")
    assert len(lines) == 1 + (shown > 0) + shown + (len(rows) > MOST_ROWS) + 1
    assert all(line.isprintable() for line in lines)
    notebook = html_of(grid)
    assert notebook.count("<td>") == shown * len(columns)
    for row in rows[:MOST_ROWS]:
        for cell in row:
            short = cell if cell.isprintable() and len(cell) <= 40 else ""
            assert html.escape(short) in notebook


def test_columns_are_aligned_also_of_wide_characters():
    grid = Grid("Words", ["word", "moved"], [["東京", "1.5"], ["cat", "10.25"]])
    assert text_of(grid).split("\n")[1:] == ["  word  moved", "  東京    1.5", "  cat   10.25"]


def test_a_list_says_how_many_more_there_are():
    assert listed(list("abc"), most=3) == "a, b, c"
    assert listed(list("abcd"), most=3) == "a, b, c and 1 more"
    assert listed([]) == ""


def test_values_are_shown_by_what_tells_them_apart():
    rows = Rows([3], 9)
    patch = TablePatch("words/embeddings", rows, np.ones((1, 2)), None, "0" * 64)
    assert repr(patch) == (
        "TablePatch('words/embeddings', Rows('3', num_rows=9), shape=(1, 2), dtype='float64')"
    )
    assert "<td>words/embeddings</td><td>1</td><td>9</td>" in RowPatch(patch)._repr_html_()
    assert rows._repr_html_() == "<p>1 of 9 rows</p><p>3</p>"
    _, report = load_vectors({"cat": [1.0]}, ["", "cat", "dog"])
    assert repr(report) == "VectorReport(1 of 2 words have a vector)"
