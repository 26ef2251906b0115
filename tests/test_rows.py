"""`Rows` are the ids that NumPy indexing selects, and nonsense is refused by name."""

import operator
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad.messages import shorten
from maskedgrad.rows.rows import Rows, decode_rows, encode_rows
from tests.properties.nonsense import nested
from tests.properties.strategies import cheap

id_lists = st.lists(st.integers(0, 29), unique=True)
slices = st.slices(30)


@cheap
@given(ids=id_lists)
def test_ids_become_sorted_in_every_form(ids):
    expected = sorted(ids)
    mask = np.isin(np.arange(30), ids)
    forms = [ids, tuple(ids), np.array(ids, dtype=np.int32), tf.constant(ids, tf.int64), mask]
    for form in [*forms, mask.tolist(), Rows(ids, 30)]:
        rows = Rows(form, 30)
        assert list(rows) == rows.ids.tolist() == expected
        assert len(rows) == len(ids)
        assert [i for i in range(30) if i in rows] == expected


@cheap
@given(rows=slices)
def test_a_slice_selects_what_numpy_selects(rows):
    assert list(Rows(rows, 30)) == sorted(np.arange(30)[rows])


@cheap
@given(start=st.integers(0, 29), stop=st.integers(0, 30), step=st.sampled_from([-3, -1, 1, 2]))
def test_a_range_selects_its_numbers(start, stop, step):
    numbers = range(start, max(stop, -1), step)
    assert list(Rows(numbers, 30)) == sorted(numbers)


@cheap
@given(ids=id_lists, others=id_lists)
def test_set_algebra(ids, others):
    rows, other = Rows(ids, 30), Rows(others, 30)
    assert set(rows.complement()) == set(range(30)) - set(ids)
    assert rows.complement().complement() == rows
    assert set(rows.union(other)) == set(ids) | set(others)
    assert set(rows.intersection(other)) == set(ids) & set(others)
    assert set(rows.difference(other)) == set(ids) - set(others)
    assert ~rows == rows.complement()
    assert rows | other == rows.union(other)
    assert rows & other == rows.intersection(other)
    assert rows - other == rows.difference(other)
    assert (rows == other) == (set(ids) == set(others))
    assert hash(Rows(ids[::-1], 30)) == hash(rows)


def test_rows_of_tables_of_different_lengths_differ():
    assert Rows([1], 5) != Rows([1], 6)
    assert Rows([1], 6) != Rows([1], 5)
    assert Rows([1], 5) != [1]


@pytest.mark.parametrize("name", ["union", "intersection", "difference"])
def test_rows_are_combined_with_rows_of_a_table_as_long(name):
    combine = getattr(Rows([1], 5), name)
    with pytest.raises(ValueError, match="length of the table, 5"):
        combine(Rows([1], 6))
    with pytest.raises(TypeError, match="combined with a `Rows`"):
        combine([1])


@pytest.mark.parametrize("combine", [operator.or_, operator.and_, operator.sub])
def test_operators_take_rows_of_a_table_as_long_and_nothing_else(combine):
    with pytest.raises(ValueError, match="length of the table, 5"):
        combine(Rows([1], 5), Rows([1], 6))
    for other in ([1], {1}, slice(None)):
        with pytest.raises(TypeError, match="unsupported operand"):
            combine(Rows([1], 5), other)


@cheap
@given(ids=id_lists)
def test_the_mask_agrees_with_the_ids(ids):
    rows = Rows(ids, 30)
    np.testing.assert_array_equal(np.flatnonzero(rows.mask), rows.ids)


@cheap
@given(ids=id_lists)
def test_a_config_gives_the_same_rows(ids):
    assert Rows.from_config(Rows(ids, 30).get_config()) == Rows(ids, 30)


ranges = st.builds(range, st.integers(0, 29), st.integers(0, 30), st.sampled_from([1, 2, -1, -3]))
masks = id_lists.map(lambda ids: np.isin(np.arange(30), ids))


@cheap
@given(rows=st.one_of(id_lists, slices, ranges, masks, id_lists.map(lambda ids: Rows(ids, 30))))
def test_unresolved_rows_survive_a_config(rows):
    decoded = decode_rows(encode_rows(rows))
    assert Rows(decoded, 30) == Rows(rows, 30)
    if isinstance(rows, (Rows, np.ndarray)):  # they say how long the table is
        with pytest.raises(ValueError, match="length"):
            Rows(decoded, 31)


def test_a_range_costs_a_few_bytes_and_reads_well():
    assert Rows(slice(1000, None), 2000).get_config() == {"rows": "1000:2000", "num_rows": 2000}
    assert Rows([2, 7, 10, 11, 12], 20).get_config()["rows"] == "2,7,10:13"


@cheap
@given(n=st.integers(0, 30), ids=id_lists)
def test_everyday_constructors_select_what_they_say(n, ids):
    assert list(Rows.last(n, 30)) == list(range(30 - n, 30))
    assert set(Rows.all_but(ids, 30)) == set(range(30)) - set(ids)
    vocabulary = [f"word {i}" for i in range(30)]
    assert Rows.of_words([vocabulary[i] for i in ids], vocabulary) == Rows(ids, 30)


def test_a_table_without_rows_has_no_rows():
    for rows in ([], slice(None), np.zeros(0, bool), Rows.last(0, 0), Rows.of_words([], [])):
        assert list(Rows(rows, 0)) == []
    assert Rows.of_words([], []).num_rows == 0


@pytest.mark.parametrize("n", [-1, 31, 1.0, True])
def test_more_rows_than_there_are_cannot_be_the_last(n):
    with pytest.raises(ValueError, match="from 0 to 30"):
        Rows.last(n, 30)


def test_what_is_shown_of_rows_is_short():
    start = [*range(1, 28, 2)]  # 37 characters, with a comma after each
    shown = ",".join(map(str, start))
    assert repr(Rows([2, 7], 10)) == "Rows('2,7', num_rows=10)"
    assert repr(Rows([*start, 100], 2000)) == f"Rows('{shown},100', num_rows=2000)"
    assert repr(Rows([*start, 1000], 2000)) == f"Rows('{shown},...', num_rows=2000)"
    eighty, more = ["x" * 36, "y" * 36], ["x" * 37, "y" * 36]
    assert shorten(eighty) == repr(eighty)
    assert shorten(more) == f"{repr(more)[:77]}..."


def test_a_million_scattered_rows_are_one_short_string_in_a_config():
    rows = Rows(range(0, 2_000_000, 2), 2_000_000)
    text = rows.get_config()["rows"]
    assert len(text) <= 8 * len(rows)  # seven digits and a comma; nothing nested to walk through
    assert Rows.from_config(rows.get_config()) == rows


def test_rows_cannot_be_changed():
    given_ids = np.array([1, 2])
    rows = Rows(given_ids, 5)
    given_ids[0] = 4
    assert list(rows) == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        rows.ids[0] = 3
    with pytest.raises(AttributeError):
        rows.ids = np.array([3])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([3, 11, 10], ValueError, r"below 10.*Received: array\(\[10, 11\]\)$"),
        ([0, -1, 1], ValueError, r"negative.*Received: array\(\[-1\]\)"),
        ([1, 3, 3, 5, 2, 2, 2], ValueError, r"repeated.*more than once: array\(\[2, 3\]\)"),
        ([1.5], TypeError, "integers.*Received.*Leave out what"),
        (np.eye(10)[2], TypeError, r"zeros and ones.*a mask.*`numpy\.asarray\(mask\)\.astype"),
        (np.eye(10, dtype="float16")[2].tolist(), TypeError, "zeros and ones.*a mask"),
        (np.eye(10, dtype=int)[2], ValueError, r"repeated.*zeros and ones.*a mask.*astype\(bool\)"),
        ([1, 2, 2], ValueError, "repeated.*`numpy.unique"),
        ([2.0], TypeError, r"integers.*`ids\.astype\(int\)`"),
        ([[1, 2]], ValueError, "rank 1"),
        (3, ValueError, "rank 1"),
        ([True, False], ValueError, r"^A boolean mask must .* 10\. Received: a boolean mask of"),
        (np.ones((10, 1), bool), ValueError, "rank 1"),
        (Rows([1], 11), ValueError, r"^A `Rows` must .* 10\. Received: a `Rows` of length 11$"),
        (["the"], TypeError, "vocabulary"),
        ("the", TypeError, "sequence"),
        (None, TypeError, "sequence"),
        ({1, 2}, TypeError, "sequence"),
        ([1, None], TypeError, "integers"),
        ([[1], [2, 3]], TypeError, "whose values are known"),
        ([2**70], TypeError, "integers"),
        ([2**63 + 1], ValueError, "above"),
        (np.array([1, 2], "timedelta64[s]"), TypeError, "integers"),
        (range(-1, 3), ValueError, "negative"),
        (
            np.array([1, 2**63 - 1, 2**63], "uint64"),
            ValueError,
            r"above.*array\(\[9223372036854775808\]",
        ),
        ([2**63 - 1], ValueError, "below 10"),
        (range(5, 11), ValueError, "below 10"),
        (range(2**40), ValueError, "below 10"),
        (range(10**30, 0, -1), ValueError, "below 10"),
        (slice(1.5, None), TypeError, "whole numbers"),
        (slice(None, None, 0), ValueError, "whole numbers"),
        (nested(100_000), TypeError, "a value of type list"),
    ],
)
def test_rows_that_mean_nothing_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        Rows(rows, 10)


@pytest.mark.parametrize(
    "text",
    [
        *("a::", "1:2:.5", "1:2:3:4", "1:2:3,4"),
        *("3:1", "3:3", "2,1", "1,1", "-1", "-2:1", "1,", "1:3,5:9,7"),
        *(f"0:{2**31}", "0:1000000000000", "0:9,1000000000:1000000000000", "9" * 30),
    ],
)
def test_a_text_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match="must be ascending ids and runs of them"):
        decode_rows({"rows": text})


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], ValueError, "a mapping that has rows and num_rows"),
        ("rows", ValueError, "a mapping that has rows and num_rows"),
        ({"rows": "1"}, ValueError, "a mapping that has rows and num_rows"),
        ({"num_rows": 10}, ValueError, "a mapping that has rows and num_rows"),
        ({"rows": [1], "num_rows": 10}, ValueError, "rows as text"),
        ({"rows": "1", "num_rows": "10"}, TypeError, "`num_rows` must be an int"),
        ({"rows": "1,10", "num_rows": 10}, ValueError, "below 10, .* Received: '1,10'"),
        ({"rows": "1::", "num_rows": 10}, ValueError, "ascending"),
    ],
)
def test_a_config_that_means_nothing_is_refused(config, error, message):
    with pytest.raises(error, match=message):
        Rows.from_config(config)
    with pytest.raises(ValueError, match="a mapping that has rows, and"):
        decode_rows({"num_rows": 10})


def test_runs_may_touch_and_name_as_many_rows_as_any_table_has():
    assert Rows.from_config({"rows": "1:3,3:5", "num_rows": 10}) == Rows(range(1, 5), 10)
    assert decode_rows({"rows": f"0:{2**31 - 1}"}) == range(2**31 - 1)


@pytest.mark.parametrize(
    "rows", [range(2**31 - 1), range(5, 2**40, 3), range(2**31, -1, -1)], ids=str
)
def test_a_range_is_a_range_in_a_config_and_takes_no_memory(rows):
    tracemalloc.start()
    try:
        encoded = encode_rows(rows)
        decoded = decode_rows(encoded)
        assert tracemalloc.get_traced_memory()[1] < 1e5
    finally:
        tracemalloc.stop()
    assert len(encoded["rows"]) < 50
    ascending = rows if rows.step > 0 else rows[::-1]
    assert isinstance(decoded, range)
    assert decoded == ascending


@pytest.mark.parametrize("rows", [range(1, 10**30, 10**31), range(1, 0, -(10**30))])
def test_a_range_of_few_numbers_may_have_any_step(rows):
    assert list(Rows(rows, 10)) == list(rows)


@pytest.mark.parametrize("num_rows", [3.0, "3", True])
def test_the_number_of_rows_must_be_an_integer(num_rows):
    with pytest.raises(TypeError, match="num_rows"):
        Rows([0], num_rows)


def test_the_number_of_rows_must_not_be_negative():
    with pytest.raises(ValueError, match="negative"):
        Rows([], -1)


@cheap
@given(
    nonsense=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(
            st.lists(inner), st.dictionaries(st.text(), inner), st.tuples(inner)
        ),
    )
)
def test_any_nonsense_is_rows_as_numpy_indexes_or_a_documented_error(nonsense):
    try:
        rows = Rows(nonsense, 7)
    except (TypeError, ValueError):
        return
    selected = np.arange(7)[np.asarray(nonsense, dtype=None if len(nonsense) else int)]
    assert list(rows) == sorted(selected)
