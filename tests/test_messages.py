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
    MaskedTrainStep,
    RowPatch,
    Rows,
    extend,
    load_vectors,
    mask_gradients,
    nearest,
    pretrained_embedding,
    row_ids,
    row_report,
    save_vectors,
    summary,
)
from maskedgrad.callbacks import BackupAndRestore
from maskedgrad.cli.saved_tables import matrix_file
from maskedgrad.patches import PatchRegistry, merge_patches
from maskedgrad.patches.table import TablePatch
from maskedgrad.reports.counting import count_parameters
from maskedgrad.reports.seen import times_seen
from tests.properties.nonsense import OnAnotherDevice

VECTORS = {"cat": [1.0, 2.0], "dog": [3.0, 4.0]}


def variables():
    return [keras.Variable(np.ones((5, 2), "float32"), name=name) for name in ("table", "other")]


def step(*gradients):
    optimizer = MaskedOptimizer("sgd", {"table": [1]})
    optimizer.apply(list(gradients), variables())


def slices(width=2, num_rows=5):
    return tf.IndexedSlices(tf.ones((1, width)), tf.constant([0]), tf.constant([num_rows, width]))


def not_compiled():
    words = keras.layers.Embedding(5, 2, name="words")
    return MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))


def compiled(target="words/embeddings"):
    model = not_compiled()
    model.compile("sgd", loss="mse", trainable_rows={target: [1]})
    return model


def model_of_many_layers():
    layers = [keras.layers.Dense(1, name=str(number)) for number in range(12)]
    return keras.Sequential([keras.Input((1,)), *layers])


def backed_up_to(folder):
    callback = BackupAndRestore(folder)
    callback.set_model(not_compiled())
    callback.on_train_begin()


def layer_of_keras_2():
    base = type("Layer", (), {"__module__": "tf_keras.src.engine.base_layer"})
    return type("Embedding", (base,), {"trainable_weights": (), "__module__": "__main__"})()


def build_on_variables_of_tensorflow():
    words = keras.layers.Embedding(5, 2, name="words")
    words.build()
    MaskedOptimizer("sgd", {words: [1]}).build([words.embeddings.value])


def patch(rows=(1,)):
    values = np.ones((len(rows), 2), "float32")
    return RowPatch(TablePatch("words/embeddings", Rows(list(rows), 5), values, None, "0" * 64))


def vectors(**arguments):
    return load_vectors(**{"source": VECTORS, "vocabulary": ["", "cat", "cow"], **arguments})


ONE = tf.ones((5, 2))
FOLDER = str(Path(__file__).parent)
NOT_BUILT = MaskedOptimizer("sgd", {"table": [1]})
A_VOCABULARY = "A vocabulary must be a list or tuple of words"
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
        lambda: compiled("words"),
        (ValueError, "'words' matches none", r"words/embeddings  \(5, 2\)", "Did you mean 'words/"),
    ),
    "a misspelt path": (
        lambda: compiled("word/embedding"),
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
    "the table of a layer of Keras 2": (
        lambda: nearest(layer_of_keras_2(), [1]),
        (TypeError, "must be a layer", "Embedding object", r"Keras 3: `keras\.layers\.Embedding`"),
    ),
    "a layer of Keras 2 to extend": (
        lambda: extend(layer_of_keras_2(), ["<city>"]),
        (
            TypeError,
            "a model or an emb",
            "Embedding object",
            r"Keras 3: `keras\.layers\.Embedding`",
        ),
    ),
    "the summary of a layer": (
        lambda: summary(keras.layers.Embedding(5, 2, name="words")),
        (TypeError, "must be a `keras.Model`", "the layer 'words'", "Give the model"),
    ),
    "the summary of an optimizer": (
        lambda: summary(NOT_BUILT),
        (TypeError, "must be a `keras.Model`", r"MaskedOptimizer\(SGD", "Give the model itself"),
    ),
    "the parameters of a layer": (
        lambda: count_parameters(keras.layers.Embedding(5, 2, name="words")),
        (TypeError, "must be a `keras.Model`", "the layer 'words'", "Give the model"),
    ),
    "ids in a column": (
        lambda: Rows([[1], [2]], 5),
        (ValueError, "a flat sequence of ids", r"shape \(2, 1\)", r"numpy\.ravel\(ids\)"),
    ),
    "all rows by True": (
        lambda: Rows(True, 5),
        (ValueError, "a flat sequence of ids", r"shape \(\): True", r"`slice\(None\)`"),
    ),
    "all rows by a word": (
        lambda: Rows("all", 5),
        (TypeError, "must be a sequence of ids", "'all'", r"`slice\(None\)`"),
    ),
    "ids, one of them missing": (
        lambda: Rows([1.0, float("nan")], 5),
        (TypeError, "must be integers", r"\[1.0, nan\]", "Leave out what is missing"),
    ),
    "a mask, a part of it missing": (
        lambda: Rows([True, None, False, False, False], 5),
        (TypeError, "a mask must be boolean", "True, None", "Leave out what is missing"),
    ),
    "ids on another device": (
        lambda: Rows(OnAnotherDevice(), 5),
        (TypeError, "whose values are known now", "OnAnotherDevice object", r"Use Tensor.cpu\(\)"),
    ),
    "multipliers for rows": (
        lambda: Rows({0.1: [1]}, 5),
        (TypeError, "must be a sequence of ids", r"{0.1: \[1\]}", "row_learning_rates"),
    ),
    "a table for its length": (
        lambda: Rows([1], np.ones((5, 2))),
        (TypeError, "`num_rows` must be an int", r"array\(\[\[1., 1.\], \[1", "the number of rows"),
    ),
    "a text for a length": (
        lambda: Rows.last(1, "5"),
        (TypeError, "`num_rows` must be an int", "num_rows='5'", "the number of rows"),
    ),
    "rows and a list": (
        lambda: Rows([1], 5).union([2]),
        (TypeError, "must be combined with a `Rows`", r"\[2\]", r"`Rows\(ids, 5\)` makes one"),
    ),
    "the rows before the optimizer": (
        lambda: MaskedOptimizer({"words": [1]}, "sgd"),
        (
            TypeError,
            "must be a Keras 3 optimizer",
            r"{'words': \[1\]}",
            "The optimizer comes first",
        ),
    ),
    "a class of optimizers": (
        lambda: MaskedOptimizer(keras.optimizers.Adam, {"words": [1]}),
        (TypeError, "must be a Keras 3 optimizer", "<class .*Adam'>", r"by a call: `Adam\(\)`"),
    ),
    "a masked optimizer with other rows": (
        lambda: not_compiled().compile(NOT_BUILT, "mse", trainable_rows={"words": [1]}),
        (ValueError, "must not mask rows itself", "a `MaskedOptimizer`", "`set_trainable_rows`"),
    ),
    "a word for lazy": (
        lambda: MaskedOptimizer("sgd", {"words": [1]}, lazy="no"),
        (TypeError, "`lazy` must be", "lazy='no'", "True or False"),
    ),
    "gradients before a build": (
        lambda: NOT_BUILT.apply([ONE]),
        (ValueError, "must be built", r"MaskedOptimizer\(SGD, {'table'", r"Call `build\("),
    ),
    "weights before a build": (
        lambda: NOT_BUILT.set_weights([]),
        (ValueError, "must be built", r"MaskedOptimizer\(SGD, {'table'", r"Call `build\("),
    ),
    "final values before a build": (
        lambda: NOT_BUILT.finalize_variable_values(variables()),
        (ValueError, "must be built", r"MaskedOptimizer\(SGD, {'table'", r"Call `build\("),
    ),
    "a row as a multiplier": (
        lambda: MaskedOptimizer("sgd", {"words": [1]}, row_learning_rates={"words": {1: 0.1}}),
        (ValueError, "for the multiplier 1 of 'words'.*a flat", "0.1", "The multiplier is the key"),
    ),
    "a class of layers": (
        lambda: MaskedOptimizer("sgd", {keras.layers.Embedding: [1]}),
        (TypeError, "must be a layer", "<class .*Embedding'>", r"model\.get_layer\(name\)"),
    ),
    "a pattern of file names": (
        lambda: compiled("words/*"),
        (ValueError, r"'words/\*' matches none", r"words/embeddings  \(5, 2\)", r"`\.\*` stands"),
    ),
    "a broken pattern": (
        lambda: compiled("*/embeddings"),
        (ValueError, "nor a regular expression", r"words/embeddings  \(5, 2\)", r"`\.\*` stands"),
    ),
    "variables of TensorFlow": (
        lambda: mask_gradients([ONE], [tf.Variable(ONE, name="table")], {"table": [1]}),
        (ValueError, "variables that are trained", "'table' matches none", "no `keras.Variable`"),
    ),
    "variables of TensorFlow for those of a layer": (
        build_on_variables_of_tensorflow,
        (ValueError, "is not among the variables", "'words/embeddings'", "model.trainable_var"),
    ),
    "no gradients": (
        lambda: mask_gradients(None, variables(), {"table": [1]}),
        (TypeError, "must be lists", "gradients=None", "tape.gradient"),
    ),
    "a single variable": (
        lambda: mask_gradients([ONE], variables()[0], {"table": [1]}),
        (TypeError, "must be lists", "variables=<Variable path=table", "tape.gradient"),
    ),
    "a text for a gradient": (
        lambda: step("gradient", ONE),
        (ValueError, r"of the shape of the table, \(5, 2\)", r"shape \(\)", "the order of"),
    ),
    "pairs for gradients": (
        lambda: step((ONE[:1], variables()[0]), ONE),
        (TypeError, "must be a tensor", "tf.Tensor", "Pairs .* `apply_gradients`"),
    ),
    "other rows before compile": (
        lambda: not_compiled().set_trainable_rows({"words/embeddings": [1]}),
        (
            ValueError,
            "must be compiled",
            "the model 'masked_functional.*', which is not",
            "Call `mo",
        ),
    ),
    "the mixin after the model": (
        lambda: type("Mixed", (keras.Model, MaskedTrainStep), {}),
        (TypeError, "must come before", r"Mixed with the bases \['Model', 'Ma", "`.*` first"),
    ),
    "vectors on the web": (
        lambda: vectors(source="https://example.com/glove.txt"),
        (ValueError, "must be on this machine", "'https://example.com/glove.txt'", "Download it"),
    ),
    "vectors without words": (
        lambda: vectors(source=np.ones((2, 2))),
        (TypeError, "a mapping from word to vector", r"array\(\[\[1", r"dict\(zip\(words"),
    ),
    "a text for a vector": (
        lambda: vectors(source={"cat": "1 2"}),
        (ValueError, "a flat array of real numbers", "'cat': '1 2'", "Leave the word out"),
    ),
    "a number for first values": (
        lambda: vectors(initializer=0),
        (TypeError, "`initializer` must be", "initializer=0", "'zeros', 'mean' or 'normal'"),
    ),
    "a matrix with its report": (
        lambda: pretrained_embedding(vectors(initializer="mean")),
        (TypeError, "must be a NumPy array", r"\(array\(", "`matrix, report = load_vectors"),
    ),
    "the path of a matrix": (
        lambda: pretrained_embedding("vectors.npy"),
        (TypeError, "must be a NumPy array", "'vectors.npy'", r"`numpy\.load\(path, mmap_mode"),
    ),
    "the file of a vocabulary": (
        lambda: row_ids(["cat"], "words.txt"),
        (TypeError, A_VOCABULARY, "'words.txt'", r"\.splitlines\(\)"),
    ),
    "a vocabulary without an order": (
        lambda: row_ids(["cat"], {"cat"}),
        (TypeError, A_VOCABULARY, "{'cat'}", "A set has no order"),
    ),
    "an array of words": (
        lambda: row_ids(["cat"], np.array(["", "cat"])),
        (TypeError, A_VOCABULARY, r"array\(\['', 'cat'\]", r"`list\(vocabulary\)`"),
    ),
    "a layer for its vocabulary": (
        lambda: row_ids(["cat"], keras.layers.Embedding(5, 2)),
        (TypeError, A_VOCABULARY, "<Embedding name", "what made the ids"),
    ),
    "a vocabulary turned round": (
        lambda: row_ids(["cat"], {0: "", 1: "cat"}),
        (TypeError, "must go from word to id", r"\[0, 1\]", "turned round by"),
    ),
    "ids as words": (
        lambda: row_ids([1, 2], ["", "cat"]),
        (TypeError, "a list or tuple of strings", r"\[1, 2\]", "each word as a string"),
    ),
    "words that describe by words": (
        lambda: extend(not_compiled(), ["<city>"], {"<city>": ["town"]}),
        (TypeError, "describe '<city>'.*must be integers", r"\['town'\]", "row_ids"),
    ),
    "a layer that is not built": (
        lambda: extend(keras.layers.Dense(2, name="head"), ["<city>"]),
        (ValueError, "must be built", "the layer 'head', which is not", "Call it on a batch"),
    ),
    "a table before its file": (
        lambda: save_vectors(ONE, ["cat"], "words.txt"),
        (TypeError, "`path` must be the path", "path=<tf.Tensor", "a string or"),
    ),
    "all weights of a layer": (
        lambda: nearest([np.ones((5, 2))], [1]),
        (TypeError, "A table must be", r"\[array\(", "a list of arrays, of which"),
    ),
    "a patch without a path": (
        lambda: patch().save(None),
        (TypeError, "`path` must be the path", "path=None", "a string or"),
    ),
    "a patch of a file of a model": (
        lambda: patch().apply_to("model.keras"),
        (TypeError, "`model` must be a `keras.Model`", "'model.keras'", "load_model"),
    ),
    "a weight as text": (
        lambda: merge_patches(patch(), patch(), not_compiled(), weight="0.5"),
        (ValueError, "`weight` must be a number from 0 to 1", "weight='0.5'", "the share of"),
    ),
    "patches by their paths": (
        lambda: merge_patches("city.patch", "town.patch", not_compiled()),
        (TypeError, "must be a `RowPatch`", "'city.patch'", r"`RowPatch\.load\(path\)`"),
    ),
    "a patch by its path": (
        lambda: row_report(compiled(), "city.patch"),
        (TypeError, "`before` must be a `RowPatch`", "Received: 'city.patch'", "or a table"),
    ),
    "data with its labels": (
        lambda: times_seen((np.ones((2, 3), int), np.ones(2, int)), np.arange(2)),
        (TypeError, "must be integers, or batches", r"with their labels: \(array", "inputs alone"),
    ),
    "a model for its table": (
        lambda: MaskedOptimizer("sgd", {model_of_many_layers(): [1]}),
        (ValueError, "must own one table", "owns 24 variables:.*0/kernel.*and 4 more", "the layer"),
    ),
    "a registry of a list": (
        lambda: PatchRegistry(not_compiled(), [patch()]),
        (TypeError, "must be a mapping from names", r"\[RowPatch\(", "{'city': patch}"),
    ),
    "a patch before its name": (
        lambda: PatchRegistry(not_compiled()).add(patch(), "city"),
        (TypeError, "by a name, and be a `RowPatch`", r"name=RowPatch.*patch='city'", "added by"),
    ),
    "a backup without a folder": (
        lambda: BackupAndRestore(None),
        (TypeError, "`backup_dir` must be the path", "backup_dir=None", "a string or"),
    ),
    "a backup in a file": (
        lambda: backed_up_to(__file__),
        (NotADirectoryError, "must be a folder", "test_messages.py', which is a", "another path"),
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
