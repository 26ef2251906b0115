"""`row_report` tells of each trainable row what a copy of the table before and after would tell."""

import dataclasses
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, RowPatch, callbacks, nearest, row_report
from maskedgrad.reports.seen import times_seen
from maskedgrad.testing import bits
from tests.properties.strategies import cheap

VOCABULARY = ["", "the", "cat", "<city>", "dog", "<name>", "<rare>"]
ROWS = [3, 5, 6]
X = np.array([[1, 3, 2], [3, 4, 3]])
Y = np.ones((2, 3, 2))


def make_model(optimizer="sgd", rows=None):
    keras.utils.set_random_seed(0)
    words = keras.layers.Embedding(7, 2, name="words")
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    model.compile(optimizer, loss="mse", trainable_rows={words: rows or ROWS}, run_eagerly=True)
    return model


@pytest.fixture(scope="module")
def trained():
    """A trained model, its table as it was, and all that a user may have kept of that."""
    model, twin = make_model(), make_model()
    before = RowPatch.from_model(model)
    table = model.get_weights()[0]
    model.train_on_batch(X, Y)
    kept = {
        "patch": before,
        "patch with the original rows": RowPatch.from_model(model, original=before),
        "rows": table[ROWS],
        "table": table,
        "model": twin,
        "layer": twin.get_layer("words"),
        "variable": twin.get_layer("words").weights[0],
        "mapping": {"words/embeddings": table[ROWS]},
    }
    return model, table, kept


FORMS = [
    "patch",
    "patch with the original rows",
    "rows",
    "table",
    "model",
    "layer",
    "variable",
    "mapping",
]


@pytest.mark.parametrize("form", FORMS)
def test_it_tells_what_two_copies_of_the_table_tell(trained, form):
    model, table, kept = trained
    now = model.get_weights()[0]
    report = row_report(model, kept[form], VOCABULARY, X)
    assert [row.id for row in report.rows] == ROWS
    assert [row.word for row in report.rows] == [VOCABULARY[id_] for id_ in ROWS]
    for row in report.rows:
        step = now[row.id].astype(float) - table[row.id].astype(float)
        assert row.distance == pytest.approx(np.linalg.norm(step))
        assert row.has_moved == (bits(now[row.id]) != bits(table[row.id])).any()
        assert row.seen == (row.id == X).sum()
        assert row.before == nearest(table, row.id, VOCABULARY, 3)[row.id]
        assert row.now == nearest(now, row.id, VOCABULARY, 3)[row.id]


def test_rows_that_no_batch_held_are_told(trained):
    model, _, kept = trained
    report = row_report(model, kept["patch"], VOCABULARY, X, count=0)
    assert [row.word for row in report.unmoved] == ["<name>", "<rare>"]
    assert [row.word for row in report.unseen] == ["<name>", "<rare>"]
    assert "did not move, because the data never holds them: <name>, <rare>" in str(report)
    unknown = row_report(model, kept["patch"], VOCABULARY, count=0)
    assert unknown.unseen == ()
    assert str(unknown).endswith("did not move: <name>, <rare>")


def test_rows_that_moved_unseen_and_rows_that_were_seen_in_vain_are_told_too():
    model = make_model(keras.optimizers.AdamW(0.1, weight_decay=0.5))
    before = RowPatch.from_model(model)
    model.train_on_batch(X, Y)
    text = str(row_report(model, before, VOCABULARY, X))
    assert "moved, though the data never holds them (weight decay, or other data): <name>" in text
    held = row_report(make_model(), RowPatch.from_model(model), VOCABULARY, X)
    assert len(held.unmoved) == 0
    still = make_model()
    text = str(row_report(still, RowPatch.from_model(still), VOCABULARY, [[5]]))
    assert (
        "did not move, though the data holds them (masked, or without a gradient): <name>" in text
    )


def test_each_table_of_several_has_its_words_and_its_data():
    words = keras.layers.Embedding(7, 2, name="words")
    head = keras.layers.Dense(7, name="head")
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), head(words(inputs)))
    rows = {words: ROWS, AlongAxis(head, -1): ROWS}
    model.compile("sgd", loss="mse", trainable_rows=rows, run_eagerly=True)
    before = {
        "words/embeddings": words.get_weights()[0],
        "head/kernel": model.get_weights()[1].T[ROWS].copy(),
        "head/bias": model.get_weights()[2][ROWS].copy(),
    }
    model.train_on_batch(X, np.ones((2, 3, 7)))
    vocabulary = dict.fromkeys(before, VOCABULARY)
    report = row_report(model, before, vocabulary, X)
    by_path = {path: [row for row in report.rows if row.path == path] for path in before}
    assert [row.seen for row in by_path["words/embeddings"]] == [3, 0, 0]
    assert [row.seen for row in by_path["head/kernel"]] == [None] * 3
    assert all(row.has_moved for row in by_path["head/bias"])
    assert all(row.now == () for row in by_path["head/bias"])  # numbers have no direction
    assert all(len(row.now) == 3 for row in by_path["head/kernel"])
    assert str(report).count("trainable rows moved") == 3
    with pytest.raises(ValueError, match="must be a mapping from the path of a table to its voc"):
        row_report(model, before, VOCABULARY)
    with pytest.raises(ValueError, match="`before` must be a patch, a model, or a mapping"):
        row_report(model, before["words/embeddings"])


batches = st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4)


@cheap
@given(batches, st.sets(st.integers(0, 9)).map(sorted))
def test_what_is_seen_is_counted_in_whatever_form_the_data_comes(rows, ids):
    flat = [id_ for row in rows for id_ in row]
    counts = [flat.count(id_) for id_ in ids]
    ids = np.array(ids, np.int64)
    forms = [
        np.array(flat, np.int32),
        tf.ragged.constant(rows, dtype="int64", ragged_rank=1),
        (np.array(row, np.int64) for row in rows),
        ((np.array(row, np.int64), "the labels") for row in rows),
    ]
    if flat:
        forms.append(tf.data.Dataset.from_tensor_slices((flat, flat)).batch(2))
    for data in forms:
        assert times_seen(data, ids).tolist() == counts


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (["the cat"], TypeError, r"must be integers.*`lookup\(texts\)`.*token_ids"),
        (np.ones(3), TypeError, "must be integers"),
        ([{"token_ids": [1]}], TypeError, "must be integers"),
        (7, TypeError, "must be integers, or batches of them"),
        ([[[1], [1, 2]]], TypeError, "A batch must be integers"),
        (tf.data.Dataset.from_tensors([1]).repeat(), ValueError, "`data` must end"),
    ],
)
def test_data_that_is_no_ids_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        times_seen(data, np.array([1]))


def of_two_paths(patch):
    (table,) = patch.tables.values()
    return RowPatch(*(dataclasses.replace(table, path=path) for path in ("a", "b")))


def of_another_width(patch):
    (table,) = patch.tables.values()
    return RowPatch(dataclasses.replace(table, values=np.ones((len(ROWS), 3), "float32")))


def test_data_goes_by_the_path_of_its_table_where_there_are_several(trained):
    model, _, kept = trained
    (table,) = kept["patch"].tables.values()
    renamed = RowPatch(dataclasses.replace(table, path="before/the/model/was/loaded"))
    assert str(row_report(model, renamed)) == str(row_report(model, kept["patch"]))
    by_path = row_report(model, kept["patch"], data={"words/embeddings": X})
    assert str(by_path) == str(row_report(model, kept["patch"], data=X))
    inputs = keras.Input((3,), dtype="int32")
    layers = [keras.layers.Embedding(7, 2, name=name) for name in ("one", "two")]
    two = MaskedModel(inputs, layers[0](inputs) + layers[1](inputs))
    two.compile("sgd", loss="mse", trainable_rows={layer: [3] for layer in layers})
    with pytest.raises(ValueError, match=r"in several tables, .*one/embeddings.*two/embeddings"):
        row_report(two, RowPatch.from_model(two), data=X)


def test_what_does_not_fit_is_refused(trained):
    model, table, kept = trained
    for before, message in [
        (model, "Received: the table itself"),
        (table[:5], "must have the rows of the table"),
        (table[:3].astype("float16"), "dtype float16"),
        ({"other": table}, "must have an entry for the table 'words/embeddings'"),
        (RowPatch.from_model(make_model(rows=[3])), r"without Rows\('5:7', num_rows=7\)"),
        (keras.Sequential([keras.layers.Dense(1)]), "one variable of the path 'words/embeddings'"),
        (of_two_paths(kept["patch"]), "must be a patch of the table 'words/embeddings'"),
        (of_another_width(kept["patch"]), r"of \(7, 2\) numbers of float32.*of \(7, 3\) numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            row_report(model, before, VOCABULARY)
    with pytest.raises(ValueError, match="compiled with a `MaskedOptimizer`"):
        row_report(keras.Sequential([keras.layers.Dense(1)]), kept["patch"])
    with pytest.raises(ValueError, match=r"Received: 'model.keras'"):
        row_report("model.keras", kept["patch"])
    with pytest.raises(ValueError, match="has 7 rows"):
        row_report(model, kept["patch"], [*VOCABULARY, "more"])
    with pytest.raises(ValueError, match="a mapping with"):
        row_report(model, kept["patch"], data={"head": X})


def test_the_monitor_tells_the_same_and_prints_it(capsys):
    model = make_model()
    before = RowPatch.from_model(model)
    monitor = callbacks.TrainableRowsMonitor(VOCABULARY)
    with pytest.raises(RuntimeError, match="no `fit` was given"):
        monitor.report()
    history = model.fit(X, Y, epochs=2, verbose=0, callbacks=[monitor]).history
    assert history["words_unmoved"] == [2.0, 2.0]
    report = row_report(model, before, VOCABULARY, X)
    assert monitor.report(X).rows == report.rows
    assert capsys.readouterr().out == f"{row_report(model, before, VOCABULARY)}\n"


@pytest.mark.parametrize(
    ("vocabulary", "error"), [("vocab.txt", TypeError), ([*VOCABULARY, "more"], ValueError)]
)
def test_a_vocabulary_that_fits_no_report_is_refused_before_a_step_is_made(vocabulary, error):
    model = make_model()
    before = model.get_weights()[0]
    with pytest.raises(error, match="vocabulary"):
        model.fit(X, Y, verbose=0, callbacks=[callbacks.TrainableRowsMonitor(vocabulary)])
    assert np.array_equal(model.get_weights()[0], before)


def test_a_figure_has_a_bar_for_each_row(trained):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    model, _, kept = trained
    report = row_report(model, kept["patch"], VOCABULARY, X)
    axes = pyplot.Figure().subplots()
    assert report.plot(axes) is axes
    assert [bar.get_width() for bar in axes.patches] == [row.distance for row in report.rows]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["<city>", "<name>", "<rare>"]
    assert axes.patches[0].get_facecolor() != axes.patches[1].get_facecolor()
    new = report.plot()
    assert len(new.patches) == 3
    pyplot.close(new.figure)


def test_a_missing_extra_is_named(trained, monkeypatch):
    model, _, kept = trained
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "maskedgrad\[plot\]"'):
        row_report(model, kept["patch"]).plot()
