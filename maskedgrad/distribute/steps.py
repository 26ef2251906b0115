"""Keras' `fit` under `MultiWorkerMirroredStrategy`, where Keras 3 stops.

See https://github.com/keras-team/keras/issues/20585.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from typing_extensions import override

from maskedgrad.distribute.workers import difference, is_chief, spans_workers

if TYPE_CHECKING:
    from keras import Model as _Model
else:
    _Model = object

# They do nothing to the training: all that they do is write files.
FILE_WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.TensorBoard,
)


class MultiWorkerSteps(_Model):
    """Lets a `keras.Model` train under `MultiWorkerMirroredStrategy`; no change elsewhere.

    Put it before `keras.Model` among the bases. Keras stops there three times.
    To build what is not built yet it averages a batch over the workers, which
    TensorFlow cannot do with values of one device a worker. It averages what a
    step returns along the first axis of each value, while what a step returns
    are scalars. And it runs several steps in a loop of TensorFlow, in which
    workers cannot reduce.

    A version of Keras that no longer stops there works with this too: it is given
    a batch to build from, the average of one element is that element, and several
    steps one by one are equal to several at once. A test fails once there is one,
    so that this can go.

    Files are the chief's to write: `save` and `save_weights` do nothing on
    other workers, and callbacks that only write files are left out there.
    """

    train_function: Any
    test_function: Any

    # These hand on all arguments. Type checkers, and editors that complete, are to see the
    # signatures of the class that comes after this one.
    if not TYPE_CHECKING:

        def fit(self, *args, **kwargs):
            """`keras.Model.fit`. Where it spans workers, the chief alone writes files.

            Raises:
                ValueError: a `keras.callbacks.BackupAndRestore` is to run on several workers.
            """
            if spans_workers(self.distribute_strategy):
                writes_files = is_chief(self.distribute_strategy)
                choose = functools.partial(_callbacks_of_worker, writes_files=writes_files)
                args, kwargs = with_callbacks(super().fit, choose, args, kwargs)
            return super().fit(*args, **kwargs)

        def save(self, filepath, *args, **kwargs):
            """`keras.Model.save`, by the chief alone."""
            if is_chief(self.distribute_strategy):
                super().save(filepath, *args, **kwargs)

        def save_weights(self, filepath, *args, **kwargs):
            """`keras.Model.save_weights`, by the chief alone."""
            if is_chief(self.distribute_strategy):
                super().save_weights(filepath, *args, **kwargs)

    @override
    def train_step(self, data: Any) -> dict[str, Any]:
        return returned(super().train_step(data))

    @override
    def test_step(self, data: Any) -> dict[str, Any]:
        return returned(super().test_step(data))

    @override
    def make_train_function(self, force: bool = False) -> None:
        made = self.train_function
        super().make_train_function(force=force)
        if self.train_function is not made:
            self.train_function = self._step_by_step(self.train_function)

    @override
    def make_test_function(self, force: bool = False) -> None:
        made = self.test_function
        super().make_test_function(force=force)
        if self.test_function is not made:
            self.test_function = self._step_by_step(self.test_function)

    def _step_by_step(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if self.steps_per_execution == 1 or not spans_workers(self.distribute_strategy):
            return function
        # From any other iterator than TensorFlow's, Keras takes one batch after the other.
        return lambda iterator: function(itertools.chain([next(iterator)], iterator))

    @override
    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        strategy = self.distribute_strategy
        if iterator is not None and spans_workers(strategy):
            _check_as_many_batches(strategy, iterator.num_batches)
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], _first_batch(iterator)
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)


def returned(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns the logs of a step; across workers, with the axis that Keras averages along."""
    if not spans_workers(tf.distribute.get_strategy()):
        return logs
    return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), logs)


def with_callbacks(
    method: Callable[..., Any],
    choose: Callable[[Any], Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns arguments of `method` with other callbacks, which may be given by place or by name.

    Example:

    >>> method = lambda x, callbacks=None, **options: None
    >>> with_callbacks(method, len, (1, ["one", "two"]), {})
    ((1, 2), {})
    >>> with_callbacks(method, len, (1,), {"callbacks": ["one"], "epochs": 3})
    ((1,), {'callbacks': 1, 'epochs': 3})
    """
    if "callbacks" in kwargs:
        return args, {**kwargs, "callbacks": choose(kwargs["callbacks"])}
    # The `fit` of a task of `keras_hub` takes callbacks among other keywords, and so by name only.
    place = [*inspect.signature(method).parameters, "callbacks"].index("callbacks")
    return (*args[:place], *map(choose, args[place : place + 1]), *args[place + 1 :]), kwargs


def _callbacks_of_worker(callbacks: Any, writes_files: bool) -> list[Any]:
    """Returns the callbacks as a list, without those that write files where a worker must not."""
    callbacks = [callback for callback in tf.nest.flatten(callbacks) if callback is not None]
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            raise ValueError(
                "`keras.callbacks.BackupAndRestore` writes on every worker, each over what the "
                "others wrote. Received: that callback. Use "
                "`maskedgrad.callbacks.BackupAndRestore`, with a folder that all workers see."
            )
    return [each for each in callbacks if writes_files or not isinstance(each, FILE_WRITERS)]


def _check_as_many_batches(strategy: tf.distribute.Strategy, num_batches: int | None) -> None:
    # A worker that knows that it has fewer would stop while the others wait for it.
    if counts := difference(strategy, num_batches):
        raise ValueError(
            f"Workers must have as many batches each, or not know how many. Received: {counts}. "
            "Give the same data to each worker, which takes its share of it; or a data set that "
            "goes on until all have run out: `dataset.filter(lambda *batch: True)`."
        )


def _first_batch(iterator: Iterator[Any]) -> Any:
    # Keras yields the number of the step, in newer versions two numbers, and then the batches.
    return next(next(batches for *_, batches in iterator))
