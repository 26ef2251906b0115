"""What `save_vectors` writes is read again to the same bits, by our readers and by gensim."""

import contextlib
import gzip
import os
import sys
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from maskedgrad import MaskedModel, load_vectors, save_vectors, write_projector
from maskedgrad.testing import bits
from maskedgrad.vectors import saving
from tests.properties.strategies import cheap

SUFFIXES = [".txt", ".txt.gz", ".vec", ".vec.gz", ".bin", ".bin.gz", ".safetensors", ".npy"]
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
words = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=4),
    min_size=1,
    max_size=6,
    unique=True,
)


def any_bits(dtype, shape):
    """An array of finite numbers of any bits: denormals, -0 and neighbours of powers of two too."""
    unsigned = np.dtype(f"uint{8 * np.dtype(dtype).itemsize}")
    arrays = st_numpy.arrays(unsigned, shape)
    return arrays.map(lambda array: _finite(array.view(dtype)))


def _finite(array):
    array[~np.isfinite(array)] = -0.0
    return array


@cheap
@given(words, st.sampled_from(SUFFIXES), st.sampled_from(DTYPES), st.data())
def test_what_is_written_is_read_again_to_the_same_bits(
    tmp_path_factory, names, suffix, dtype, data
):
    """Or the format cannot hold a word, and says so."""
    width = data.draw(st.integers(1, 3))
    table = data.draw(any_bits(dtype, (len(names), width)))
    path = tmp_path_factory.getbasetemp() / f"{os.urandom(8).hex()}{suffix}"
    if any(set(name) & set(" \t\n\r\v\f\ufeff") for name in names):
        with contextlib.suppress(ValueError):
            save_vectors(path, table, names)
        if not path.exists():
            return
    else:
        save_vectors(path, table, names)
    vocabulary = [*names, "<none of them>"]  # the padding would be row 0 else
    again, report = load_vectors(path, vocabulary, "zeros", padding="<none of them>")
    assert set(report.found) == set(names)
    assert np.array_equal(bits(again[:-1].astype(dtype)), bits(table))


def test_a_binary_file_of_one_number_that_ends_like_a_row_of_text_is_read_as_binary(tmp_path):
    table = np.frombuffer(b"\0\0 6", np.float32)[np.newaxis]
    save_vectors(tmp_path / "one.bin", table, ["0"])
    again, _ = load_vectors(tmp_path / "one.bin", ["<none>", "0"], "zeros", padding="<none>")
    assert np.array_equal(bits(again[1:]), bits(table))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("names", [["\0end\0"], ["a\0b"], ["\0"], ["a\1"], ["a\0", "b"]])
def test_words_of_text_may_hold_bytes_that_are_rare_in_text(names, header, tmp_path):
    rows = "".join(f"{name} 1.5\n" for name in names)
    first = f"{len(names)} 1\n" if header else ""
    (tmp_path / "rare.txt").write_text(first + rows)
    again, _ = load_vectors(tmp_path / "rare.txt", ["<none>", *names], "zeros", padding="<none>")
    assert (again[1:] == 1.5).all()


@cheap
@given(any_bits(np.float32, 40))
def test_text_has_no_more_digits_than_it_takes(numbers):
    """As few as NumPy needs for the number, and one that is read by way of a float64."""
    (texts,) = saving.decimals(numbers[np.newaxis])
    again = np.array([float(text) for text in texts]).astype(np.float32)
    assert np.array_equal(bits(again), bits(numbers))
    shortest = [len(str(number)) for number in numbers]
    assert all(len(text) <= max(length, 15) for text, length in zip(texts, shortest, strict=True))


def test_digits_that_would_be_rounded_twice_are_not_trusted():
    """The shortest decimal of this float32 is a float64 half-way to its neighbour."""
    doubtful = np.nextafter(np.float32([7.038531e-26]), np.float32(0))
    assert np.float32(float(str(doubtful[0]))) != doubtful[0]
    ((text,),) = saving.decimals(doubtful[np.newaxis])
    assert np.float32(float(text)) == doubtful[0]


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".txt", {"no_header": True}),
        (".vec", {}),
        (".vec.gz", {}),
        (".bin", {"binary": True}),
        (".bin.gz", {"binary": True}),
    ],
)
def test_gensim_reads_it(tmp_path, suffix, options):
    gensim = pytest.importorskip("gensim")
    names = ["the", "кот", "1"]
    table = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    save_vectors(path := tmp_path / f"words{suffix}", table, names)
    read = gensim.models.KeyedVectors.load_word2vec_format(str(path), **options)
    assert read.index_to_key == names
    assert np.array_equal(bits(read.vectors), bits(table))


def test_the_standard_readers_read_the_arrays(tmp_path):
    """NumPy, safetensors and Keras's lookup, which takes the file of words."""
    safetensors = pytest.importorskip("safetensors.numpy")
    table = np.arange(6, dtype=ml_dtypes.bfloat16).reshape(3, 2)
    for suffix in (".npy", ".safetensors"):
        save_vectors(tmp_path / f"words{suffix}", table, ["a b", "кот", ""])
    assert np.array_equal(np.load(tmp_path / "words.npy"), table.astype(np.float32))
    (tensor,) = safetensors.load_file(tmp_path / "words.safetensors").values()
    assert tensor.dtype == table.dtype
    assert np.array_equal(bits(tensor), bits(table))
    save_vectors(tmp_path / "two.npy", table, ["cat", "dog", "tree"], rows=[0, 2])
    lookup = keras.layers.StringLookup(vocabulary=str(tmp_path / "two.vocab.txt"))
    assert lookup.get_vocabulary()[1:] == ["cat", "tree"]


def test_the_trained_rows_alone_are_written(tmp_path):
    layer = keras.layers.Embedding(4, 2, name="words")
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), layer(inputs))
    model.compile("sgd", loss="mse", trainable_rows={layer: [1, 3]})
    model.optimizer.build(model.trainable_variables)
    (table,) = model.optimizer.masked_tables()
    save_vectors(
        path := tmp_path / "new.vec", model, ["", "<city>", "cat", "<name>"], rows=table.rows
    )
    assert path.read_text().startswith("2 2\n<city> ")
    again, _ = load_vectors(path, ["", "<city>", "<name>"])
    assert np.array_equal(bits(again[1:]), bits(layer.get_weights()[0][[1, 3]]))


def test_a_row_of_zeros_without_a_word_is_the_padding(tmp_path):
    table = np.float32([[0, 0], [1, 2]])
    save_vectors(path := tmp_path / "words.txt", table, ["", "cat"])
    assert path.read_text() == "cat 1.0 2.0\n"
    table[0, 1] = -0.0
    with pytest.raises(ValueError, match=r"must be zero to be left out.*row 0 with other numbers"):
        save_vectors(path, table, ["", "cat"])


REFUSED = [
    ("words.txt", {}, ["cat", "a\nb"], "GloVe text can hold.*row 1 is 'a.*holds a newline"),
    ("words.txt", {}, ["cat", "\ufeffa"], "begins with a byte order mark"),
    ("words.txt", {"rows": [0], "table": np.zeros((2, 1), "f")}, ["", "a"], "one word at least"),
    ("words.txt", {}, ["cat", "Formula 1"], "an end that reads as a number"),
    ("words.vec", {}, ["cat", "New York"], "word2vec text can hold.*holds white space"),
    ("words.bin", {}, ["cat", "New\tYork"], "word2vec binary can hold.*holds white space"),
    ("words.npy", {}, ["cat", "a\rb"], "holds the end of a line"),
    ("words.npy", {}, ["cat", "\ud800"], "is no UTF-8"),
    ("words.npy", {}, ["cat"], "none for Rows\\('1', num_rows=2\\)"),
    ("words.npy", {"rows": []}, ["cat", "dog"], "at least one row"),
    ("words.npy.gz", {}, ["cat", "dog"], "Only files of GloVe and word2vec are packed"),
    ("words.model", {}, ["cat", "dog"], "`format=` says it too"),
    ("words", {"format": "word2vek"}, ["cat", "dog"], "must be one of"),
    ("words.txt", {"table": np.float32([[1], [np.inf]])}, ["cat", "dog"], "for \\['dog'\\]"),
    ("words.bin", {"table": np.ones((2, 1))}, ["cat", "dog"], "holds float32"),
    ("words.txt", {"table": np.ones((2, 1), int)}, ["cat", "dog"], "must be of floats"),
]


@pytest.mark.parametrize(("name", "options", "names", "message"), REFUSED)
def test_what_is_refused_has_changed_nothing(tmp_path, name, options, names, message):
    path = tmp_path / name
    path.write_bytes(b"old")
    arguments = {"table": np.ones((2, 1), np.float32), "vocabulary": names, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        save_vectors(path, **arguments)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {name: b"old"}


@pytest.mark.parametrize(("suffix", "num_reads"), [(".vec", 3), (".npy", 1)])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, suffix, num_reads, monkeypatch):
    path = tmp_path / f"words{suffix}"
    save_vectors(path, np.ones((2, 1), np.float32), ["cat", "dog"])
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    monkeypatch.setattr(saving, "CHUNK_NUMBERS", 1)
    table = np.ones((2, 1), np.float32)
    variable = keras.Variable(table)
    reads = iter([table[:1]] * num_reads)  # the last chunk of two cannot be read
    monkeypatch.setattr("maskedgrad.reports.views.row_reader", lambda *_: lambda ids: next(reads))
    with pytest.raises((StopIteration, RuntimeError)):
        save_vectors(path, variable, ["dog", "cat"])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_numbers_and_words_of_two_writes_are_never_a_pair(tmp_path, monkeypatch):
    """Killed between the two files, the numbers are left without words, and are refused."""
    path = tmp_path / "words.npy"
    save_vectors(path, np.float32([[1], [2]]), ["cat", "dog"])
    seen = []
    replace = os.replace

    def watched(source, target):
        replace(source, target)
        pair = {each.name for each in tmp_path.iterdir() if not each.name.startswith(".")}
        seen.append((Path(target).name, tuple(sorted(pair))))

    monkeypatch.setattr(os, "replace", watched)
    save_vectors(path, np.float32([[2], [1]]), ["dog", "cat"])
    assert [each for each in seen if not each[0].startswith(".")] == [
        ("words.npy", ("words.npy",)),
        ("words.vocab.txt", ("words.npy", "words.vocab.txt")),
    ]
    assert {pair for _, pair in seen} == {(), ("words.npy",), ("words.npy", "words.vocab.txt")}


@pytest.mark.parametrize("are_old", [True, False], ids=["old ones", "no old ones"])
@pytest.mark.parametrize("failing", ["words.npy", "words.vocab.txt"])
def test_files_that_cannot_take_their_places_leave_what_was_there(
    failing, are_old, tmp_path, monkeypatch
):
    path = tmp_path / "words.npy"
    if are_old:
        save_vectors(path, np.float32([[1], [2]]), ["cat", "dog"])
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    replace, failures = os.replace, [PermissionError(13, "in use")]

    def fails_once(source, target):
        if Path(target).name == failing and failures:
            raise failures.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(PermissionError, match="in use"):
        save_vectors(path, np.float32([[2], [1]]), ["dog", "cat"])
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_words_that_are_not_those_of_the_array_are_refused(tmp_path):
    save_vectors(path := tmp_path / "words.npy", np.float32([[1], [2]]), ["cat", "dog"])
    beside = tmp_path / "words.vocab.txt"
    beside.write_text("cat\n")
    with pytest.raises(ValueError, match="are 1, and it is of shape \\(2, 1\\)"):
        load_vectors(path, ["cat", "dog"])
    beside.write_text("cat\ndog")
    with pytest.raises(ValueError, match="do not end in a newline"):
        load_vectors(path, ["cat", "dog"])
    beside.unlink()
    with pytest.raises(ValueError, match="holds no words"):
        load_vectors(path, ["cat", "dog"])


def test_the_words_beside_an_array_may_have_been_through_an_editor(tmp_path):
    matrix = np.float32([[1], [2]])
    save_vectors(path := tmp_path / "words.npy", matrix, ["cat", "dog"])
    beside = tmp_path / "words.vocab.txt"
    beside.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert (load_vectors(path, ["cat", "dog"], padding=0)[0] == [[0], [2]]).all()
    assert load_vectors(path, ["cat", "dog"])[1].found == ("cat", "dog")
    assert load_vectors(path, ["\ufeffcat", "dog"])[1].found == ("\ufeffcat", "dog")
    beside.write_bytes("cat\ndog\n".encode("utf-16"))
    with pytest.raises(ValueError, match="are of UTF-16"):
        load_vectors(path, ["cat", "dog"])


def tensors_in(path, **tensors):
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("words.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "no array as `numpy"),
        ("words.npy", lambda path: np.save(path, np.ones((2, 1), int)), "an array of int64"),
        (
            "words.safetensors",
            lambda path: path.write_bytes(b"\x09\0\0\0\0\0\0\0{no json}"),
            "no whole safetensors file",
        ),
        (
            "words.safetensors",
            lambda path: tensors_in(path, a=np.ones((2, 1)), b=np.ones((2, 1))),
            "2 tensors, .*Expected one matrix",
        ),
        (
            "words.safetensors",
            lambda path: tensors_in(path, a=np.ones((2, 1), int)),
            "a tensor of I64. Expected floats",
        ),
    ],
)
def test_an_array_that_is_none_of_floats_is_refused(tmp_path, name, write, message):
    write(path := tmp_path / name)
    (tmp_path / "words.vocab.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=message):
        load_vectors(path, ["cat", "dog"])


def test_an_array_has_no_subwords_and_needs_safetensors_where_it_is_of_these(tmp_path, monkeypatch):
    for name in ("words.npy", "words.safetensors"):
        save_vectors(tmp_path / name, np.float32([[1], [2]]), ["cat", "dog"])
    with pytest.raises(ValueError, match="whole words"):
        load_vectors(tmp_path / "words.npy", ["cat"], "subwords")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "maskedgrad\[patch\]"'):
        load_vectors(tmp_path / "words.safetensors", ["cat"])


def test_the_same_vectors_make_the_same_file(tmp_path):
    for name in ("one.txt.gz", "other.txt.gz"):
        save_vectors(tmp_path / name, np.float32([[1]]), ["cat"])
    one, other = (tmp_path / name for name in ("one.txt.gz", "other.txt.gz"))
    assert one.read_bytes() == other.read_bytes()
    save_vectors(tmp_path / "of no suffix", np.float32([[1]]), ["cat"], format="glove")
    assert (tmp_path / "of no suffix").read_bytes() == b"cat 1.0\n"
    assert gzip.decompress(one.read_bytes()) == b"cat 1.0\n"


def test_the_projector_reads_it(tmp_path):
    projector = pytest.importorskip("tensorboard.plugins.projector")
    names = ["", "a\tb", 'quoted"']
    table = np.float32([[0, 0], [0.1, -2], [3, 1e-40]])
    write_projector(tmp_path / "logs", table, names)
    config = projector.ProjectorConfig()
    text_format.Parse((tmp_path / "logs" / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    vectors = np.loadtxt(tmp_path / "logs" / embedding.tensor_path, delimiter="\t")
    assert np.array_equal(bits(vectors.astype(np.float32)), bits(table))
    lines = (tmp_path / "logs" / embedding.metadata_path).read_text().splitlines()
    assert lines == ["word\tid", "row 0\t0", "a\\tb\t1", 'quoted"\t2']
