"""What TensorFlow's graphs need: what is made while a function is traced must outlive it."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import tensorflow as tf

Result = TypeVar("Result")

# What Keras calls the function that it traces, and has no public way to tell.
# https://github.com/keras-team/keras/blob/v3.15.1/keras/src/backend/tensorflow/trainer.py#L132
KERAS_TRACES = "one_step_on_data"


@tf.autograph.experimental.do_not_convert
def outside_of_graphs(
    function: Callable[[], Result], strategy: tf.distribute.Strategy | None = None
) -> Result:
    """Calls `function` eagerly, also where `tf.function` is tracing, in a thread of its own.

    That thread is in the scope of `strategy`, if one is given, and of the device in use here.

    If the first batch builds model and optimizer, both are built in a trace. What
    the optimizer makes must outlive the graph of that trace. And it must be made
    once the tables hold values, from the second trace on, where TensorFlow makes no
    variable, not even in `tf.init_scope`. Another thread can: it knows of no graph.
    """
    result: Future[Result] = Future()
    device = tf.zeros([]).device or None  # in a graph it is empty, where no scope names one

    def call_in_scope() -> None:
        try:
            with strategy.scope() if strategy else contextlib.nullcontext(), tf.device(device):
                result.set_result(function())
        except BaseException as error:
            result.set_exception(error)

    # No executor: those refuse work once the main thread has ended, as it may have.
    thread = threading.Thread(target=call_in_scope)
    thread.start()
    thread.join()
    return result.result()


def trace_again() -> None:
    """Makes the train function of a `keras.Model` that is being traced start over.

    TensorFlow traces a function again if its first trace makes a variable, and this
    one serves for nothing else. In a later trace TensorFlow allows no variable.
    https://www.tensorflow.org/guide/function#creating_tfvariables
    """
    if tf.executing_eagerly() or tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return  # where a variable that one replica makes in a trace confuses the graphs of others
    if tf.compat.v1.get_default_graph().name == KERAS_TRACES:
        with contextlib.suppress(ValueError):  # a later trace, which stays as it is
            tf.Variable(0.0, trainable=False, name="trace_again")


def is_compiled_by_xla() -> bool:
    """Whether what is traced here is to be compiled by XLA, as `jit_compile` asks for."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        # TensorFlow tells this nowhere else.
        # https://github.com/tensorflow/tensorflow/blob/v2.21.0/tensorflow/python/ops/control_flow_ops.py#L2180
        context = graph._get_control_flow_context()
        while context is not None:
            # Also one of a TPU, which is a class of its own.
            if "XLAControlFlowContext" in {cls.__name__ for cls in type(context).__mro__}:
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def fail_if_run() -> None:
    """Stops a function in whose first trace the tables hold no values yet, if it is ever run.

    TensorFlow traces it again once they do, and runs what it traced then.
    """
    advice = (
        "The tables held no value yet when MaskedOptimizer was built. "
        "Build the model and the optimizer before this function is called."
    )
    tf.debugging.Assert(False, [advice])
