"""`pretrained_embedding`: the matrix arrives bit by bit, in the memory of one table."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import MaskedModel
from maskedgrad.rows import chunks
from maskedgrad.testing import assert_same_bits, bits
from maskedgrad.vectors.pretrained import pretrained_embedding


def random_matrix(num_rows=7, width=3, dtype="float32"):
    return np.random.default_rng(0).normal(size=(num_rows, width)).astype(dtype)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 5)),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    chunk_bytes=st.integers(1, 200),
)
def test_the_table_has_the_bits_of_the_matrix(shape, dtype, chunk_bytes):
    matrix = random_matrix(*shape, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHUNK_BYTES", chunk_bytes)
        words = pretrained_embedding(matrix, dtype=dtype)
    assert_same_bits(words.get_weights()[0], matrix, "table")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_table_is_the_matrix_as_the_dtype_of_the_layer(dtype):
    matrix = random_matrix(dtype="float64")
    words = pretrained_embedding(matrix, dtype=dtype)
    assert_same_bits(words.embeddings.value, tf.cast(matrix, dtype), dtype)


@pytest.mark.parametrize("dtype", ["int8_from_float32", "int32"])
def test_a_table_that_would_cut_fractions_off_is_refused(dtype):
    with pytest.raises(ValueError, match=f"must be of floats. Received: dtype='{dtype}'"):
        pretrained_embedding(random_matrix(), dtype=dtype)


@pytest.mark.parametrize(
    ("option", "value"),
    [("embeddings_initializer", "uniform"), ("weights", [random_matrix()]), ("input_dim", 9)],
)
def test_no_option_says_otherwise_than_the_matrix(option, value):
    with pytest.raises(ValueError, match=f"no option may. Received: {option}="):
        pretrained_embedding(random_matrix(), **{option: value})


def test_a_file_mapped_into_memory_is_read_and_left_as_it_is(tmp_path):
    path = tmp_path / "vectors.npy"
    np.save(path, random_matrix())
    content = path.read_bytes()
    words = pretrained_embedding(np.load(path, mmap_mode="r"), name="words")
    model = keras.Sequential([words])
    model.compile("adam", loss="mse")
    model.fit(np.array([[1, 2]]), np.ones((1, 2, 3)), verbose=0)
    assert (bits(words.get_weights()[0]) != bits(random_matrix())).any()
    assert path.read_bytes() == content


def test_training_leaves_the_matrix_as_it_is():
    matrix = random_matrix()
    words = pretrained_embedding(matrix)
    model = MaskedModel(inputs := keras.Input((2,), dtype="int32"), words(inputs))
    model.compile("sgd", loss="mse", trainable_rows={words: [1]})
    model.fit(np.array([[1, 2]]), np.ones((1, 2, 3)), verbose=0)
    assert_same_bits(matrix, random_matrix(), "matrix")


def test_every_replica_has_the_matrix():
    devices = ["CPU:0", "CPU:1"]
    with tf.distribute.MirroredStrategy(devices).scope():
        words = pretrained_embedding(random_matrix())
    for replica in words.embeddings.value.values:
        assert_same_bits(replica, random_matrix(), "replica")


def test_a_model_is_saved_and_loaded_without_this_package_in_its_config(tmp_path):
    words = pretrained_embedding(random_matrix(), mask_zero=True, trainable=False, name="words")
    model = keras.Sequential([keras.Input((2,)), words])
    assert "maskedgrad" not in model.to_json()
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras").get_layer("words")
    assert_same_bits(loaded.get_weights()[0], random_matrix(), "table")
    assert loaded.mask_zero
    assert not loaded.trainable


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[1.0]], TypeError, "[[1.0]]"),
        (np.array([["a"]]), TypeError, "<U1"),
        (np.array([[1j]]), TypeError, "complex128"),
        (np.zeros(3), ValueError, "(3,)"),
        (np.zeros((2, 0)), ValueError, "(2, 0)"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix, error, message):
    with pytest.raises(error, match=rf"Received.*{re.escape(message)}"):
        pretrained_embedding(matrix)


PEAK_SCRIPT = """
import sys
from pathlib import Path
import keras, numpy as np
from maskedgrad import MaskedModel
from maskedgrad.vectors.pretrained import pretrained_embedding

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def model_around(matrix):
    words = pretrained_embedding(matrix)
    model = MaskedModel(inputs := keras.Input((2,), dtype="int32"), words(inputs))
    model.compile("adam", loss="mse", trainable_rows={words: [1]})
    model.train_on_batch(np.array([[1, 2]]), np.ones((1, 2, matrix.shape[1])))
    return model

model_around(np.ones((3, 256), "float32"))
matrix = np.random.default_rng(0).random((500_000, 256), dtype=np.float32)
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
model = model_around(matrix)
print((status("VmHWM") - before) / matrix.nbytes)
"""


@pytest.mark.processes
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs a peak of memory that can be reset"
)
def test_a_model_is_made_and_takes_a_step_in_the_memory_of_one_table():
    finished = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 1.3
