"""For every word of a vocabulary its row is the source's vector, bit for bit, or it is missing."""

import gzip
import inspect
import logging
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from gensim.models import FastText, KeyedVectors
from hypothesis import given, settings
from hypothesis import strategies as st

from maskedgrad.rows.vocabulary import ids_by_word, row_ids
from maskedgrad.testing import bits
from maskedgrad.vectors import save_vectors, saving, unpacking
from maskedgrad.vectors.found import CHUNK
from maskedgrad.vectors.loading import load_vectors

GLOVE, TEXT, BINARY, C_BINARY = "glove", "text", "binary", "c binary"
many = settings(max_examples=8 * settings.default.max_examples)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8", exclude_characters=" \n"), min_size=1, max_size=6)
# No float of these has a byte that is a space or begins a word anew.
plain_floats = st.sampled_from([0.0, 0.5, -1.0, 3.0, 1e-3])


@pytest.fixture(autouse=True)
def _quiet_gensim(caplog):
    """Gensim names words that cannot be decoded in its log, which no report of a test can hold."""
    with caplog.at_level(logging.ERROR, "gensim"):
        yield


class VectorFile(NamedTuple):
    kind: str
    is_gzipped: bool
    width: int
    records: list[tuple[bytes, list[float]]]

    def contents(self, num_records=None, width=None) -> bytes:
        header = f"{num_records or len(self.records)} {width or self.width}\n".encode()
        return (b"" if self.kind == GLOVE else header) + b"".join(
            self.record(word, vector) for word, vector in self.records
        )

    def record(self, word: bytes, vector: list[float]) -> bytes:
        if self.kind in (GLOVE, TEXT):
            return b" ".join([word, *(repr(number).encode() for number in vector)]) + b"\n"
        end = b"\n" if self.kind == C_BINARY else b""
        return word + b" " + np.array(vector, "<f4").tobytes() + end

    def written(self, folder: str, contents=None) -> str:
        contents = self.contents() if contents is None else contents
        suffix = ".bin" if self.kind in (BINARY, C_BINARY) else ".txt"
        path = Path(folder, "vectors" + suffix + (".gz" if self.is_gzipped else ""))
        path.write_bytes(gzip.compress(contents, 1) if self.is_gzipped else contents)
        return str(path)


@st.composite
def vector_files(draw, file_words=words, numbers=floats, kinds=(GLOVE, TEXT, BINARY, C_BINARY)):
    width = draw(st.integers(2, 4))
    encoded = file_words.map(lambda word: word.encode("utf-8"))
    records = st.tuples(encoded, st.lists(numbers, min_size=width, max_size=width))
    return VectorFile(
        draw(st.sampled_from(kinds)),
        draw(st.booleans()),
        width,
        draw(st.lists(records, min_size=1, max_size=6)),
    )


def as_gensim_loads(file: VectorFile, path: str) -> KeyedVectors:
    return KeyedVectors.load_word2vec_format(
        path,
        binary=file.kind in (BINARY, C_BINARY),
        no_header=file.kind == GLOVE,
        unicode_errors="surrogateescape",
    )


@many
@given(st.data(), st.booleans())
def test_rows_are_the_vectors_of_the_file_or_reported_missing(data, has_odd_records):
    numbers = st.floats(width=32) if has_odd_records else floats
    file = data.draw(vector_files(numbers=numbers))
    if has_odd_records:
        repeated = data.draw(st.lists(st.sampled_from(file.records), max_size=2))
        undecodable = [(b"caf\xff", [1.0] * file.width)] * data.draw(st.integers(0, 2))
        file = file._replace(records=[*file.records, *repeated, *undecodable])
    file_words = [word.decode("utf-8", "ignore") for word, _ in file.records]
    chosen = st.lists(
        st.one_of(st.sampled_from(file_words), words), unique=True, min_size=1, max_size=8
    )
    vocabulary = ["", *data.draw(chosen)]

    with tempfile.TemporaryDirectory() as folder:
        path = file.written(folder)
        expected = as_gensim_loads(file, path)
        finite = {w: v for w in vocabulary if w in expected and np.isfinite(v := expected[w]).all()}
        if not finite:
            with pytest.raises(ValueError, match="lower case"):
                load_vectors(path, vocabulary)
            return
        matrix, report = load_vectors(path, vocabulary)

    assert matrix.shape == (len(vocabulary), file.width)
    assert matrix.dtype == np.float32
    assert np.isfinite(matrix).all()
    assert not bits(matrix[0]).any()
    assert set(report.found) == set(finite)
    assert set(report.found) | set(report.missing) == set(vocabulary[1:])
    for row, word in enumerate(vocabulary):
        if word in finite:
            assert (bits(matrix[row]) == bits(finite[word])).all()
    assert report.missing_ids.tolist() == row_ids(report.missing, vocabulary).tolist()
    assert set(report.not_finite) == {w for w in vocabulary if w in expected} - set(finite)
    assert report.num_undecodable == sum(word == b"caf\xff" for word, _ in file.records)
    counts = Counter(word for word, _ in file.records)
    assert Counter(report.repeated) == {
        w: counts[w.encode()] - 1 for w in vocabulary if counts[w.encode()] > 1
    }


@many
@given(vector_files(numbers=plain_floats), st.data())
def test_a_truncated_file_is_an_error_or_gives_rows_of_the_whole_one(file, data):
    whole = file.contents()
    cut = data.draw(st.integers(0, len(whole) - 1))
    vocabulary = ["", *dict.fromkeys(word.decode() for word, _ in file.records)]
    with tempfile.TemporaryDirectory() as folder:
        expected, _ = load_vectors(file.written(folder), vocabulary)
        path = file.written(folder, whole[:cut])
        is_complete = file.kind == C_BINARY and cut == len(whole) - 1
        is_whole_lines = file.kind == GLOVE and whole[:cut].endswith(b"\n")
        if not (is_complete or is_whole_lines):
            with pytest.raises(ValueError, match="cannot be read"):
                load_vectors(path, vocabulary)
            return
        matrix, report = load_vectors(path, vocabulary)
    for row in row_ids(report.found, vocabulary):
        assert (bits(matrix[row]) == bits(expected[row])).all()


@many
@given(vector_files(numbers=plain_floats), st.data())
def test_a_file_cut_in_its_zipped_bytes_is_an_error(file, data):
    vocabulary = ["", *dict.fromkeys(word.decode() for word, _ in file.records)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(file._replace(is_gzipped=True).written(folder))
        zipped = path.read_bytes()
        path.write_bytes(zipped[: data.draw(st.integers(0, len(zipped) - 1))])
        with pytest.raises(ValueError, match="cannot be read"):
            load_vectors(path, vocabulary)


def is_word2vec_binary(contents: bytes) -> bool:
    """Whether records of the width that the header says make up the file."""
    header, _, rest = contents.partition(b"\n")
    num_records, width = map(int, header.split())
    for _ in range(num_records):
        _, space, rest = rest.partition(b" ")
        if not space or len(rest) < 4 * width:
            return False
        rest = rest[4 * width :]
    return rest in (b"", b"\n")


@many
@given(
    vector_files(numbers=plain_floats, kinds=(TEXT, BINARY, C_BINARY)),
    st.integers(-3, 3),
    st.integers(-3, 3),
)
def test_a_header_that_lies_is_an_error(file, more_records, more_width):
    num_records = max(1, len(file.records) + more_records)
    width = max(1, file.width + more_width)
    if (num_records, width) == (len(file.records), file.width):
        return
    contents = file.contents(num_records, width)
    if file.kind in (BINARY, C_BINARY) and is_word2vec_binary(contents):
        return  # two records of width 2 may be one of width 5: then the header does not lie
    vocabulary = ["", *dict.fromkeys(word.decode() for word, _ in file.records)]
    with tempfile.TemporaryDirectory() as folder:
        path = file.written(folder, contents)
        with pytest.raises(ValueError, match="cannot be read"):
            load_vectors(path, vocabulary)


def test_a_file_of_several_records_may_be_one_of_fewer_and_a_word_may_be_any():
    """What a header says is believed, if the file agrees with it; no word ends the file early."""
    width_2 = b"aaa " + bytes(8) + b"bbb " + bytes(8)
    for word, contents in [
        ("bbb", b"2 2\n" + width_2),
        ("aaa", b"1 5\n" + width_2),
        ("\0end\0", b"2 2\n" + b"a " + bytes(8) + b"\0end\0 " + bytes(8)),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "vectors.bin")
            path.write_bytes(contents)
            _, report = load_vectors(path, ["", word])
        assert report.found == (word,)


@pytest.mark.parametrize("numbers", [b"0\n\0\0", b"0\nab", b"0\na\n"])
def test_a_few_binary_vectors_may_look_like_rows_of_text(tmp_path, numbers):
    path = tmp_path / "vectors.bin"
    path.write_bytes(b"1 1\n0 " + numbers)
    matrix, _ = load_vectors(path, ["", "0"], initializer="zeros")
    assert matrix[1].tobytes() == numbers


@pytest.mark.parametrize("row", [b"a 1.25", b"ab 1.5 2.25", b"a b 1.5 2.25"])
def test_text_whose_last_line_may_be_cut_off_is_no_binary(tmp_path, row):
    """Though its bytes are as many as those of the vectors that its header speaks of."""
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"1 %d\n%s" % (row.count(b"."), row))
    with pytest.raises(ValueError, match="end it with a newline"):
        load_vectors(path, ["", "a"])


def test_numbers_of_other_words_are_not_parsed(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_bytes(b"cow 1 2 3\nodd 1 two 3\n\n\xff\xfe 1 2 3\ncat 3 4 5\n")
    matrix, report = load_vectors(path, ["", "cat"])
    assert matrix.tolist() == [[0, 0, 0], [3, 4, 5]]
    assert report.num_undecodable == 1


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_vectors(tmp_path / "none.txt", ["cat"])


@given(vector_files(kinds=(BINARY,)))
def test_a_file_keyed_vectors_and_a_mapping_give_the_same_bits(file):
    vocabulary = ["", *dict.fromkeys(word.decode() for word, _ in file.records), "\n"]
    with tempfile.TemporaryDirectory() as folder:
        path = file.written(folder)
        keyed_vectors = as_gensim_loads(file, path)
        mapping = {word: keyed_vectors[word].tolist() for word in keyed_vectors.key_to_index}
        results = [load_vectors(s, vocabulary, "mean") for s in (path, keyed_vectors, mapping)]
    assert len({bits(matrix).tobytes() for matrix, _ in results}) == 1
    assert len({(report.found, report.missing) for _, report in results}) == 1


VECTORS = {"cat": [1.0, 2.0], "dog": [3.0, 6.0], "town": [0.5, 0.5], "big": [1e30, -1e30]}


@pytest.mark.parametrize(
    "vocabulary",
    [
        ["", "[UNK]", "cat", "dog", "<city>"],
        ("", "[UNK]", "cat", "dog", "<city>"),
        {"<city>": 4, "": 0, "cat": 2, "dog": 3, "[UNK]": np.int64(1)},
        keras.layers.StringLookup(vocabulary=["cat", "dog", "<city>"], mask_token=""),
        keras.layers.TextVectorization(vocabulary=["cat", "dog", "<city>"]),
    ],
    ids=lambda vocabulary: type(vocabulary).__name__,
)
def test_vocabularies_of_every_type_give_the_same_table(vocabulary):
    matrix, report = load_vectors(VECTORS, vocabulary, "mean")
    assert matrix.tolist() == [[0, 0], [2, 4], [1, 2], [3, 6], [2, 4]]
    assert report.missing == ("[UNK]", "<city>")
    assert report.missing_ids.tolist() == [1, 4]
    assert not report.missing_ids.flags.writeable
    assert row_ids(["<city>", "cat"], vocabulary).tolist() == [4, 2]


def test_lookups_find_the_rows_that_the_table_has():
    lookup = keras.layers.StringLookup(num_oov_indices=3)
    lookup.adapt(["dog", "dog", "cat"])
    matrix, report = load_vectors(VECTORS, lookup, padding=0)
    for word in ("cat", "dog"):
        assert matrix[int(lookup([word])[0])].tolist() == VECTORS[word]
    assert report.missing_ids.tolist() == [1, 2]


def test_ids_without_a_word_are_to_be_trained_and_row_0_is_padding():
    matrix, report = load_vectors(VECTORS, {"cat": 3, "dog": 1}, "mean")
    assert report.padding_id == 0
    assert report.missing == ()
    assert report.missing_ids.tolist() == [2]
    assert matrix.tolist() == [[0, 0], [3, 6], [2, 4], [1, 2]]


@pytest.mark.parametrize(("padding", "row"), [("dog", 1), (2, 2), (np.int64(2), 2), (None, None)])
def test_the_padding_row_is_the_one_that_is_named(padding, row):
    matrix, report = load_vectors(VECTORS, ["cat", "dog", "<city>"], "mean", padding=padding)
    assert report.padding_id == row
    is_zero = (bits(matrix) == 0).all(axis=1)
    assert np.flatnonzero(is_zero).tolist() == ([] if row is None else [row])
    assert row not in report.missing_ids


def test_fallbacks_are_tried_in_order_and_only_for_words_that_are_not_found():
    source = {"cat": [1.0], "Cat": [2.0], "dog": [3.0], "DOG": [4.0]}
    vocabulary = ["Cat", "Dog", " cat ", "cow", "DOG "]
    matrix, report = load_vectors(
        source, vocabulary, "zeros", fallbacks=[str.strip, str.lower, str.upper]
    )
    assert matrix.ravel().tolist() == [2.0, 3.0, 1.0, 0.0, 4.0]
    assert report.found == ("Cat",)
    assert report.found_as == {"Dog": "dog", " cat ": "cat", "DOG ": "DOG"}
    assert report.missing == ("cow",)


def test_coverage_is_the_share_of_words_and_of_tokens():
    _, report = load_vectors(
        VECTORS, ["", "cat", "Dog", "<city>", "cow"], fallbacks=[str.lower],
        counts={"": 1000, "cat": 5, "Dog": 2, "<city>": 1},
    )  # fmt: skip
    assert report.type_coverage == 2 / 4
    assert report.token_coverage == 7 / 8
    assert "2 of 4 words" in str(report)
    assert "87.5% of the tokens" in str(report)


def test_the_words_that_describe_a_new_one_need_no_row():
    matrix, _ = load_vectors(
        VECTORS, ["", "cat", "<city>", "<new>"], {"<city>": ["town", "cat"]}, seed=1
    )
    assert matrix[2].tolist() == [0.75, 1.25]
    assert matrix[3].tolist() == [1.0, 2.0]  # a normal of one row has no deviation


@given(st.integers(0, 5))
def test_initializers_have_the_moments_that_they_name(seed):
    generator = np.random.default_rng(seed)
    known = {f"k{i}": v for i, v in enumerate(generator.normal([5, -1], [2, 0.1], (5000, 2)))}
    new = [f"n{i}" for i in range(5000)]
    rows = np.array(list(known.values()), np.float32).astype(float)

    def table(initializer, noise=0.0):
        matrix, report = load_vectors(known, ["", *known, *new], initializer, noise=noise, seed=3)
        assert (bits(matrix[1:5001]) == bits(np.float32(list(known.values())))).all()
        return matrix[report.missing_ids].astype(float)

    assert not table("zeros").any()
    np.testing.assert_allclose(table("mean"), np.tile(rows.mean(0), (5000, 1)), rtol=1e-6)
    drawn, noisy = table("normal"), table("mean", noise=0.5)
    described = table({word: ["k0", "k1"] for word in new}, noise=0.25)
    for sample, center, scale in [
        (drawn, rows.mean(0), 1.0),
        (noisy, rows.mean(0), 0.5),
        (table("zeros", noise=0.5), np.zeros(2), 0.5),
        (described, rows[:2].mean(0), 0.25),
    ]:
        assert (abs(sample.mean(0) - center) < 0.08 * scale * rows.std(0)).all()
        np.testing.assert_allclose(sample.std(0), scale * rows.std(0), rtol=0.06)
    assert (table("normal") == drawn).all()


INITIALIZERS = sorted(
    name
    for name, found in vars(keras.initializers).items()
    if inspect.isclass(found) and found is not keras.initializers.Initializer
)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_every_initializer_of_keras_makes_the_missing_rows(name):
    """Given as itself, by its class or by its name; one that makes no matrix is refused."""
    vocabulary = ["", *VECTORS, "<a>", "<b>"]
    initializer_class = getattr(keras.initializers, name)
    instance = initializer_class()
    try:
        expected = keras.ops.convert_to_numpy(instance((2, 2), dtype="float32"))
    except Exception:
        expected = None
    for initializer in (instance, initializer_class, name):
        if expected is None:
            with pytest.raises(ValueError, match=f"Received: {type(instance).__name__}, which"):
                load_vectors(VECTORS, vocabulary, initializer, seed=1)
            continue
        tables = [load_vectors(VECTORS, vocabulary, initializer, seed=1)[0] for _ in range(2)]
        assert (bits(tables[0]) == bits(tables[1])).all()
        if initializer is instance or "seed" not in instance.get_config():
            assert (bits(tables[0][-2:]) == bits(expected)).all()


@pytest.mark.parametrize("initializer", ["zeros", "mean", {"<a>": ["cat"]}, "subwords"])
def test_noise_is_added_to_centers(initializer):
    source = VECTORS
    if initializer == "subwords":
        sentences = [["cat", "dog"], ["town", "cat"]]
        source = FastText(sentences, vector_size=2, min_count=1, bucket=9, workers=1).wv
    vocabulary = ["", "cat", "dog", "town", "<a>"]
    plain, noisy, again = (
        load_vectors(source, vocabulary, initializer, noise=noise, seed=1)[0]
        for noise in (0.0, 0.5, 0.5)
    )
    assert (plain[-1] != noisy[-1]).all()
    assert (bits(plain[:-1]) == bits(noisy[:-1])).all()
    assert (bits(noisy) == bits(again)).all()


@pytest.mark.parametrize(
    "initializer", ["normal", "glorot_uniform", keras.initializers.Ones(), lambda words, table: 0]
)
def test_noise_on_what_has_no_center_is_refused(initializer):
    with pytest.raises(ValueError, match=r"added to zeros, means and centers.*noise=0\.5"):
        load_vectors(VECTORS, ["", "cat", "<a>"], initializer, noise=0.5)


@given(st.integers(1, 3))
def test_rows_of_zeros_count_for_no_mean(num_zeros):
    reserved = {f"<reserved {i}>": [0.0, -0.0] for i in range(num_zeros)}
    for initializer in ("mean", "normal"):
        last_rows = [
            load_vectors({**VECTORS, **more}, ["", *VECTORS, *more, "<a>"], initializer, seed=2)[0][
                -1
            ]
            for more in ({}, reserved)
        ]
        assert (bits(last_rows[0]) == bits(last_rows[1])).all()
    nothing_else, _ = load_vectors(reserved, [*reserved, "<a>"], "mean")
    assert not nothing_else.any()


def test_a_word_may_describe_another_more_than_once():
    matrix, _ = load_vectors(VECTORS, ["", "cat", "<a>"], {"<a>": ["cat", "cat", "dog"]})
    np.testing.assert_allclose(matrix[2], (2 * np.array([1, 2]) + np.array([3, 6])) / 3, rtol=1e-6)


@pytest.mark.parametrize("word", ["[PAD]", "<pad>", "<|padding|>", "PAD", "__pad__"])
def test_a_padding_token_in_row_0_is_hinted_at(word, recwarn):
    with pytest.warns(UserWarning, match=r"Row 0 .* looks like padding.*`padding=") as caught:
        _, report = load_vectors(VECTORS, [word, "cat"])
    assert caught[0].filename == __file__
    assert report.missing == (word,)
    recwarn.clear()
    for vocabulary, padding in [
        ([word, "cat"], word), ([word, "cat"], 0), (["", word, "cat"], None),
        (["paddle", "cat"], None), ({word: 1, "cat": 2}, None),
    ]:  # fmt: skip
        load_vectors(VECTORS, vocabulary, padding=padding)
    assert not [warning for warning in recwarn if "padding" in str(warning.message)]


def test_drawn_rows_are_finite_whatever_the_vectors_are():
    known = {"a": [3e38], "b": [-3e38]}
    matrix, _ = load_vectors(known, ["", *known, *map(str, range(1000))], "normal", seed=0)
    assert np.isfinite(matrix).all()


def test_a_function_gives_the_missing_rows():
    def initializer(new_words, table):
        assert table[1].tolist() == VECTORS["cat"]
        return [[len(word), table.shape[0]] for word in new_words]

    matrix, _ = load_vectors(VECTORS, {"": 0, "cat": 1, "<city>": 3}, initializer)
    assert matrix[2:].tolist() == [[0, 4], [6, 4]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": ["cat"]}, TypeError, "dict\\(zip"),
        ({"source": 3}, TypeError, "Received: 3"),
        ({"source": {"cat": [[1.0]]}}, ValueError, "shape \\(1, 1\\)"),
        ({"source": {"cat": ["a"]}}, ValueError, "flat array of real numbers"),
        ({"source": {"cat": [1j]}}, ValueError, "flat array of real numbers"),
        ({"source": {"cat": [1.0], "dog": [1.0, 2.0]}}, ValueError, "one width, 1"),
        ({"source": {"Cat": [1.0]}}, ValueError, "lower"),
        ({"source": {7: [1.0]}}, ValueError, "strings, and it has 7. `{str\\(word\\)"),
        ({"source": {b"cat": [1.0]}}, ValueError, "`{word.decode\\(\\)"),
        ({"source": {"cat": [np.nan]}}, ValueError, "not finite"),
        ({"source": {"cat": [1e300]}}, ValueError, "not finite"),
        ({"vocabulary": "cat"}, TypeError, "Received: 'cat'"),
        ({"vocabulary": []}, ValueError, "beside the padding"),
        ({"vocabulary": [""]}, ValueError, "beside the padding"),
        ({"vocabulary": ["cat", 3]}, TypeError, "strings"),
        ({"vocabulary": ["cat", "dog", "cat"]}, ValueError, "more than once: \\['cat'\\]"),
        ({"vocabulary": [*"abcdef" * 2]}, ValueError, "'d', 'e', \\.\\.\\.\\] \\(6 in all\\)"),
        ({"vocabulary": {0: "cat"}}, TypeError, "turned round"),
        ({"vocabulary": {"cat": "dog"}}, TypeError, "integers"),
        ({"vocabulary": {"cat": 1, "dog": 1}}, ValueError, "differ"),
        ({"vocabulary": {"cat": -1}}, ValueError, "negative"),
        ({"vocabulary": Counter(["cat"])}, TypeError, "counts and no ids"),
        ({"initializer": "often"}, ValueError, "'often'"),
        ({"initializer": 3}, TypeError, "initializer=3"),
        ({"initializer": {"cow": ["cat"]}}, ValueError, "cow"),
        ({"initializer": {"<new>": []}}, ValueError, "at least one"),
        ({"initializer": {"<new>": "cat"}}, TypeError, "sequence|tuple"),
        ({"initializer": {"<new>": ["cow"]}}, ValueError, "cow"),
        ({"initializer": lambda words, table: [[1.0, 2.0, 3.0]]}, ValueError, "\\(1, 2\\)"),
        ({"initializer": lambda words, table: [[1.0, np.inf]]}, ValueError, "finite"),
        ({"initializer": lambda words, table: table.sort()}, ValueError, "read-only"),
        ({"noise": -1}, ValueError, "noise=-1"),
        ({"padding": "cow"}, ValueError, "cow"),
        ({"padding": 3}, ValueError, "below 3"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    valid = {"source": VECTORS, "vocabulary": ["cat", "dog", "<new>"]}
    with pytest.raises(error, match=message):
        load_vectors(**{**valid, **arguments})


@given(st.lists(words, min_size=1, unique=True), st.data())
def test_row_ids_are_places_in_the_vocabulary(vocabulary, data):
    chosen = data.draw(st.lists(st.sampled_from(vocabulary)))
    ids = row_ids(chosen, vocabulary)
    assert ids.dtype == np.int64
    assert [vocabulary[row] for row in ids] == chosen
    assert ids_by_word(vocabulary) == dict(zip(vocabulary, range(len(vocabulary)), strict=True))


def test_row_ids_refuse_what_the_vocabulary_lacks_and_show_the_nearest():
    with pytest.raises(ValueError, match="'<cities>' \\(nearest: '<city>'\\), 'Ж'"):
        row_ids(["cat", "<cities>", "Ж"], ["cat", "<city>", "dog"])
    with pytest.raises(TypeError, match="in a list"):
        row_ids("cat", ["cat"])


def test_a_large_file_shows_its_progress_in_a_terminal(tmp_path, monkeypatch, capsys):
    path = tmp_path / "[red].txt"

    def written_and_read():
        save_vectors(path, np.float32([[1, 2]]), ["cat"])
        matrix, _ = load_vectors(path, ["cat"])
        assert matrix.tolist() == [[1, 2]]
        return capsys.readouterr().err

    assert not written_and_read()
    for module in (unpacking, saving):
        monkeypatch.setattr(module, "LARGE_FILE", 1)
    assert not written_and_read()  # since it goes to no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    printed = written_and_read()
    assert "Writing vectors" in printed
    assert "Reading [red].txt" in printed


NUM_LINES, WIDTH = 150_000, 25
MEASURE = """
import resource, sys, time
from gensim.models import KeyedVectors
from maskedgrad.vectors.loading import load_vectors

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

who, path, num_words = sys.argv[1], sys.argv[2], int(sys.argv[3])
words = [f"w{i}" for i in range(num_words)]
before, began = peak(), time.process_time()
if who == "gensim":
    KeyedVectors.load_word2vec_format(path, no_header=True)
else:
    matrix, report = load_vectors(path, words)
    assert report.type_coverage == 1.0
print(time.process_time() - began, peak() - before)
"""


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file in the format of GloVe, of 150,000 lines."""
    path = tmp_path_factory.mktemp("large") / "glove.txt"
    generator = np.random.default_rng(0)
    # Rows repeat after a while: writing numbers takes longer than reading them.
    rows = [" ".join(f"{x:.5f}" for x in row) for row in generator.normal(size=(9973, WIDTH))]
    with path.open("w") as file:
        file.writelines(f"w{i} {rows[i % len(rows)]}\n" for i in range(NUM_LINES))
    yield path
    path.unlink()


def measured(who: str, path: Path, num_words: int) -> np.ndarray:
    command = [sys.executable, "-c", MEASURE, who, str(path), str(num_words)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return np.array(output.split(), dtype=float)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read from `resource`")
def test_a_large_file_takes_no_more_time_and_memory_than_gensim_needs(large_file):
    """1.2 times gensim's own at most if every word is wanted, and little if few are."""
    runs = []
    for _ in range(3):  # the machine may be busy with something else for a while
        runs.append(
            [
                measured("gensim", large_file, 1),
                measured("maskedgrad", large_file, NUM_LINES),
                measured("maskedgrad", large_file, NUM_LINES // 100),
            ]
        )
        gensim, every_word, few_words = np.min(runs, axis=0)
        if (every_word <= 1.2 * gensim).all() and (few_words <= 0.5 * gensim).all():
            return
    pytest.fail(f"CPU seconds and peak memory: {gensim=} {every_word=} {few_words=}")


def test_a_binary_file_is_read_in_pieces(tmp_path):
    rows = np.random.default_rng(0).normal(size=(800, 100)).astype("float32")
    words = [f"w{row}" for row in range(800)]
    records = b"".join(
        w.encode() + b" " + row.tobytes() for w, row in zip(words, rows, strict=True)
    )
    assert len(records) > 2 * CHUNK
    (tmp_path / "vectors.bin").write_bytes(b"800 100\n" + records)
    matrix, report = load_vectors(tmp_path / "vectors.bin", ["", *words])
    assert (bits(matrix[1:]) == bits(rows)).all()
    assert not report.missing
