"""`BackupAndRestore`: a backup of training that survives being killed."""

import os
from pathlib import Path

import h5py
import keras


class BackupAndRestore(keras.callbacks.Callback):
    """Backs training up after every epoch, and goes on from there after a crash.

    Equivalent to `keras.callbacks.BackupAndRestore(backup_dir)`, but for one
    thing: the backup is one file, which is written beside the last one and
    then takes its place. A process that is killed at any moment leaves a whole
    backup, whose weights, optimizer state and epoch belong together. Keras
    writes weights and epoch one after the other, over the old ones.

    Use another folder for each model. The backup is removed once training ends.

    Args:
        backup_dir: the path of the folder that the backup is kept in.

    Raises:
        ValueError: the model is not built when training begins.
        OSError: the backup cannot be written, or is not one.

    Example:

    >>> inputs = keras.Input((2,), dtype="int32")
    >>> words = keras.layers.Embedding(5, 2)
    >>> model = MaskedModel(inputs, words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [4]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.fit(np.array([[3, 4]]), np.ones((1, 2, 2)), verbose=0,
    ...                   callbacks=[callbacks.BackupAndRestore(folder)])
    """

    def __init__(self, backup_dir: str | os.PathLike):
        super().__init__()
        self._path = Path(backup_dir) / "latest.weights.h5"

    def on_train_begin(self, logs=None):
        """Called by Keras."""
        if not self.model.built:
            raise ValueError(
                "A backup needs a model that is built before `fit` is called. "
                f"Received: the model {self.model.name!r}, which is not. "
                "Call it on a batch of data first."
            )
        if not self._path.exists():
            return
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        # What `fit` starts from. Keras' own callback sets it too; nothing public does.
        self.model._initial_epoch = self._load()

    def _load(self) -> int:
        """Loads the weights of the backup, and returns the epoch to go on from."""
        try:
            with h5py.File(self._path) as backup:
                epoch = int(backup.attrs["epoch"])
            self.model.load_weights(self._path)
        except Exception as error:  # neither HDF5 nor Keras says what it raises for damaged files
            raise OSError(
                f"Expected a backup of the model {self.model.name!r}. Received: "
                f"{str(self._path)!r}, which is of another model or damaged ({error}). "
                "Remove it to train from the beginning."
            ) from error
        return epoch

    def on_epoch_end(self, epoch, logs=None):
        """Called by Keras."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name("next.weights.h5")
        self.model.save_weights(beside, overwrite=True)
        with h5py.File(beside, "a") as backup:
            backup.attrs["epoch"] = epoch + 1
        _flush(beside)
        beside.replace(self._path)
        _flush(self._path.parent)

    def on_train_end(self, logs=None):
        """Called by Keras."""
        self._path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
