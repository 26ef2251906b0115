"""Training for an hour with random changes of rows, saves and loads.

    python -m tests.soak --minutes 60

Frozen rows must keep their bits at every turn, and memory must not grow once
everything has been done a few times. Prints what was done, and fails where
either does not hold. No part of the suite: it takes its time.

What TensorFlow itself keeps for good is given back after each turn, since it
would hide what is kept here. `--keep-traces` leaves it, to show how much it is.
"""

import argparse
import collections
import gc
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from tensorflow.python.framework import ops

from maskedgrad import MaskedModel, MaskedOptimizer

NUM_ROWS, WIDTH, LENGTH = 5_000, 64, 12
WARM_UP = 0.2  # the share of the time after which memory must stay flat
ALLOWED_GROWTH = 0.02  # of what is held then; an allocator does not give all back


class Soak:
    """A model in training, what its table held after the last turn, and what has been done."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = np.random.default_rng(seed)
        self.model = new_model(self.draw_rows())
        self.table = self.read_table()
        self.done: collections.Counter[str] = collections.Counter()

    def draw_rows(self) -> np.ndarray:
        count = self.random.integers(1, 200)
        return np.sort(self.random.choice(NUM_ROWS, count, replace=False))

    def read_table(self) -> np.ndarray:
        return np.array(self.model.get_layer("words").get_weights()[0])

    def train(self) -> None:
        tokens = self.random.integers(0, NUM_ROWS, (256, LENGTH))
        labels = self.random.normal(size=(256, 1))
        self.model.fit(tokens, labels, batch_size=16, verbose=0)

    def change_rows(self) -> None:
        optimizer = self.model.optimizer
        (path,) = optimizer.trainable_rows
        optimizer.set_trainable_rows({path: self.draw_rows()})

    def save_and_load_weights(self) -> None:
        path = self.folder / "soak.weights.h5"
        self.model.save_weights(path)
        self.model.load_weights(path)

    def save_and_load_model(self) -> None:
        path = self.folder / "soak.keras"
        self.model.save(path)
        self.model = keras.saving.load_model(path)

    def look(self) -> None:
        tokens = self.random.integers(0, NUM_ROWS, (64, LENGTH))
        self.model.evaluate(tokens, np.zeros((64, 1)), verbose=0)
        self.model.predict(tokens, verbose=0)

    def turn(self) -> None:
        """Does one thing, and checks the rows that it must leave alone."""
        turns = [self.train, self.change_rows, self.save_and_load_weights, self.look]
        turn = self.random.choice([*turns, *turns, self.save_and_load_model])
        turn()
        self.done[turn.__name__] += 1
        before, self.table = self.table, self.read_table()
        changed = (before.view("uint32") != self.table.view("uint32")).any(axis=1)
        (rows,) = self.model.optimizer.trainable_rows.values()
        allowed = rows.mask if turn == self.train else np.zeros(NUM_ROWS, bool)
        if (changed & ~allowed).any():
            sys.exit(f"{turn.__name__} changed rows {np.flatnonzero(changed & ~allowed)[:10]}")


def new_model(rows: np.ndarray) -> MaskedModel:
    inputs = keras.Input((LENGTH,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
    pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
    model = MaskedModel(inputs, keras.layers.Dense(1)(pooled))
    optimizer = MaskedOptimizer(keras.optimizers.AdamW(0.01, use_ema=True), {words: rows})
    model.compile(optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def forget_traces(before: set[str]) -> None:
    """Takes out of TensorFlow what it keeps of functions that are no longer called.

    `tf.distribute` reduces gradients in a function with a gradient of its own,
    also on one device, and Keras calls it in each step that is traced. TensorFlow
    registers such a gradient by a name, and never forgets it, nor the graph that
    it was traced in. So a stock `keras.Model` grows too with each function that it
    makes. `clear_session` is what Keras has for programs that make many models: it
    empties the cache of kernels, which holds one for each variable that ever was.
    """
    registered = ops.gradient_registry._registry
    for name in set(registered) - before:
        if name.startswith("CustomGradient-"):
            del registered[name]
    keras.utils.clear_session(free_memory=False)


def memory() -> int:
    """The resident memory of this process, in bytes."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep-traces", action="store_true")
    options = parser.parse_args()
    registered = set(ops.gradient_registry._registry)
    start, seconds = time.monotonic(), options.minutes * 60
    held = []
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), options.seed)
        while (elapsed := time.monotonic() - start) < seconds:
            for _ in range(10):
                soak.turn()
                if not options.keep_traces:
                    forget_traces(registered)
            held.append((elapsed, memory()))
            print(f"{elapsed:6.0f} s  {held[-1][1] / 1e6:7.1f} MB  {dict(soak.done)}", flush=True)
    settled = [bytes_ for elapsed, bytes_ in held if elapsed > WARM_UP * seconds]
    quarter = max(1, len(settled) // 4)
    first, last = np.median(settled[:quarter]), np.median(settled[-quarter:])
    print(
        f"after warm-up {first / 1e6:.1f} MB, at the end {last / 1e6:.1f} MB, seed {options.seed}"
    )
    return int(last > first * (1 + ALLOWED_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
