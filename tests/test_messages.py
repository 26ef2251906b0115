"""What errors say: what was expected, what was received, and what to do."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import (
    MaskedModel,
    MaskedOptimizer,
    RowPatch,
    Rows,
    load_vectors,
    mask_gradients,
    summary,
)
from maskedgrad.cli.saved_tables import matrix_file
from maskedgrad.patches.table import TablePatch
from maskedgrad.reports.counting import count_parameters

VECTORS = {"cat": [1.0, 2.0], "dog": [3.0, 4.0]}


def variables():
    return [keras.Variable(np.ones((5, 2), "float32"), name=name) for name in ("table", "other")]


def step(*gradients):
    optimizer = MaskedOptimizer("sgd", {"table": [1]})
    optimizer.apply(list(gradients), variables())


def slices(width=2, num_rows=5):
    return tf.IndexedSlices(tf.ones((1, width)), tf.constant([0]), tf.constant([num_rows, width]))


def built_model(target="words/embeddings"):
    words = keras.layers.Embedding(5, 2, name="words")
    model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    model.compile("sgd", loss="mse", trainable_rows={target: [1]})
    model.optimizer.build(model.trainable_variables)
    return model


def layer_of_keras_2():
    base = type("Layer", (), {"__module__": "tf_keras.src.engine.base_layer"})
    return type("Embedding", (base,), {"trainable_weights": (), "__module__": "__main__"})()


def patch(rows=(1,)):
    values = np.ones((len(rows), 2), "float32")
    return RowPatch(TablePatch("words/embeddings", Rows(list(rows), 5), values, None, "0" * 64))


def vectors(**arguments):
    return load_vectors(**{"source": VECTORS, "vocabulary": ["", "cat", "cow"], **arguments})


ONE = tf.ones((5, 2))
FOLDER = str(Path(__file__).parent)
# What is done; the error; what was expected, what was received, and what to do.
CASES = {
    "too few gradients": (
        lambda: step(ONE),
        (ValueError, "must be of one length", "1 gradients and 2 variables", "tape.gradient"),
    ),
    "too many gradients": (
        lambda: step(ONE, ONE, ONE),
        (ValueError, "must be of one length", "3 gradients and 2 variables", "tape.gradient"),
    ),
    "too few gradients to mask": (
        lambda: mask_gradients([ONE], variables(), {"table": [1]}),
        (ValueError, "must be of one length", "1 gradients and 2 variables", "tape.gradient"),
    ),
    "a gradient of another length": (
        lambda: step(tf.ones((7, 2)), ONE),
        (ValueError, r"of the shape of the table, \(5, 2\)", r"shape \(7, 2\)", "the order of"),
    ),
    "a gradient of what trains": (
        lambda: step(tf.ones((1, 2)), ONE),
        (ValueError, r"of the shape of the table, \(5, 2\)", r"shape \(1, 2\)", "frozen ones too"),
    ),
    "slices of another width": (
        lambda: step(slices(width=3), ONE),
        (ValueError, r"of the shape of the table, \(5, 2\)", r"of shape \(3,\)", "the order of"),
    ),
    "slices of another table": (
        lambda: mask_gradients([slices(num_rows=7)], variables()[:1], {"table": [1]}),
        (ValueError, r"of the shape of the table, \(5, 2\)", r"shape \(7, 2\)", "the order of"),
    ),
    "a folder of a patch": (
        lambda: RowPatch.load(FOLDER),
        (IsADirectoryError, "Expected a safetensors file", "which is a folder", "path of a file"),
    ),
    "a folder to save to": (
        lambda: patch().save(FOLDER),
        (IsADirectoryError, "Expected the path of a file", "which is a folder", "path of a file"),
    ),
    "a folder of vectors": (
        lambda: vectors(source=FOLDER),
        (IsADirectoryError, "Expected the path of a file", "which is a folder", "path of a file"),
    ),
    "a folder of a matrix": (
        lambda: matrix_file(Path(FOLDER)),
        (IsADirectoryError, "Expected an array", "which is a folder", "path of a file"),
    ),
    "a patch of no rows": (
        lambda: patch(rows=()),
        (ValueError, "at least one row", r"Rows\(''", "Leave the table out"),
    ),
    "counts in a list": (
        lambda: vectors(counts=[1]),
        (TypeError, "a mapping from word", r"\[1\]", "Counter"),
    ),
    "counts that are no numbers": (
        lambda: vectors(counts={"cat": "3"}),
        (ValueError, "numbers that are not negative", "'3' for 'cat'", "Leave a word"),
    ),
    "a fallback that returns nothing": (
        lambda: vectors(fallbacks=[lambda word: None]),
        (TypeError, "must return a string", "None for 'cat'", "Return the word"),
    ),
    "a fallback that is in no list": (
        lambda: vectors(fallbacks=str.lower),
        (TypeError, "a list of functions", "method 'lower'", r"\[str.lower\]"),
    ),
    "complex vectors": (
        lambda: vectors(source={"cat": [1j, 2]}),
        (ValueError, "real numbers", "'cat'.*complex128", "of complex ones"),
    ),
    "complex first values": (
        lambda: vectors(initializer=lambda words, table: np.ones((1, 2)) * 1j),
        (ValueError, "finite numbers of shape", "complex128", "a row for"),
    ),
    "the name of a layer": (
        lambda: built_model("words"),
        (ValueError, "'words' matches none", r"words/embeddings  \(5, 2\)", "Did you mean 'words/"),
    ),
    "a misspelt path": (
        lambda: built_model("word/embedding"),
        (ValueError, "matches none", r"words/embeddings  \(5, 2\)", "Did you mean 'words/emb"),
    ),
    "words as ids": (
        lambda: Rows(["the", "cat"], 5),
        (TypeError, "must be integers", "'the', 'cat'", r"maskedgrad\.row_ids\(words"),
    ),
    "a word as ids": (
        lambda: Rows("the", 5),
        (TypeError, "must be a sequence of ids", "'the'", r"maskedgrad\.row_ids\(words"),
    ),
    "a set": (
        lambda: Rows({1, 2}, 5),
        (TypeError, "must be a sequence of ids", "{1, 2}", r"sorted\(rows\)"),
    ),
    "a scalar": (
        lambda: Rows(np.int64(3), 5),
        (ValueError, "flat sequence of ids", r"shape \(\): np.int64\(3\)", r"`\[id\]`"),
    ),
    "keys of a dict": (
        lambda: Rows({1: "cat"}.keys(), 5),
        (TypeError, "must be a sequence of ids", r"dict_keys\(\[1\]\)", r"sorted\(rows\)"),
    ),
    "values of a dict": (
        lambda: Rows({"cat": 1}.values(), 5),
        (TypeError, "must be a sequence of ids", r"dict_values\(\[1\]\)", r"sorted\(rows\)"),
    ),
    "an iterator": (
        lambda: Rows(iter([1]), 5),
        (TypeError, "must be a sequence of ids", "list_iterator", r"sorted\(rows\)"),
    ),
    "a layer of Keras 2": (
        lambda: MaskedOptimizer("sgd", {layer_of_keras_2(): [1]}),
        (TypeError, "must be a layer", "Embedding object", r"Keras 3: `keras\.layers\.Embedding`"),
    ),
    "the summary of a layer": (
        lambda: summary(keras.layers.Embedding(5, 2, name="words")),
        (TypeError, "must be a `keras.Model`", "the layer 'words'", "Give the model"),
    ),
    "the parameters of a layer": (
        lambda: count_parameters(keras.layers.Embedding(5, 2, name="words")),
        (TypeError, "must be a `keras.Model`", "the layer 'words'", "Give the model"),
    ),
}


@pytest.mark.parametrize(("call", "said"), CASES.values(), ids=[n.replace("-", " ") for n in CASES])
def test_an_error_says_what_was_expected_what_was_received_and_what_to_do(call, said):
    error, expected, received, advice = said
    with pytest.raises(error) as raised:
        call()
    message = " ".join(str(raised.value).split())
    for part in (expected, received, advice):
        assert re.search(re.sub("  +", " ", part), message), message


def test_a_name_of_225_letters_is_a_name(tmp_path):
    for name in ("n" * 225, "ñ" * 120, "n" * 255):
        patch().save(tmp_path / name)
        assert RowPatch.load(tmp_path / name) == patch()
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
