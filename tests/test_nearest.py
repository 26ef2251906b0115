"""`nearest` finds what NumPy finds on the whole table, a few rows at a time."""

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, RowPatch, nearest
from maskedgrad.reports import views
from tests.properties.strategies import cheap

WORDS = ["", "cat", "dog", "tree", "car"]
TABLE = np.float32([[0, 0], [3, 4], [4, 3], [0, 1], [-3, -4]])


def cosines_with(table: np.ndarray, row: int) -> np.ndarray:
    """The oracle: the cosine of each row with one of them, -infinity for what is no neighbour."""
    rows = table.astype(np.float64)
    with np.errstate(all="ignore"):
        directions = rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))
        cosines = directions @ directions[row]
    cosines[~np.isfinite(cosines)] = -np.inf
    cosines[row] = -np.inf
    return cosines.round(7)


def expected(table: np.ndarray, row: int, count: int) -> list[int]:
    """The ids of the neighbours: of equal cosines, the lower id first."""
    cosines = cosines_with(table, row)
    order = np.argsort(-cosines, kind="stable")[:count]
    return [int(id_) for id_ in order if cosines[id_] > -np.inf]


def ids(found):
    return [neighbour.id for neighbour in found]


# Whole numbers, so that a cosine is the same to the bit in whatever order it is summed; zeros,
# and rows that are repeated, are drawn often.
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.sampled_from([0, 0, 1, -1, 3]), min_size=width, max_size=width),
        min_size=1,
        max_size=12,
    )
)
dtypes = st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])


@cheap
@given(tables, dtypes, st.integers(1, 13), st.data())
def test_it_is_what_numpy_finds_on_the_whole_table(rows, dtype, count, data):
    table = np.array(rows, dtype)
    asked = data.draw(st.lists(st.integers(0, len(table) - 1), unique=True))
    chunk_rows = data.draw(st.integers(1, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(views, "CHUNK_NUMBERS", chunk_rows * max(table.shape[1], len(asked)))
        found = nearest(table, asked, count=count)
    assert list(found) == sorted(asked)
    for row in asked:
        assert [each.similarity for each in found[row]] == pytest.approx(
            sorted(cosines_with(table, row), reverse=True)[: len(found[row])], abs=1.5e-7
        )
        assert ids(found[row]) == expected(table, row, count)


def test_of_numbers_of_any_size_the_nearest_are_found():
    """The squares of some of these are no float32, or one of few bits."""
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.uniform(-30, 30, size=(300, 1))
    table = (random.normal(size=(300, 20)) * sizes).astype(np.float32)
    found = nearest(table, range(50), count=5)
    assert {row: ids(found[row]) for row in found} == {
        row: expected(table, row, 5) for row in range(50)
    }


def test_a_row_that_is_not_finite_is_no_neighbour_and_has_none():
    table = np.float32([[1, 2], [np.nan, 1], [np.inf, 1], [2, 1], [0, 0]])
    found = nearest(table, [0, 1, 2, 4])
    assert ids(found[0]) == [3]
    assert [found[row] for row in (1, 2, 4)] == [(), (), ()]
    assert "has no neighbour" in repr(found)


def embedding(**options):
    layer = keras.layers.Embedding(5, 2, weights=[TABLE], name="words", **options)
    layer.build()
    return layer


def masked_model(layer):
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), layer(inputs))
    model.compile("sgd", loss="mse", trainable_rows={layer: [1, 4]})
    model.optimizer.build(model.trainable_variables)
    return model


TARGETS = {
    "layer": embedding,
    "frozen layer": lambda: embedding(trainable=False),
    "variable": lambda: embedding().weights[0],
    "model": lambda: masked_model(embedding()),
    "masked table": lambda: masked_model(embedding()).optimizer.masked_tables()[0],
    "tensor": lambda: tf.constant(TABLE),
    "columns": lambda: AlongAxis(_dense(), -1),
}


def _dense():
    head = keras.layers.Dense(5, name="head")
    head.build((None, 2))
    head.set_weights([TABLE.T, np.zeros(5)])
    return head


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_is_named_as_elsewhere(target):
    table = TARGETS[target]()
    found = nearest(table, ["cat", "tree"], WORDS, count=2)
    assert [each.word for each in found["cat"]] == ["dog", "tree"]
    assert dict(found) == dict(nearest(TABLE, ["cat", "tree"], WORDS, count=2))


def test_words_and_ids_are_given_alone_or_together():
    for asked in ("cat", ["cat"], ("cat",)):
        assert list(nearest(TABLE, asked, WORDS)) == ["cat"]
    for asked in (1, np.int64(1), [1], slice(1, 2), TABLE[:, 0] == 3):
        assert list(nearest(TABLE, asked, WORDS)) == [1]
    assert nearest(TABLE, 1, ["", "cat", "dog"])[1][1].word == ""
    assert repr(nearest(TABLE, "", WORDS)).startswith("Nearest to row ''\n")


def test_before_and_now_are_shown_side_by_side():
    layer = embedding()
    model = masked_model(layer)
    before = RowPatch.from_model(model)
    layer.set_weights([np.float32([[0, 0], [1, 0], [4, 3], [0, 1], [1, 5]])])
    found = nearest(model, ["cat"], WORDS, before=before)
    assert dict(found.before) == dict(
        nearest(np.where([[0], [1], [0], [0], [1]], TABLE, layer.get_weights()[0]), ["cat"], WORDS)
    )
    assert repr(found) == (
        "Nearest to cat\n"
        "  before  cosine  now   cosine\n"
        "  dog      0.960  dog    0.800\n"
        "  tree     0.800  car    0.196\n"
        "  car     -1.000  tree   0.000"
    )
    assert found._repr_html_().count("<tr>") == 4


def test_no_more_than_some_rows_are_read_at_once(monkeypatch):
    read = []
    table = keras.Variable(np.ones((1000, 10), "float32"))
    row_reader = views.row_reader

    def counted(variable, axis):
        reads = row_reader(variable, axis)
        return lambda ids: read.append(len(ids)) or reads(ids)

    monkeypatch.setattr(views, "row_reader", counted)
    monkeypatch.setattr(views, "CHUNK_NUMBERS", 100)
    nearest(table, [3])
    assert max(read) == 10
    assert sum(read) == 1001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TABLE, ["kat"], WORDS), "nearest: 'cat'"),
        ((TABLE, ["cat"]), "`vocabulary` must be given"),
        ((TABLE, ["cat"], [*WORDS, "more"]), "which has 5 rows. Received: a vocabulary of 6 ids"),
        ((TABLE, [5], WORDS), "must be below 5"),
        ((TABLE, [1], WORDS, 0), "`count` must be a positive int"),
        ((TABLE[:, :1], [1]), "must have two numbers or more"),
        ((keras.layers.Embedding(3, 2), [1]), "must have one table. Received: 0 matrices"),
        ((keras.Sequential([keras.layers.Dense(1)]), [1]), "which masks 0"),
        (("words", [1]), "A layer is found by its name"),
        ((np.array(["a"]), [0]), "must be an array of real numbers"),
        ((TABLE, [1], WORDS, 2), None),
    ],
)
def test_what_is_not_clear_is_refused(arguments, message):
    if message is None:
        assert nearest(*arguments)
        return
    with pytest.raises((TypeError, ValueError), match=message):
        nearest(*arguments)
