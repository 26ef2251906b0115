"""Two patches of one base are one patch, which does what both do."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

pytest.importorskip("safetensors")

from maskedgrad.patches import RowPatch, TablePatch, merge_patches
from maskedgrad.patches.table import frozen_digest
from maskedgrad.patches.words import with_words
from maskedgrad.rows.rows import Rows
from maskedgrad.testing import assert_same_bits
from tests.test_patch import MATRIX, NUM_ROWS, PATH, WIDTH, TableModel, damaged

ID_SETS = st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=8)
VALUES = st.floats(width=32, allow_nan=False)


def patch_of(model, ids, value, original=True, path=PATH):
    """A patch over the table of a model."""
    rows = Rows(sorted(ids), NUM_ROWS)
    values = np.full((len(rows), WIDTH), value, "float32")
    before = model.table.numpy()[rows.ids] if original else None
    return RowPatch(TablePatch(path, rows, values, before, frozen_digest(model.table, rows)))


def table_of(model, *patches):
    """The table of a model with patches applied, which are taken out again."""
    for patch in patches:
        patch.apply_to(model, allow_nonfinite=True)
    table = model.table.numpy()
    for patch in patches:
        patch.revert(model)
    return table


@given(ID_SETS, ID_SETS, VALUES, VALUES, st.booleans())
def test_the_merged_patch_does_what_both_do(first_ids, second_ids, one, other, original):
    second_ids -= first_ids
    assume(second_ids)
    model = TableModel(MATRIX)
    first = patch_of(model, first_ids, one, original)
    second = patch_of(model, second_ids, other)
    merged = merge_patches(first, second, model)
    assert_same_bits(model.table, MATRIX, "the model stays as it is")
    assert_same_bits(table_of(model, merged), table_of(model, first, second), "merged")
    assert merge_patches(second, first, model) == merged
    expected = MATRIX[sorted(first_ids | second_ids)] if original else None
    held = merged.tables[PATH].original
    assert held is None if expected is None else np.array_equal(held, expected)


@given(ID_SETS, ID_SETS, VALUES, VALUES, st.sampled_from([0, 0.25, 0.5, 1]))
@example({3, 4}, {3}, 1.0, 5.0, 0.25)
def test_rows_of_both_are_averaged_by_weight_or_refused(first_ids, second_ids, one, other, weight):
    shared = sorted(first_ids & second_ids)
    assume(shared)
    model = TableModel(MATRIX)
    first, second = patch_of(model, first_ids, one), patch_of(model, second_ids, other)
    with pytest.raises(ValueError, match="no row in common") as error:
        merge_patches(first, second, model)
    assert str(Rows(shared, NUM_ROWS)) in str(error.value)
    merged = merge_patches(first, second, model, weight)
    table = table_of(model, merged)
    average = {0: other, 1: one}.get(weight, weight * one + (1 - weight) * other)
    average = one if one == other else average
    expected = table_of(model, second)
    expected[sorted(first_ids)] = one
    with np.errstate(invalid="ignore", over="ignore"):
        expected[shared] = np.float32(average)
    # Both zeros are 0 to a dict, and NaN of `inf - inf` has one form here.
    assert np.array_equal(table, expected, equal_nan=True)
    if weight in (0, 1):
        taken = (first if weight else second).tables[PATH]
        assert_same_bits(table[shared], taken.values[: len(shared)], "of one of them")


def test_equal_rows_keep_their_bits_whatever_the_weight():
    model = TableModel(MATRIX)
    first, second = patch_of(model, [3], np.pi), patch_of(model, [3], np.pi)
    for weight in (0.1, 1 / 3, 0.9):
        assert merge_patches(first, second, model, weight) == first


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_is_from_0_to_1(weight):
    model = TableModel(MATRIX)
    patch = patch_of(model, [3], 1)
    with pytest.raises(ValueError, match="from 0 to 1"):
        merge_patches(patch, patch, model, weight)


def test_patches_of_another_base_are_refused():
    model, other = TableModel(MATRIX), TableModel(damaged(MATRIX, 20))
    ours, theirs = patch_of(model, [3], 1), patch_of(other, [9], 2)
    for first, second in ((ours, theirs), (theirs, ours)):
        with pytest.raises(ValueError, match="frozen rows"):
            merge_patches(first, second, model)


def test_originals_that_disagree_are_not_kept():
    model = TableModel(MATRIX)
    first, second = patch_of(model, [3, 4], 1), patch_of(model, [3, 5], 2)
    table = second.tables[PATH]
    second = RowPatch(dataclasses.replace(table, original=table.original + 1))
    assert merge_patches(first, second, model, 0.5).tables[PATH].original is None


def test_tables_of_different_paths_are_kept_side_by_side():
    inputs = keras.Input((4,), dtype="int32")
    names = ("users", "items")
    layers = [keras.layers.Embedding(NUM_ROWS, WIDTH, name=name) for name in names]
    model = keras.Model(inputs, [layer(inputs) for layer in layers])
    patches = []
    for place, variable in enumerate(model.weights):
        rows = Rows([3 + place], NUM_ROWS)
        values = np.full((1, WIDTH), place, "float32")
        digest = frozen_digest(variable, rows)
        patches.append(RowPatch(TablePatch(variable.path, rows, values, None, digest)))
    merged = merge_patches(*patches, model)
    assert dict(merged.tables).keys() == {"users/embeddings", "items/embeddings"}
    assert merged == RowPatch(*(table for patch in patches for table in patch.tables.values()))


# ---- by words ----

WORDS = [f"w{row}" for row in range(NUM_ROWS)]


def named_patch(model, ids, value, words=WORDS):
    (table,) = patch_of(model, ids, value).tables.values()
    return RowPatch(with_words(table, model.table, words))


@given(ID_SETS, ID_SETS, st.permutations(range(NUM_ROWS)))
def test_patches_of_two_vocabularies_are_merged_by_their_words(first_ids, second_ids, order):
    """The second was made over a table in another order."""
    second_ids -= first_ids
    assume(second_ids)
    model, other = TableModel(MATRIX), TableModel(MATRIX[order])
    other_words = [WORDS[row] for row in order]
    first = named_patch(model, first_ids, 1)
    second = named_patch(other, [order.index(row) for row in second_ids], 2, other_words)
    merged = merge_patches(first, second, model, vocabulary=WORDS)
    expected = merge_patches(first, named_patch(model, second_ids, 2), model)
    held, wanted = merged.tables[PATH], expected.tables[PATH]
    assert (held.words, held.rows, held.digest) == (wanted.words, wanted.rows, wanted.digest)
    assert_same_bits(held.values, wanted.values, "by words")
    assert not set(held.words) & set(held.anchors)
    merged.apply_to(other, vocabulary=other_words)
    assert_same_bits(other.table, table_of(model, merged)[order], "in the other order")


def test_one_word_with_two_ids_is_refused_without_a_vocabulary():
    model = TableModel(MATRIX)
    shifted = ["more", *WORDS[:-1]]
    first, second = named_patch(model, [3], 1), named_patch(model, [4], 2, shifted)
    with pytest.raises(ValueError, match=r"differ about \['w3'\].*`vocabulary`"):
        merge_patches(first, second, model)
    # An id with two words.
    second = named_patch(model, [3], 2, shifted)
    with pytest.raises(ValueError, match=r"differ about \['w2'\]|\['w3'\]"):
        merge_patches(first, second, model, 0.5)
    # The vocabulary is that of the model: the second was made by another.
    with pytest.raises(ValueError, match="other rows for"):
        merge_patches(first, second, model, vocabulary=WORDS)


def test_words_that_both_have_are_named_when_they_are_refused():
    model = TableModel(MATRIX)
    with pytest.raises(ValueError, match=r"Rows\('4'.*\['w4'\]"):
        merge_patches(named_patch(model, [3, 4], 1), named_patch(model, [4, 5], 2), model)


def test_where_one_knows_no_words_the_merged_one_knows_none():
    model = TableModel(MATRIX)
    first, second = named_patch(model, [3], 1), patch_of(model, [4], 2)
    merged = merge_patches(first, second, model).tables[PATH]
    assert merged.words is None
    assert merged.anchors is None
    with pytest.raises(ValueError, match="must know the words"):
        merge_patches(first, second, model, vocabulary=WORDS)
