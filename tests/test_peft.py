"""Rows trained in Keras load in PyTorch and back, by an adapter of the real peft."""

import dataclasses
import json
from collections import OrderedDict

import keras
import numpy as np
import pytest

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

from maskedgrad import MaskedModel
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.peft import read_adapter, write_adapter
from maskedgrad.testing import assert_same_bits

NUM_ROWS, WIDTH, IDS = 30, 4, [3, 17, 29]
PATH = "words/embeddings"
MODULES = {PATH: "encoder.embed_tokens"}
MATRIX = np.random.default_rng(0).normal(size=(NUM_ROWS, WIDTH)).astype("float32")


def keras_model(ids=IDS, dtype="float32", matrix=MATRIX):
    words = keras.layers.Embedding(
        *matrix.shape, weights=[matrix], name="words", dtype=keras.DTypePolicy(dtype)
    )
    inputs = keras.Input((5,), dtype="int32")
    model = MaskedModel(inputs, words(inputs))
    model.compile("adam", loss="mse", trainable_rows={words: ids})
    return model


def trained_patch(**options):
    model = keras_model(**options)
    model.fit(np.arange(NUM_ROWS).reshape(-1, 5), np.ones((6, 5, WIDTH)), verbose=0)
    return RowPatch.from_model(model)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed, which peft needs")


@pytest.fixture
def peft(torch):
    return pytest.importorskip("peft", reason="the adapters are tested where peft is installed")


@pytest.fixture
def torch_model(torch):
    """Makes a PyTorch model that holds the same table."""

    def make(dtype="float32"):
        embed_tokens = torch.nn.Embedding.from_pretrained(torch.tensor(MATRIX), freeze=False)
        encoder = torch.nn.Sequential(OrderedDict(embed_tokens=embed_tokens))
        model = torch.nn.Sequential(OrderedDict(encoder=encoder))
        return model.to(getattr(torch, dtype))

    return make


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_trained_in_keras_load_in_peft(torch, peft, torch_model, tmp_path, dtype):
    patch = trained_patch(dtype=dtype)
    write_adapter(patch, tmp_path, MODULES)
    model = peft.PeftModel.from_pretrained(torch_model(dtype), tmp_path)
    expected = MATRIX.astype(patch.tables[PATH].values.dtype)
    expected[IDS] = patch.tables[PATH].values
    with torch.no_grad():
        table = model(torch.arange(NUM_ROWS))
    assert table.dtype == getattr(torch, dtype)
    as_integers = table.view(torch.int16 if table.itemsize == 2 else torch.int32).numpy()
    assert_same_bits(as_integers, expected.view(as_integers.dtype), "the table in PyTorch")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_trained_in_peft_load_in_keras(torch, peft, torch_model, tmp_path, dtype):
    # peft keeps ids in the order in which they are given, and 16-bit rows in float32.
    config = peft.TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=[29, 3, 17])
    model = peft.get_peft_model(torch_model(dtype), config)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.arange(NUM_ROWS)).square().sum().backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    base = keras_model(dtype=dtype)
    before = base.get_weights()[0]
    patch = read_adapter(tmp_path, base, MODULES)
    patch.apply_to(base)
    with torch.no_grad():
        table = model(torch.arange(NUM_ROWS))
    as_integers = table.view(torch.int16 if table.itemsize == 2 else torch.int32).numpy()
    assert (as_integers != before.view(as_integers.dtype)).any(axis=1).nonzero()[0].tolist() == IDS
    assert_same_bits(base.get_weights()[0].view(as_integers.dtype), as_integers, "in Keras")
    patch.revert(base)
    assert_same_bits(base.get_weights()[0], before, "reverted")


def test_an_adapter_holds_the_rows_bit_for_bit(tmp_path):
    patch = trained_patch()
    write_adapter(patch, tmp_path, MODULES)
    base = keras_model(ids=[0])
    read = read_adapter(tmp_path, base, MODULES)
    assert_same_bits(read.tables[PATH].values, patch.tables[PATH].values, "values")
    assert_same_bits(read.tables[PATH].original, MATRIX[IDS], "the rows of the model")
    assert read.tables[PATH].rows == patch.tables[PATH].rows
    assert read.tables[PATH].digest == patch.tables[PATH].digest


def test_the_ids_of_an_adapter_stand_in_any_order(tmp_path):
    patch = trained_patch()
    write_adapter(patch, tmp_path, MODULES)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rotated = {name: np.roll(tensor, 1, axis=0) for name, tensor in tensors.items()}
    save_file(rotated, tmp_path / "adapter_model.safetensors")
    rewritten(tmp_path, token_indices=np.roll(IDS, 1).tolist())
    read = read_adapter(tmp_path, keras_model(), MODULES)
    assert read.tables[PATH].ids.tolist() == IDS
    assert_same_bits(read.tables[PATH].values, patch.tables[PATH].values, "values")


def rewritten(folder, **entries):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type='LORA'"),
        ({"token_indices": None}, "token_indices"),
        ({"token_indices": [3, 17]}, "a row for each of its 2 ids.*3, 4"),
        ({"token_indices": [3, 17, 30]}, "below 30"),
        ({"token_indices": [3, 17, 17]}, "repeated"),
        ({"token_indices": [3.0, 17, 29]}, "whole numbers"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, entries, message):
    write_adapter(trained_patch(), tmp_path, MODULES)
    rewritten(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        read_adapter(tmp_path, keras_model(), MODULES)


def test_what_is_no_adapter_is_refused(tmp_path):
    model = keras_model()
    with pytest.raises(FileNotFoundError):
        read_adapter(tmp_path, model, MODULES)
    write_adapter(trained_patch(), tmp_path, MODULES)
    with pytest.raises(ValueError, match=r"a table for each tensor.*embed_tokens"):
        read_adapter(tmp_path, model, {PATH: "tokens"})
    with pytest.raises(ValueError, match="shape and dtype"):
        read_adapter(tmp_path, keras_model(matrix=MATRIX[:, :3]), MODULES)
    for content in ("[1]", "{", "", "[" * 10**5):
        (tmp_path / "adapter_config.json").write_text(content)
        with pytest.raises(ValueError, match="configuration of an adapter"):
            read_adapter(tmp_path, model, MODULES)


def test_tables_of_different_rows_do_not_make_an_adapter(tmp_path):
    patch = trained_patch()
    other = trained_patch(ids=[1]).tables[PATH]
    tags = type(other)("tags/embeddings", other.rows, other.values, None, other.digest)
    both = RowPatch(patch.tables[PATH], tags)
    with pytest.raises(ValueError, match="the same trained rows"):
        write_adapter(both, tmp_path, {**MODULES, "tags/embeddings": "tags"})
    with pytest.raises(ValueError, match="a module for each table"):
        write_adapter(both, tmp_path, MODULES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modules", "error"),
    [({PATH: ""}, TypeError), ({PATH: 3}, TypeError), ("model.embed_tokens", ValueError)],
)
def test_a_module_is_named_by_a_string(tmp_path, modules, error):
    with pytest.raises(error, match="Received: modules="):
        write_adapter(RowPatch.from_model(keras_model()), tmp_path / "adapter", modules)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_goes_into_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="which is a file"):
        write_adapter(
            RowPatch.from_model(keras_model()), tmp_path / "file", {PATH: "model.embed_tokens"}
        )


def test_two_tables_are_not_one_module_of_an_adapter(tmp_path):
    patch = trained_patch()
    tags = dataclasses.replace(patch.tables[PATH], path="tags/embeddings")
    with pytest.raises(ValueError, match="a module of its own"):
        write_adapter(
            RowPatch(patch.tables[PATH], tags), tmp_path, dict.fromkeys((PATH, tags.path), "wte")
        )
    assert not list(tmp_path.iterdir())
