"""`python -m maskedgrad patch` shows, compares, applies and exports patches, in their files."""

import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("safetensors")

from maskedgrad import MaskedModel, load_vectors
from maskedgrad.cli import main
from maskedgrad.cli.patch_report import description, text_of_description
from maskedgrad.cli.patched_file import apply_to_file
from maskedgrad.patches import RowPatch, TablePatch, read_adapter
from maskedgrad.patches.table import frozen_digest
from maskedgrad.rows.rows import Rows
from maskedgrad.testing import assert_same_bits
from tests.test_patch import (
    MATRIX,
    NUM_ROWS,
    PATH,
    WIDTH,
    WORDS,
    TableModel,
    classifier,
    damaged,
    models_and_patches,
    table_in,
)

IDS = [3, 9]


@functools.cache
def patch_of_words():
    """A patch, which is a value, that makes `TRAINED` of `MATRIX`."""
    model = classifier(IDS)
    before = RowPatch.from_model(model, vocabulary=WORDS).tables[PATH]
    return RowPatch(dataclasses.replace(before, values=TRAINED[IDS], original=before.values))


TRAINED = MATRIX.copy()
TRAINED[IDS] *= -2


def run(capsys, *arguments):
    status = main(["patch", *map(str, arguments)])
    return status, capsys.readouterr()


def run_json(capsys, *arguments):
    status, printed = run(capsys, *arguments, "--json")
    return status, json.loads(printed.out)


# ---- apply ----


def built(model):
    model.built = True  # it has its table, and nothing to call
    return model


@given(models_and_patches(), st.booleans())
def test_a_file_of_weights_becomes_what_python_makes_and_nothing_else_changes(
    tmp_path_factory, drawn, by_words
):
    model, table, patch = drawn
    built(model)
    vocabulary = None
    if by_words:
        vocabulary = [f"w{row}" for row in range(len(table.values))]
        words = tuple(vocabulary[row] for row in patch.tables[PATH].ids)
        patch = RowPatch(dataclasses.replace(patch.tables[PATH], words=words, anchors={}))
    folder = tmp_path_factory.mktemp("apply")
    base, new = folder / "base.weights.h5", folder / "new.weights.h5"
    model.save_weights(base)
    apply_to_file(
        patch, base, new, strict=not by_words, allow_nonfinite=True, vocabulary=vocabulary
    )
    with h5py.File(base) as file:
        offset = file["vars/0"].id.get_offset()
    expected = bytearray(base.read_bytes())
    row_bytes = table.values[0].nbytes
    for row, values in zip(patch.tables[PATH].ids, patch.tables[PATH].values, strict=True):
        start = offset + row * row_bytes
        expected[start : start + row_bytes] = values.tobytes()
    assert new.read_bytes() == expected
    patch.apply_to(model, allow_nonfinite=True)
    applied = model.table.numpy()
    model.load_weights(new)
    assert_same_bits(model.table, applied, "as in Python")


@keras.saving.register_keras_serializable("patch_command")
class Subclassed(MaskedModel):
    """Its tables are in a list and in a layer; one layer has two of them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tower = [keras.layers.Dense(2), keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")]
        self.other = keras.layers.Embedding(NUM_ROWS, WIDTH, name="other")

    def call(self, ids):
        return self.tower[0](self.tower[1](ids) + self.other(ids))


def functional():
    return classifier([3, 9])


def nested():
    inputs = keras.Input((4,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    inner = keras.Model(inputs, words(inputs), name="inner")
    outer = keras.Input((4,), dtype="int32")
    model = MaskedModel(outer, keras.layers.Dense(1)(inner(outer)))
    model.compile("adam", loss="mse", trainable_rows={words: [3, 9]})
    return model


def subclassed():
    model = Subclassed(name="rec")
    model(np.zeros((1, 4), "int32"))
    model.tower[1].set_weights([MATRIX])
    model.compile("adam", loss="mse", trainable_rows={model.tower[1]: [3, 9]})
    return model


def content_of(group):
    """What a file of HDF5 holds: the bits of all variables, and all attributes."""
    found = {}

    def visit(name, each):
        found[name] = dict(each.attrs), each[()].tobytes() if hasattr(each, "dtype") else None

    group.visititems(visit)
    return found


@pytest.mark.parametrize("make", [functional, nested, subclassed])
@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_saved_model_becomes_what_python_makes_and_nothing_else_changes(tmp_path, make, packed):
    model = make()
    base, new = tmp_path / "base.keras", tmp_path / "new.keras"
    if make is functional:
        model.optimizer.build(model.trainable_variables)
    model.save(base)
    if packed:
        with zipfile.ZipFile(base) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(base, "w", packed) as archive:
            archive.comment = b"ours"
            for name, content in members.items():
                archive.writestr(name, content)
    before = RowPatch.from_model(model)
    (table,) = before.tables.values()
    patch = RowPatch(dataclasses.replace(table, values=-table.values, original=table.values))
    apply_to_file(patch, base, new)
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(new) as archive:
        assert archive.namelist() == old.namelist()
        assert archive.comment == old.comment
        for ours, theirs in zip(archive.infolist(), old.infolist(), strict=True):
            assert (ours.date_time, ours.compress_type) == (theirs.date_time, theirs.compress_type)
            assert ours.external_attr == theirs.external_attr
            if ours.filename != "model.weights.h5":
                assert archive.read(ours) == old.read(theirs)
        with (
            old.open("model.weights.h5") as old_weights,
            archive.open("model.weights.h5") as weights,
            h5py.File(old_weights) as old_file,
            h5py.File(weights) as file,
        ):
            before, after = content_of(old_file), content_of(file)
    assert before.keys() == after.keys()
    assert sum(before[name] != after[name] for name in before) == 1
    loaded = keras.saving.load_model(new, compile=make is functional)
    patch.apply_to(model)
    expected = [*model.weights, *(model.optimizer.variables if make is functional else ())]
    found = [*loaded.weights, *(loaded.optimizer.variables if make is functional else ())]
    for variable, other in zip(found, expected, strict=True):
        assert_same_bits(variable, other, variable.path)


def test_rows_go_to_the_ids_of_their_words(tmp_path, capsys):
    patch = patch_of_words()
    patch.save(tmp_path / "patch")
    words = ["more", *WORDS]
    matrix = np.concatenate([MATRIX[:1], MATRIX])
    classifier([0], matrix).save(tmp_path / "base.keras")
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    apply = ["apply", tmp_path / "patch", tmp_path / "base.keras", tmp_path / "new.keras"]
    status, printed = run(capsys, *apply)
    assert status == 2
    assert "shape and dtype" in printed.err
    status, _ = run(capsys, *apply, "--vocabulary", tmp_path / "words.txt")
    assert status == 0
    expected = np.concatenate([MATRIX[:1], TRAINED])
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    assert_same_bits(table_in(loaded), expected, "by words")
    # A vocabulary that is shifted by one is not that of the table.
    (tmp_path / "words.txt").write_text("\n".join([*WORDS, "more"]) + "\n")
    apply[-1] = tmp_path / "other.keras"
    status, printed = run(capsys, *apply, "--vocabulary", tmp_path / "words.txt")
    assert status == 2
    assert "other rows for" in printed.err
    assert not apply[-1].exists()


def test_one_file_of_words_is_not_that_of_several_tables(tmp_path, capsys):
    (table,) = patch_of_words().tables.values()
    RowPatch(table, dataclasses.replace(table, path="tags")).save(tmp_path / "patch")
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    apply = ["apply", tmp_path / "patch", tmp_path / "base.keras", tmp_path / "new.keras"]
    status, printed = run(capsys, *apply, "--vocabulary", tmp_path / "words.txt")
    assert status == 2
    assert "--vocabulary goes with a patch of one table" in printed.err


def one_more(values):
    return np.concatenate([values, values[:1]])


def towers():
    """Two tables of one name, which the path of a patch does not tell apart."""
    inputs = keras.Input((4,), dtype="int32")
    tables = [
        keras.Sequential([keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")])
        for _ in range(2)
    ]
    return keras.Model(inputs, tables[0](inputs) + tables[1](inputs))


def inner_and_outer():
    """A table in a model within the model, and one beside it, of one path."""
    inputs = keras.Input((4,), dtype="int32")
    tables = [
        keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words") for _ in range(2)
    ]
    inner = keras.Model(inputs, tables[0](inputs), name="inner")
    outer = keras.Input((4,), dtype="int32")
    model = keras.Model(outer, inner(outer) + tables[1](outer))
    assert [variable.path for variable in model.weights] == [PATH] * 2
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: classifier([3], damaged(MATRIX, 5)), "frozen rows"),
        (lambda: classifier([3], name="tokens"), "one variable of the path"),
        (lambda: classifier([3], one_more(MATRIX)), "shape and dtype"),
        (lambda: classifier([3], MATRIX[:, :2]), "shape and dtype"),
        (lambda: built(TableModel(MATRIX.astype("float16"))), "shape and dtype"),
        (towers, "one variable of the path"),
        (inner_and_outer, "one table that can be 'words/embeddings'"),
    ],
    ids=["one bit of a frozen row", "name", "rows", "width", "dtype", "towers", "inner and outer"],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path, capsys, make, message
):
    patch = patch_of_words()
    patch.save(tmp_path / "patch")
    make().save_weights(tmp_path / "base.weights.h5")
    files = sorted(tmp_path.iterdir())
    arguments = [tmp_path / "patch", tmp_path / "base.weights.h5", tmp_path / "new.weights.h5"]
    status, printed = run(capsys, "apply", *arguments)
    assert status == 2
    assert re.search(message, printed.err), printed.err
    assert printed.err.startswith("patch apply: ")
    assert sorted(tmp_path.iterdir()) == files


def test_what_is_refused_can_be_asked_for(tmp_path, capsys):
    model = classifier([3, 9], damaged(MATRIX, 5))
    model.save_weights(tmp_path / "base.weights.h5")
    patch = patch_of_words()
    values = np.full((2, WIDTH), np.nan, "float32")
    RowPatch(dataclasses.replace(patch.tables[PATH], values=values)).save(tmp_path / "patch")
    new = tmp_path / "new.weights.h5"
    new.write_bytes(b"old")
    apply = ["apply", tmp_path / "patch", tmp_path / "base.weights.h5", new]
    for message, option in [
        ("does. Give another name", "--replace"),
        ("must be finite", "--allow-nonfinite"),
        ("frozen rows", "--no-strict"),
    ]:
        status, printed = run(capsys, *apply)
        assert status == 2
        assert message in printed.err
        assert option in printed.err
        assert len(printed.err.splitlines()) == 1
        assert new.read_bytes() == b"old"
        apply.append(option)
    assert run(capsys, *apply)[0] == 0
    model.load_weights(new)
    expected = damaged(MATRIX, 5)
    expected[[3, 9]] = np.nan
    assert_same_bits(table_in(model), expected, "asked for")


def saved_weights(folder):
    classifier([3, 9]).save_weights(folder / "base.weights.h5")
    return folder / "base.weights.h5"


def saved_model(folder):
    classifier([3, 9]).save(folder / "base.keras")
    return folder / "base.keras"


def packed(folder):
    path = saved_weights(folder)
    with h5py.File(path, "a") as file:
        variables = file["layers/embedding/vars"]
        del variables["0"]
        variables.create_dataset("0", data=MATRIX, chunks=(8, WIDTH))
    return path


def linked(folder):
    path = saved_weights(folder)
    shutil.copy(path, folder / "elsewhere.h5")
    with h5py.File(path, "a") as file:
        variables = file["layers/embedding/vars"]
        del variables["0"]
        variables["0"] = h5py.ExternalLink(str(folder / "elsewhere.h5"), "/layers/embedding/vars/0")
    return path


def cut(make):
    def cut_short(folder):
        path = make(folder)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path

    return cut_short


def without_weights(folder):
    path = folder / "base.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    return path


def one_bit_off(folder):
    """The archive's own checksum of the weights sees it."""
    path = saved_model(folder)
    content = path.read_bytes()
    place = content.index(MATRIX[5].tobytes())
    path.write_bytes(content[:place] + b"?" + content[place + 1 :])
    return path


def of_another_kind(folder):
    return saved_model(folder).rename(folder / "base.h5")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (packed, "in one piece"),
        (linked, "is a link"),
        (cut(saved_weights), "as `model.save"),
        (cut(saved_model), "as `model.save"),
        (without_weights, "as `model.save"),
        (one_bit_off, "Bad CRC-32"),
        (of_another_kind, "two files that end in .keras"),
    ],
)
def test_a_file_that_is_not_as_keras_writes_it_is_refused(tmp_path, capsys, make, message):
    patch = patch_of_words()
    patch.save(tmp_path / "patch")
    base = make(tmp_path)
    new = base.with_name(f"new.{base.name.partition('.')[2]}")
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    status, printed = run(capsys, "apply", tmp_path / "patch", base, new)
    assert status == 2
    assert message in printed.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_tables_that_have_one_place_are_refused(tmp_path):
    inputs = keras.Input((4,), dtype="int32")
    layers = [keras.layers.Embedding(NUM_ROWS, WIDTH, name=name) for name in ("one", "two")]
    model = MaskedModel(inputs, layers[0](inputs) + layers[1](inputs))
    model.compile("adam", loss="mse", trainable_rows={layer: [3] for layer in layers})
    layers[1].set_weights(layers[0].get_weights())
    one, two = RowPatch.from_model(model).tables.values()
    base = tmp_path / "base.weights.h5"
    model.save_weights(base)
    with h5py.File(base) as file:
        places = [
            file[f"layers/{layer}/vars/0"].id.get_offset() for layer in ("embedding", "embedding_1")
        ]
    ours, theirs = (place.to_bytes(8, "little") for place in places)
    assert base.read_bytes().count(theirs) == 1
    base.write_bytes(base.read_bytes().replace(theirs, ours))
    patch = RowPatch(one, dataclasses.replace(two, values=two.values + 1))
    with pytest.raises(ValueError, match="its place in the file for itself"):
        apply_to_file(patch, base, tmp_path / "new.weights.h5")
    assert list(tmp_path.iterdir()) == [base]


@keras.saving.register_keras_serializable("patch_command")
class Two(keras.layers.Layer):
    """A layer with two tables, whose names its file does not tell."""

    def __init__(self, widths, **options):
        super().__init__(**options)
        self.widths = widths

    def build(self, _):
        self.tables = [
            self.add_weight((NUM_ROWS, width), name=f"table{place}")
            for place, width in enumerate(self.widths)
        ]

    def call(self, ids):
        return keras.ops.concatenate([keras.ops.take(t, ids, axis=0) for t in self.tables], -1)


@pytest.mark.parametrize("widths", [(2, 3), (3, 3)])
def test_of_the_tables_of_a_layer_the_shape_decides_or_nothing(tmp_path, widths):
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, Two(widths, name="two")(inputs))
    rows = Rows([3], NUM_ROWS)
    digest = frozen_digest(model.weights[1], rows)
    values = np.ones((1, 3), "float32")
    patch = RowPatch(TablePatch(model.weights[1].path, rows, values, None, digest))
    base, new = tmp_path / "base.weights.h5", tmp_path / "new.weights.h5"
    model.save_weights(base)
    if widths[0] == widths[1]:
        with pytest.raises(ValueError, match="2 of them"):
            apply_to_file(patch, base, new)
        return
    apply_to_file(patch, base, new)
    patch.apply_to(model)
    expected = [variable.numpy() for variable in model.weights]
    model.load_weights(new)
    for variable, other in zip(model.weights, expected, strict=True):
        assert_same_bits(variable, other, variable.path)


def test_two_tables_of_a_patch_are_never_one_of_a_file(tmp_path):
    """Of a layer with one table, whatever its last name in the model is, that one is meant."""
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, Two((3,), name="two")(inputs))
    base, values = tmp_path / "base.weights.h5", np.ones((1, 3), "float32")
    model.save_weights(base)
    patch = RowPatch(
        *(
            TablePatch(path, rows, values, None, frozen_digest(model.weights[0], rows))
            for path, rows in {
                "two/a": Rows([3], NUM_ROWS),
                "two/b": Rows([4], NUM_ROWS),
            }.items()
        )
    )
    with pytest.raises(ValueError, match=r"\['two/a', 'two/b'\] are found to be one"):
        apply_to_file(patch, base, tmp_path / "new.weights.h5")
    assert list(tmp_path.iterdir()) == [base]


MEASURE = """
import re, sys
import h5py, keras, numpy
from pathlib import Path
from maskedgrad.cli.patched_file import apply_to_file
from maskedgrad.patches import RowPatch

def peak():
    return 1024 * int(re.search("VmHWM:(.*) kB", Path("/proc/self/status").read_text())[1])

patch = RowPatch.load(sys.argv[1])
before = peak()
for base, new in zip(sys.argv[2::2], sys.argv[3::2]):
    apply_to_file(patch, Path(base), Path(new))
print(peak() - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_hold_the_table(tmp_path):
    num_rows, width = 400_000, 100
    words = keras.layers.Embedding(num_rows, width, name="words")
    model = MaskedModel(inputs := keras.Input((4,), dtype="int32"), words(inputs))
    # Rows in every part of the table.
    model.compile("sgd", loss="mse", trainable_rows={words: slice(0, None, 1000)})
    patch = RowPatch.from_model(model)
    patch.save(tmp_path / "patch")
    model.save(tmp_path / "base.keras")
    model.save_weights(tmp_path / "base.weights.h5")
    files = [
        tmp_path / f"{name}.{kind}" for kind in ("keras", "weights.h5") for name in ("base", "new")
    ]
    command = [sys.executable, "-c", MEASURE, tmp_path / "patch", *files]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 80 * 2**20 < 4 * num_rows * width


# ---- show and diff ----


def test_what_is_shown_is_what_the_patch_holds(tmp_path, capsys):
    patch = patch_of_words()
    patch.save(tmp_path / "patch")
    status, shown = run_json(capsys, "show", tmp_path / "patch")
    assert status == 0
    assert shown["checksum"] == patch.checksum
    (table,) = shown["tables"]
    held = patch.tables[PATH]
    assert (table["path"], table["dtype"], table["digest"]) == (PATH, "float32", held.digest)
    assert (table["shape"], table["rows"]) == ([NUM_ROWS, WIDTH], "3,9")
    for place, entry in enumerate(table["entries"]):
        assert (entry["row"], entry["word"]) == (held.ids[place], held.words[place])
        assert entry["norm"] == pytest.approx(np.linalg.norm(held.values[place]))
        moved = np.linalg.norm(held.values[place] - held.original[place])
        assert entry["moved"] == pytest.approx(moved, rel=1e-3)
    status, printed = run(capsys, "show", tmp_path / "patch")
    assert status == 0
    for told in (patch.checksum, PATH, "(40, 3)", held.digest, "'w3'", "'w9'"):
        assert told in printed.out


def test_many_rows_are_shown_in_part_and_numbers_that_are_none_as_such(tmp_path, capsys):
    values = np.ones((30, 2))
    values[1] = np.inf
    table = TablePatch("words", Rows(range(30), 40), values, values, "0" * 64)
    RowPatch(table).save(tmp_path / "patch")
    status, printed = run(capsys, "show", tmp_path / "patch")
    assert status == 0
    assert "... and 10 more" in printed.out
    _, shown = run_json(capsys, "show", tmp_path / "patch")
    assert shown["tables"][0]["entries"][1] == {"row": 1, "word": None, "norm": None, "moved": None}


@given(
    st.lists(st.text(max_size=60), min_size=1, max_size=6, unique=True),
    st.integers(60, 100),
)
@example(["w" * 50, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 50], 60)
def test_a_terminal_cuts_words_and_no_number(words, width):
    rows = Rows(range(2_000_000_000, 2_000_000_000 + len(words)), 2_100_000_000)
    values = np.full((len(words), 1), 12345.678, "float32")
    table = TablePatch(PATH, rows, values, -values, "ab" * 32, words)
    described = {**description(RowPatch(table)), "checksum": "ab" * 32}
    text = text_of_description(described, width)
    assert all(columns_of(line) <= width for line in text.splitlines() if "ab" * 32 not in line)
    for entry in described["tables"][0]["entries"]:
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {entry['row']} ")]
        assert line.split()[-2:] == ["12345.7", "24691.4"]


def columns_of(line):
    """How many columns of a terminal a line takes."""
    signs = [sign for sign in line if not unicodedata.combining(sign)]
    return len(signs) + sum(unicodedata.east_asian_width(sign) in "FW" for sign in signs)


def test_a_patch_from_anywhere_cannot_command_a_terminal(tmp_path, capsys):
    table = TablePatch(
        "a\x1b[2J", Rows([3], 9), np.ones((1, 2)), None, "\x1b[0m", ("\x1b]0;x\x07",)
    )
    RowPatch(table).save(tmp_path / "patch")
    RowPatch(dataclasses.replace(table, values=table.values + 1)).save(tmp_path / "other")
    for arguments in (
        ["show", tmp_path / "patch"],
        ["diff", tmp_path / "patch", tmp_path / "other"],
    ):
        _, printed = run(capsys, *arguments)
        assert "\x1b" not in printed.out
        assert "\\x1b" in printed.out


@given(
    st.dictionaries(st.integers(0, 9), st.integers(0, 2), min_size=1),
    st.dictionaries(st.integers(0, 9), st.integers(0, 2), min_size=1),
    st.permutations(range(10)),
    st.booleans(),
)
def test_a_diff_tells_each_row_once(first, second, order, by_words):
    """By words, the second vocabulary is in another order."""
    from maskedgrad.cli.patch_report import comparison

    def patch(values, id_of):
        ids = sorted(values, key=id_of)
        rows = np.float32([[values[key]] for key in ids])
        words = tuple(f"w{key}" for key in ids) if by_words else None
        rows_of_table = Rows(list(map(id_of, ids)), 10)
        return RowPatch(TablePatch("words", rows_of_table, rows, None, "0" * 64, words))

    one = patch(first, int)
    other = patch(second, order.index if by_words else int)
    compared = comparison(one, other)
    (table,) = compared["tables"]
    assert compared["same"] == (one == other)

    def keys(entries):
        return {int(entry["word"][1:]) if by_words else entry["row"] for entry in entries}

    common = first.keys() & second.keys()
    assert keys(table["different"]) == {key for key in common if first[key] != second[key]}
    assert table["same"] == sum(first[key] == second[key] for key in common)
    assert keys(table["only_in_first"]) == first.keys() - second.keys()
    assert keys(table["only_in_second"]) == second.keys() - first.keys()


def test_a_diff_says_what_else_differs(tmp_path, capsys):
    table = TablePatch("words", Rows([3, 5], 9), MATRIX[:2], MATRIX[2:4], "0" * 64, ("a", "b"))
    changed = {
        "the patches are the same": {},
        "over other frozen rows": {"digest": "1" * 64},
        "one knows no original values": {"original": None},
        "with other original values": {"original": MATRIX[4:6]},
        "one knows no words": {"words": None},
        "only in the first": {"path": "tags"},
        "of ((2,), 'float32') in the second": {"values": MATRIX[:2, :2], "original": None},
        "only in the second: 'c'": {"words": ("a", "c")},
        "cannot be compared, since other rows train": {"rows": Rows([3, 6], 9)},
    }
    RowPatch(table).save(tmp_path / "first")
    for told, change in changed.items():
        RowPatch(dataclasses.replace(table, **change)).save(tmp_path / "second")
        status, printed = run(capsys, "diff", tmp_path / "first", tmp_path / "second")
        assert status == bool(change)
        assert told in printed.out


# ---- export ----


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec.gz", "vectors.bin", "vectors.npy"])
def test_exported_vectors_are_loaded_with_the_same_bits(tmp_path, name):
    patch = patch_of_words()
    patch.save(tmp_path / "patch")
    assert main(["patch", "export", str(tmp_path / "patch"), str(tmp_path / name)]) == 0
    matrix, report = load_vectors(tmp_path / name, ["w9", "w3"])
    assert report.found == ("w9", "w3")
    assert_same_bits(matrix, patch.tables[PATH].values[::-1], "loaded")


def test_an_exported_adapter_is_the_patch(tmp_path, capsys):
    model = classifier([3, 9])
    patch = RowPatch.from_model(model, original=RowPatch.from_model(model))
    patch.save(tmp_path / "patch")
    export = ["export", tmp_path / "patch", tmp_path / "adapter", "--peft", f"{PATH}=embed"]
    assert run(capsys, *export)[0] == 0
    assert read_adapter(tmp_path / "adapter", model, {PATH: "embed"}) == patch
    status, printed = run(capsys, *export)
    assert status == 2
    assert "--replace" in printed.err
    assert run(capsys, *export, "--replace")[0] == 0
    status, printed = run(capsys, *export[:-1], PATH)
    assert status == 2
    assert "--peft TABLE=MODULE" in printed.err


def test_what_cannot_be_exported_is_refused(tmp_path, capsys):
    table = TablePatch("words", Rows([3], 9), MATRIX[:1], None, "0" * 64, ("<city>",))
    for patch, message in [
        (RowPatch(dataclasses.replace(table, words=None)), "know the words"),
        (RowPatch(dataclasses.replace(table, words=("a\nb",))), "can hold"),
        (RowPatch(dataclasses.replace(table, values=MATRIX[:1] * np.nan)), "must be finite"),
        (RowPatch(dataclasses.replace(table, words=("",))), "empty word"),
        (RowPatch(table, dataclasses.replace(table, path="tags")), "--table"),
    ]:
        patch.save(tmp_path / "patch")
        status, printed = run(capsys, "export", tmp_path / "patch", tmp_path / "vectors.txt")
        assert status == 2
        assert message in printed.err
        assert "rows=" not in printed.err  # which is Python's
        assert not (tmp_path / "vectors.txt").exists()
    RowPatch(dataclasses.replace(table, words=("a\nb",))).save(tmp_path / "line")
    _, printed = run(capsys, "export", tmp_path / "line", tmp_path / "vectors.npy")
    assert printed.err.endswith("Give them other words.\n")  # no format holds such a word
    export = ["export", tmp_path / "patch", tmp_path / "vectors.txt", "--table", "tags"]
    status, printed = run(capsys, *export)
    assert (status, printed.out) == (0, f"{export[2]}: 1 row of {export[1]}\n")
    status, printed = run(capsys, *export)
    assert status == 2
    assert "--replace" in printed.err
    assert run(capsys, *export, "--replace")[0] == 0


def test_a_file_that_is_no_patch_has_status_2(tmp_path, capsys):
    (tmp_path / "patch").write_bytes(b"no patch")
    for arguments in (
        ["show", tmp_path / "patch"],
        ["show", tmp_path / "none"],
        ["diff", tmp_path / "patch", tmp_path / "patch"],
        ["apply", tmp_path / "patch", tmp_path / "a.keras", tmp_path / "b.keras"],
        ["export", tmp_path / "patch", tmp_path / "vectors.txt"],
    ):
        status, printed = run(capsys, *arguments)
        assert status == 2
        assert printed.err.startswith(f"patch {arguments[0]}: ")


def test_the_commands_of_the_page_run(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "row_patches.md"
    commands = re.findall(r"^python -m maskedgrad (patch .*)$", page.read_text("utf-8"), re.M)
    monkeypatch.chdir(tmp_path)
    model = classifier(IDS)
    model.save("base.keras")
    patch_of_words().save("names.safetensors")
    RowPatch.from_model(model).save("other.safetensors")
    assert {command.split()[1]: main(command.split()) for command in commands} == {
        "show": 0,
        "diff": 1,
        "apply": 0,
        "export": 0,
    }
