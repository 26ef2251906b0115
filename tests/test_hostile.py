"""Files that lie, links that lead away, disks that are full: read, or refused as documented."""

import contextlib
import errno
import functools
import gc
import gzip
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

pytest.importorskip("safetensors")
from safetensors.numpy import save

from maskedgrad import (
    MaskedModel,
    MaskedOptimizer,
    RowPatch,
    Rows,
    callbacks,
    load_vectors,
    save_vectors,
    write_projector,
)
from maskedgrad.cli import main
from maskedgrad.cli.patched_file import apply_to_file
from maskedgrad.cli.saved_tables import open_tables
from maskedgrad.cli.verification import compare_files
from maskedgrad.files import write_together
from maskedgrad.patches.parts import parts_of
from maskedgrad.patches.peft import read_adapter, write_adapter
from maskedgrad.patches.table import TablePatch
from maskedgrad.testing import assert_same_bits
from tests.test_fuzz import fasttext_model

MATRIX = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")
PATH, MODULES = "words/embeddings", {"words/embeddings": "embed_tokens"}


def make_model(ids=(3, 5)) -> MaskedModel:
    words = keras.layers.Embedding(7, 3, weights=[MATRIX], name="words")
    model = MaskedModel(inputs := keras.Input((2,), dtype="int32"), words(inputs), name="model")
    model.compile("adam", loss="mse", trainable_rows={words: list(ids)})
    model.optimizer.build(model.trainable_variables)
    return model


def patch(value=1.0, rows=(3, 5), width=3) -> RowPatch:
    values = np.full((len(rows), width), value, "float32")
    return RowPatch(TablePatch(PATH, Rows(list(rows), 7), values, None, "0" * 64))


# Files of patches and adapters


@pytest.fixture
def saved_patch(tmp_path):
    path = tmp_path / "rows.safetensors"
    patch().save(path)
    return path


def twice(whole: bytes, name: str, first) -> bytes:
    """A safetensors file whose header speaks twice of something, first otherwise."""
    (size,) = struct.unpack("<Q", whole[:8])
    text = f'{{"{name}": {json.dumps(first)}, '.encode() + whole[8 : 8 + size].strip()[1:]
    return struct.pack("<Q", len(text)) + text + whole[8 + size :]


@pytest.mark.parametrize("name", [f"{PATH}/values", "__metadata__"])
def test_a_header_that_says_two_things_of_one_name_is_refused(saved_patch, name):
    whole = saved_patch.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    saved_patch.write_bytes(twice(whole, name, json.loads(whole[8 : 8 + size])[name]))
    with pytest.raises(ValueError, match=r"Expected a whole safetensors file.*rows\.safetensors"):
        RowPatch.load(saved_patch)


@pytest.mark.parametrize("size", [2, 2**20, 10**8, 10**9, 2**63, 2**64 - 1])
def test_a_header_of_any_length_is_refused_at_once(saved_patch, size):
    saved_patch.write_bytes(struct.pack("<Q", size) + saved_patch.read_bytes()[8:])
    with pytest.raises(ValueError, match="Expected a whole safetensors file"):
        RowPatch.load(saved_patch)


def test_tensors_that_overlap_are_refused(saved_patch):
    whole = saved_patch.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    header[f"{PATH}/ids"]["data_offsets"] = [8, 24]
    text = json.dumps(header).encode()
    saved_patch.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    with pytest.raises(ValueError, match="Expected a whole safetensors file"):
        RowPatch.load(saved_patch)


def test_a_name_that_the_json_of_a_patch_holds_twice_is_refused(saved_patch):
    tables = {PATH: {"num_rows": 7, "digest": "0" * 64}}
    header = {"version": 1, "tables": tables, "sha256": patch().checksum}
    tensors = dict(parts_of(patch().tables.values())[1])
    text = json.dumps(header).replace('"version": 1', '"version": 1, "version": 1')
    saved_patch.write_bytes(save(tensors, metadata={"row_patch": json.dumps(header)}))
    assert RowPatch.load(saved_patch) == patch()
    saved_patch.write_bytes(save(tensors, metadata={"row_patch": text}))
    with pytest.raises(ValueError, match="Expected a row patch"):
        RowPatch.load(saved_patch)


def test_a_file_that_is_cut_while_it_is_read_is_an_error_and_not_the_end(tmp_path):
    path, big = tmp_path / "rows", patch(rows=range(7), width=20_000)
    big.save(path)
    whole, done = path.read_bytes(), threading.Event()

    def cut_and_mend():
        while not done.is_set():
            os.truncate(path, 4096)
            path.write_bytes(whole)

    thread = threading.Thread(target=cut_and_mend)
    thread.start()
    try:
        for _ in range(30):
            with contextlib.suppress(ValueError):
                assert RowPatch.load(path) == big
    finally:
        done.set()
        thread.join()


def test_whoever_reads_while_two_save_has_the_patch_of_one(tmp_path):
    path, patches = tmp_path / "rows", [patch(1.0), patch(2.0)]
    patches[0].save(path)
    done = threading.Event()

    def save_again_and_again(mine):
        while not done.is_set():
            mine.save(path)

    threads = [threading.Thread(target=save_again_and_again, args=(mine,)) for mine in patches]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            assert RowPatch.load(path) in patches
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert [each.name for each in tmp_path.iterdir()] == ["rows"]


def test_the_files_of_an_adapter_are_seen_to_be_of_two(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    write_adapter(patch(rows=(3, 5)), one, MODULES)
    write_adapter(patch(rows=(3, 6)), other, MODULES)
    (one / "adapter_config.json").write_bytes((other / "adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match="files of an adapter must be of one"):
        read_adapter(one, make_model(), MODULES)
    assert read_adapter(other, make_model(), MODULES).tables[PATH].ids.tolist() == [3, 6]


# Disks and folders


@contextlib.contextmanager
def full_disk(most: int):
    """A context in which no file can be longer than so many bytes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WRITERS = {
    "a patch": lambda folder, rows: patch(rows=rows).save(folder / "rows"),
    "an adapter": lambda folder, rows: write_adapter(patch(rows=rows), folder, MODULES),
    "a small file after a large one": lambda folder, rows: write_together(
        {
            folder / "a": lambda file: file.write(b"a" * len(rows)),
            folder / "b": lambda file: file.write(b"b" * 2000 * (len(rows) - 2)),
        }
    ),
    "numbers and words": lambda folder, rows: save_vectors(
        folder / "rows.npy", MATRIX * len(rows), long_words(rows)
    ),
    "a table for the projector": lambda folder, rows: write_projector(
        folder, np.full((7, 1), len(rows), "float32"), long_words(rows)
    ),
}


def long_words(rows):
    """Words that a disk holds with two rows, and does not hold with three."""
    return [f"{row}{'x' * 99 * (len(rows) - 2)}" for row in range(7)]


@pytest.mark.skipif(sys.platform != "linux", reason="bounds files as Linux does")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path, write):
    write(tmp_path, [3, 5])
    before = files_in(tmp_path)
    with (
        full_disk(100),
        pytest.raises(OSError, match=r"rows(\.npy)?'$|adapter_model|b'$|tsv'$") as raised,
    ):
        write(tmp_path, [3, 5, 6])
    assert raised.value.errno == errno.EFBIG
    assert files_in(tmp_path) == before


BACKUP = """
import resource, sys
from maskedgrad import callbacks
from tests.test_hostile import make_model

backup = callbacks.BackupAndRestore(sys.argv[1])
backup.set_model(make_model())
backup.on_epoch_end(0)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
backup.on_epoch_end(1)
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="bounds files as Linux does")
def test_a_full_disk_leaves_the_last_backup(tmp_path):
    # HDF5 1.14 raises no error there but ends the process.
    ended = subprocess.run([sys.executable, "-c", BACKUP, str(tmp_path)], check=False)
    assert ended.returncode
    with h5py.File(tmp_path / "latest.weights.h5") as file:
        assert file.attrs["epoch"] == 1
    model = make_model()
    backup = callbacks.BackupAndRestore(tmp_path)
    backup.set_model(model)
    backup.on_train_begin()
    assert model._initial_epoch == 1


class OnFullDisk(keras.layers.Dense):
    """A layer whose weights the disk has no more room for."""

    def save_own_variables(self, store):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_too_full_to_resume_is_not_laid_on_the_backup(tmp_path):
    def resumed(dense):
        model = keras.Model(inputs := keras.Input((2,)), dense(1, name="dense")(inputs))
        model.compile("adam", loss="mse")
        backup = callbacks.BackupAndRestore(tmp_path)
        backup.set_model(model)
        backup.on_train_begin()
        return backup

    resumed(keras.layers.Dense).on_epoch_end(0)
    before = files_in(tmp_path)
    with pytest.raises(OSError, match=r"^\[Errno 28\] No space left on device$"):
        resumed(OnFullDisk)
    assert files_in(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_an_error_that_names_the_file(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="rows"):
        patch().save(tmp_path / "rows")


def test_what_has_no_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/rows'$"):
        patch().save(tmp_path / "none" / "rows")


def test_links_that_lead_nowhere_or_round_and_round(tmp_path):
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    with pytest.raises(FileNotFoundError):
        RowPatch.load(link)
    patch().save(link)
    assert link.is_symlink()
    assert RowPatch.load(target) == patch()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="links"):
        RowPatch.load(tmp_path / "a")


# Saved models


@functools.cache
def whole_model() -> bytes:
    """What is in the file of a model, as Keras saves it."""
    with tempfile.TemporaryDirectory() as folder:
        make_model().save(Path(folder, "model.keras"))
        return Path(folder, "model.keras").read_bytes()


def saved_model(folder, change=lambda file: None, **members: bytes) -> tuple[Path, Path]:
    """The files of a model, with changed weights and other members, and of its matrix."""
    model, source = folder / "model.keras", folder / "source.npy"
    np.save(source, MATRIX)
    with zipfile.ZipFile(io.BytesIO(whole_model())) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(held["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        change(file)
    held |= {"model.weights.h5": weights.getvalue(), **members}
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return model, source


def instead_of_the_table(put):
    """Puts something in the place of the table, which is moved to where nobody looks for it."""

    def change(file):
        with h5py.File("elsewhere.h5", "w") as other:
            other["table"] = MATRIX
        Path("numbers").write_bytes(MATRIX.tobytes())
        variables = file["layers/embedding/vars"]
        file.move("layers/embedding/vars/0", "table")
        put(variables)

    return change


def a_link_to(link):
    return instead_of_the_table(lambda variables: variables.__setitem__("0", link))


def numbers_of_a_file(variables):
    variables.create_dataset("0", (7, 3), "f4", external=[("numbers", 0, 84)])


def a_view_of_a_file(variables):
    layout = h5py.VirtualLayout((7, 3), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "table", (7, 3))
    variables.create_virtual_dataset("0", layout)


def with_as_many_groups_as_can_be(file):
    """Thirty groups, each in two places of the one before: a thousand million paths."""
    group = file["layers"].create_group("more")
    for _ in range(30):
        inner = group.create_group("one")
        group["two"] = inner
        group = inner


def with_a_group_in_itself(file):
    file["layers/round"] = file["layers"]


def with_a_link_to_a_group(file):
    file["layers/more"] = h5py.SoftLink("/layers/embedding")


def with_a_table_in_two_places(file):
    file["layers/embedding/vars/1"] = file["layers/embedding/vars/0"]


def with_a_link_beside_moments(file):
    file["optimizer/more"] = h5py.ExternalLink("elsewhere.h5", "/table")


HOSTILE = {
    "a soft link": (a_link_to(h5py.SoftLink("/table")), "'0' .* is a link"),
    "another file": (a_link_to(h5py.ExternalLink("elsewhere.h5", "/table")), "'0' .* is a link"),
    "numbers of a file": (instead_of_the_table(numbers_of_a_file), "are in another file"),
    "a view of a file": (instead_of_the_table(a_view_of_a_file), "are in another file"),
    "more groups than can be": (with_as_many_groups_as_can_be, "is in more than one place"),
    "a group in itself": (with_a_group_in_itself, "is in more than one place"),
    "a link to a group": (with_a_link_to_a_group, "'more' .* is a link"),
    "a table in two places": (with_a_table_in_two_places, "is in more than one place"),
    "a link beside moments": (with_a_link_beside_moments, "'more' .* is a link"),
}


def restore_backup(model, weights):
    """Begins a training that finds a file of weights as its backup."""
    folder = weights.parent / "backup"
    folder.mkdir()
    shutil.copy(weights, folder / "latest.weights.h5")
    with h5py.File(folder / "latest.weights.h5", "a") as file:
        file.attrs["epoch"] = 1
    backup = callbacks.BackupAndRestore(folder)
    backup.set_model(model)
    backup.on_train_begin()


@pytest.mark.parametrize(("change", "why"), HOSTILE.values(), ids=HOSTILE)
def test_whatever_opens_a_file_of_weights_refuses_links_in_it(tmp_path, monkeypatch, change, why):
    monkeypatch.chdir(tmp_path)
    saved, source = saved_model(tmp_path, change)
    weights = tmp_path / "changed.weights.h5"
    with zipfile.ZipFile(saved) as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
    whole = tmp_path / "whole.keras"
    whole.write_bytes(whole_model())
    model = make_model()
    before = [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]
    patch = RowPatch.from_model(model)
    with pytest.raises(ValueError, match=rf"Expected a model as .*model\.keras.*{why}"):
        compare_files(saved, source)
    with pytest.raises(ValueError, match=rf"Expected a model as .*model\.keras.*{why}"):
        compare_files(whole, saved)
    for base, new in ((saved, Path("new.keras")), (weights, Path("new.weights.h5"))):
        with pytest.raises(ValueError, match=rf"Expected a model as .*{base.name}.*{why}"):
            apply_to_file(patch, base, new, strict=False)
        assert not new.exists()
    with pytest.raises(OSError, match=rf"Expected a backup .*latest\.weights\.h5.*{why}"):
        restore_backup(model, weights)
    variables = (*model.weights, *model.optimizer.variables)
    for variable, value in zip(variables, before, strict=True):
        assert_same_bits(variable, value, "refused")


def with_a_head(units, ids) -> MaskedModel:
    words = keras.layers.Embedding(7, 3, name="words")
    inputs = keras.Input((2,), dtype="int32")
    model = MaskedModel(inputs, keras.layers.Dense(units)(words(inputs)))
    model.compile("adam", loss="mse", trainable_rows={words: ids}, run_eagerly=True)
    model.train_on_batch(np.array([[3, 5]]), np.ones((1, 2, units)))
    return model


def unwritten(variables):
    variables.create_dataset("0", (7, 3), "f4")


def of_another_length(variables):
    variables["0"] = MATRIX[:5]


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (unwritten, r"shape \(7, 3\) must have 84 bytes, and has 0"),
        (of_another_length, r"one table of 7 rows in the layer of 'words/embeddings'.*\(5, 3\)"),
    ],
)
def test_a_table_that_is_not_there_is_none_of_zeros(tmp_path, monkeypatch, put, why):
    """HDF5 makes up numbers that were never written."""
    monkeypatch.chdir(tmp_path)
    model, source = saved_model(tmp_path, instead_of_the_table(put))
    with pytest.raises(ValueError, match=why):
        compare_files(model, source)


def test_a_backup_of_another_model_leaves_the_model_as_it_was(tmp_path):
    """Keras loads all that fits, and tells of the rest."""
    with_a_head(2, [1, 3, 5]).save_weights(tmp_path / "other.weights.h5")
    model = with_a_head(1, [3, 5])
    before = [variable.numpy() for variable in (*model.weights, *model.optimizer.variables)]
    with pytest.raises(OSError, match="of another model or damaged"):
        restore_backup(model, tmp_path / "other.weights.h5")
    variables = (*model.weights, *model.optimizer.variables)
    for variable, value in zip(variables, before, strict=True):
        assert_same_bits(variable, value, "refused")
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["latest.weights.h5"]


def test_a_config_that_grows_when_it_is_unpacked_is_refused(tmp_path):
    model, source = saved_model(tmp_path)
    whole = model.read_bytes()
    # Where the archive says how long that file is, which `zipfile` goes by.
    with zipfile.ZipFile(model) as archive:
        (place,) = [
            i for i, info in enumerate(archive.infolist()) if info.filename == "config.json"
        ]
    size = [match.start() for match in re.finditer(b"PK\x01\x02", whole)][place] + 24
    model.write_bytes(whole[:size] + struct.pack("<I", 2**28 + 1) + whole[size + 4 :])
    with pytest.raises(ValueError, match=r"config\.json is of 268435457 bytes, and can be of"):
        compare_files(model, source)


def test_members_that_climb_are_never_written(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    model, source = saved_model(folder, **{"../climbed": b"x", "/climbed": b"x"})
    assert main(["verify", str(model), "--against", str(source)]) == 0
    with zipfile.ZipFile(folder / "vectors.zip", "w") as archive:
        archive.writestr("../climbed.txt", "cat 1 2\n")
    assert load_vectors(folder / "vectors.zip", ["", "cat"])[0][1].tolist() == [1, 2]
    inside = folder / "vectors.zip" / ".." / "climbed.txt"
    assert load_vectors(inside, ["", "cat"])[0][1].tolist() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_a_word_that_is_repeated_without_end_is_reported_a_hundred_times(tmp_path):
    (tmp_path / "vectors.gz").write_bytes(gzip.compress(b"cat 1 2\n" * 2000))
    _, report = load_vectors(tmp_path / "vectors.gz", ["", "cat"])
    assert report.repeated == ("cat",) * 100


def test_archives_that_zipfile_does_not_read_are_refused(tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("vectors.txt", "cat 1 2\n")
    whole = archive.getvalue()
    entry = whole.index(b"PK\x01\x02")
    later = whole[: entry + 6] + b"\xff\x00" + whole[entry + 8 :]  # the version that is needed
    before = whole[: entry + 42] + b"\xff" * 4 + whole[entry + 46 :]  # where the file begins
    end = whole.index(b"PK\x05\x06")
    moved = whole[: end + 16] + struct.pack("<I", entry + 50) + whole[end + 20 :]
    for content in (later, before, moved):
        (tmp_path / "vectors.zip").write_bytes(content)
        with pytest.raises(ValueError, match=r"vectors\.zip' cannot be read"):
            load_vectors(tmp_path / "vectors.zip", ["", "cat"])


def test_parts_of_any_length_end_with_the_word(tmp_path):
    whole = bytearray(fasttext_model({"cat": MATRIX[0]}))
    # Of `Args::save` the 11th and the 12th number: the lengths of parts. One bucket for all.
    whole[4 * 10 : 4 * 13] = struct.pack("<3i", 1, 3, 2**31 - 1)
    rows = MATRIX[:2].tobytes()
    matrix = whole.index(struct.pack("<?2q", False, 1, 3))
    whole[matrix : matrix + 17 + 12] = struct.pack("<?2q", False, 2, 3) + rows
    (tmp_path / "model.bin").write_bytes(whole)
    vector = load_vectors(tmp_path / "model.bin", ["", "cat"])[0][1]
    num_parts = 3 + 2 + 1  # of the five letters of "<cat>"
    mean = (MATRIX[0].astype(float) + num_parts * MATRIX[1]) / (1 + num_parts)
    np.testing.assert_allclose(vector, mean, rtol=1e-6)


# Tables that are told apart


def towers(ids_by_name) -> MaskedModel:
    """A tower for each name, all with a layer "words", of which some rows train."""
    layers = {
        name: keras.layers.Embedding(7, 3, weights=[MATRIX], name="words") for name in ids_by_name
    }
    inputs = keras.Input((2,), dtype="int32")
    outputs = [keras.Sequential([layer], name=name)(inputs) for name, layer in layers.items()]
    model = MaskedModel(inputs, keras.layers.Add()(outputs))
    rows = {layers[name]: ids for name, ids in ids_by_name.items() if ids}
    model.compile(MaskedOptimizer("adam", rows), loss="mse")
    model.fit(np.arange(6).reshape(3, 2), np.ones((3, 2, 3)), verbose=0)
    return model


def verified(capsys, *arguments):
    status = main(["verify", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    tables = {t["table"]: t for t in json.loads(out)["tables"]} if out else err
    return status, tables


@pytest.fixture
def two_towers(tmp_path):
    towers({"query": [1], "item": [2, 3]}).save(tmp_path / "model.keras")
    np.save(tmp_path / "source.npy", MATRIX)
    return tmp_path / "model.keras", "--against", tmp_path / "source.npy"


def test_tables_of_one_path_are_told_by_the_rows_that_were_saved(two_towers, capsys):
    for name, number in {"query/words": 1, "item/words": 2}.items():
        status, tables = verified(capsys, *two_towers, "--table", name)
        assert status == 0
        assert tables[name]["trainable"] == number
        assert tables[name]["same"] == 7 - number
    model, against, _ = two_towers
    status, tables = verified(capsys, model, against, model)
    assert (status, set(tables)) == (0, {"query/words", "item/words"})
    assert verified(capsys, *two_towers)[0] == 2  # one source for two tables


def test_tables_that_no_saved_fact_tells_apart_are_refused(two_towers, capsys):
    model, *against = two_towers
    with zipfile.ZipFile(model) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    weights = io.BytesIO(held["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        del file["optimizer/chosen_row_ids/vars/tables"]
    with zipfile.ZipFile(model, "w") as archive:
        for name, content in {**held, "model.weights.h5": weights.getvalue()}.items():
            archive.writestr(name, content)
    status, message = verified(capsys, model, *against, "--table", "query/words")
    assert status == 2
    assert "must have one table of 7 rows in the layer of 'words/embeddings'" in message
    with open_tables(model) as tables:
        assert [table.trainable for table in tables] == [None, None]


@keras.saving.register_keras_serializable("hostile")
class Pair(keras.layers.Layer):
    """A layer of two matrices of one shape, and a third one of another."""

    def build(self, input_shape):
        for name, num_rows in {"left": 7, "right": 7, "other": 4}.items():
            value = keras.initializers.RandomNormal(seed=len(name))
            setattr(self, name, self.add_weight((num_rows, 3), value, name=name))

    def call(self, ids):
        of_each = [keras.ops.take(each, ids % 4, axis=0) for each in (self.left, self.right)]
        return sum(of_each, keras.ops.take(self.other, ids % 4, axis=0))


@pytest.mark.parametrize("name", ["right", "other"])
def test_the_matrices_of_a_layer_are_told_apart(tmp_path, capsys, name):
    pair = Pair(name="pair")
    model = MaskedModel(inputs := keras.Input((2,), dtype="int32"), pair(inputs))
    model.compile("adam", loss="mse", trainable_rows={f"pair/{name}": [1]})
    before = {each.name: each.numpy() for each in pair.weights}
    for variable in pair.weights:
        variable.trainable = variable.name == name
    model.fit(np.arange(6).reshape(3, 2), np.ones((3, 2, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    table = f"pair/{list(before).index(name)}"
    np.save(tmp_path / "source.npy", before[name])
    arguments = tmp_path / "model.keras", "--against", tmp_path / "source.npy"
    for more in ([], ["--table", table]):
        status, tables = verified(capsys, *arguments, *more)
        assert status == 0
        assert tables[table]["trainable"] == 1
    assert_same_bits(before["left"], pair.left.numpy(), "what does not train")


@keras.saving.register_keras_serializable("hostile")
class Twins(MaskedModel):
    """Two layers of one name."""

    def __init__(self, **options):
        super().__init__(**options)
        self.one = keras.layers.Embedding(7, 3, name="words")
        self.two = keras.layers.Embedding(7, 3, name="words")

    def call(self, ids):
        return self.one(ids) + self.two(ids)


def test_layers_of_one_name_can_be_chosen(tmp_path, capsys):
    model = Twins()
    model(np.zeros((1, 2), int))
    model.compile("adam", loss="mse", trainable_rows={model.two: [1]})
    np.save(tmp_path / "source.npy", model.two.get_weights()[0])
    model.fit(np.arange(6).reshape(3, 2), np.ones((3, 2, 3)), verbose=0)
    model.save(tmp_path / "model.keras")
    status, tables = verified(
        capsys, tmp_path / "model.keras", "--against", tmp_path / "source.npy"
    )
    assert status == 0
    ((name, table),) = tables.items()
    assert name.startswith("words@")
    assert table["trainable"] == 1


# Memory


def train_and_drop(optimizer, lazy):
    words = keras.layers.Embedding(20, 2, name="words")
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs := keras.Input((3,)))))
    model = keras.Model(inputs, outputs)
    model.compile(MaskedOptimizer(optimizer, {words: [1, 2]}, lazy=lazy), "mse", jit_compile=False)
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)


def num_graphs() -> int:
    gc.collect()
    return sum(type(each).__name__ == "FuncGraph" for each in gc.get_objects())


@pytest.mark.parametrize(
    ("options", "lazy"),
    [
        ({}, False),
        pytest.param({}, True, marks=pytest.mark.thorough),
        pytest.param(
            {"use_ema": True, "weight_decay": 0.1, "clipnorm": 1.0},
            False,
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_a_model_that_is_dropped_leaves_no_graph(options, lazy):
    before = num_graphs()
    train_and_drop(keras.optimizers.Adam(**options), lazy)
    assert num_graphs() <= before
