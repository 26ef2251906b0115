"""The devices that tests of `tf.distribute` train on."""

import tensorflow as tf


def mirrored_strategy() -> tf.distribute.Strategy:
    """Two devices of this machine. The collectives of several strategies in one process collide."""
    return tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
