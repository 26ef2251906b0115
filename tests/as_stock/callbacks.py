"""Situations: the callbacks that Keras exports, and callbacks of one's own."""

import inspect
from pathlib import Path

import keras

from tests.as_stock.harness import X, Y, entered, fitted, rare_situation, situation

CALLBACKS = {
    "BackupAndRestore": lambda folder: keras.callbacks.BackupAndRestore(folder / "backup"),
    "Callback": lambda folder: keras.callbacks.Callback(),
    "CSVLogger": lambda folder: keras.callbacks.CSVLogger(folder / "log.csv"),
    "EarlyStopping": lambda folder: keras.callbacks.EarlyStopping(
        "loss", patience=0, min_delta=100.0, restore_best_weights=True, start_from_epoch=1
    ),
    "History": lambda folder: keras.callbacks.History(),
    "LambdaCallback": lambda folder: keras.callbacks.LambdaCallback(),
    "LearningRateScheduler": lambda folder: keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate / (1 + epoch)
    ),
    "ModelCheckpoint": lambda folder: keras.callbacks.ModelCheckpoint(folder / "{epoch}.keras"),
    "ProgbarLogger": lambda folder: keras.callbacks.ProgbarLogger(),
    "ReduceLROnPlateau": lambda folder: keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=100.0
    ),
    "TerminateOnNaN": lambda folder: keras.callbacks.TerminateOnNaN(),
}
NOT_HERE = {
    "CallbackList": "`fit` makes it of the others",
    "OrbaxCheckpoint": "needs a package that the tests do not install",
    "RemoteMonitor": "sends what it sees over the network",
    "SwapEMAWeights": "a `MaskedModel` refuses it, and has its own: tests/test_callbacks.py",
    "TensorBoard": "starts a profiler and writes times: tests/compatibility/test_callbacks.py",
}


def callback_classes():
    exported = vars(keras.callbacks).values()
    base = (keras.callbacks.Callback, keras.callbacks.CallbackList)
    return {cls.__name__ for cls in exported if inspect.isclass(cls) and issubclass(cls, base)}


def content(path: Path):
    """What a callback has written, if it is text."""
    return path.read_text(encoding="utf-8") if path.suffix == ".csv" else ""


for name, make in CALLBACKS.items():

    def fit_with_callback(way, make=make):
        model = way.small(keras.optimizers.SGD(0.1))
        after = fitted(model, epochs=3, callbacks=[make(way.folder)])
        files = sorted(path for path in way.folder.rglob("*") if path.is_file())
        return after, [(str(path.relative_to(way.folder)), content(path)) for path in files]

    often = name in {"EarlyStopping", "ModelCheckpoint"}
    entered(f"the_callback_{name}", fit_with_callback, often)


@situation
def callbacks_that_fit_finds_by_place(way):
    model = way.small()
    history = model.fit(X, Y, 3, 2, 0, keras.callbacks.TerminateOnNaN())
    return history.history


class Noted(keras.callbacks.Callback):
    """Notes each call and its logs."""

    def __init__(self):
        super().__init__()
        self.calls = []


def _noting(name):
    def note(self, *args, **kwargs):
        logs = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, dict)]
        places = [arg for arg in args if isinstance(arg, int)]
        self.calls.append([name, places, [sorted(each.items()) for each in logs]])

    return note


for hook in dir(keras.callbacks.Callback):
    if hook.startswith("on_"):
        setattr(Noted, hook, _noting(hook))


@situation
def each_call_of_a_callback_and_its_logs(way):
    noted = Noted()
    model = way.small(run_eagerly=False, metrics=["mae"])
    fitted(model, validation_data=(X, Y), callbacks=[noted])
    model.evaluate(X, Y, verbose=0, callbacks=[noted])
    model.predict(X, verbose=0, callbacks=[noted])
    return noted.calls


@rare_situation
def a_callback_that_stops_training(way):
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    return fitted(way.small(), batch_size=1, callbacks=[Stops()])


@situation
def a_callback_that_sets_the_learning_rate_in_a_batch(way):
    class Sets(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate = 0.1 * (batch + 1)

    return fitted(
        way.small(keras.optimizers.SGD(), run_eagerly=False), batch_size=1, callbacks=[Sets()]
    )


@rare_situation
def a_callback_that_sets_weights(way):
    class Sets(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights([weight * 0.5 for weight in self.model.get_weights()])

    return fitted(way.small(run_eagerly=False), callbacks=[Sets()])


@rare_situation
def a_callback_that_raises(way):
    class Raises(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt if batch < 0 else RuntimeError("stop")

    model = way.small()
    try:
        fitted(model, callbacks=[Raises()])
    except RuntimeError:
        return fitted(model)


@rare_situation
def a_backup_that_is_resumed(way):
    class Stops(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise RuntimeError("stop")

    model = way.small()
    try:
        fitted(model, callbacks=[keras.callbacks.BackupAndRestore(way.folder), Stops()])
    except RuntimeError:
        model = way.small()
    return fitted(model, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(way.folder)])
