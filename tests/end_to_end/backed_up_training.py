"""A training run that other processes start, and that a test kills."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from maskedgrad import MaskedModel, callbacks

NUM_ROWS, IDS = 12, [2, 7]
MATRIX = np.random.default_rng(0).normal(size=(NUM_ROWS, 3)).astype("float32")


def train(backup_dir: str, result: str) -> None:
    """Trains, with backups in `backup_dir`, and writes the weights and slots to `result`."""
    random = np.random.default_rng(1)
    x, y = random.integers(0, NUM_ROWS, size=(8, 5)), random.normal(size=(8, 1))
    inputs = keras.Input((5,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, 3, weights=[MATRIX])
    pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
    model = MaskedModel(inputs, keras.layers.Dense(1, kernel_initializer="ones")(pooled))
    model.compile(
        keras.optimizers.AdamW(0.1), loss="mse", trainable_rows={words: IDS}, run_eagerly=True
    )
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=8,
        shuffle=False,
        verbose=0,
        callbacks=[callbacks.BackupAndRestore(backup_dir)],
    )
    values = [words.embeddings, *model.weights[1:], *model.optimizer.variables]
    np.savez(result, *[np.asarray(value) for value in values])
