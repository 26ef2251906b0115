"""`BackupAndRestore`: a backup of training that survives being killed."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
from typing_extensions import override

from maskedgrad.distribute.workers import difference, is_chief, spans_workers, worker_index
from maskedgrad.files import FilePath, checked_path, opened_hdf5, sync
from maskedgrad.masking.of_model import masked_optimizer_in


class BackupAndRestore(keras.callbacks.Callback):
    """Backs training up after every epoch, and goes on from there after a crash.

    Equivalent to `keras.callbacks.BackupAndRestore(backup_dir)`, but for one
    thing: the backup is one file, which is written beside the last one and
    then takes its place. A process that is killed at any moment leaves a whole
    backup, whose weights, optimizer state and epoch belong together. Keras
    writes weights and epoch one after the other, over the old ones.

    Use another folder for each model. The backup is removed once training ends.
    Where training spans workers, the chief writes it and all of them read it.

    Args:
        backup_dir: the path of the folder that the backup is kept in, which
            all workers see.

    Raises:
        ValueError: the model is not built when training begins, or workers see
            different backups.
        OSError: the backup cannot be written, or is not one of this model, which
            is left as it was then.

    Example:

    >>> inputs = keras.Input((2,), dtype="int32")
    >>> words = keras.layers.Embedding(5, 2)
    >>> model = MaskedModel(inputs, words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [4]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.fit(np.array([[3, 4]]), np.ones((1, 2, 2)), verbose=0,
    ...                   callbacks=[callbacks.BackupAndRestore(folder)])
    """

    def __init__(self, backup_dir: FilePath):
        super().__init__()
        self._path = checked_path(backup_dir, "backup_dir") / "latest.weights.h5"

    @override
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if not self.model.built:
            raise ValueError(
                "A backup needs a model that is built before `fit` is called. "
                f"Received: the model {self.model.name!r}, which is not. "
                "Call it on a batch of data first."
            )
        folder = self._path.parent
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(
                f"`backup_dir` must be a folder. Received: {str(folder)!r}, which is a file. "
                "Give another path, where a folder is or can be made."
            )
        epoch = self._epoch()
        self._check_seen_by_all(epoch)
        if epoch is None:
            return
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        with _kept_on_error(self.model, self._path.parent), self._read():
            self.model.load_weights(self._path)
        # What `fit` starts from, as Keras's own callback sets it. Without it, epochs that are done
        # are trained again.
        # https://github.com/keras-team/keras/blob/v3.15.1/keras/src/callbacks/backup_and_restore.py#L152
        self.model._initial_epoch = epoch

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not is_chief(self.model.distribute_strategy):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name("next.weights.h5")
        optimizer = masked_optimizer_in(self.model.optimizer)
        # A training does not go on from averages, which `SwapEMAWeights` may have put in place.
        with optimizer.around_row_changes() if optimizer else contextlib.nullcontext():
            self.model.save_weights(beside, overwrite=True)
        with h5py.File(beside, "a") as backup:
            backup.attrs["epoch"] = epoch + 1
        sync(beside)
        beside.replace(self._path)
        sync(self._path.parent)

    @override
    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if is_chief(self.model.distribute_strategy):
            self._path.unlink(missing_ok=True)

    def _epoch(self) -> int | None:
        """How many epochs the backup has; `None` if there is no backup."""
        if not self._path.exists():
            return None
        with self._read(), opened_hdf5(self._path) as backup:
            return int(backup.attrs["epoch"])

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # neither HDF5 nor Keras says what it raises for damaged files
            raise OSError(
                f"Expected a backup of the model {self.model.name!r}. Received: "
                f"{str(self._path)!r}, which is of another model or damaged ({error}). "
                "Remove it to train from the beginning."
            ) from error

    def _check_seen_by_all(self, epoch: int | None) -> None:
        strategy = self.model.distribute_strategy
        if not spans_workers(strategy):
            return
        if seen := difference(strategy, "none" if epoch is None else f"one of {epoch} epochs"):
            raise ValueError(
                f"All workers must see one backup. Received: {seen}. "
                "Keep it in a folder that they share."
            )


@contextlib.contextmanager
def _kept_on_error(model: keras.Model, folder: Path) -> Iterator[None]:
    """A context after which a model is as it was before it, if something fails in it.

    Keras loads weights one after the other, and stops at those that do not fit.
    """
    strategy = model.distribute_strategy
    worker = worker_index(strategy) if spans_workers(strategy) else 0
    # In a file, since there may be no memory for a second copy of the model. What a process leaves
    # that is killed here has the same name the next time, so that it goes then.
    before = folder / f"before-{worker}.weights.h5"
    try:
        # A `MaskedModel` lets the chief of several workers alone write files; here each needs one.
        keras.Model.save_weights(model, before)
        try:
            yield
        except BaseException:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that rows change, which are those of before
                model.load_weights(before)
            raise
    finally:
        before.unlink(missing_ok=True)
