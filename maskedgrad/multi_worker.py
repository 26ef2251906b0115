"""Keras' `fit` under `MultiWorkerMirroredStrategy`, where Keras 3 stops (keras issue 20585)."""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from keras import Model as _Model
else:
    _Model = object


class MultiWorkerSteps(_Model):
    """Lets a `keras.Model` train under `MultiWorkerMirroredStrategy`; no change elsewhere.

    Keras stops there twice. To build what is not built yet it averages a batch
    over the workers, which TensorFlow cannot do with values of one device a
    worker. And it averages what a step returns along the first axis of each
    value, while what a step returns are scalars.
    """

    def compile(self, *args, **kwargs):
        """`keras.Model.compile`. Refuses several steps in one call where it spans workers."""
        if kwargs.get("steps_per_execution", 1) != 1 and spans_workers(self.distribute_strategy):
            raise ValueError(
                "`steps_per_execution` must be 1 under `MultiWorkerMirroredStrategy`, since Keras "
                "runs several steps in a loop of TensorFlow, in which workers cannot reduce. "
                f"Received: steps_per_execution={kwargs['steps_per_execution']!r}"
            )
        super().compile(*args, **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self.distribute_strategy
        if iterator is not None and spans_workers(strategy):
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], _first_batch(iterator)
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def test_step(self, data):
        """One step of evaluation. Called by `evaluate`."""
        return returned(super().test_step(data))


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy trains on several machines."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def returned(logs: dict[str, Any]) -> dict[str, Any]:
    """What a step returns, with the axis that Keras averages along where it spans workers."""
    if not spans_workers(tf.distribute.get_strategy()):
        return logs
    return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), logs)


def _first_batch(iterator: Any) -> Any:
    # Before the batches stands what counts steps: one number or two, as versions of Keras differ.
    return next(next(batches for *_, batches in iterator))
