"""Files of vectors as people have them: what they hold is found, or the error names what is odd."""

import bz2
import gzip
import io
import lzma
import re
import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad.testing import bits
from maskedgrad.vectors import fasttext
from maskedgrad.vectors.found import LONGEST_RECORD
from maskedgrad.vectors.loading import load_vectors

GLOVE = b"the 0.5 1.5\ncat -1.0 2.0\n"
VEC = b"2 2\n" + GLOVE
BINARY = b"2 2\nthe " + np.array([0.5, 1.5], "<f4").tobytes()
BINARY += b"\ncat " + np.array([-1.0, 2.0], "<f4").tobytes() + b"\n"
ROWS = [[0.0, 0.0], [0.5, 1.5], [-1.0, 2.0]]


def gzipped(content: bytes, level: int = 9) -> bytes:
    """The same at any time, since cases of tests are named by it."""
    return gzip.compress(content, level, mtime=0)


def zipped(*contents: bytes, names: tuple[str, ...] = ("vectors.txt",), **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, content in zip(names, contents, strict=True):
            # Without the time of day, as above.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


PACKED = {
    "plain": bytes,
    "gzip": lambda content: gzipped(content, 1),
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zip": zipped,
    "gzip in zip": lambda content: zipped(gzipped(content)),
    "zip in gzip": lambda content: gzipped(zipped(content)),
}


def binary_file(*records: bytes) -> bytes:
    """A file of word2vec binary, whose records may end in a newline."""
    numbers = np.array([0.5, 1.5], "<f4").tobytes()
    header = b"%d 2\n" % len(records)
    return header + b"".join(record[:1] + b" " + numbers + record[1:] for record in records)


# ---- text ----

# What a word may be made of. A number with a point is left out: at the end of a word it cannot be
# told from one of the vector's.
parts = st.one_of(
    st.sampled_from(["", ".", "1", "000", "New", "nan", "1/2", "a\tb", "\xa0", "\u2028", "\x1c"]),
    st.text(st.characters(codec="utf-8", exclude_characters=" \n\ufeff"), max_size=3).filter(
        lambda part: "." not in part and "e" not in part.lower()
    ),
)
words = st.lists(parts, min_size=1, max_size=3).map(" ".join).filter(bool)
decimals = st.floats(width=32, allow_nan=False, allow_infinity=False).map(float)


@st.composite
def text_files(draw):
    """A file of text, and the first vector of each of its words."""
    width = draw(st.integers(1, 3))
    vectors = st.lists(decimals, min_size=width, max_size=width)
    rows = draw(st.lists(st.tuples(words, vectors), max_size=5))
    # A word without a number is what tells the width of rows such as `1 000 0.5`.
    rows.insert(draw(st.integers(0, len(rows))), ("plain", draw(vectors)))
    end = draw(st.sampled_from(["\n", "\r\n", " \n", "\t \r\n", "\n\n"]))
    text = "".join(f"{word} {' '.join(map(_decimal, vector))}{end}" for word, vector in rows)
    has_header = draw(st.booleans())
    header = f"{len(rows)} {width}{end}" if has_header else draw(st.sampled_from(["", "\n \n"]))
    # Without a header a first line such as `1 2.0` of width 1 is a row, and `1 2` is none.
    mark = draw(st.sampled_from(["", "\ufeff"]))
    return (mark + header + text).encode(), dict(reversed(rows))


def _decimal(number: float) -> str:
    return text if "." in (text := repr(number)) else f"{number:.9e}"


@given(text_files(), st.sampled_from(sorted(PACKED)), st.data())
def test_a_word_is_what_stands_before_the_numbers(file, packing, data):
    content, first_vector = file
    pieces = {piece for word in first_vector for piece in word.split(" ")} | {"absent"}
    # A line with a space too many is refused where the word without it is wanted, and has no line.
    refused = {word.strip(" ") for word in first_vector} - {*first_vector}
    candidates = sorted({*first_vector, *pieces} - refused - {""})
    chosen = data.draw(st.lists(st.sampled_from(candidates), unique=True))
    vocabulary = ["", *dict.fromkeys(["plain", *chosen])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors")
        path.write_bytes(PACKED[packing](content))
        matrix, report = load_vectors(path, vocabulary, "zeros")
    assert set(report.found) == {word for word in vocabulary[1:] if word in first_vector}
    for row, word in enumerate(vocabulary):
        expected = np.array(first_vector.get(word, np.zeros(matrix.shape[1])), "float32")
        assert (bits(matrix[row]) == bits(expected)).all()


FORMS = "%d", "%.3f", "%e", "%g", "%r", "%+.2f", "%.20f", "%.0f."


@given(
    st.lists(
        st.lists(
            st.builds(str.__mod__, st.sampled_from(FORMS), st.floats(-1e6, 1e6))
            | st.sampled_from(["nan", "-inf", "1e400", "1e-400", ".5", "-0", "INFINITY", "007"]),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)  # fmt: skip
def test_numbers_are_read_as_gensim_reads_them(rows, has_header):
    from gensim.models import KeyedVectors

    lines = [f"w{row} {' '.join(numbers)}\n" for row, numbers in enumerate(rows)]
    vocabulary = ["", "known", *(f"w{row}" for row in range(len(rows)))]
    lines.append("known 1 2 3\n")
    header = f"{len(lines)} 3\n" if has_header else ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors.txt")
        path.write_text(header + "".join(lines))
        with np.errstate(over="ignore"):
            expected = KeyedVectors.load_word2vec_format(str(path), no_header=not has_header)
        matrix, report = load_vectors(path, vocabulary, "zeros")
    for row, word in enumerate(vocabulary[1:], 1):
        is_finite = np.isfinite(expected[word]).all()
        assert (word in report.not_finite) == (not is_finite)
        if is_finite:
            assert (bits(matrix[row]) == bits(expected[word])).all()


def load(tmp_path, content: bytes, vocabulary=("", "the", "cat"), name="vectors.txt", **options):
    path = tmp_path / name
    path.write_bytes(content)
    return load_vectors(path, list(vocabulary), **{"initializer": "zeros", **options})


def refusal(tmp_path, content: bytes, vocabulary=("", "the", "cat"), name="vectors.txt") -> str:
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load(tmp_path, content, vocabulary, name)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"2 2\n", "has no rows"),
        (b"\n\n", "has no rows"),
        # The line that is odd, and not one that is as it should be.
        (b"# vectors 300\n" + GLOVE, "line 1, '# vectors 300', must be a word and 2 numbers"),
        (b"2 2 float32\n" + GLOVE, "line 1, '2 2 float32', .* A header is of two numbers"),
        (b"<<<<<<< HEAD\n" + GLOVE, "line 1, '<<<<<<< HEAD', .* conflict of versions"),
        (GLOVE + b"=======\ncat 1 2\n>>>>>>> 9b45\n", "line 3, '=======', .* conflict"),
        (VEC.replace(b"cat", b"<<<<<<< cat\ncat"), "line 3, .*conflict"),
        (b"||||||| base\n" + GLOVE, "line 1, .* conflict"),
        (b"%PDF-1.4 and so on", "line 1, .* must be a word and its numbers"),
        (GLOVE + b"dog 1\n", "line 3, 'dog 1', must be a word and 2 numbers"),
        (GLOVE + b"dog\n", "line 3, 'dog', must be a word and 2 numbers"),
        (GLOVE + b"New York 1\n", "line 3, 'New York 1', must be a word and 2 numbers"),
        (GLOVE + b"a note of 3 words\n", "line 3, 'a note of 3 words', must be"),
        (GLOVE + b"dog 0.5 one\n", "line 3, 'dog 0.5 one', must be a word and 2 numbers"),
        (GLOVE.replace(b"2.0", b"two"), "line 2, 'cat -1.0 two', must be"),
        (GLOVE.replace(b"2.0", b"\xff"), r"line 2, 'cat -1.0 \\\\xff', must be"),
        (b"the 1 2 3\ncat 1 two 3\ndog 1 2 3\n", "line 2, .* has 'two' where a number"),
        (b"the 1 2 3\ncat 1 2_0 3\ndog 1 2 3\n", "line 2, .* has '2_0' where a number"),
        (b"dog 1 2\ncat 1\n", "line 2, 'cat 1', has 1 numbers, and line 1, 'dog 1 2', has 2"),
        (b"dog 1 2\ncat 1 2 3\n", "line 1, 'dog 1 2', has 2 .* line 2, 'cat 1 2 3', has 3"),
        (b"2 3\n" + GLOVE, "2 vectors of width 3, and line 2, 'the 0.5 1.5', has 2 numbers"),
        (b"3 2\n" + GLOVE, "header says 3 vectors of width 2, and it holds 2 rows of width 2"),
        (b"dog .5 .5\nthe .5 .5\ncat .5 .5 .5\n", "line 3, .* is of another word than 'cat'"),
        (b"dog .5 .5\nowl .5 .5\nthe .5 .5 cat .5 .5\n", "line 3, .*another word than 'the'"),
        # Other separators.
        (GLOVE.replace(b" ", b"\t"), "line 1, .* single spaces. It has tabs"),
        (GLOVE.replace(b" ", b"  "), "line 1, .* single spaces. It has several spaces"),
        (GLOVE.replace(b" ", b","), "line 1, .* It has commas"),
        (GLOVE.replace(b".", b","), "line 1, .* It has commas"),
        (GLOVE.replace(b"the ", b"the\t").replace(b"cat ", b"cat\t"), "none of .* A tab is read"),
        (GLOVE.replace(b" ", b", "), "none of .* A comma is read as part of a word"),
        (b" " + GLOVE.replace(b"\n", b"\n ")[:-1], "line 1, ' the .*than 'the', has a space too"),
        (VEC.replace(b"cat ", b"cat  "), "line 3, 'cat  .*than 'cat', has a space too many"),
        (GLOVE.replace(b"\n", b"\r"), "line 1, .* carriage return"),
        (GLOVE[:-1], "last line, line 2, has no end, .*'cat -1.0 2.0'"),
        (b"dog 0.5 0.5\n", r"none of the words .*\['the', 'cat'\].* begins with 'dog'.*lower"),
    ],
)  # fmt: skip
def test_the_line_that_is_odd_is_named(content, message, tmp_path):
    assert re.search(message, refusal(tmp_path, content))


def test_a_line_of_more_numbers_is_of_another_word_if_the_word_has_its_own_line(tmp_path):
    content = GLOVE + b"dog 0.1 0.2\ndog 0.5 0.5 0.5\nowl 0.5 0.5 0.5\nowl 0.3 0.4\n"
    matrix, report = load(tmp_path, content, ["", "dog", "owl", "owl 0.5"])
    assert report.found == ("dog", "owl", "owl 0.5")
    np.testing.assert_allclose(matrix[1:], [[0.1, 0.2], [0.3, 0.4], [0.5, 0.5]])


def test_a_word_that_ends_in_a_whole_number_is_not_the_word_before_it(tmp_path):
    content = GLOVE + b"Formula 1 0.5 0.5\n1 000 0.5 0.5\n"
    _, report = load(tmp_path, content, ["", "the", "Formula", "1", "1 000"])
    assert report.found == ("the", "1 000")
    assert report.missing == ("Formula", "1")


def test_few_lines_are_held_at_once_to_learn_their_width(tmp_path):
    long_words = [
        letter * (LONGEST_RECORD * 3 // 4) for letter in b"a b c d e f g h i j k l".split()
    ]
    content = b"".join(word + b" 0.5 0.5\n" for word in long_words) + GLOVE
    tracemalloc.start()
    matrix, _ = load(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix.tolist() == ROWS
    assert peak < 7 * LONGEST_RECORD


def test_a_byte_order_mark_may_be_of_the_first_word(tmp_path):
    content = b"\xef\xbb\xbf" + GLOVE
    assert load(tmp_path, content)[0].tolist() == ROWS
    assert load(tmp_path, content, ["", "\ufeffthe", "cat"])[0].tolist() == ROWS
    assert load(tmp_path, b"\xef\xbb\xbf" + VEC)[0].tolist() == ROWS


FIRST_WORDS = [
    "<html>",
    "<html",
    "<html x",
    "<?xml",
    '{"',
    '{"a":',
    "{",
    "%PDF",
    "PAR1",
    "Rar!\x1a",
]


@pytest.mark.parametrize("word", [*FIRST_WORDS, "BZh9", "PK", "1", "|||"])
def test_a_file_may_begin_with_any_word(word, tmp_path):
    matrix, report = load(tmp_path, f"{word} 0.5 1.5\n".encode() + GLOVE, ["", word, "the"])
    assert matrix.tolist() == [[0.0, 0.0], [0.5, 1.5], [0.5, 1.5]]
    assert report.missing == ()


def test_words_of_another_encoding_are_counted(tmp_path):
    content = GLOVE + "café 1 2\n".encode("latin-1")
    _, report = load(tmp_path, content, ["", "the", "café", "caf"])
    assert report.num_undecodable == 1
    assert report.missing == ("café", "caf")


# ---- what a file is told by ----


@pytest.mark.parametrize("name", ["a.txt", "a.BIN", "a.bin.gz", "a.zip", "a.model", "a"])
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("content", [GLOVE, VEC, BINARY], ids=["glove", "vec", "binary"])
def test_a_file_is_told_by_its_content(content, packing, name, tmp_path):
    matrix, report = load(tmp_path, PACKED[packing](content), name=name)
    assert matrix.tolist() == ROWS
    assert report.missing == ()


@pytest.mark.parametrize("packing", [packing for packing in PACKED if packing != "plain"])
@given(data=st.data())
def test_a_packed_file_that_is_cut_off_is_refused(packing, data):
    whole = PACKED[packing](BINARY)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "vectors")
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(ValueError, match="cannot be read"):
            load_vectors(path, ["", "the"])


def npz(**arrays) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def npy(array) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def tar(content: bytes) -> bytes:
    import tarfile

    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo("vectors.txt"), io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GLOVE.decode().encode("utf-16"), "UTF-16"),
        (GLOVE.decode().encode("utf-16-le"), "UTF-16"),
        (GLOVE.decode().encode("utf-16-be"), "UTF-16"),
        (GLOVE.decode().encode("utf-32"), "UTF-32"),
        (gzipped(GLOVE.decode().encode("utf-16")), "UTF-16"),
        (npy(np.zeros((2, 3))), r"NumPy array.*dict\(zip"),
        (npz(words=np.zeros(3)), r"archive of NumPy arrays.*dict\(zip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"SQLite format 3\0" + bytes(range(99)), "SQLite"),
        (b"PAR1\x15\x04" + bytes(99), "Parquet"),
        (struct.pack("<q", 60) + b'{"table":{"dtype":"F32"}}', "safetensors"),
        # Begins as a pickle does.
        (struct.pack("<q", 0x0280) + b'{"table":{"dtype":"F32"}}', "safetensors"),
        (struct.pack("<q", 60) + b'{ "table": {"dtype":"F32"}}', "safetensors"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "web page"),
        (b"<html>\n<body>404</body></html>\n", "web page"),
        (b'{"the": [0.5, 1.5]}', "it is JSON"),
        (b'{\n  "the" : [\n    0.5,\n', "it is JSON"),
        (bytes(1000), "Expected text, or word2vec binary"),
        (zipped(b"", b"", names=("a/data.pkl", "a/version")), "PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n", "Git LFS"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "Unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(50)), "Unpack it first"),
        (gzipped(tar(GLOVE)), "Unpack it first"),
        (bytes(range(1, 200)) + b"\0", "Expected text, or word2vec binary"),
        (gzipped(gzipped(gzipped(GLOVE))), "packed more than 2 times"),
        (zipped(names=()), "zip archive of 0 files. It is empty"),
        (zipped(GLOVE, GLOVE, names=("50d.txt", "a/100d.txt")),
         "2 files: '50d.txt', 'a/100d.txt'. Name the one that is wanted: .*vectors.txt/50d.txt"),
        (zipped(*[GLOVE] * 12, names=tuple(map(str, range(12)))), "'9' and 2 more"),
        (b"\xba\x16\x4f\x2f" * 1000, "fastText's format 793712314"),
        (BINARY[:9] + b"\0" + BINARY[9:], "record 2 begins with .*cat"),
        (binary_file(b"a\n", b"b\n", b"c", b"d\n"), "record 4 begins with 'd'"),
        (BINARY.replace(b"cat ", b"cat x "), "goes on after them.* holds a space"),
        (BINARY.replace(b"2 2", b"3 2"), "3 vectors of width 2, and its record 3 is not complete"),
        (BINARY.replace(b"2 2", b"1 2"), "1 vectors of width 2, and it goes on"),
        (b"1 900000000000000\ncat ....", "too short"),
        (b"9" * 30 + b" 2\n" + BINARY, "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_named(content, message, tmp_path):
    assert re.search(message, refusal(tmp_path, content))


def test_a_member_of_a_zip_archive_is_named_by_a_path(tmp_path):
    names = ("50d.txt", "folder/100d.bin", "__MACOSX/x", "folder/")
    content = zipped(b"the 9 9\n", BINARY, b"", b"", names=names)
    (tmp_path / "glove.zip").write_bytes(content)
    for member, expected in [("50d.txt", [9, 9]), ("folder/100d.bin", [0.5, 1.5])]:
        matrix, _ = load_vectors(str(tmp_path / "glove.zip" / member), ["", "the"])
        assert matrix[1].tolist() == expected
    only_one = zipped(GLOVE, b"", b"", names=("50d.txt", "__MACOSX/._50d.txt", "folder/"))
    (tmp_path / "one.zip").write_bytes(only_one)
    assert load_vectors(tmp_path / "one.zip", ["", "the", "cat"])[0].tolist() == ROWS
    with pytest.raises(ValueError, match=r"no member '200d.txt'\. It holds '50d.txt', 'folder"):
        load_vectors(tmp_path / "glove.zip" / "200d.txt", ["the"])
    (tmp_path / "glove.zip").write_bytes(GLOVE)
    with pytest.raises(ValueError, match="no zip archive, and has no member"):
        load_vectors(tmp_path / "glove.zip" / "200d.txt", ["the"])


@pytest.mark.parametrize(("place", "value", "message"), [(2, 1, "encrypted"), (4, 97, "compress")])
def test_a_zip_archive_that_python_cannot_read_is_to_be_unpacked_first(
    place, value, message, tmp_path
):
    content = bytearray(zipped(GLOVE))
    content[4 + place] = content[content.index(b"PK\1\2") + 6 + place] = value
    assert re.search(f"{message}.*Unpack it first", refusal(tmp_path, bytes(content)))


@pytest.mark.parametrize("unit", [b"a" * 10**5, b"0.5 " * 25000, b"a 1 " * 25000])
@pytest.mark.parametrize("beginning", [b"", b"2 2\n", b"1 2000000\na ", b"2 2\nthe 1 2\n"])
@pytest.mark.parametrize("packing", ["gzip", "xz"])
def test_what_a_small_file_becomes_does_not_fill_the_memory(unit, beginning, packing, tmp_path):
    packed = io.BytesIO()
    with (gzip if packing == "gzip" else lzma).open(packed, "wb") as file:
        file.write(beginning)
        for _ in range(500):
            file.write(unit)
    tracemalloc.start()
    try:
        message = refusal(tmp_path, packed.getvalue())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(packed.getvalue()) < 10**6
    assert peak < 8 * LONGEST_RECORD, message


# ---- fastText ----


@pytest.fixture(scope="module", params=[(2, 4), (0, 0), (1, 3)], ids=str)
def model(request, tmp_path_factory):
    """A trained model of gensim, and the file that it is saved in as fastText does."""
    from gensim.models import FastText
    from gensim.models.fasttext import save_facebook_model

    sentences = [["the", "cat", "sat"], ["the", "dög", "ran"], ["a", "cat", "ran"], ["x", "猫"]]
    shortest, longest = request.param
    model = FastText(
        sentences, vector_size=5, min_count=1, min_n=shortest, max_n=longest, bucket=50, seed=1
    )
    path = tmp_path_factory.mktemp("fasttext") / "model.bin"
    save_facebook_model(model, str(path))
    return model, path


@pytest.mark.parametrize("packing", PACKED)
def test_what_a_fasttext_model_holds_is_found_and_the_rest_is_missing(model, packing, tmp_path):
    trained, path = model
    vocabulary = ["", *trained.wv.key_to_index, "cats", "zebra"]
    packed = tmp_path / "vectors.txt"
    packed.write_bytes(PACKED[packing](path.read_bytes()))
    for source in (packed, trained.wv):
        matrix, report = load_vectors(source, vocabulary, "zeros")
        assert report.missing == ("cats", "zebra")
        for row, word in enumerate(vocabulary[1:-2], 1):
            np.testing.assert_allclose(matrix[row], trained.wv[word], rtol=1e-6, atol=1e-8)
        assert not matrix[-2:].any()


def test_subwords_make_vectors_of_what_a_fasttext_model_lacks(model):
    from gensim.models.fasttext import load_facebook_vectors

    trained, path = model
    vocabulary = ["", "cat", "cats", "zebra", "dögs"]
    if not trained.wv.bucket:
        with pytest.raises(ValueError, match=r"with buckets\. Received: FastTextKeyedVectors"):
            load_vectors(trained.wv, vocabulary, "subwords")
        return
    has_parts = trained.wv.max_n > 0
    for source in (path, load_facebook_vectors(str(path)), trained.wv):
        matrix, report = load_vectors(source, vocabulary, "subwords", seed=0)
        assert report.missing == ("cats", "zebra", "dögs")
        assert report.missing_ids.tolist() == [2, 3, 4]
        for row, word in enumerate(vocabulary[2:], 2):
            if has_parts:
                np.testing.assert_allclose(matrix[row], trained.wv[word], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("source", [{"cat": [1.0]}, "vectors.txt"])
def test_subwords_need_a_source_that_has_them(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("vectors.txt").write_bytes(GLOVE)
    with pytest.raises(ValueError, match="needs a source that makes vectors of parts"):
        load_vectors(source, ["", "cat", "dog"], "subwords")


@given(data=st.data())
def test_a_fasttext_model_that_is_cut_off_is_refused(model, data):
    _, path = model
    whole = path.read_bytes()
    vocabulary = ["", "cat", "the", "cats"]
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder, "cut.bin")
        cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(ValueError, match="cannot be read"):
            load_vectors(cut, vocabulary, "subwords")


SETTINGS = struct.Struct("<ii12id")


def fasttext_file(
    entries, matrix, *, version=12, kind=1, bucket=0, longest=0, num_labels=0, num_pruned=-1,
    is_compressed=False, num_words=None, width=None, is_output_compressed=False, output=(1, 2),
) -> bytes:  # fmt: skip
    """A model as fastText writes it, with what it says of itself as given."""
    num_words = len(entries) - num_labels if num_words is None else num_words
    settings = [width or matrix.shape[1], 5, 5, 1, 5, 1, 1, kind, bucket, 1, longest, 100, 1e-4]
    sizes = struct.pack("<3i2q", len(entries), num_words, num_labels, 9, num_pruned)
    dictionary = b"".join(entry + b"\0" + struct.pack("<qb", 1, 0) for entry in entries)
    table = struct.pack("<?2q", is_compressed, *matrix.shape) + matrix.astype("<f4").tobytes()
    last_table = struct.pack("<?2q", is_output_compressed, *output) + bytes(8)
    magic = struct.unpack("<i", fasttext.MAGIC)[0]
    return SETTINGS.pack(magic, version, *settings) + sizes + dictionary + table + last_table


def test_labels_and_words_that_are_not_text_are_no_words(tmp_path):
    content = fasttext_file(
        [b"the", b"caf\xff", b"cat", b"dog", b"\xff"],
        np.arange(6.0).reshape(3, 2),
        kind=fasttext.SUPERVISED,
        version=11,
        longest=3,
        num_labels=2,
        is_output_compressed=True,
    )
    matrix, report = load(tmp_path, content, ["", "the", "cat", "dog"], "model.bin")
    assert matrix.tolist() == [[0, 0], [0, 1], [4, 5], [0, 0]]
    assert report.missing == ("dog",)
    assert report.num_undecodable == 1


@pytest.mark.parametrize("version", [11, 12])
def test_old_classifiers_have_no_parts_and_the_end_of_a_sentence_never(version, tmp_path):
    matrix = np.stack([np.full(2, 8.0), np.full(2, 6.0), np.zeros(2)])
    content = fasttext_file(
        [b"</s>", b"cat"], matrix, version=version, kind=fasttext.SUPERVISED, bucket=1, longest=2
    )
    rows, _ = load(tmp_path, content, ["", "</s>", "cat"], "model.bin")
    assert rows[1].tolist() == [8.0, 8.0]
    # The parts of `<cat>`: `c`, `a`, `t`, and `<c`, `ca`, `at`, `t>`, which are all in one bucket.
    assert rows[2].tolist() == ([6.0, 6.0] if version == 11 else [0.75, 0.75])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 13}, "format 13"),
        ({"num_words": 5}, "5 words and 0 labels, 2 in all"),
        ({"bucket": -1}, "-1 buckets"),
        ({"bucket": 7}, "2 words, 7 buckets and the width 2, and holds 2 rows of width 2"),
        ({"width": 3}, "the width 3, and holds 2 rows of width 2"),
        ({"num_pruned": 1}, "compressed.*`.ftz`"),
        ({"is_compressed": True}, "compressed.*`.ftz`"),
        ({"output": (1, 3)}, "cut off"),
        ({"output": (-1, 2)}, "cut off"),
        ({"output": (2**62, 2**62)}, "cut off"),
    ],
)
def test_a_fasttext_model_that_contradicts_itself_is_refused(changes, message, tmp_path):
    content = fasttext_file([b"the", b"cat"], np.ones((2, 2)), **changes)
    assert re.search(message, refusal(tmp_path, content))


def test_a_packed_fasttext_model_may_claim_to_be_of_any_size(tmp_path):
    content = fasttext_file([b"the", b"cat"], np.ones((2, 2)), output=(2**62, 2**62))
    assert "cut off" in refusal(tmp_path, bz2.compress(content))
    content = fasttext_file([b"the", b"cat"], np.ones((2, 2)))
    matrix, _ = load(tmp_path, bz2.compress(content))
    assert matrix[1:].tolist() == [[1, 1], [1, 1]]


def test_a_fasttext_model_that_claims_to_be_large_is_refused(tmp_path):
    content = fasttext_file([b"the", b"cat"], np.ones((2, 2)), bucket=2**30)
    lie = content.replace(struct.pack("<2q", 2, 2), struct.pack("<2q", 2 + 2**30, 2))
    assert "cut off" in refusal(tmp_path, lie)


# ---- what gensim saves, and holds ----


@pytest.mark.parametrize("name", ["vectors.kv", "word2vec.model", "fasttext.model"])
def test_what_gensim_saves_is_loaded_by_gensim(name, tmp_path):
    from gensim.models import FastText, Word2Vec

    sentences = [["the", "cat"], ["a", "cat"]]
    model_class = FastText if name.startswith("fasttext") else Word2Vec
    options = {"bucket": 9} if model_class is FastText else {}
    model = model_class(sentences, vector_size=3, min_count=1, **options)
    path = str(tmp_path / name)
    (model.wv if name.endswith(".kv") else model).save(path)
    with pytest.raises(ValueError, match=r"as gensim writes.*KeyedVectors.load\(path\).*\.wv`"):
        load_vectors(path, ["", "cat"])
    if name.endswith(".model"):
        with pytest.raises(TypeError, match=f"{model_class.__name__} is a model.* `.wv`"):
            load_vectors(model_class.load(path), ["", "cat"])
    matrix, report = load_vectors(model.wv, ["", "cat", "absent"])
    assert (bits(matrix[1]) == bits(model.wv["cat"])).all()
    assert report.missing == ("absent",)


def test_a_file_that_is_open_is_given_by_its_path(tmp_path):
    (tmp_path / "vectors.txt").write_bytes(GLOVE)
    with (
        (tmp_path / "vectors.txt").open("rb") as file,
        pytest.raises(TypeError, match="open is given by its path"),
    ):
        load_vectors(file, ["cat"])
