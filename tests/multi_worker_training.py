"""One worker of `test_multi_worker.py`: trains a model, and writes what came of it.

`TF_CONFIG` says which worker it is. Without it the training is that of one process.
"""

import contextlib
import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer

NUM_ROWS, WIDTH, IDS = 20, 4, [3, 7]
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
X = RANDOM.integers(0, NUM_ROWS, size=(32, 5))
Y = RANDOM.normal(size=(32, 1)).astype("float32")


class Lazy(MaskedModel):
    """A model that its first batch builds."""

    def __init__(self):
        super().__init__()
        self.words, self.head = layers()

    def call(self, ids):
        return self.head(keras.ops.mean(self.words(ids), axis=1))


def layers():
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, weights=[MATRIX], name="words")
    return words, keras.layers.Dense(1, kernel_initializer="ones", name="head")


def functional():
    words, head = layers()
    inputs = keras.Input((5,), dtype="int32")
    model = MaskedModel(inputs, head(keras.layers.GlobalAveragePooling1D()(words(inputs))))
    model.words = words
    return model


def main(kind: str, path: str) -> None:
    is_worker = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_worker else None
    refusal = ""
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = {"functional": functional, "lazy": Lazy}[kind]()
        optimizer = MaskedOptimizer(keras.optimizers.AdamW(0.1), {model.words: IDS})
        if is_worker:
            try:
                model.compile(optimizer, loss="mse", steps_per_execution=2)
            except ValueError as error:
                refusal = str(error)
        model.compile(optimizer, loss="mse", metrics=["mae"])
    history = model.fit(
        *(X, Y), batch_size=8, epochs=2, shuffle=False, verbose=0, validation_data=(X[:16], Y[:16])
    )
    evaluated = model.evaluate(X, Y, batch_size=8, verbose=0)
    predicted = model.predict(X, batch_size=8, verbose=0)
    results = {"refusal": refusal, "history": history.history, "evaluated": evaluated}
    variables = [*model.weights, *model.optimizer.variables]
    np.savez(
        path,
        *[np.asarray(variable) for variable in variables],
        table=model.words.get_weights()[0],
        predicted=predicted,
        results=json.dumps(results),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
