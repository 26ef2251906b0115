"""What type checkers say of a user's program: nothing, and on some lines an error that is expected.

`tests/test_package.py` has mypy and pyright check it against the installed wheel. An error that is
expected and not found is an error.
"""

from typing import Any

import keras  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import maskedgrad
from maskedgrad import MaskedModel, MaskedOptimizer, Rows, RowsLike, Target, TrainableRows


def rare(table: Target, rows: RowsLike) -> TrainableRows:
    return {table: rows}


class Tagger(MaskedModel):
    """A model with a `call`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = keras.layers.Embedding(5, 2)

    def call(self, ids: Any) -> Any:
        return self.words(ids)


X, Y = np.array([[0, 1, 4]]), np.ones((1, 3, 2))
matrix, report = maskedgrad.load_vectors({"cat": [1.0, 2.0]}, ["", "cat", "<city>"])
words = maskedgrad.pretrained_embedding(matrix, mask_zero=True, name="words")
inputs = keras.Input((3,))
model = MaskedModel(inputs, words(inputs))

# What is given.
model.compile("adam", loss="mse", metrics=["mae"], trainable_rows={words: report.missing_ids})
model.compile(MaskedOptimizer("adam", {words: [1, 4]}), "mse", run_eagerly=True)
model.fit(X, Y, epochs=2, callbacks=[maskedgrad.callbacks.FrozenRowsCheck()], verbose=0)
model.evaluate(X, Y, return_dict=True)
model.predict(X, batch_size=1)
model.save("model.keras")
by_layer = {words: [1, 4]}
model.set_trainable_rows(by_layer)
model.set_trainable_rows(rare(words, slice(-3, None)))
model.set_trainable_rows({"words/embeddings": range(3), words: Rows([1], 5)})
model.set_trainable_rows({maskedgrad.AlongAxis(words, -1): np.array([True, False])})
MaskedOptimizer("adam", by_layer, row_learning_rates={words: {0.1: [1]}})
MaskedOptimizer("adam", by_layer, row_learning_rates={words: np.ones(5)})
Tagger().fit(X, Y)

# What is returned.
assert_type(matrix, npt.NDArray[np.float32])
assert_type(report.missing_ids, npt.NDArray[np.int64])
assert_type(Rows([1], 5).ids, npt.NDArray[np.int64])
assert_type(maskedgrad.row_ids(["cat"], ["cat"]), npt.NDArray[np.int64])
larger, new = maskedgrad.extend(model, ["<town>"])
assert_type(larger, MaskedModel)
assert_type(new, Rows)
moved, _ = maskedgrad.change_vocabulary(model, ["cat"], ["dog", "cat"])
assert_type(moved, MaskedModel)

# Rooms need no import of their own.
maskedgrad.testing.check_model(lambda: model, [(X, Y)])
maskedgrad.patches.RowPatch.from_model(model).save("rows.safetensors")
assert_type(report, maskedgrad.vectors.VectorReport)
patch = maskedgrad.RowPatch.from_model(model)
assert_type(patch.tables["words/embeddings"].ids, npt.NDArray[np.int64])

# Mistakes.
model.fit(epoch=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
model.fit(X, Y, epochs="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
model.compile("adam", los="mse")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
model.compile("adam", metric=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
model.evaluate(X, Y, batch_size="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
model.predict(X, batch=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
model.train_on_batch(X, why=Y)  # pyright: ignore[reportCallIssue]
model.set_trainable_rows({words: 0.5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
model.set_trainable_rows({words: {1, 4}})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
model.set_trainable_rows({words: ["cat"]})  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
MaskedOptimizer("adam", by_layer, learning_rates={})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Rows("1:3", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
