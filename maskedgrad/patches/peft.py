"""Row patches as PEFT's trainable-tokens adapters, so that rows move between Keras and PyTorch."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.files import FilePath, check_no_folder, checked_path, write_together
from maskedgrad.masking.tables import read_rows
from maskedgrad.messages import shorten
from maskedgrad.patches.file import parse_json, read_safetensors, to_safetensors
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.table import (
    TablePatch,
    check_fits,
    frozen_digest,
    variable_at,
)
from maskedgrad.rows.ids import MAX_ID
from maskedgrad.rows.rows import Rows

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
IDS_DIGEST = "token_indices_sha256"


def write_adapter(patch: RowPatch, folder: FilePath, modules: Mapping[str, str]) -> None:
    """Writes a patch as an adapter that `peft.PeftModel.from_pretrained` loads.

    An adapter holds ids and values. The original values and the digest of the
    frozen rows stay behind.

    Args:
        patch: the patch. Its tables must have the same trained rows, because
            an adapter has one list of ids.
        folder: where to; it is made if there is none, and an adapter in it
            is replaced.
        modules: a mapping from the path of each table to the full name of the
            PyTorch module that holds the same table, such as
            `{"words/embeddings": "model.embed_tokens"}`.

    Raises:
        ImportError: the extra `patch` is not installed.
        NotADirectoryError: `folder` is a file.
        TypeError: a module is no string, or an empty one.
        ValueError: `modules` does not name the tables of the patch, or one
            module for two; or the tables have different trained rows.

    Example:

    >>> import tempfile
    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = keras.Model(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> table = TablePatch("words/embeddings", Rows([3], 5), np.ones((1, 2), "f"), None, "0" * 64)
    >>> modules = {"words/embeddings": "model.embed_tokens"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_adapter(RowPatch(table), folder, modules)
    ...     read_adapter(folder, model, modules)
    RowPatch({'words/embeddings': Rows('3', num_rows=5)})
    """
    folder = checked_path(folder, "folder")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(
            f"An adapter must be written to a folder. Received: {str(folder)!r}, which is a file. "
            "Give another name."
        )
    tables = list(patch.tables.values())
    if not isinstance(modules, Mapping) or set(modules) != set(patch.tables):
        raise ValueError(
            "`modules` must be a mapping that names a module for each table of the patch, "
            f"{list(patch.tables)}. Received: modules={modules!r}"
        )
    if not all(isinstance(module, str) and module for module in modules.values()):
        raise TypeError(
            "A module must be named by a string, such as 'model.embed_tokens'. "
            f"Received: modules={dict(modules)}"
        )
    if len(set(modules.values())) != len(modules):
        raise ValueError(
            "Each table must have a module of its own, since an adapter has one tensor for each. "
            f"Received: modules={dict(modules)}"
        )
    if any(not np.array_equal(table.ids, tables[0].ids) for table in tables):
        raise ValueError(
            "The tables of an adapter must have the same trained rows. "
            f"Received: {patch!r}. Write an adapter for each table."
        )
    config = {
        "peft_type": "TRAINABLE_TOKENS",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "init_weights": True,
        "target_modules": [modules[table.path] for table in tables],
        "task_type": None,
        "token_indices": tables[0].ids.tolist(),
    }
    tensors = {_tensor_name(modules[table.path]): table.values for table in tables}
    # Two processes may write to one folder. The digest shows if each has written one file.
    content = to_safetensors(
        tensors, {"format": "pt", IDS_DIGEST: _digest(config["token_indices"])}
    )
    folder.mkdir(parents=True, exist_ok=True)
    text = (json.dumps(config, indent=2) + "\n").encode()
    write_together(
        {
            folder / TENSORS_FILE: lambda file: file.write(content),
            folder / CONFIG_FILE: lambda file: file.write(text),
        }
    )


def read_adapter(folder: FilePath, model: keras.Model, modules: Mapping[str, str]) -> RowPatch:
    """The patch that a PEFT adapter of trainable tokens is to a Keras model.

    An adapter does not say which frozen rows it was trained over. The patch
    takes the model's for them, and the model's rows for the original values.
    Values become of the dtype of the model's table, as they do in peft.

    Args:
        folder: where `PeftModel.save_pretrained` saved the adapter.
        model: a built model with the tables that the adapter was trained over.
        modules: as for `write_adapter`, where there is an example.

    Raises:
        ImportError: the extra `patch` is not installed.
        FileNotFoundError: there is no adapter in safetensors form.
        ValueError: it is no adapter of trainable tokens, or a damaged one; it
            has other modules; or it does not fit the model's tables.
    """
    folder = checked_path(folder, "folder")
    token_ids = _token_ids(folder / CONFIG_FILE)
    metadata, tensors = read_safetensors(folder / TENSORS_FILE)
    expected = {path: _tensor_name(module) for path, module in modules.items()}
    if sorted(expected.values()) != sorted(tensors):
        raise ValueError(
            f"`modules` must name a table for each tensor of the adapter, {sorted(tensors)}. "
            f"Received: modules={dict(modules)}, which stands for {sorted(expected.values())}"
        )
    variables = model.weights
    patch = RowPatch(
        *(
            _table_patch(variable_at(path, variables), token_ids, tensors[name])
            for path, name in expected.items()
        )
    )
    if metadata.get(IDS_DIGEST) not in (None, _digest(token_ids)):
        raise ValueError(
            "The files of an adapter must be of one. Received: "
            f"{os.fspath(folder)!r}, where the ids of {CONFIG_FILE} are not those of the rows in "
            f"{TENSORS_FILE}: two programs wrote there, or one was edited. Write it again."
        )
    return patch


def _table_patch(variable: keras.Variable, ids: list[int], values: np.ndarray) -> TablePatch:
    rows = Rows(ids, variable.shape[0])
    dtype = tf.as_dtype(variable.dtype).as_numpy_dtype
    if values.shape[:1] != (len(ids),):
        raise ValueError(
            f"The adapter must have a row for each of its {len(ids)} ids. "
            f"Received: values of shape {values.shape} for {variable.path!r}"
        )
    patch = TablePatch(
        path=variable.path,
        rows=rows,
        # peft lists ids in any order, and trains 16-bit rows in float32: where it
        # uses a row it makes it of the dtype of the table.
        values=values[np.argsort(ids)].astype(dtype),
        original=None,
        digest=frozen_digest(variable, rows),
    )
    check_fits(patch, variable)
    return dataclasses.replace(patch, original=read_rows(variable, rows.ids))


def _tensor_name(module: str) -> str:
    return f"base_model.model.{module}.trainable_tokens_delta"


def _digest(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def _token_ids(path: Path) -> list[int]:
    config = _json_object(path)
    token_ids = config.get("token_indices")
    are_tokens = config.get("peft_type") == "TRAINABLE_TOKENS"
    if not are_tokens or not isinstance(token_ids, list) or not all(map(_is_id, token_ids)):
        raise ValueError(
            "The adapter must be one of trainable tokens, with its `token_indices`, which are "
            f"whole numbers. Received: {os.fspath(path)!r} with "
            f"peft_type={config.get('peft_type')!r} and token_indices={shorten(token_ids)}"
        )
    return token_ids


def _is_id(value: Any) -> bool:
    # A bool is an int for Python, and would make a mask of the ids.
    return type(value) is int and 0 <= value <= MAX_ID


def _json_object(path: Path) -> dict[str, Any]:
    check_no_folder(path, "the configuration of an adapter")
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"Expected the configuration of an adapter. Received: {os.fspath(path)!r}, "
            f"which is not JSON ({error})."
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            "Expected the configuration of an adapter. "
            f"Received: {os.fspath(path)!r}, which is no JSON object."
        )
    return value
