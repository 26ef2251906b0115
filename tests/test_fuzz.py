"""Whatever a file or a config holds, its reader reads it or raises a documented error.

Whole files are damaged in drawn ways: byte by byte, where a checksum or an
archive would hide the damage also inside of it, and number by number in their
headers. The counts of a long run are in docs/testing.md.
"""

import bz2
import contextlib
import copy
import functools
import gzip
import io
import json
import lzma
import re
import struct
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

pytest.importorskip("safetensors")
from safetensors.numpy import save

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, Rows, callbacks, load_vectors
from maskedgrad.cli.saved_tables import matrix_file
from maskedgrad.cli.verification import compare_files
from maskedgrad.patches.file import write_patch_file
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import read_adapter, write_adapter
from maskedgrad.patches.table import TablePatch
from maskedgrad.rows.saved import decode_row_learning_rates, decode_trainable_rows
from maskedgrad.testing import assert_same_bits
from maskedgrad.vectors.arrays import words_beside

PATH = "words/embeddings"
MODULES = {PATH: "model.embed_tokens"}
MATRIX = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
WORDS = ["", "cat", "dog", "naïve"]


def times(factor: int) -> settings:
    """As many cases as the profile has, times a factor: the larger, the cheaper a case."""
    return settings(max_examples=factor * settings().max_examples)


@contextlib.contextmanager
def bounded_memory(most: int):
    """What asks for more memory than is in use and `most` bytes fails, as on a small machine."""
    if sys.platform != "linux":  # where the system counts what a process has, and bounds it
        yield
        return
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        num_pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (num_pages * resource.getpagesize() + most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(autouse=True)
def _bounded_memory():
    with bounded_memory(2**30):
        yield


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fuzz")


def in_folder(name: str) -> Path:
    """A path in a folder that all cases share, not a fixture: `tests.fuzz` knows of none."""
    return Path(_temporary_folder().name, name)


@pytest.fixture
def folder():
    return in_folder("")


numbers = st.one_of(
    st.integers(-3, 10),
    st.sampled_from([2**31, 2**32, 2**63, 2**64 - 1, -(2**63), 10**12, 10**40, 10**9]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, st.floats(), st.text(max_size=8))
row_texts = st.one_of(
    st.text(alphabet="0123456789:,-", max_size=12),
    st.sampled_from(["0:1000000000000", "::", "-3::", "1:3,5", ",", "9" * 40, "5:1", "1:3,2:4"]),
)
values = st.recursive(
    st.one_of(scalars, row_texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def places_in(value, place=()):
    """Where the parts of a JSON value are, itself among them."""
    yield place
    parts = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    for key, part in parts:
        yield from places_in(part, (*place, key))


def changed_at(value, place, change):
    """A JSON value with one part changed; left out where that becomes `...`."""
    if not place:
        return change(value)
    key, *rest = place
    part = changed_at(value[key], rest, change)
    parts = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    parts[key] = part
    if part is ...:
        del parts[key]
    return parts if isinstance(value, dict) else list(parts.values())


@st.composite
def changed_json(draw, value):
    """A JSON value that was changed in some places, or another."""
    if draw(st.integers(0, 9)) == 0:
        return draw(values)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([place for place in places_in(value) if place] or [()]))
        new = draw(st.one_of(values, row_texts, st.just(...) if place else values))
        value = changed_at(value, place, lambda _, new=new: new)
    return value


@st.composite
def changed_bytes(draw, whole: bytes):
    """Bytes that were flipped, overwritten, cut, doubled, moved or put in; or others."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.binary(max_size=200))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        stop = draw(st.integers(start, len(whole)))
        content = draw(st.binary(min_size=1, max_size=8))
        kind = draw(st.sampled_from(["flip", "set", "cut", "end", "double", "insert", "swap", "n"]))
        if kind == "flip" and start < len(whole):
            flipped = bytes([whole[start] ^ (1 << content[0] % 8)])
            whole = whole[:start] + flipped + whole[start + 1 :]
        elif kind == "set":
            whole = whole[:start] + content + whole[start + len(content) :]
        elif kind == "cut":
            whole = whole[:start] + whole[stop:]
        elif kind == "end":
            whole = whole[:start]
        elif kind == "double":
            whole = whole[:stop] + whole[start:stop] + whole[stop:]
        elif kind == "insert":
            whole = whole[:start] + content + whole[start:]
        elif kind == "swap":
            middle = (start + stop) // 2
            whole = whole[:start] + whole[middle:stop] + whole[start:middle] + whole[stop:]
        elif found := list(re.finditer(rb"\d+", whole)):
            number = draw(st.sampled_from(found))
            whole = whole[: number.start()] + str(draw(numbers)).encode() + whole[number.end() :]
    return whole


def with_header(whole: bytes, change) -> bytes:
    """A safetensors file whose header was changed, and is as long as the file says."""
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.dumps(change(json.loads(whole[8 : 8 + size]))).encode()
    return struct.pack("<Q", len(header)) + header + whole[8 + size :]


arrays = st_numpy.arrays(
    dtype=st.sampled_from(["<i8", "<u8", "<i4", "u1", "?", "<f4", "<f2", "<f8"]),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


def changed(whole) -> st.SearchStrategy:
    """`changed_bytes` of what a function returns, which is called once there is need of it."""
    return st.deferred(lambda: changed_bytes(whole()))


def cut_short(whole) -> st.SearchStrategy:
    """A beginning of what a function returns, or other bytes, in the place of an HDF5 file.

    Flipped bytes are not drawn, for HDF5 itself may loop on them for ever: seen in
    `H5HG__cache_heap_deserialize`, which reads the lengths of text, of HDF5 1.14.
    """
    beginnings = st.deferred(lambda: st.integers(0, len(whole())).map(lambda end: whole()[:end]))
    return st.one_of(beginnings, st.binary(max_size=200))


@functools.cache
def patch() -> RowPatch:
    table = TablePatch(PATH, Rows([3, 5], 7), MATRIX[:2], MATRIX[2:4], "0" * 64)
    return RowPatch(table, TablePatch("tags", Rows([0], 4), MATRIX[:1], None, "1" * 64))


@functools.cache
def make_model() -> MaskedModel:
    words = keras.layers.Embedding(7, 3, weights=[MATRIX], name="words")
    inputs = keras.Input((2,), dtype="int32")
    model = MaskedModel(inputs, keras.layers.Dense(1, name="head")(words(inputs)), name="model")
    model.compile("adam", loss="mse", trainable_rows={words: [3, 5]})
    model.optimizer.build(model.trainable_variables)
    return model


def written(name: str, write) -> bytes:
    """What a function writes to the path that it is given."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name))
        return Path(folder, name).read_bytes()


@functools.cache
def patch_file() -> bytes:
    return written("patch", patch().save)


def read_patch(path, content: bytes) -> None:
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert isinstance(RowPatch.load(path), RowPatch)


@times(25)
@given(content=changed(patch_file))
def test_a_row_patch(content):
    read_patch(in_folder("patch"), content)


def header_of(whole: bytes):
    headers = []
    with_header(whole, lambda header: headers.append(header) or header)
    return headers[0]


@times(25)
@given(header=st.deferred(lambda: changed_json(header_of(patch_file()))))
def test_the_header_of_a_row_patch(header):
    read_patch(in_folder("patch"), with_header(patch_file(), lambda _: header))


TABLES = {PATH: {"num_rows": 7, "digest": "0" * 64}}
NAMES = [f"{PATH}/{kind}" for kind in ("ids", "values", "original")]
TENSORS = dict(zip(NAMES, [np.array([3, 5]), MATRIX[:2], MATRIX[:2]], strict=True))


@times(25)
@given(
    tables=st.one_of(st.just(TABLES), changed_json(TABLES)),
    tensors=st.dictionaries(st.sampled_from(NAMES), arrays, max_size=2),
    absent=st.sets(st.sampled_from(NAMES), max_size=1),
)
def test_what_a_row_patch_says_under_a_right_checksum(tables, tensors, absent):
    tensors = {**TENSORS, **tensors}
    kept = {name: tensor for name, tensor in tensors.items() if name not in absent}
    write_patch_file(in_folder("patch"), tables, kept)
    with contextlib.suppress(ValueError):
        loaded = RowPatch.load(in_folder("patch"))
        assert all(isinstance(table.digest, str) for table in loaded.tables.values())


@functools.cache
def adapter_files() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(RowPatch(patch().tables[PATH]), folder, MODULES)
        return tuple(Path(folder, name).read_bytes() for name in ADAPTER_FILES)


ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TENSOR_NAME = f"base_model.model.{MODULES[PATH]}.trainable_tokens_delta"


@times(25)
@given(
    config=st.one_of(
        st.deferred(lambda: st.just(adapter_files()[0])),
        changed(lambda: adapter_files()[0]),
        st.deferred(lambda: changed_json(json.loads(adapter_files()[0]))).map(
            lambda value: json.dumps(value).encode()
        ),
    ),
    tensors=st.one_of(
        st.deferred(lambda: st.just(adapter_files()[1])),
        changed(lambda: adapter_files()[1]),
        arrays.map(lambda array: save({TENSOR_NAME: array})),
    ),
)
def test_an_adapter_of_peft(config, tensors):
    for name, content in zip(ADAPTER_FILES, (config, tensors), strict=True):
        in_folder(name).write_bytes(content)
    with contextlib.suppress(ValueError):
        assert read_adapter(in_folder(""), make_model(), MODULES).tables[PATH].dtype == "float32"


@functools.cache
def saved_model() -> bytes:
    return written("model.keras", make_model().save)


@functools.cache
def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(saved_model())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def saved_with(**changed_members: bytes) -> bytes:
    """The saved model with another config or other weights."""
    names = {"config": "config.json", "weights": "model.weights.h5"}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        renamed = {names[name]: member for name, member in changed_members.items()}
        for name, member in {**members(), **renamed}.items():
            archive.writestr(name, member)
    return content.getvalue()


def verify(content: bytes) -> None:
    """Compares a saved model with a matrix, as `python -m maskedgrad verify` does."""
    model, source = in_folder("model.keras"), in_folder("source.npy")
    np.save(source, MATRIX)
    model.write_bytes(content)
    with contextlib.suppress(OSError, ValueError):
        compare_files(model, source)


@times(4)
@given(content=changed(saved_model))
def test_the_archive_of_a_saved_model(content):
    verify(content)


def config_of_model():
    return json.loads(members()["config.json"])


@times(4)
@given(
    config=st.one_of(
        st.deferred(lambda: changed_json(config_of_model())),
        st.deferred(lambda: changed_json(config_of_model()["compile_config"]["optimizer"])).map(
            lambda value: {"compile_config": {"optimizer": value}}
        ),
    )
)
def test_the_config_of_a_saved_model(config):
    verify(saved_with(config=json.dumps(config).encode()))


@times(4)
@given(weights=cut_short(lambda: members()["model.weights.h5"]))
def test_the_weights_of_a_saved_model(weights):
    verify(saved_with(weights=weights))


shapes = st.lists(st.sampled_from([0, 1, 3, 7, 10**6, 10**12]), max_size=3).map(tuple)
h5_dtypes = st.sampled_from(["f4", ">f8", "f2", "i1", "?", "c8", "S3", "V4", "i4,f4", "O"])


@st.composite
def weights_files(draw):
    """A file of weights that is whole, and says other things than those of a saved model."""
    content = io.BytesIO()
    places = st.sampled_from(["layers/embedding", "layers", "layers/embedding/vars/0"])
    with h5py.File(content, "w") as file:
        for _ in range(draw(st.integers(1, 2))):
            # Not all that is drawn can be written.
            with contextlib.suppress(KeyError, OSError, RuntimeError, TypeError, ValueError):
                write_group(draw, file.require_group(draw(places)))
    return content.getvalue()


def write_group(draw, group) -> None:
    own = group.require_group("vars")
    own.attrs["name"] = draw(st.one_of(st.text("words/", max_size=6), numbers, arrays))
    key = draw(st.sampled_from(["0", "1"]))
    kind = draw(st.sampled_from(["table", "text", "link", "external", "group", "loop"]))
    if kind == "table":
        chunks = draw(st.sampled_from([None, True]))
        own.create_dataset(key, draw(shapes), draw(h5_dtypes), chunks=chunks)
        name = st.sampled_from(["bfloat16", "finfo", "__doc__", "int4", "", 3])
        own[key].attrs["dtype"] = draw(name)
    elif kind == "text":
        own.create_dataset(key, data=[["a"]])
    elif kind == "link":
        own[key] = h5py.SoftLink("/nowhere")
    elif kind == "external":
        own[key] = h5py.ExternalLink("nowhere.h5", "/table")
    elif kind == "group":
        own.require_group(key)
    else:
        group["loop"] = group


@times(4)
@given(weights=weights_files())
def test_what_else_a_file_of_weights_may_hold(weights):
    verify(saved_with(weights=weights))


@times(25)
@given(content=changed(lambda: written("matrix.npy", lambda path: np.save(path, MATRIX))))
def test_a_matrix(content):
    path = in_folder("matrix.npy")
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        table = matrix_file(path)
        assert table.read(0, 2).shape == (min(2, table.shape[0]), *table.shape[1:])


def fasttext_model(rows: dict[str, np.ndarray]) -> bytes:
    """A model of words and vectors without parts, as fastText writes it."""
    settings = struct.pack("<14id", 793712314, 12, 3, 5, 5, 1, 5, 1, 1, 1, 0, 0, 0, 100, 1e-4)
    sizes = struct.pack("<3i2q", len(rows), len(rows), 0, 9, -1)
    words = b"".join(word.encode() + b"\0" + struct.pack("<qb", 1, 0) for word in rows)
    matrix = struct.pack("<?2q", False, len(rows), 3) + b"".join(map(bytes, rows.values()))
    return settings + sizes + words + matrix + struct.pack("<?2q", False, 1, 3) + bytes(12)


def vector_files() -> dict[str, bytes]:
    """Vectors of the words in every format that is read, by the name of the file."""
    rows = dict(zip(WORDS[1:], MATRIX, strict=False))
    text = b"".join(
        word.encode() + b" " + b" ".join(b"%g" % number for number in row) + b"\n"
        for word, row in rows.items()
    )
    header = b"%d 3\n" % len(rows)
    binary = header + b"".join(
        word.encode() + b" " + row.tobytes() + b"\n" for word, row in rows.items()
    )
    vectors = np.stack(list(rows.values()))
    return {
        "glove.txt": text,
        "fasttext.vec": header + text,
        "word2vec.bin": binary,
        "glove.txt.gz": gzip.compress(text, mtime=0),
        "word2vec.bin.gz": gzip.compress(binary, mtime=0),
        "glove.txt.bz2": bz2.compress(text),
        "glove.txt.xz": lzma.compress(text),
        "glove.txt.zip": zipped(text),
        "fasttext.bin": fasttext_model(rows),
        "words.npy": written("words.npy", lambda path: np.save(path, vectors)),
        "words.safetensors": save({"embeddings": vectors}),
    }


def zipped(content: bytes) -> bytes:
    """An archive of one file."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("vectors.txt", content)
    return archive.getvalue()


def unzipped(archive: bytes) -> bytes:
    """The one file of an archive."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        return file.read(*file.namelist())


PACKERS = {
    ".gz": (gzip.compress, gzip.decompress),
    ".bz2": (bz2.compress, bz2.decompress),
    ".xz": (lzma.compress, lzma.decompress),
    ".zip": (zipped, unzipped),
}


VECTOR_FILES = vector_files()


def of_vectors(name: str):
    """A test of the reader that a file is for, with changes of the file and of what is packed."""
    packed, unpack = PACKERS.get(Path(name).suffix, (bytes, bytes))

    @times(25)
    @given(data=st.data())
    def test(data):
        whole, path = VECTOR_FILES[name], in_folder(name)
        within = changed_bytes(unpack(whole)).map(packed)
        path.write_bytes(data.draw(st.one_of(changed_bytes(whole), within)))
        if name.startswith("words."):
            words_beside(path).write_text("\n".join([*WORDS[1:], ""]))
        with contextlib.suppress(ValueError):
            matrix, _ = load_vectors(path, WORDS, "zeros")
            assert np.isfinite(matrix).all()

    return test


test_glove_text = of_vectors("glove.txt")
test_fasttext_text = of_vectors("fasttext.vec")
test_word2vec_binary = of_vectors("word2vec.bin")
test_a_fasttext_model = of_vectors("fasttext.bin")
test_glove_text_in_gzip = of_vectors("glove.txt.gz")
test_word2vec_binary_in_gzip = of_vectors("word2vec.bin.gz")
test_glove_text_in_bz2 = of_vectors("glove.txt.bz2")
test_glove_text_in_xz = of_vectors("glove.txt.xz")
test_glove_text_in_zip = of_vectors("glove.txt.zip")
test_an_array_of_vectors = of_vectors("words.npy")
test_safetensors_of_vectors = of_vectors("words.safetensors")


class Kept(keras.callbacks.Callback):
    """Keeps what is in a file when an epoch begins."""

    def __init__(self, path):
        super().__init__()
        self.path, self.content = path, b""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch:
            self.content = self.path.read_bytes()


@functools.cache
def backup_file() -> bytes:
    batch = np.array([[0, 3], [5, 1]]), np.ones((2, 2, 1), "float32")
    with tempfile.TemporaryDirectory() as folder:
        kept = Kept(Path(folder, "latest.weights.h5"))
        make_model().fit(
            *batch, epochs=2, verbose=0, callbacks=[callbacks.BackupAndRestore(folder), kept]
        )
    return kept.content


def with_epoch(epoch) -> bytes:
    content = io.BytesIO(backup_file())
    # HDF5 has no attribute of None, and none with a zero in its text.
    with h5py.File(content, "a") as file, contextlib.suppress(TypeError, ValueError):
        del file.attrs["epoch"]
        file.attrs["epoch"] = epoch
    return content.getvalue()


epochs = st.one_of(scalars.filter(lambda value: value != 10**40), arrays)


@times(4)
@given(content=st.one_of(cut_short(backup_file), epochs.map(with_epoch)))
def test_a_backup_of_training(content):
    in_folder("latest.weights.h5").write_bytes(content)
    backup = callbacks.BackupAndRestore(in_folder(""))
    backup.set_model(make_model())
    with contextlib.suppress(OSError):
        backup.on_train_begin()
        assert type(make_model()._initial_epoch) is int


ROWS_CONFIG = Rows([1, 2, 5], 7).get_config()
TRAINABLE_ROWS_CONFIG = [
    {
        "path": PATH,
        "axis": 0,
        "shape": [7, 3],
        "place": 0,
        "num_variables": 3,
        "paths": "0123456789abcdef",
        "rows": "1:3,5",
        "num_rows": 7,
    },
    {"pattern": ".*/kernel", "rows": "::2", "axis": -1},
    {"layer": "head", "rows": "range(0, 9, 2)"},
]
RATES_CONFIG = [{"learning_rate": 0.5, "rows": [{"path": PATH, "axis": 0, "rows": "1:3,5"}]}]


@times(25)
@given(config=changed_json(ROWS_CONFIG))
def test_the_config_of_rows(config):
    with contextlib.suppress(TypeError, ValueError):
        Rows.from_config(config)


@times(25)
@given(config=changed_json(TRAINABLE_ROWS_CONFIG))
def test_the_config_of_trainable_rows(config):
    with contextlib.suppress(TypeError, ValueError):
        decode_trainable_rows(config)


@times(25)
@given(config=changed_json(RATES_CONFIG))
def test_the_config_of_row_learning_rates(config):
    with contextlib.suppress(TypeError, ValueError):
        decode_row_learning_rates(config)


def optimizer_config():
    return MaskedOptimizer(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW(0.1)),
        {PATH: [1, 2], AlongAxis("head/kernel", -1): slice(None, None, 2)},
        row_learning_rates={PATH: {0.5: [1]}},
    ).get_config()


@times(8)
@given(config=changed_json(TRAINABLE_ROWS_CONFIG[:1]))
def test_the_rows_in_a_file_of_weights(config):
    optimizer = make_model().optimizer
    before, state = optimizer.masked_tables()[0].rows, optimizer.variables[2].numpy()
    written = np.frombuffer(json.dumps(config).encode(), np.uint8)
    with contextlib.suppress(TypeError, ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.chosen_row_ids.load_own_variables({"tables": written})
        before = None
    if before is not None:
        assert optimizer.masked_tables()[0].rows == before
        assert_same_bits(optimizer.variables[2].numpy(), state, "a moment of the rows")
    optimizer.set_trainable_rows({PATH: [3, 5]})


@times(8)
@given(config=st.deferred(lambda: changed_json(optimizer_config())))
def test_the_config_of_an_optimizer(config):
    with contextlib.suppress(TypeError, ValueError):
        # Keras takes out of a config what it makes something of.
        optimizer = MaskedOptimizer.from_config(copy.deepcopy(config))
        assert isinstance(optimizer, MaskedOptimizer)


def weights_with(shape=(7, 3), dtype="f4", chunks=None, **attributes) -> bytes:
    """A file of weights that holds one table, which is not written to."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        table = file.create_dataset("layers/words/vars/0", shape, dtype, chunks=chunks)
        table.attrs.update(attributes)
    return content.getvalue()


def refused(call, error, message: str, most: float = 5e6) -> None:
    """Raises unless a call raises an error, and needs a few megabytes at most for that."""
    tracemalloc.start()
    try:
        with pytest.raises(error, match=message):
            call()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("num_rows", [10**9, 10**12])
def test_what_a_header_claims_is_not_allocated(folder, num_rows):
    vectors, model, matrix = (folder / name for name in ("a.bin", "model.keras", "matrix.npy"))
    np.save(folder / "source.npy", MATRIX)
    vectors.write_bytes(b"1 %d\ncat ...." % num_rows)
    refused(lambda: load_vectors(vectors, WORDS), ValueError, "too short")
    zipped = vectors.with_name("a.bin.gz")
    zipped.write_bytes(gzip.compress(vectors.read_bytes()))
    refused(lambda: load_vectors(zipped, WORDS), ValueError, "too short")
    for shape in ((num_rows, 3), (num_rows, 0)):
        weights = weights_with(shape, chunks=(1, 1) if shape[1] else None)
        model.write_bytes(saved_with(weights=weights))
        refused(lambda: compare_files(model, folder / "source.npy"), ValueError, "must have")
    lie = (folder / "source.npy").read_bytes().replace(b"(7, 3), }", b"(%d, 3), }" % num_rows)
    matrix.write_bytes(lie)
    refused(lambda: matrix_file(matrix), ValueError, "matrix.npy")
    changed_header = with_header(
        patch_file(),
        lambda header: changed_at(header, [f"{PATH}/ids", "shape"], lambda _: [num_rows]),
    )
    (folder / "patch").write_bytes(changed_header)
    refused(lambda: RowPatch.load(folder / "patch"), ValueError, "safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {"rows": "0:2147483647", "num_rows": 2147483647},
        {"rows": "0:1000000000,1000000001:2147483647", "num_rows": 2147483648},
        {"rows": "0:2147483647"},
        {"rows": "0:1000000000,1000000001:2147483647"},
    ],
)
def test_rows_that_a_config_makes_up_are_not_allocated(config):
    table = {"path": PATH, "axis": 0, **config}
    (rows,) = decode_trainable_rows([table]).values()
    refused(lambda: Rows(rows, 9), ValueError, "below 9|length of the table, 9")
    rates = decode_row_learning_rates([{"learning_rate": 0.5, "rows": [table]}])
    variable = keras.Variable(MATRIX, name=PATH.rpartition("/")[2])
    for arguments in (
        {"trainable_rows": {"embeddings": rows}},
        {
            "trainable_rows": {"embeddings": [1]},
            "row_learning_rates": {"embeddings": next(iter(rates.values()))},
        },
    ):
        optimizer = MaskedOptimizer("adam", **arguments)
        assert optimizer.get_config()["name"]
        build = functools.partial(optimizer.build, [variable])
        refused(build, ValueError, "below 7|length of the table, 7")
    refused(lambda: Rows.from_config({"rows": "0:10", "num_rows": 9}), ValueError, "below 9")


def test_a_saved_model_whose_config_makes_up_rows_is_refused_before_they_are_made(folder):
    config = config_of_model()
    (table,) = config["compile_config"]["optimizer"]["config"]["trainable_rows"]
    table.update(rows="0:2147483647", num_rows=2147483647)
    np.save(folder / "source.npy", MATRIX)
    (folder / "model.keras").write_bytes(saved_with(config=json.dumps(config).encode()))
    arguments = folder / "model.keras", folder / "source.npy"
    refused(lambda: compare_files(*arguments), ValueError, "one table of 2147483647 rows")
    load = functools.partial(keras.saving.load_model, folder / "model.keras")
    refused(load, ValueError, "length of the table, 7", most=50e6)  # Keras makes a model first


@pytest.mark.parametrize(
    "entry",
    [
        *({"axis": "0"}, {"axis": True}, {"axis": 1.0}),
        *({"place": -2}, {"place": 1.0}, {"place": 3}, {"place": 0, "num_variables": None}),
        *({"num_variables": -1}, {"num_variables": True}, {"paths": 3}),
        *({"shape": 7}, {"shape": [7, -3]}, {"shape": [7.0, 3]}, {"shape": "73"}),
        *({"path": None}, {"path": 3}, {"layer": "words"}, {"pattern": ".*"}),
    ],
)
def test_a_table_in_a_config_is_named_once_and_has_numbers_that_tell_it(entry):
    with pytest.raises(ValueError, match="A table in a config"):
        decode_trainable_rows([{**TRAINABLE_ROWS_CONFIG[0], **entry}])


@pytest.mark.parametrize("config", [None, {}, ["rows"], [{"rows": {}}], [{"learning_rate": 1.0}]])
def test_a_config_of_learning_rates_that_lacks_something(config):
    with pytest.raises(ValueError, match="list of mappings"):
        decode_row_learning_rates(config)


@pytest.mark.parametrize("config", [{}, {PATH: {"rows": "1"}}, PATH, None, [PATH], [[]], 3])
def test_a_config_of_trainable_rows_is_a_list_of_mappings(config):
    with pytest.raises(TypeError, match="list of mappings"):
        decode_trainable_rows(config)


def test_a_config_of_trainable_rows_speaks_of_each_table_once():
    with pytest.raises(ValueError, match="each table once"):
        decode_trainable_rows([TRAINABLE_ROWS_CONFIG[1], TRAINABLE_ROWS_CONFIG[1]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ...}, "without .'name'."),
        ({"lazy": ..., "row_learning_rates": ...}, "without .'lazy', 'row_learning_rates'."),
        ({"inner_optimizer": {"config": {}}}, "Keras makes nothing"),
    ],
)
def test_a_config_of_an_optimizer_that_lacks_something(change, message):
    config = {**optimizer_config(), **change}
    config = {key: value for key, value in config.items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        MaskedOptimizer.from_config(config)


@pytest.mark.parametrize(
    ("token_ids", "values", "message"),
    [
        ([3, True], MATRIX[:2], "whole numbers"),
        ([3, 2**64], MATRIX[:2], "whole numbers"),
        ([3, -1], MATRIX[:2], "whole numbers"),
        ([3, 5], np.float32(1.0), r"values of shape \(\)"),
        ([3, 5], MATRIX[:3], r"values of shape \(3, 3\)"),
    ],
)
def test_an_adapter_that_is_not_what_it_says(folder, token_ids, values, message):
    config = {**json.loads(adapter_files()[0]), "token_indices": token_ids}
    tensors = save({TENSOR_NAME: np.array(values)})
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(config))
    (folder / ADAPTER_FILES[1]).write_bytes(tensors)
    with pytest.raises(ValueError, match=message):
        read_adapter(folder, make_model(), MODULES)


def test_the_digest_of_a_row_patch_is_a_string(folder):
    write_patch_file(folder / "patch", {PATH: {"num_rows": 7, "digest": [0]}}, TENSORS)
    with pytest.raises(ValueError, match="a digest must be a string"):
        RowPatch.load(folder / "patch")


def test_what_is_nested_as_deep_as_can_be_read_may_be_too_deep_to_be_written(folder):
    limit = sys.getrecursionlimit()
    for depth in range(limit - 300, limit):
        header = f'{{"version": 1, "sha256": "", "tables": {{"": {"[" * depth}{"]" * depth}}}}}'
        (folder / "patch").write_bytes(save(TENSORS, {"row_patch": header}))
        with pytest.raises(ValueError, match="row patch"):
            RowPatch.load(folder / "patch")


@pytest.mark.parametrize(
    "members",
    [
        {"config": b"[]"},
        {"config": b'{"compile_config": 1}'},
        {"config": b'{"compile_config": {"optimizer": {"class_name": "MaskedOptimizer"}}}'},
        {"weights": weights_with(chunks=(7, 3))},
        {"weights": weights_with(dtype="i4,f4")},
        {"weights": weights_with(dtype="S3")},
    ],
)
def test_a_saved_model_that_holds_something_else(folder, members):
    np.save(folder / "source.npy", MATRIX)
    (folder / "model.keras").write_bytes(saved_with(**members))
    with pytest.raises(ValueError, match=r"Expected a model as `model.save"):
        compare_files(folder / "model.keras", folder / "source.npy")


@pytest.mark.parametrize("epoch", [b"two", [1, 2], np.nan])
def test_a_backup_that_is_none_is_refused_before_any_weight_is_loaded(folder, epoch):
    (folder / "latest.weights.h5").write_bytes(with_epoch(epoch))
    model = make_model()
    before = [value.numpy() for value in model.weights]
    backup = callbacks.BackupAndRestore(folder)
    backup.set_model(model)
    with pytest.raises(OSError, match=r"Expected a backup of the model 'model'.*latest.weights.h5"):
        backup.on_train_begin()
    for value, value_before in zip(model.weights, before, strict=True):
        assert_same_bits(value.numpy(), value_before, value.path)
