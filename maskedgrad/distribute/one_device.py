"""A step on one device, without what TensorFlow keeps for good of a step on several."""

import types
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def apply_alone(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Makes a step of an optimizer, which adds up no gradients where there is one device.

    Equivalent to `optimizer.apply(gradients, variables)`. Keras adds gradients up by `all_reduce`,
    also on one device. Where all of them are dense, TensorFlow gives it a gradient of its own,
    which it registers for good, with the graph that is being traced, and that holds every table:
    https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/python/distribute/distribute_lib.py#L3636
    Each model that is made and dropped would leave its table. In the context of all replicas Keras
    adds nothing up. An `apply` that is not that of Keras may need that of one, and gets it.
    This can go once `all_reduce` of one replica returns its input as it is.
    """
    replica = tf.distribute.get_replica_context()
    of_keras = types.MethodType(keras.optimizers.Optimizer.apply, optimizer)
    is_alone = replica is not None and not tf.distribute.has_strategy()
    held = [variable.value for variable in optimizer.variables]
    # An optimizer that was made under a strategy needs the context of a replica outside of it.
    is_spread = any(isinstance(value, tf.distribute.DistributedValues) for value in held)
    if not is_alone or is_spread or optimizer.apply != of_keras:
        optimizer.apply(gradients, variables)
        return
    replica.merge_call(lambda _: optimizer.apply(gradients, variables))
