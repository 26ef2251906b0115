"""`python -m maskedgrad verify` counts the frozen rows that are not their source's, bit for bit."""

import importlib
import io
import json
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer, save_vectors
from maskedgrad.cli import main, verification
from maskedgrad.cli.saved_tables import SavedTable, open_tables
from maskedgrad.rows import chunks
from maskedgrad.rows.rows import Rows
from maskedgrad.testing import bits

NUM_ROWS, WIDTH, IDS = 30, 4, [2, 7, 29]
MATRIX = np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH)).astype("float32")


def embedding(matrix=MATRIX, name="words", dtype="float32"):
    return keras.layers.Embedding(
        *matrix.shape, weights=[matrix], name=name, dtype=keras.DTypePolicy(dtype)
    )


def functional(words, optimizer=None):
    inputs = keras.Input((5,), dtype="int32")
    model = MaskedModel(inputs, keras.layers.Dense(2)(words(inputs)))
    optimizer = optimizer or MaskedOptimizer("adamw", {words: IDS})
    model.compile(optimizer, loss="mse")
    model.fit(np.arange(NUM_ROWS).reshape(-1, 5), np.ones((6, 5, 2)), verbose=0)
    return model


@keras.saving.register_keras_serializable("verify")
class Subclassed(MaskedModel):
    def __init__(self, **options):
        super().__init__(**options)
        self.tokens = embedding(name="tokens")
        self.tower = [embedding(name="words"), keras.layers.Dense(NUM_ROWS)]

    def call(self, ids):
        return self.tower[1](self.tower[0](ids) + self.tokens(ids))


@pytest.fixture
def saved(tmp_path):
    """A trained model, its file, and the files of what its rows were."""
    model = functional(embedding())
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", MATRIX)
    return model, tmp_path / "model.keras", tmp_path / "source.npy"


def run(capsys, *arguments):
    status = main(["verify", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_the_frozen_rows_of_a_trained_model_are_the_sources(saved, capsys):
    model, path, source = saved
    assert (bits(model.get_layer("words").get_weights()[0]) != bits(MATRIX)).any()
    status, result = run(capsys, path, "--against", source)
    assert status == 0
    assert result["same"]
    (table,) = result["tables"]
    assert table["table"] == "words"
    assert (table["same"], table["different"], table["trainable"]) == (27, 0, 3)
    assert main(["verify", str(path), "--against", str(source)]) == 0
    assert "27 frozen rows are the source's, bit for bit" in capsys.readouterr().out


@given(st.sets(st.integers(0, NUM_ROWS - 1), max_size=6), st.integers(0, WIDTH - 1))
def test_every_row_that_differs_in_a_bit_is_named(ids, column):
    changed = MATRIX.copy()
    changed[sorted(ids), column] = np.nextafter(MATRIX[sorted(ids), column], np.float32(9))
    table = matrix_table(MATRIX, trainable=Rows(IDS, NUM_ROWS))
    comparison = verification.compare(table, matrix_table(changed), np.zeros(0, int))
    expected = sorted(ids - set(IDS))
    assert comparison.different.ids.tolist() == expected
    assert comparison.same == NUM_ROWS - len(IDS) - len(expected)
    gaps = dict(comparison.furthest)
    assert sorted(gaps) == expected
    for row, gap in gaps.items():
        assert gap == abs(float(changed[row, column]) - float(MATRIX[row, column]))


@given(st.integers(1, 5 * WIDTH * 4), st.sets(st.integers(0, NUM_ROWS - 1), max_size=6))
def test_chunks_of_any_size_give_the_same(chunk_bytes, ids):
    changed = MATRIX.copy()
    changed[sorted(ids)] += 1
    whole = verification.compare(matrix_table(MATRIX), matrix_table(changed), np.zeros(0, int))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
        chunked = verification.compare(
            matrix_table(MATRIX), matrix_table(changed), np.zeros(0, int)
        )
    assert chunked == whole


def matrix_table(matrix, trainable=None, name="words"):
    return SavedTable(
        name, matrix.shape, matrix.dtype, lambda start, stop: matrix[start:stop], trainable
    )


def test_signs_of_zero_and_nan_are_bits_too():
    ours = np.array([[0.0], [np.nan], [np.nan], [np.inf], [1.0]], "float32")
    theirs = np.array([[-0.0], [np.nan], [1.0], [-np.inf], [1.0]], "float32")
    comparison = verification.compare(matrix_table(ours), matrix_table(theirs), np.zeros(0, int))
    assert comparison.different.ids.tolist() == [0, 2, 3]
    assert dict(comparison.furthest) == {0: 0.0, 2: None, 3: None}
    json.dumps(comparison.to_json(), allow_nan=False)
    assert "row 2: not a number" in str(comparison)


def test_a_moved_row_is_reported_with_status_1(saved, tmp_path, capsys):
    _, path, source = saved
    moved = MATRIX.copy()
    moved[5] += 0.5
    moved[[2, 29]] += 9
    np.save(source, moved)
    status, result = run(capsys, path, "--against", source)
    assert status == 1
    assert not result["same"]
    (table,) = result["tables"]
    assert (table["same"], table["different"], table["different_rows"]) == (26, 1, "5")
    assert table["furthest"] == [{"row": 5, "difference": pytest.approx(0.5)}]
    assert main(["verify", str(path), "--against", str(source)]) == 1
    assert "row 5: 0.5" in capsys.readouterr().out


def test_rows_of_an_optimizer_within_another_are_left_out(tmp_path, capsys):
    """A stock model may have a loss scaler around; a `MaskedModel` puts it inside."""
    words = keras.layers.Embedding(30, 2, name="words")
    model = keras.Model(inputs := keras.Input((2,), dtype="int32"), words(inputs))
    masked = MaskedOptimizer("sgd", {words: [3, 7]})
    model.compile(keras.optimizers.LossScaleOptimizer(masked), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", words.get_weights()[0])
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "source.npy")
    assert (status, result["tables"][0]["trainable"]) == (0, 2)


@pytest.mark.parametrize("wrap", [keras.optimizers.LossScaleOptimizer, lambda inner: inner])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tables_of_any_dtype_and_the_rows_of_a_nested_optimizer(tmp_path, capsys, wrap, dtype):
    words = embedding(dtype=dtype)
    functional(words, wrap(MaskedOptimizer("adam", {words: IDS}))).save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", MATRIX)
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "source.npy")
    assert status == 0
    assert result["tables"][0]["trainable"] == 3
    moved = MATRIX.copy()
    moved[5] = np.pi
    np.save(tmp_path / "source.npy", moved)
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "source.npy")
    assert (status, result["tables"][0]["different_rows"]) == (1, "5")


def test_the_special_rows_may_follow_those_of_the_source(tmp_path, capsys):
    words = embedding()
    optimizer = MaskedOptimizer("adam", {words: [28, 29]})
    functional(words, optimizer).save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", MATRIX[:28])
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "source.npy")
    assert (status, result["tables"][0]["same"]) == (0, 28)
    np.save(tmp_path / "source.npy", MATRIX[:27])
    assert main(refused(tmp_path / "model.keras", tmp_path / "source.npy")) == 2
    assert "each frozen row" in capsys.readouterr().err


def refused(model, source, *more):
    return ["verify", str(model), "--against", str(source), *map(str, more)]


def test_two_models_are_compared_table_by_table(tmp_path, capsys):
    model = Subclassed()
    trainable_rows = {".*tokens/embeddings": [1], ".*words/embeddings": [4, 5]}
    model.compile(MaskedOptimizer("adam", trainable_rows), loss="mse")
    x, y = np.arange(NUM_ROWS).reshape(-1, 5), np.ones((6, 5, NUM_ROWS))
    model(x)
    model.save(tmp_path / "base.keras")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "base.keras")
    assert status == 0
    assert {table["table"]: table["trainable"] for table in result["tables"]} == {
        "tokens": 1,
        "words": 2,
    }
    tokens = model.tokens.get_weights()[0]
    tokens[9] += 1
    model.tokens.set_weights([tokens])
    model.save(tmp_path / "model.keras")
    status, result = run(capsys, tmp_path / "model.keras", "--against", tmp_path / "base.keras")
    assert status == 1
    assert {table["table"]: table["different_rows"] for table in result["tables"]} == {
        "tokens": "9",
        "words": "",
    }
    # One of them against a matrix.
    np.save(tmp_path / "source.npy", MATRIX)
    arguments = refused(tmp_path / "model.keras", tmp_path / "source.npy")
    assert main(arguments) == 2
    assert "Choose by --table" in capsys.readouterr().err
    assert main([*arguments, "--table", "words"]) == 0
    assert main([*arguments, "--table", "tokens"]) == 1
    assert main([*arguments, "--table", "none"]) == 2


def test_a_model_that_names_no_rows_is_compared_as_a_whole(saved, tmp_path, capsys):
    model, _, source = saved
    plain = keras.Model(model.inputs, model.outputs)
    plain.save(tmp_path / "plain.keras")
    arguments = [tmp_path / "plain.keras", "--against", source, "--table", "words"]
    status, result = run(capsys, *arguments)
    (table,) = result["tables"]
    assert (status, table["different_rows"], table["trainable"]) == (1, "2,7,29", 0)


class Tower(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")

    def call(self, ids):
        return self.words(ids)


def test_nested_layers_of_one_name_are_told_apart(tmp_path):
    left, right = Tower(name="left"), Tower(name="right")
    inputs = keras.Input((5,), dtype="int32")
    model = MaskedModel(inputs, left(inputs) + right(inputs))
    model.compile(MaskedOptimizer("adam", {"right/words/embeddings": [3]}), loss="mse")
    model.fit(np.zeros((1, 5), "int32"), np.ones((1, 5, WIDTH)), verbose=0)
    model.save(tmp_path / "model.keras")
    with open_tables(tmp_path / "model.keras") as tables:
        assert {table.name: table.trainable for table in tables} == {
            "left/words": None,
            "right/words": Rows([3], NUM_ROWS),
        }


def test_tables_that_cannot_be_told_apart_are_refused(tmp_path, capsys):
    towers = [keras.Sequential([embedding()], name=name) for name in ("left", "right")]
    inputs = keras.Input((5,), dtype="int32")
    model = MaskedModel(inputs, towers[0](inputs) + towers[1](inputs))
    assert [variable.path for variable in model.weights] == ["words/embeddings"] * 2
    model.compile(MaskedOptimizer("adam", {towers[1].layers[0]: [3]}), loss="mse")
    model.fit(np.zeros((1, 5), "int32"), np.ones((1, 5, WIDTH)), verbose=0)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", MATRIX)
    assert main(refused(tmp_path / "model.keras", tmp_path / "source.npy")) == 2
    assert "left/words (30, 4), right/words (30, 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"cat\ndog\ncat\n", "'cat' on lines 1 and 3"),
        (b"caf\xe9\n", "byte 3 is not"),
        (b"\n\n", "which has none"),
        (b"Cat\nDog\n", "none of the words"),
    ],
)
def test_what_is_wrong_with_a_vocabulary_is_said_of_options_and_not_of_python(
    content, said, saved, tmp_path, capsys
):
    vectors, words = tmp_path / "vectors.txt", tmp_path / "words.txt"
    vectors.write_text("cat 0 0 0 0\ndog 1 1 1 1\n")
    words.write_bytes(content)
    options = ["--against", str(vectors), "--vocabulary", str(words)]
    assert main(["verify", str(saved[1]), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "--vocabulary" in line
    assert "`" not in line


def test_vectors_with_a_vocabulary(tmp_path, capsys):
    pytest.importorskip("gensim")
    words = ["", *(f"word{row}" for row in range(1, NUM_ROWS - 2)), "<city>", "<unseen>"]
    matrix = MATRIX.round(3)
    lines = [
        " ".join([word, *map(str, matrix[row])])
        for row, word in enumerate(words)
        if row and not word.startswith("<")
    ]
    (tmp_path / "vectors.txt").write_text("\n".join(reversed(lines)) + "\n")
    (tmp_path / "words.txt").write_text("\n".join(words) + "\n")
    layer = embedding(matrix)
    model = functional(layer, MaskedOptimizer("adam", {layer: [28]}))
    model.save(tmp_path / "model.keras")
    arguments = [tmp_path / "model.keras", "--against", tmp_path / "vectors.txt"]
    status, result = run(capsys, *arguments, "--vocabulary", tmp_path / "words.txt")
    (table,) = result["tables"]
    # Neither the padding nor the other special word, which does not train, has a vector.
    assert (status, table["same"], table["absent"]) == (0, NUM_ROWS - 3, 2)
    assert main(["verify", *map(str, arguments)]) == 2
    assert "--vocabulary" in capsys.readouterr().err


def test_files_that_cannot_be_compared_have_status_2(saved, tmp_path, capsys):
    _, path, source = saved
    foreign = tmp_path / "foreign.keras"
    foreign.write_bytes(b"no archive")
    empty = tmp_path / "empty.keras"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("config.json", "{}")
    cut = tmp_path / "cut.npy"
    cut.write_bytes(source.read_bytes()[:-1])
    pickled, narrow = tmp_path / "pickled.npy", tmp_path / "narrow.npy"
    np.save(pickled, np.array([{}]), allow_pickle=True)
    np.save(narrow, MATRIX[:, :3])
    for arguments in (
        refused(foreign, source),
        refused(empty, source),
        refused(tmp_path / "none.keras", source),
        refused(path, tmp_path / "none.npy"),
        refused(path, foreign),
        refused(path, cut),
        refused(path, pickled),
        refused(path, narrow),
    ):
        assert main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert captured.err.startswith("verify: "), arguments
        assert not captured.out


@pytest.mark.parametrize(("name", "message"), [("", "which is a folder"), ("none.txt", "none.txt")])
def test_a_source_that_is_no_file_needs_no_vocabulary_to_be_refused(
    name, message, saved, tmp_path, capsys
):
    assert main(refused(saved[1], tmp_path / name)) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "--vocabulary" not in printed


def test_a_table_of_text_has_status_2(saved, tmp_path, capsys):
    _, path, source = saved
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(members["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        variables = file["layers/embedding/vars"]
        del variables["0"]
        variables["0"] = np.full(MATRIX.shape, b"one")
    with zipfile.ZipFile(tmp_path / "text.keras", "w") as archive:
        for name, content in {**members, "model.weights.h5": weights.getvalue()}.items():
            archive.writestr(name, content)
    assert main(refused(tmp_path / "text.keras", source)) == 2
    assert "a variable must be of numbers, and one is of dtype |S3" in capsys.readouterr().err


MEASURE = """
import re, sys
import h5py, numpy
from maskedgrad.cli import verification
from pathlib import Path

def peak():
    # That of `resource.getrusage` would be the parent's, where that is larger.
    return 1024 * int(re.search("VmHWM:(.*) kB", Path("/proc/self/status").read_text())[1])

model, *sources = map(Path, sys.argv[1:])
before = peak()
for source in sources:
    print(verification.compare_files(model, source)[0].different.ids.tolist())
print(peak() - before)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")
def test_memory_does_not_grow_with_the_table(tmp_path):
    matrix = np.ones((400_000, 100), "float32")
    inputs = keras.Input((1,), dtype="int32")
    keras.Model(inputs, embedding(matrix)(inputs)).save(tmp_path / "model.keras")
    matrix[-1] = 2
    np.save(tmp_path / "source.npy", matrix)
    paths = [tmp_path / name for name in ("model.keras", "source.npy", "model.keras")]
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], stdout=subprocess.PIPE, check=True
    ).stdout
    of_matrix, of_model, growth = map(json.loads, output.splitlines())
    assert (of_matrix, of_model) == ([len(matrix) - 1], [])
    assert growth < matrix.nbytes / 2


def test_rows_that_the_source_lacks_are_counted(saved, tmp_path, capsys):
    _, path, _ = saved
    words = [f"word{row}" for row in range(NUM_ROWS)]
    rows = [" ".join(map(repr, row)) for row in MATRIX.tolist()]
    lines = [f"{word} {row}\n" for word, row in zip(words, rows, strict=True)]
    (tmp_path / "words.txt").write_text("\n".join(words))
    # The last of the rows that are left out trains, and the one before it does not.
    (tmp_path / "vectors.txt").write_text("".join(lines[:-2]))
    options = ["--against", tmp_path / "vectors.txt", "--vocabulary", tmp_path / "words.txt"]
    assert main(["verify", str(path), *map(str, options)]) == 0
    assert "1 frozen row is not in the source" in capsys.readouterr().out


def test_words_beside_an_array_say_which_rows_are_compared(saved, tmp_path, capsys):
    _, path, _ = saved
    words = ["<pad>", "[UNK]", "[UNK]", *(f"word{row}" for row in range(3, NUM_ROWS))]
    order = np.array([*range(NUM_ROWS - 1, 2, -1), 0])
    save_vectors(tmp_path / "words.npy", MATRIX[order], [words[row] for row in order])
    # As an editor of Windows writes it.
    (tmp_path / "words.txt").write_bytes("\ufeff".encode() + "\r\n".join(words).encode())
    source = ["--against", tmp_path / "words.npy", "--vocabulary", tmp_path / "words.txt"]
    status, result = run(capsys, path, *source)
    assert (status, result["tables"][0]["absent"]) == (0, 1)
    (tmp_path / "words.vocab.txt").unlink()
    assert main(["verify", str(path), *map(str, source)]) == 2
    assert "Leave --vocabulary out" in capsys.readouterr().err


def test_a_member_of_an_archive_is_a_source(saved, tmp_path, capsys):
    _, path, _ = saved
    words = [f"word{row}" for row in range(NUM_ROWS)]
    rows = [" ".join(map(repr, row)) for row in MATRIX.tolist()]
    (tmp_path / "words.txt").write_text("\n".join(words))
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.writestr("other.txt", "the 1\n")
        archive.writestr("50d.txt", "".join(map("{} {}\n".format, words, rows)))
    status, _ = run(
        capsys,
        path,
        *("--against", tmp_path / "glove.zip" / "50d.txt"),
        *("--vocabulary", tmp_path / "words.txt"),
    )
    assert status == 0


def test_tables_of_one_shape_and_other_names_have_no_counterpart(saved, tmp_path, capsys):
    _, path, _ = saved
    inputs = keras.Input((5,), dtype="int32")
    others = [embedding(name=name)(inputs) for name in ("one", "other")]
    keras.Model(inputs, others).save(tmp_path / "others.keras")
    assert main(refused(path, tmp_path / "others.keras")) == 2
    assert "one table of the name or the shape of words" in capsys.readouterr().err


def test_a_matrix_has_rows_of_numbers(saved, tmp_path, capsys):
    _, path, _ = saved
    for array in (MATRIX[0], MATRIX.astype(int)):
        np.save(tmp_path / "other.npy", array)
        assert main(refused(path, tmp_path / "other.npy")) == 2
        assert "floating point numbers of rank 2" in capsys.readouterr().err


@pytest.mark.processes
def test_the_package_is_a_program():
    command = [sys.executable, "-m", "maskedgrad", "verify", "none.keras", "--against", "none"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "verify: " in finished.stderr
    importlib.import_module("maskedgrad.__main__")  # which does nothing
