"""What each worker of the tests does; `TF_CONFIG` says which worker it is.

    python -m tests.multi_worker.training FOLDER SCENARIO...

Runs the scenarios one after the other and writes what came of each to a file
of the worker's own. A test runs the same scenario without a strategy, which is
one process on the joined batches.
"""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep, callbacks
from maskedgrad.distribute.workers import worker_index

NUM_ROWS, WIDTH, LENGTH, IDS = 20, 4, 5, [3, 7]
BATCH_SIZE, EPOCHS = 8, 2
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
X = RANDOM.integers(0, NUM_ROWS, size=(32, LENGTH))
Y = RANDOM.normal(size=(32, 1)).astype("float32")
OPTIONS = {"batch_size": BATCH_SIZE, "epochs": EPOCHS, "shuffle": False, "verbose": 0}


class Lazy(MaskedModel):
    """A model that its first batch builds."""

    def __init__(self, words, head):
        super().__init__()
        self.words, self.head = words, head

    def call(self, ids):
        return self.head(keras.ops.mean(self.words(ids), axis=1))


class MaskedSequential(MaskedTrainStep, keras.Sequential):
    """A class of Keras' own with the mixin."""


class Bits(keras.callbacks.Callback):
    """Notes after every epoch what the model and its optimizer hold."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        variables = [*self.model.weights, *self.model.optimizer.variables]
        self.epochs.append({v.path: np.array(v) for v in variables})


class Killed(keras.callbacks.Callback):
    """Kills this process in the midst of the second epoch."""

    def on_train_begin(self, logs=None):
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 1 and batch == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def layers(matrix=MATRIX):
    words = keras.layers.Embedding(*matrix.shape, weights=[matrix], name="words")
    return words, keras.layers.Dense(1, kernel_initializer="ones", name="head")


def functional(base, words, head):
    inputs = keras.Input((LENGTH,), dtype="int32")
    return base(inputs, head(keras.layers.GlobalAveragePooling1D()(words(inputs))))


def adamw():
    return keras.optimizers.AdamW(0.1, use_ema=True, ema_momentum=0.5)


def compiled(
    strategy, *, kind="functional", matrix=MATRIX, ids=IDS, inner=None, lazy=False, **options
):
    keras.utils.set_random_seed(0)
    with scope(strategy):
        words, head = layers(matrix)
        if kind == "functional":
            model = functional(MaskedModel, words, head)
        elif kind == "mixin":
            pooling = keras.layers.GlobalAveragePooling1D()
            model = MaskedSequential([words, pooling, head])
        else:
            model = Lazy(words, head)
        optimizer = MaskedOptimizer(inner or adamw(), {words: ids}, lazy=lazy)
        model.compile(optimizer, loss="mse", metrics=["mae"], **options)
    return model, words


def result(model, words, bits=None, **more):
    """What a scenario gives: arrays, and `json` for all else."""
    epochs = bits.epochs if bits else []
    arrays = {f"{number} {path}": v for number, e in enumerate(epochs) for path, v in e.items()}
    variables = [*model.weights, *model.optimizer.variables]
    arrays |= {f"at the end {v.path}": np.array(v) for v in variables}
    arrays |= {name: v for name, v in more.items() if isinstance(v, np.ndarray)}
    plain = {name: v for name, v in more.items() if not isinstance(v, np.ndarray)}
    return {"table": words.get_weights()[0], **arrays, "json": json.dumps(plain)}


def fitted(strategy, x=X, y=Y, *, fit=None, **options):
    model, words = compiled(strategy, **options)
    bits = Bits()
    history = model.fit(x, y, **{**OPTIONS, **(fit or {})}, callbacks=[bits])
    return model, words, bits, history.history


def whole_training(strategy, **options):
    fit = {"validation_data": (X[:16], Y[:16])}
    model, words, bits, history = fitted(strategy, fit=fit, **options)
    evaluated = model.evaluate(X, Y, batch_size=BATCH_SIZE, verbose=0)
    predicted = model.predict(X, batch_size=BATCH_SIZE, verbose=0)
    more = {"history": history, "evaluated": evaluated, "predicted": predicted}
    return result(model, words, bits, **more)


def functional_model(strategy):
    return whole_training(strategy)


def lazy_model(strategy):
    return whole_training(strategy, kind="lazy")


def mixin(strategy):
    return whole_training(strategy, kind="mixin")


def several_steps_a_call(strategy):
    return whole_training(strategy, steps_per_execution=3)


def lazy_steps(strategy):
    return whole_training(strategy, inner="adam", lazy=True)


def no_row_at_all(strategy):
    """No batch looks up a row that trains, of an optimizer that would step those alone."""
    x = np.where(X == NUM_ROWS - 1, 0, X)
    model, words, bits, _ = fitted(strategy, x, ids=[NUM_ROWS - 1], inner="sgd")
    return result(model, words, bits)


def rows_change(strategy):
    model, words, bits, _ = fitted(strategy)
    model.optimizer.set_trainable_rows({words: [7, 8, 9]})
    model.fit(X, Y, **OPTIONS, callbacks=[bits])
    return result(model, words, bits)


def own_loop(strategy):
    """A loop written by hand: `strategy.run` of the model's step."""
    model, words = compiled(strategy)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH_SIZE)
    if strategy is None:
        for batch in data:
            model.train_step(batch)
        return result(model, words)

    @tf.function
    def step(batch):
        strategy.run(model.train_step, args=(batch,))

    for batch in strategy.experimental_distribute_dataset(data):
        step(batch)
    return result(model, words)


def exact_sums(strategy):
    """Numbers whose sums have no rounding in any order: small multiples of powers of two."""
    random = np.random.default_rng(1)
    matrix = random.integers(-2, 3, size=(NUM_ROWS, WIDTH)).astype("float32")
    x, y = random.integers(0, NUM_ROWS, size=(16, 4)), random.integers(-2, 3, size=(16, 1))
    with scope(strategy):
        words, head = layers(matrix)
        inputs = keras.Input((4,), dtype="int32")
        pooled = keras.layers.GlobalAveragePooling1D()(words(inputs))
        model = MaskedModel(inputs, head(pooled))
        model.compile(keras.optimizers.SGD(0.25), loss="mse", trainable_rows={words: IDS})
    model.fit(x, y.astype("float32"), batch_size=8, shuffle=False, verbose=0)
    return result(model, words)


def rows_of_each_worker(num_rows, num_workers):
    """How a batch of a data set is split: ceil(n / workers) each, as long as there are any."""
    share = -(-num_rows // num_workers)
    return [max(0, min(share, num_rows - share * worker)) for worker in range(num_workers)]


def small_last_batch(strategy):
    """The last batch holds 5 examples: more for one worker than for the other."""
    return _unweighted_over_workers(strategy, 29)


def empty_last_batch(strategy):
    """The last batch holds 1 example: one worker gets none."""
    return _unweighted_over_workers(strategy, 25)


def _unweighted_over_workers(strategy, size, num_workers=2):
    x, y = X[:size], Y[:size]
    if strategy:
        model, words, bits, history = fitted(strategy, x, y)
        return result(model, words, bits, history=history)
    # Keras averages the means of workers, so an example of a smaller share weighs more.
    weights = np.ones(size, "float32")
    rest = size % BATCH_SIZE
    shares = rows_of_each_worker(rest, num_workers)
    for worker, share in enumerate(shares):
        start = size - rest + sum(shares[:worker])
        weights[start : start + share] = rest / (num_workers * share) if share else 0
    model, words, bits, _ = fitted(None, x, y, fit={"sample_weight": weights})
    return result(model, words, bits)


def no_trainable_id_on_one_worker(strategy):
    x = np.where(np.arange(32)[:, None] % BATCH_SIZE >= BATCH_SIZE // 2, X % 3, X)
    model, words, bits, history = fitted(strategy, x)
    return result(model, words, bits, history=history)


def one_worker_runs_out(strategy):
    """Worker 0 has four batches of 4, worker 1 has two.

    By gradient descent: where Keras does not know how many batches there are, it
    makes a step without a gradient at the end of an epoch, with or without the
    wrapper, which counts, decays and averages.
    """
    with scope(strategy):
        inner = keras.optimizers.SGD(0.1)
    if strategy is None:
        order = np.concatenate([np.r_[4 * i : 4 * i + 4, 16 + 4 * i : 20 + 4 * i] for i in (0, 1)])
        x, y = (np.concatenate([v[order], v[8:16]]) for v in (X, Y))
        # What a worker without data adds to the mean over workers is nothing.
        data = tf.data.Dataset.from_tensor_slices((x, y, np.float32([1] * 16 + [0.5] * 8)))
        batches = data.take(16).batch(8).concatenate(data.skip(16).batch(4))
        model, words = compiled(None, inner=inner)
        model.fit(batches, epochs=EPOCHS, shuffle=False, verbose=0)
        return _without_count(result(model, words))

    def of_worker(context):
        start, count = (0, 16) if context.input_pipeline_id == 0 else (16, 8)
        share = X[start : start + count], Y[start : start + count]
        return tf.data.Dataset.from_tensor_slices(share).batch(4)

    def of_unknown_length(context):
        return of_worker(context).filter(lambda *batch: True)

    model, words = compiled(strategy, inner=inner)
    known = strategy.distribute_datasets_from_function(of_worker)
    message = refusal(lambda: model.fit(known, epochs=EPOCHS, verbose=0))
    data = strategy.distribute_datasets_from_function(of_unknown_length)
    model.fit(data, epochs=EPOCHS, verbose=0)
    return _without_count(result(model, words, refusal=message))


def _without_count(result):
    return {name: value for name, value in result.items() if not name.endswith("iteration")}


def files(strategy):
    """Which files each worker writes, to a folder of its own."""
    index = worker_index(strategy)
    folder = Path(sys.argv[1]) / f"files of {index}"
    folder.mkdir()
    model, words = compiled(strategy)
    (folder / "backup").mkdir()
    written = [
        keras.callbacks.ModelCheckpoint(folder / "checkpoint.keras"),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.TensorBoard(folder / "board"),
    ]
    kept = callbacks.BackupAndRestore(Path(sys.argv[1]) / "backup")
    model.fit(X, Y, **OPTIONS, callbacks=[*written, kept])
    by_place = keras.callbacks.CSVLogger(folder / "by place.csv")
    model.fit(X, Y, BATCH_SIZE, 1, 0, [by_place])
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    refusals = []
    for callback in (
        keras.callbacks.BackupAndRestore(folder / "stock"),
        callbacks.BackupAndRestore(folder / "backup"),
    ):
        if index == 0:  # a backup that the other worker does not see
            model.save_weights(folder / "backup" / "latest.weights.h5")
            with_epoch(folder / "backup" / "latest.weights.h5", 1)
        refusals.append(refusal(lambda cb=callback: model.fit(X, Y, **OPTIONS, callbacks=[cb])))
    names = sorted(p.name for p in folder.iterdir() if p.name != "backup")
    return result(model, words, names=names, refusals=refusals)


def with_epoch(path, epoch):
    import h5py

    with h5py.File(path, "a") as backup:
        backup.attrs["epoch"] = epoch


def refusal(function):
    """The message of the ValueError that a function raises; nothing if it raises none."""
    try:
        function()
    except ValueError as error:
        return str(error)
    return ""


def differing_workers(strategy):
    """Workers of other ids, as many of them; of other numbers of ids; of other values; versions."""
    other = worker_index(strategy) == 1
    model, words = compiled(strategy)

    def start(**options):
        model, _ = compiled(strategy, **options)
        return refusal(lambda: model.fit(X, Y, **OPTIONS))

    messages = [
        start(ids=[3, 8] if other else IDS),
        start(ids=[3, 8, 9] if other else IDS),
        start(kind="lazy", ids=[3, 8, 9] if other else IDS),
        start(matrix=MATRIX + 1 if other else MATRIX),
    ]
    installed = keras.__version__
    keras.__version__ = "0.0.1" if other else installed
    messages.append(start())
    keras.__version__ = installed
    model.fit(X, Y, **OPTIONS)
    changed = {words: [1, 2] if other else [1, 3]}
    messages.append(refusal(lambda: model.optimizer.set_trainable_rows(changed)))
    return result(model, words, messages=messages)


def other_shape(strategy):
    matrix = MATRIX[:-1] if worker_index(strategy) == 1 else MATRIX
    compiled(strategy, matrix=matrix)


def stock(strategy):
    """What stops a model of Keras' own, built and not built; nothing if nothing does."""
    errors = []
    for first_layers in ([keras.Input((LENGTH,), dtype="int32")], []):
        with strategy.scope():
            words, head = layers()
            pooling = keras.layers.GlobalAveragePooling1D()
            model = keras.Sequential([*first_layers, words, pooling, head])
            model.compile("sgd", loss="mse")
        try:
            model.fit(X, Y, **OPTIONS)
            errors.append("")
        except Exception as error:  # whatever it is, on every worker alike
            errors.append(f"{type(error).__name__}: {error}"[:200])
    return {"json": json.dumps(errors)}


def backed_up(strategy):
    """Uninterrupted, or going on from what `killed` left."""
    model, words = compiled(strategy)
    backup = callbacks.BackupAndRestore(Path(sys.argv[1]) / "backup")
    history = model.fit(X, Y, **{**OPTIONS, "epochs": 4}, callbacks=[backup])
    return result(model, words, epochs=history.epoch)


def killed(strategy, index):
    model, _ = compiled(strategy)
    backup = callbacks.BackupAndRestore(Path(sys.argv[1]) / "backup")
    more = [Killed()] if worker_index(strategy) == index else []
    model.fit(X, Y, **{**OPTIONS, "epochs": 4}, callbacks=[backup, *more])


def first_killed(strategy):
    killed(strategy, 0)


def second_killed(strategy):
    killed(strategy, 1)


def traffic(strategy):
    """By table size: the shapes that workers reduce or gather in a traced step, ours and stock."""
    from tests.multi_worker.traffic import collective_shapes

    return {"json": json.dumps(collective_shapes(strategy))}


def main(folder, *names):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    for name in names:
        keras.utils.clear_session(free_memory=False)  # variables are compared by their paths
        arrays = globals()[name](strategy)
        if arrays is not None:
            np.savez(Path(folder) / f"{name} {worker_index(strategy)}.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
