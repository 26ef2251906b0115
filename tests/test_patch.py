"""A row patch goes into a model and out of it bit for bit, and a file of it is whole or refused."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import sys
import time
import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer
from maskedgrad.patches.file import checksum, write_whole
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.table import TablePatch, frozen_digest
from maskedgrad.rows.chunks import CHUNK_BYTES
from maskedgrad.rows.rows import Rows
from maskedgrad.testing import assert_same_bits, bits, tables
from tests.devices import mirrored_strategy
from tests.sealable import Sealable, sealed

NUM_ROWS, WIDTH = 40, 3
PATH = "words/embeddings"
MATRIX = np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH)).astype("float32")


class TableModel(keras.Model):
    """A model that owns one table of any rank and dtype, at the path `words/embeddings`."""

    def __init__(self, values):
        super().__init__(name="words")
        dtype = keras.backend.standardize_dtype(values.dtype)
        self.table = self.add_weight(values.shape, "zeros", dtype, name="embeddings")
        self.table.assign(values)


def classifier(ids, matrix=MATRIX, name="words", compiled=True, base=MaskedModel):
    words = keras.layers.Embedding(*matrix.shape, weights=[matrix], name=name)
    inputs = keras.Input((4,), dtype="int32")
    head = keras.layers.Dense(1, kernel_initializer="ones", name="head")
    model = base(inputs, head(words(inputs)))
    if compiled:
        model.compile("adamw", loss="mse", trainable_rows={words: ids})
    return model


def train(model):
    x = np.random.default_rng(1).integers(0, NUM_ROWS, (16, 4))
    model.fit(x, np.ones((16, 4, 1)), verbose=0)


@functools.cache
def trained_patch(*ids):
    """A patch, which is a value, and the table that it was taken from."""
    model = classifier(list(ids))
    before = RowPatch.from_model(model)
    train(model)
    return RowPatch.from_model(model, original=before), table_in(model)


def table_in(model):
    return next(variable.numpy() for variable in model.weights if variable.path == PATH)


def patch_of(rows, values, digest, path=PATH):
    return RowPatch(TablePatch(path, rows, values, None, digest))


@st.composite
def models_and_patches(draw):
    """A model with a table, its values, and a patch that holds any bits at all."""
    table = draw(tables())
    trained = table.values[table.ids]
    content = draw(st.binary(min_size=trained.nbytes, max_size=trained.nbytes))
    values = np.frombuffer(content, trained.dtype).reshape(trained.shape)
    model = TableModel(table.values)
    rows = Rows(table.ids, len(table.values))
    return model, table, patch_of(rows, values, frozen_digest(model.table, rows))


@given(models_and_patches())
def test_applying_writes_the_rows_and_reverting_restores_the_bits(drawn):
    model, table, patch = drawn
    patched = table.values.copy()
    patched[table.ids] = patch.tables[PATH].values
    patch.apply_to(model, allow_nonfinite=True)
    assert_same_bits(model.table, patched, "applied")
    patch.revert(model)
    assert_same_bits(model.table, table.values, "reverted")
    with patch.applied(model, allow_nonfinite=True):
        assert_same_bits(model.table, patched, "in the context")
    assert_same_bits(model.table, table.values, "after the context")


@given(models_and_patches())
def test_a_file_holds_the_patch_bit_for_bit(tmp_path_factory, drawn):
    _, table, patch = drawn
    path = tmp_path_factory.mktemp("patch") / "rows.safetensors"
    patch.save(path)
    loaded = RowPatch.load(path)
    assert loaded == patch
    assert hash(loaded) == hash(patch)
    assert_same_bits(loaded.tables[PATH].values, patch.tables[PATH].values, "values")
    assert loaded.tables[PATH].dtype == table.dtype
    assert loaded.tables[PATH].rows == Rows(table.ids, len(table.values))


@given(tables())
def test_the_digest_is_that_of_the_frozen_rows(table):
    model = TableModel(table.values)
    expected = hashlib.sha256(table.values[table.frozen].tobytes()).hexdigest()
    assert frozen_digest(model.table, Rows(table.ids, len(table.values))) == expected


def test_the_digest_does_not_depend_on_chunks():
    num_rows = CHUNK_BYTES // 2**10 * 3 // 2
    matrix = np.random.default_rng(0).normal(size=(num_rows, 256)).astype("float32")
    rows = Rows([0, 7, num_rows // 2, num_rows - 1], num_rows)
    model = TableModel(matrix)
    digest = hashlib.sha256(np.delete(matrix, rows.ids, axis=0).tobytes()).hexdigest()
    assert frozen_digest(model.table, rows) == digest
    # Rows of a patch in place count as they were, wherever a chunk ends.
    other = Rows(range(num_rows // 3, num_rows), num_rows)
    values = np.zeros((len(other), 256), "float32")
    patch_of(other, values, frozen_digest(model.table, other)).apply_to(model)
    assert frozen_digest(model.table, rows) == digest


@given(
    st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=8),
    st.sets(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=8),
    st.booleans(),
)
def test_patches_of_different_rows_are_applied_together_in_any_order(first, second, swap):
    model = TableModel(MATRIX)
    patches = []
    for ids, value in ((first, 1.0), (second, 2.0)):
        rows = Rows(sorted(ids), NUM_ROWS)
        values = np.full((len(rows), WIDTH), value, "float32")
        patches.append(patch_of(rows, values, frozen_digest(model.table, rows)))
    patches[0].apply_to(model)
    if first & second:
        with pytest.raises(ValueError, match=r"no row in common.*words/embeddings"):
            patches[1].apply_to(model)
    else:
        patches[1].apply_to(model)
        expected = MATRIX.copy()
        expected[sorted(first)], expected[sorted(second)] = 1.0, 2.0
        assert_same_bits(model.table, expected, "both applied")
        for patch in reversed(patches) if swap else patches:
            patch.revert(model)
        assert_same_bits(model.table, MATRIX, "both reverted")


def test_a_patch_makes_of_the_base_the_trained_table(tmp_path):
    patch, trained = trained_patch(3, 9, 39)
    assert (bits(trained) != bits(MATRIX)).any(axis=1).sum() == 3
    patch.save(tmp_path / "rows.safetensors")
    model = classifier([0], compiled=False, base=keras.Model)
    RowPatch.load(tmp_path / "rows.safetensors").apply_to(model)
    assert_same_bits(table_in(model), trained, "applied to the base")
    assert_same_bits(patch.tables[PATH].original, MATRIX[[3, 9, 39]], "the original values")


def test_a_model_saved_with_the_patch_applied_is_reverted(tmp_path):
    patch, trained = trained_patch(3, 9)
    model = classifier([3, 9], trained)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    patch.revert(loaded)
    assert_same_bits(table_in(loaded), MATRIX, "reverted")
    with pytest.raises(ValueError, match="reverted where it is applied"):
        patch.revert(loaded)
    patch.apply_to(loaded)
    assert_same_bits(table_in(loaded), trained, "applied again")


def test_a_patch_without_original_values_says_so_when_they_are_needed():
    model = classifier([3, 9])
    with pytest.raises(ValueError, match="original=before"):
        RowPatch.from_model(model).revert(model)


def test_several_tables_are_patched_as_one():
    def make(scale):
        inputs = keras.Input((4,), dtype="int32")
        first = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX * scale], name="first")
        second = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="second")
        model = MaskedModel(inputs, first(inputs) + second(inputs))
        model.compile("adam", loss="mse", trainable_rows={first: [1], second: [2, 3]})
        return model

    trained = make(1)
    x = np.arange(NUM_ROWS).reshape(-1, 4)
    trained.fit(x, np.ones((len(x), 4, WIDTH)), verbose=0)
    patch = RowPatch.from_model(trained)
    base = make(1)
    patch.apply_to(base)
    for variable, expected in zip(base.weights, trained.weights, strict=True):
        assert_same_bits(variable, expected, variable.path)
    other = make(2)
    before = [variable.numpy() for variable in other.weights]
    with pytest.raises(ValueError, match="first/embeddings"):
        patch.apply_to(other)
    for variable, expected in zip(other.weights, before, strict=True):
        assert_same_bits(variable, expected, "a refused patch changes nothing")


def test_a_context_is_entered_again_and_reverts_after_an_error():
    patch, trained = trained_patch(3, 9)
    model = classifier([3])
    switch = patch.applied(model)
    for _ in range(3):
        with contextlib.suppress(KeyError), switch as entered:
            assert entered is model
            assert_same_bits(table_in(model), trained, "in the context")
            raise KeyError
        assert_same_bits(table_in(model), MATRIX, "after the context")
    with switch, pytest.raises(ValueError, match="Revert the other one first"):
        switch.__enter__()


class Tables(keras.Model):
    """Tables of any dtype, the second of a class of the user's."""

    def __init__(self, dtype="float32"):
        super().__init__(name="tables")
        self.first = keras.Variable(MATRIX, name="first")
        self.second = Sealable(np.zeros((NUM_ROWS, WIDTH)), dtype=dtype, name="second")

    def patch(self):
        dtype = self.second.numpy().dtype
        return RowPatch(
            TablePatch(self.first.path, Rows([3], NUM_ROWS), np.ones((1, 3), "f"), None, "0" * 64),
            TablePatch(self.second.path, Rows([3], NUM_ROWS), np.ones((1, 3), dtype), None, "1"),
        )


@pytest.fixture
def tables_and_switch():
    model = Tables()
    return model, model.patch().applied(model, strict=False)


def assert_applied(model, wanted):
    """Checks that both tables hold the rows of the patch, or neither does, and know it."""
    expected = MATRIX.copy(), np.zeros_like(MATRIX)
    for variable, table in zip(model.weights, expected, strict=True):
        table[3] = 1 if wanted else table[3]
        assert_same_bits(variable, table, variable.path)
        assert len(variable.row_patches) == wanted


@pytest.mark.filterwarnings("ignore:strict=False")
def test_a_patch_goes_into_all_tables_or_none(tables_and_switch):
    model, switch = tables_and_switch
    switch.__enter__()
    assert_applied(model, True)
    switch.__exit__()
    with sealed():
        with pytest.raises(PermissionError), switch:
            pass  # pragma: no cover - it is not entered
        assert_applied(model, False)
        with pytest.raises(PermissionError):
            model.patch().apply_to(model, strict=False)
        assert_applied(model, False)


@pytest.mark.filterwarnings("ignore:strict=False")
def test_a_patch_goes_out_of_all_tables_or_none(tables_and_switch):
    model, switch = tables_and_switch
    switch.__enter__()
    with sealed():
        with pytest.raises(PermissionError):
            switch.__exit__()
        assert_applied(model, True)
        with pytest.raises(PermissionError):
            model.patch().revert(model)
        assert_applied(model, True)
    model.patch().revert(model)
    assert_applied(model, False)


@pytest.mark.filterwarnings("ignore:strict=False")
def test_a_table_that_tensorflow_cannot_read_by_rows_keeps_the_others_as_they_are():
    model = Tables("float8_e4m3fn")
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.patch().apply_to(model, strict=False)
    assert_same_bits(model.first, MATRIX, "the table before it")


def test_two_tables_of_a_patch_are_never_one_of_the_model():
    """Another model of this path may have been within one of the name `a`."""
    patch, _ = trained_patch(3, 9)
    table = patch.tables[PATH]
    model = classifier([3])
    with pytest.raises(ValueError, match=r"found to be one.*names that they had"):
        RowPatch(table, dataclasses.replace(table, path=f"a/{PATH}")).apply_to(model)
    assert_same_bits(table_in(model), MATRIX, "refused")


def test_training_in_the_context_does_not_last():
    patch, _ = trained_patch(3, 9)
    model = classifier([3, 9])
    with patch.applied(model):
        train(model)
    assert_same_bits(table_in(model), MATRIX, "after training in the context")


def damaged(matrix, row):
    matrix = matrix.copy()
    matrix[row, 0] = np.nextafter(matrix[row, 0], np.float32(9))
    return matrix


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: classifier([3], name="tokens"), "one variable of the path 'words/embeddings'"),
        (lambda: classifier([3], MATRIX[:-1]), r"shape and dtype.*\(40, 3\)"),
        (lambda: classifier([3], MATRIX[:, :2]), r"shape and dtype.*\(40, 3\)"),
        (lambda: classifier([3], damaged(MATRIX, 5)), "frozen rows.*strict=False"),
        (lambda: TableModel(MATRIX.astype("float16")), "shape and dtype.*float32"),
    ],
    ids=["path", "rows", "width", "one bit of a frozen row", "dtype"],
)
def test_a_model_that_does_not_fit_is_refused_and_stays_as_it_was(model, message):
    patch, _ = trained_patch(3, 9)
    model = model()
    before = [variable.numpy() for variable in model.weights]
    for refused in (patch.apply_to, patch.applied):
        with pytest.raises(ValueError, match=message):
            refused(model)
    for variable, expected in zip(model.weights, before, strict=True):
        assert_same_bits(variable, expected, variable.path)


def test_the_trained_rows_of_the_base_may_differ():
    patch, trained = trained_patch(3, 9)
    other = damaged(damaged(MATRIX, 3), 9)
    model = classifier([3], other)
    patch.apply_to(model)
    assert_same_bits(table_in(model), trained, "applied")
    patch.revert(model)
    assert_same_bits(table_in(model), other, "reverted to what this model held")


def test_strict_off_skips_the_digest_and_says_so():
    patch, _ = trained_patch(3, 9)
    model = classifier([3], damaged(MATRIX, 5))
    with pytest.warns(UserWarning, match="strict=False") as warnings:
        patch.apply_to(model, strict=False)
    assert warnings[0].filename == __file__
    assert_same_bits(table_in(model)[[3, 9]], patch.tables[PATH].values, "applied")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_unless_asked_for(value):
    model = TableModel(MATRIX)
    rows = Rows([3, 9], NUM_ROWS)
    values = np.array([[0, 0, 0], [0, value, 0]], "float32")
    patch = patch_of(rows, values, frozen_digest(model.table, rows))
    for refused in (patch.apply_to, patch.applied):
        with pytest.raises(ValueError, match=r"Rows\('9'.*allow_nonfinite=True"):
            refused(model)
    assert_same_bits(model.table, MATRIX, "refused")
    patch.apply_to(model, allow_nonfinite=True)
    assert_same_bits(model.table.numpy()[[3, 9]], values, "asked for")


def test_an_original_of_other_rows_or_another_base_is_refused():
    model = classifier([3, 9])
    others = {
        "of the rows that are trained now": [classifier([3]), classifier([3, 9], name="tokens")],
        # Two, so that a digest is once above and once below in the alphabet.
        "with the same frozen rows": [classifier([3, 9], damaged(MATRIX, row)) for row in (5, 6)],
    }
    for message, models in others.items():
        for one, other in itertools.permutations([model, *models], 2):
            with pytest.raises(ValueError, match=message):
                RowPatch.from_model(one, original=RowPatch.from_model(other))
    with pytest.raises(TypeError, match="original"):
        RowPatch.from_model(model, original=MATRIX)
    with pytest.raises(ValueError, match="MaskedOptimizer"):
        RowPatch.from_model(classifier([3], compiled=False))


@keras.saving.register_keras_serializable("test_patch")
class Subclassed(MaskedModel):
    """A model whose table has another path once it is loaded."""

    def __init__(self, **options):
        super().__init__(**options)
        self.words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")

    def call(self, ids):
        return self.words(ids)


def test_the_rows_before_are_found_in_a_model_that_was_loaded_since(tmp_path):
    model = Subclassed(name="rec")
    model.compile("sgd", loss="mse", trainable_rows={model.words: [3]}, run_eagerly=True)
    model(np.zeros((1, 4), int))
    before = RowPatch.from_model(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    patch = RowPatch.from_model(loaded, original=before)
    assert (list(before.tables), list(patch.tables)) == ([f"rec/{PATH}"], [PATH])
    assert_same_bits(patch.tables[PATH].original, before.tables[f"rec/{PATH}"].values, "original")


def test_a_patch_is_a_value():
    patch, _ = trained_patch(3, 9)
    table = patch.tables[PATH]
    assert patch == RowPatch(dataclasses.replace(table, values=table.values.copy()))
    assert repr(patch) == "RowPatch({'words/embeddings': Rows('3,9', num_rows=40)})"
    assert patch != patch.checksum
    for change in (
        {"path": "tags"},
        {"rows": Rows([3, 8], NUM_ROWS)},
        {"rows": Rows([3, 9], NUM_ROWS + 1)},
        {"values": -table.values},
        {"original": None},
        {"digest": "0" * 64},
    ):
        other = RowPatch(dataclasses.replace(table, **change))
        assert patch != other, change
        assert other != patch, change
    for array in (table.values, table.original, table.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(TypeError):
        patch.tables["other"] = table


def test_a_patch_holds_at_least_one_table_and_each_once():
    patch, _ = trained_patch(3, 9)
    table = patch.tables[PATH]
    other = dataclasses.replace(table, path="tags/embeddings")
    assert list(RowPatch(table, other).tables) == [PATH, "tags/embeddings"]
    for refused in ([], [table, table], [table, other, table]):
        with pytest.raises(ValueError, match="at least one table, and each path once"):
            RowPatch(*refused)


def test_functions_traced_before_see_the_patch():
    patch, _ = trained_patch(3, 9)
    model = classifier([3, 9])
    x, y = np.array([[3, 9, 3, 5]]), np.zeros((1, 4, 1))
    plain, loss = model.predict(x, verbose=0), model.evaluate(x, y, verbose=0)
    with patch.applied(model):
        assert (model.predict(x, verbose=0) != plain)[0, :3].all()
        assert model.evaluate(x, y, verbose=0) != loss
    assert_same_bits(model.predict(x, verbose=0), plain, "after the context")


def test_a_patch_is_applied_in_the_midst_of_training():
    patch, _ = trained_patch(3, 9)
    model = classifier([20], compiled=False, base=keras.Model)
    model.get_layer("words").trainable = False
    model.compile("sgd", loss="mse")
    switch = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: batch == 1 and patch.apply_to(model)
    )
    x = np.random.default_rng(1).integers(0, NUM_ROWS, (16, 4))
    model.fit(x, np.ones((16, 4, 1)), batch_size=4, callbacks=[switch], verbose=0)
    assert_same_bits(table_in(model)[[3, 9]], patch.tables[PATH].values, "applied")


def test_every_replica_is_patched():
    patch, trained = trained_patch(3, 9)
    with mirrored_strategy().scope():
        model = classifier([3, 9])
    before = RowPatch.from_model(model)
    assert before.tables[PATH].digest == patch.tables[PATH].digest
    table = model.get_layer("words").embeddings.value
    with patch.applied(model):
        for replica in table.values:
            assert_same_bits(replica, trained, "applied")
    for replica in table.values:
        assert_same_bits(replica, MATRIX, "reverted")
    train(model)
    patch = RowPatch.from_model(model, original=before)
    base = classifier([3], compiled=False)
    patch.apply_to(base)
    for replica in table.values:
        assert_same_bits(replica, table_in(base), "trained on replicas, applied to the base")


def test_the_size_of_a_file_does_not_depend_on_the_table(tmp_path):
    sizes = []
    for num_rows in (1_000, 100_000):
        rows = Rows(range(100), num_rows)
        values = np.ones((100, 300), "float32")
        RowPatch(TablePatch(PATH, rows, values, values, "0" * 64)).save(tmp_path / "rows")
        sizes.append((tmp_path / "rows").stat().st_size)
    assert sizes[0] - 2 * values.nbytes < 2_000
    assert abs(sizes[1] - sizes[0]) < 16


def seconds(function):
    """The shortest of many times, since others may use the machine too."""

    def once():
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    return min(once() for _ in range(30))


def test_neither_a_switch_nor_a_prediction_after_it_depends_on_the_table():
    small, large = (
        classifier([0], np.zeros((num_rows, 64), "float32"), compiled=False, base=keras.Model)
        for num_rows in (400, 400_000)
    )
    switches = []
    for model in (small, large):
        model.predict_on_batch(np.zeros((1, 4)))
        table = model.get_layer("words").embeddings
        rows = Rows(range(50), table.shape[0])
        patch = patch_of(rows, np.ones((50, 64), "float32"), frozen_digest(table, rows))
        switches.append(patch.applied(model))

    def switch(context):
        with context:
            pass

    assert seconds(lambda: switch(switches[1])) < 8 * seconds(lambda: switch(switches[0]))
    with switches[0], switches[1]:
        of_small = seconds(lambda: small.predict_on_batch(np.zeros((1, 4))))
        of_large = seconds(lambda: large.predict_on_batch(np.zeros((1, 4))))
    assert of_large < 4 * of_small


@pytest.fixture(scope="module")
def patch_bytes(tmp_path_factory):
    patch = RowPatch(
        TablePatch(PATH, Rows([3, 9], NUM_ROWS), MATRIX[:2], MATRIX[2:4], "0" * 64),
        TablePatch("tags", Rows([0], 4), MATRIX[:1].astype("float16"), None, "1" * 64),
    )
    path = tmp_path_factory.mktemp("patch") / "rows.safetensors"
    patch.save(path)
    return patch, path.read_bytes()


@st.composite
def mutations(draw):
    """A change to bytes: some flipped, some cut out, some put in."""
    kind = draw(st.sampled_from(["flip", "set", "cut", "end", "insert", "swap"]))
    place, other = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    content = draw(st.binary(min_size=1, max_size=8))

    def mutate(whole):
        start, stop = sorted((int(place * (len(whole) - 1)), int(other * (len(whole) - 1))))
        if kind == "flip":
            flipped = whole[start] ^ (1 << content[0] % 8)
            return whole[:start] + bytes([flipped]) + whole[start + 1 :]
        if kind == "set":
            return whole[:start] + content + whole[start + len(content) :]
        if kind == "cut":
            return whole[:start] + whole[stop:]
        if kind == "end":
            return whole[:start]
        if kind == "insert":
            return whole[:start] + content + whole[start:]
        middle = (start + stop) // 2
        return whole[:start] + whole[middle:stop] + whole[start:middle] + whole[stop:]

    return mutate


@given(st.data())
def test_no_mutation_of_a_file_loads_other_values(tmp_path_factory, patch_bytes, data):
    patch, whole = patch_bytes
    path = tmp_path_factory.mktemp("patch") / "rows.safetensors"
    # Many to a test, because each is cheap.
    for mutate in data.draw(st.lists(mutations(), min_size=30, max_size=30)):
        path.write_bytes(mutate(whole))
        with contextlib.suppress(ValueError):
            assert RowPatch.load(path) == patch


def test_a_flipped_bit_of_any_byte_is_seen_or_means_nothing(tmp_path, patch_bytes):
    patch, whole = patch_bytes
    path = tmp_path / "rows.safetensors"
    num_refused = 0
    for place in range(len(whole)):
        flipped = whole[place] ^ 1 << place % 8
        path.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        try:
            assert RowPatch.load(path) == patch
        except ValueError:
            num_refused += 1
    # What is let pass can be white space that pads the header, and no more.
    assert num_refused >= len(whole) - 8


def crafted(
    *,
    num_rows=NUM_ROWS,
    shape=(2, 3),
    ids=(3, 9),
    values=None,
    table=PATH,
    says=(),
    more=(),
    **header,
):
    """A file with a checksum that fits, whatever else it says."""
    tables = {table: {"num_rows": num_rows, "digest": "0" * 64, **dict(says)}}
    values = np.zeros(shape, "float32") if values is None else values
    tensors = {f"{PATH}/ids": np.array(ids), f"{PATH}/values": values, **dict(more)}
    header = {"version": 1, "tables": tables, "sha256": checksum(tables, tensors), **header}
    return save(tensors, metadata={"row_patch": json.dumps(header)})


def lying(**tensor):
    """A file whose header says of the values what is not so."""
    whole = crafted()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header[f"{PATH}/values"].update(tensor)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


FOREIGN = {
    "empty": b"",
    "text": b"the 0.418 0.24968 -0.41242\n",
    "zeros": bytes(100),
    "a header of 2**60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "another safetensors": save({"a": MATRIX}),
    "other metadata": save({"a": MATRIX}, metadata={"row_patch": "[]"}),
    "metadata that is no JSON": save({"a": MATRIX}, metadata={"row_patch": "{"}),
    "metadata that is deep": save({"a": MATRIX}, metadata={"row_patch": "[" * 10**5}),
    "a later version": crafted(version=2),
    "a wrong checksum": crafted(sha256="0" * 64),
    "no tables": crafted(tables=None),
    "a table of which it holds nothing": crafted(table="tags"),
    "fewer rows than ids": crafted(shape=(1, 3)),
    "ids beyond the table": crafted(num_rows=5),
    "repeated ids": crafted(ids=(3, 3)),
    "negative ids": crafted(ids=(-3, 3)),
    "float ids": crafted(ids=(3.0, 9.0)),
    "descending ids": crafted(ids=(9, 3)),
    "ids of another dtype": crafted(ids=np.int32([3, 9])),
    "words that are no list": crafted(says={"words": "ab", "anchors": {}}),
    "a word that is there twice": crafted(says={"words": ["a", "a"], "anchors": {}}),
    "anchors that are no mapping": crafted(says={"words": ["a", "b"], "anchors": [1]}),
    "words without anchors": crafted(says={"words": ["a", "b"]}),
    "a tensor more": crafted(more={"more": MATRIX}),
    "a number of rows that is none": crafted(num_rows="40"),
    "a shape too large": lying(shape=[2**40, 3]),
    "a shape that overflows": lying(shape=[2**62, 2**62]),
    "a shape too small": lying(shape=[1, 3]),
    "offsets beyond the end": lying(shape=[2**20, 3], data_offsets=[16, 16 + 2**20 * 12]),
    "another dtype": lying(dtype="F64"),
    "another dtype of the same size": lying(dtype="I32"),
    "another shape of the same size": lying(shape=[2, 1, 3]),
    "a dtype that is none": lying(dtype="F7"),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_or_lying_file_gets_a_clear_error(tmp_path, content):
    path = tmp_path / "rows.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"(?s)Received.*rows\.safetensors"):
            RowPatch.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(content) + 2**20


def test_a_table_of_any_length_costs_the_file_no_memory(tmp_path):
    path = tmp_path / "rows.safetensors"
    path.write_bytes(crafted(num_rows=2**50))
    tracemalloc.start()
    try:
        assert RowPatch.load(path).tables[PATH].rows.num_rows == 2**50
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        RowPatch.load(tmp_path / "none.safetensors")


def test_any_reader_of_safetensors_reads_a_patch(tmp_path):
    patch, _ = trained_patch(3, 9)
    patch.save(tmp_path / "rows.safetensors")
    tensors = load_file(tmp_path / "rows.safetensors")
    assert_same_bits(tensors[f"{PATH}/values"], patch.tables[PATH].values, "values")
    assert tensors[f"{PATH}/ids"].tolist() == [3, 9]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "rows.safetensors"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "text")
    assert [file.name for file in tmp_path.iterdir()] == ["rows.safetensors"]
    assert path.read_bytes() == b"old"


def test_a_link_to_a_file_stays_a_link(tmp_path):
    path, link = tmp_path / "rows", pathlib.Path(tmp_path, "link")
    write_whole(path, b"old")
    link.symlink_to(path)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"


def test_a_patch_has_tables_and_each_but_once():
    table = TablePatch(PATH, Rows([3], 9), np.ones((1, 2)), None, "0" * 64)
    for held in ((), (table, table)):
        with pytest.raises(ValueError, match="at least one table, and each path once"):
            RowPatch(*held)


@pytest.mark.parametrize("original", [np.ones((1, 3)), np.ones((1, 2), "float32")])
def test_the_rows_before_are_of_the_shape_and_dtype_of_those_after(original):
    with pytest.raises(ValueError, match="The original values of 'words/embeddings'"):
        TablePatch(PATH, Rows([3], 9), np.ones((1, 2)), original, "0" * 64)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)  # Python's way to say that there is none
    with pytest.raises(ImportError, match=r'pip install "maskedgrad\[patch\]"'):
        RowPatch.load(tmp_path / "patch")


# ---- a patch that knows its words ----

WORDS = [f"w{place}" for place in range(NUM_ROWS)]


def patch_with_words(ids=(3, 7)):
    model = classifier(list(ids))
    before = RowPatch.from_model(model, vocabulary=WORDS)
    train(model)
    return RowPatch.from_model(model, before, vocabulary=WORDS), model


@given(st.permutations(WORDS), st.integers(0, 3))
def test_a_patch_goes_by_word_to_a_model_of_another_vocabulary(words, num_more):
    """Reordered, and grown by words that the patch does not know."""
    patch, model = patch_with_words()
    trained = model.get_weights()[0]
    vocabulary = [*words, *(f"new{place}" for place in range(num_more))]
    matrix = np.zeros((len(vocabulary), WIDTH), "float32")
    matrix[:NUM_ROWS] = MATRIX[[WORDS.index(word) for word in words]]
    other = classifier([0], matrix, compiled=False)
    patch.apply_to(other, vocabulary=vocabulary)
    table = other.get_weights()[0]
    for row, word in enumerate(words):
        assert (bits(table[row]) == bits(trained[WORDS.index(word)])).all()
    patch.revert(other, vocabulary=vocabulary)
    assert (bits(other.get_weights()[0]) == bits(matrix)).all()


@pytest.mark.parametrize("shift", [1, -1, 2])
def test_a_vocabulary_that_is_shifted_is_refused(shift):
    patch, _ = patch_with_words()
    model = classifier([0], compiled=False)
    shifted = [WORDS[(place + shift) % NUM_ROWS] for place in range(NUM_ROWS)]
    with pytest.raises(ValueError, match=r"other rows for.*strict=False"):
        patch.apply_to(model, vocabulary=shifted)
    assert (bits(model.get_weights()[0]) == bits(MATRIX)).all()


def test_words_are_saved_with_a_patch(tmp_path):
    patch, _ = patch_with_words()
    patch.save(tmp_path / "patch")
    loaded = RowPatch.load(tmp_path / "patch")
    assert loaded == patch
    assert loaded.tables[PATH].words == ("w3", "w7")
    assert loaded.tables[PATH].anchors == patch.tables[PATH].anchors


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (WORDS[:5], "none for the rows Rows\\('7'"),
        ([*WORDS, "more"], "40 rows.*41 ids"),
        ({"nowhere": WORDS}, "the path of a table.*nowhere"),
    ],
)
def test_a_vocabulary_that_does_not_fit_makes_no_patch(vocabulary, message):
    with pytest.raises((ValueError, TypeError), match=message):
        RowPatch.from_model(classifier([3, 7]), vocabulary=vocabulary)


def test_a_patch_of_unknown_words_is_refused():
    patch, _ = patch_with_words()
    model = classifier([0], compiled=False)
    with pytest.raises(ValueError, match="without \\['w7'\\]"):
        patch.apply_to(model, vocabulary=["" if word == "w7" else word for word in WORDS])
    plain = RowPatch.from_model(classifier([3, 7]))
    with pytest.raises(ValueError, match="must know the words of its rows"):
        plain.apply_to(model, vocabulary=WORDS)


def test_each_table_has_its_vocabulary():
    inputs = keras.Input((4,), dtype="int32")
    users, items = (keras.layers.Embedding(3, 2, name=name) for name in ("users", "items"))
    model = MaskedModel(inputs, users(inputs) + items(inputs))
    model.compile("adamw", loss="mse", trainable_rows={users: [1], items: [2]})
    names = {"users/embeddings": ["a", "b", "c"], "items/embeddings": ["x", "y", "z"]}
    patch = RowPatch.from_model(model, vocabulary=names)
    assert [table.words for table in patch.tables.values()] == [("b",), ("z",)]
    with pytest.raises(ValueError, match="mapping from the path of a table"):
        RowPatch.from_model(model, vocabulary=["a", "b", "c"])


def test_words_are_one_for_each_row():
    with pytest.raises(ValueError, match=r"must be 1, one for each row\. Received: 2"):
        TablePatch(PATH, Rows([3], 9), np.ones((1, 2)), None, "0" * 64, words=("a", "b"))


def test_words_are_strings():
    with pytest.raises(TypeError, match="must be strings"):
        TablePatch(PATH, Rows([3], 9), np.ones((1, 2)), None, "0", (3,))


def test_a_model_that_has_no_rows_or_trains_columns_makes_no_patch():
    words = keras.layers.Embedding(NUM_ROWS, WIDTH)
    unbuilt = keras.Sequential([words])
    unbuilt.compile(MaskedOptimizer("sgd", {words: [3]}), loss="mse")
    with pytest.raises(ValueError, match="must be built, since a table that does not exist"):
        RowPatch.from_model(unbuilt)
    head = keras.layers.Dense(4, name="dense_head")
    model = MaskedModel(inputs := keras.Input((2,)), head(inputs))
    model.compile("sgd", loss="mse", trainable_rows={AlongAxis("dense_head/kernel", 1): [3]})
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="along axis 1"):
        RowPatch.from_model(model)
