"""What happens to a model in its life, again and again, beside a stock model in the same loop.

    python -m tests.soak --minutes 60

Two programs run side by side and do the same at random, each with two models in
turn: training, other rows, saves and loads in three formats, a larger table, a
patch, evaluation and prediction. One masks rows, and after each turn its frozen
rows must have kept their bits. The other is stock Keras, which does what comes
nearest. Prints what each has done and holds, and fails where a frozen row has
moved, or where the one that masks has grown and the stock one has not. No part
of the suite: it takes its time.
"""

import argparse
import collections
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import maskedgrad

NUM_ROWS, WIDTH, LENGTH = 5_000, 64, 12
WARM_UP = 0.2  # the share of the turns after which memory must stay flat
ALLOWED_GROWTH = 0.02  # of what is held then; an allocator does not give all back
ROUND = 20  # turns, after which memory is read


class Life:
    """A stock model in training, and what its table held after the last turn."""

    def __init__(self, folder: Path, random: np.random.Generator):
        self.folder, self.random = folder, random
        self.model = self.new_model()
        self.table = self.read_table()

    def new_model(self):
        inputs = keras.Input((LENGTH,), dtype="int32")
        words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
        pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
        model = keras.Model(inputs, keras.layers.Dense(1, name="head")(pooled))
        model.compile(keras.optimizers.AdamW(0.01, use_ema=True), loss="mse")
        model.optimizer.build(model.trainable_variables)
        return model

    def read_table(self) -> np.ndarray:
        return np.array(self.model.get_layer("words").get_weights()[0])

    def train(self, model=None) -> None:
        tokens = self.random.integers(0, NUM_ROWS, (256, LENGTH))
        labels = self.random.normal(size=(256, 1))
        (model or self.model).fit(tokens, labels, batch_size=16, verbose=0)

    def change_rows(self) -> None:
        """Of a stock model: traces its step again, as a change of what trains makes Keras do."""
        self.model.make_train_function(force=True)
        self.train()

    def weights(self) -> None:
        path = self.folder / "soak.weights.h5"
        self.model.save_weights(path)
        self.model.load_weights(path)

    def whole(self) -> None:
        path = self.folder / "soak.keras"
        self.model.save(path)
        self.model = keras.saving.load_model(path)

    def checkpoint(self) -> None:
        checkpoint = tf.train.Checkpoint(model=self.model, optimizer=self.model.optimizer)
        checkpoint.read(
            checkpoint.write(str(self.folder / "soak"))
        ).assert_existing_objects_matched()

    def extend(self) -> None:
        """Trains a copy with a larger table, and drops it."""
        inputs = keras.Input((LENGTH,), dtype="int32")
        words = keras.layers.Embedding(NUM_ROWS + 3, WIDTH, name="words")
        pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
        larger = keras.Model(inputs, keras.layers.Dense(1, name="head")(pooled))
        words.set_weights([np.pad(self.read_table(), [(0, 3), (0, 0)])])
        larger.get_layer("head").set_weights(self.model.get_layer("head").get_weights())
        larger.compile("adamw", loss="mse")
        self.train(larger)

    def patch(self) -> None:
        """Writes rows to a file, reads them, and puts them into the table and out of it."""
        table = self.read_table()
        np.save(self.folder / "rows.npy", table[:100])
        for rows in (np.load(self.folder / "rows.npy"), table[:100]):
            self.model.get_layer("words").set_weights([np.concatenate([rows, table[100:]])])

    def look(self) -> None:
        tokens = self.random.integers(0, NUM_ROWS, (64, LENGTH))
        self.model.evaluate(tokens, np.zeros((64, 1)), verbose=0)
        self.model.predict(tokens, verbose=0)

    def turn(self) -> str:
        """Does one thing, and returns what."""
        often = [self.train, self.change_rows, self.weights, self.look]
        seldom = [self.whole, self.checkpoint, self.extend, self.patch]
        turn = self.random.choice([*often, *often, *seldom])
        turn()
        self.check(turn in (self.train, self.change_rows), turn.__name__)
        return turn.__name__

    def check(self, trains: bool, what: str) -> None:
        """Nothing of a stock model is frozen while it trains."""


class MaskedLife(Life):
    """A model of which some rows train."""

    def new_model(self):
        stock = super().new_model()
        model = maskedgrad.MaskedModel(stock.inputs, stock.outputs)
        optimizer = keras.optimizers.AdamW(0.01, use_ema=True)
        rows = {model.get_layer("words"): self.draw_rows()}
        model.compile(maskedgrad.MaskedOptimizer(optimizer, rows), loss="mse")
        model.optimizer.build(model.trainable_variables)
        return model

    def draw_rows(self) -> np.ndarray:
        count = self.random.integers(1, 200)
        return np.sort(self.random.choice(NUM_ROWS, count, replace=False))

    def change_rows(self) -> None:
        self.model.set_trainable_rows({self.model.get_layer("words"): self.draw_rows()})
        self.train()

    def extend(self) -> None:
        larger, new = maskedgrad.extend(self.model, ["<a>", "<b>", "<c>"])
        masked = maskedgrad.MaskedModel(larger.inputs, larger.outputs)
        masked.compile("adamw", loss="mse", trainable_rows={larger.get_layer("words"): new})
        self.train(masked)
        changed = changed_rows(self.table, larger.get_layer("words").get_weights()[0][:NUM_ROWS])
        if changed.any():
            sys.exit(f"an extended table has other rows {np.flatnonzero(changed)[:10]}")

    def patch(self) -> None:
        path = self.folder / "rows.safetensors"
        maskedgrad.RowPatch.from_model(self.model).save(path)
        with maskedgrad.RowPatch.load(path).applied(self.model):
            self.look()

    def check(self, trains: bool, what: str) -> None:
        before, self.table = self.table, self.read_table()
        (rows,) = self.model.optimizer.trainable_rows.values()
        moved = changed_rows(before, self.table) & ~(rows.mask & trains)
        if moved.any():
            sys.exit(f"{what} changed rows {np.flatnonzero(moved)[:10]}")


def changed_rows(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before.view("uint32") != after.view("uint32")).any(axis=1)


def memory() -> int:
    """The resident memory of this process, in bytes."""
    gc.collect()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def live(life: type[Life], seconds: float, seed: int) -> None:
    """Lives, and prints what was done and is held after each round, as a line of JSON."""
    start = time.monotonic()
    done: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(seed)
        lives = itertools.cycle([life(Path(folder), random) for _ in range(2)])
        while time.monotonic() - start < seconds:
            done.update(next(lives).turn() for _ in range(ROUND))
            # What Keras has for programs that make many models: it empties the cache of kernels,
            # which holds one for each variable that ever was.
            keras.utils.clear_session(free_memory=False)
            print(json.dumps({"done": done, "held": memory()}), flush=True)


def growth(rounds: list[dict]) -> tuple[float, float, int]:
    """The memory after the warm-up and at the end, and the turns between."""
    held = [each["held"] for each in rounds]
    settled = held[int(WARM_UP * len(held)) :]
    quarter = max(1, len(settled) // 4)
    turns = ROUND * (len(settled) - quarter)
    return np.median(settled[:quarter]), np.median(settled[-quarter:]), turns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["masked", "stock"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        life = {"masked": MaskedLife, "stock": Life}[options.only]
        live(life, 60 * options.minutes, options.seed)
        return 0
    command = [sys.executable, "-m", "tests.soak", *sys.argv[1:]]
    programs = {
        only: subprocess.Popen([*command, "--only", only], stdout=subprocess.PIPE, text=True)
        for only in ("masked", "stock")
    }
    per_turn, allowed = {}, 0.0
    for only, program in programs.items():
        lines = program.communicate()[0].splitlines()
        if program.returncode:
            return program.returncode
        rounds = list(map(json.loads, lines))
        first, last, turns = growth(rounds)
        per_turn[only] = (last - first) / max(1, turns)
        print(
            f"{only}: after warm-up {first / 1e6:.1f} MB, at the end {last / 1e6:.1f} MB, "
            f"{per_turn[only] / 1e3:.1f} KB a turn; {rounds[-1]['done']}, seed {options.seed}"
        )
        allowed = max(allowed, ALLOWED_GROWTH * first / max(1, turns))
    return int(per_turn["masked"] > max(per_turn["stock"], allowed))


if __name__ == "__main__":
    sys.exit(main())
