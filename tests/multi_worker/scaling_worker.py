"""What each worker of `tests/scaling.py` measures; `TF_CONFIG` says which worker it is.

    python -m tests.multi_worker.scaling_worker TURNS STEPS

Prints seconds as JSON. Every turn measures everything once, so that a noisy machine
hurts all alike: steps of `fit` with the other workers, steps without them while they do
the same, each for itself, both of these once more where there is next to nothing to
compute, and bare collectives. A worker that has no others also takes some steps with a
larger table.
"""

import inspect
import json
import os
import sys
import time
from collections import defaultdict
from itertools import chain
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from maskedgrad import MaskedModel, pretrained_embedding
from maskedgrad.cli.recipes import StockModel
from maskedgrad.distribute.workers import gathered, spans_workers
from tests.multi_worker.scaling_model import (
    DENSE,
    GATHER,
    GATHERED,
    LARGE_BATCH,
    MASKED,
    MEASURED,
    NEXT_TO_NOTHING,
    REALISTIC,
    REDUCE,
    WAYS,
    Collective,
    collectives,
)

BARE = [
    *(Collective(REDUCE, size) for size in (4, 2**16, 2**20, 2**22, 2**23)),
    *(Collective(GATHER, size) for size in (4, 2**16, 2**19, 2**21)),
]
CHAINED = 8  # bare collectives in a call, so that the call itself costs little beside them
CALLS = 3
WARM_UP = 3  # steps of a `fit` before what is measured
# How often a worker applies its own slices, to see what those of others cost. With the larger
# table they are few beside its rows, and only many of them show.
COPIES = {MEASURED: 4, REALISTIC: 32}


class CopiedSlices(keras.optimizers.Adam):
    """Adam that applies slices several times over, as if as many workers had the same."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def apply(self, grads, trainable_variables=None):
        """Called by Keras."""
        super().apply([self._copied(each) for each in grads], trainable_variables)

    def _copied(self, gradient):
        if self.copies == 1 or not isinstance(gradient, tf.IndexedSlices):
            return gradient
        values = tf.concat([gradient.values] * self.copies, axis=0)
        indices = tf.concat([gradient.indices] * self.copies, axis=0)
        return tf.IndexedSlices(values, indices, gradient.dense_shape)


class Clock(keras.callbacks.Callback):
    """Notes when each step ends."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())


def compiled(task, way, copies=1):
    # What a regularizer adds to the gradient of a table is dense.
    regularizer = "l2" if way == DENSE else None
    table = np.random.default_rng(0).normal(size=(task.rows, task.width)).astype("float32")
    words = pretrained_embedding(table, name="words", embeddings_regularizer=regularizer)
    inputs = keras.Input((task.length,), dtype="int32")
    outputs = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(words(inputs)))
    if way == MASKED:
        model = MaskedModel(inputs, outputs)
        model.compile("adam", loss="mse", trainable_rows={words: range(task.trainable)})
    else:
        model = StockModel(inputs, outputs)
        model.compile(CopiedSlices(copies), loss="mse")
    return model


def batches(task, steps):
    """The batches of one worker: one again and again, so that no time goes into making them."""
    random = np.random.default_rng(1)
    x = random.integers(0, task.rows, (task.batch, task.length), "int32")
    y = random.normal(size=(task.batch, 1)).astype("float32")
    return tf.data.Dataset.from_tensors((x, y)).repeat(WARM_UP + steps + 1)


def step_times(model, data):
    """Seconds from the end of a step of `fit` to the end of the next."""
    clock = Clock()
    model.fit(data, verbose=0, callbacks=[clock])
    return np.diff(clock.ends)[WARM_UP:].tolist()


def chained(collective, workers, key):
    """A function that does a collective `CHAINED` times and returns the seconds of one."""

    @tf.function
    def in_graph():
        given = result = tf.zeros([collective.size // 4])
        for number in range(CHAINED):
            options = {
                "input": given,
                "group_size": workers,
                "group_key": 1_000,  # far from those that strategies count up from 1
                "instance_key": key * CHAINED + number,
                "ordering_token": [],
            }
            with tf.control_dependencies([result]):
                if collective.kind == REDUCE:
                    options |= {"merge_op": "Add", "final_op": "Id"}
                    result = tf.raw_ops.CollectiveReduceV2(**options)
                else:
                    result = tf.raw_ops.CollectiveGatherV2(**options)
        return result[:1]

    def seconds():
        start = time.perf_counter()
        in_graph().numpy()
        return (time.perf_counter() - start) / CHAINED

    return seconds


def check_collectives(way, model, data):
    """Raises where the graph of a step of `fit` has other collectives than the model says."""
    function = inspect.getclosurevars(model.train_function).nonlocals["multi_step_on_iterator"]
    graph = function.get_concrete_function(iter(data)).graph
    operations = list(graph.get_operations())
    for name, each in graph._functions.items():
        # Where workers have other numbers of slices they are padded, by the other branch.
        if "cond_false" not in str(name):
            operations += each.graph.get_operations()
    traced = sorted(
        (operation.type, (value.shape.num_elements() or 0) * value.dtype.size)
        for operation in operations
        if operation.type in {REDUCE, GATHER}
        for value in operation.inputs[:1]
    )
    # A graph does not know how many slices there will be.
    expected = sorted(
        (kind, 0 if kind == GATHER and size > 4 else size)
        for kind, size in collectives(way, MEASURED)
    )
    if traced != expected:
        raise AssertionError(f"{way}: a step has {traced}, and the model {expected}.")


def meet(strategy):
    """Returns once all workers have called it."""
    if spans_workers(strategy):
        gathered(strategy, None)


def of_slowest(strategy, times):
    """Step by step, the seconds of the slowest worker, since all others wait for it."""
    if not spans_workers(strategy):
        return times
    return np.max(gathered(strategy, times), axis=0).tolist()


def cases(task):
    """What a worker trains alone: each way, and one of them with slices copied."""
    return [*((way, 1) for way in WAYS), (GATHERED, COPIES[task])]


def computing(task, alone):
    """By way, seconds of a step alone, and what the slices of a further worker add to it."""
    copies = COPIES[task]
    added = max(0.0, alone[GATHERED, copies] - alone[GATHERED, 1]) / (copies - 1)
    return {way: (alone[way, 1], added if way == GATHERED else 0.0) for way in WAYS}


def medians(turns):
    """The medians over all turns but the first, which traces."""
    return {key: median(chain.from_iterable(lists[1:])) for key, lists in turns.items()}


def main(turns, steps):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    workers = strategy.num_replicas_in_sync
    data, nearly_none = batches(MEASURED, steps), batches(NEXT_TO_NOTHING, steps)
    shared = strategy.distribute_datasets_from_function(lambda context: data)
    nearly_none_shared = strategy.distribute_datasets_from_function(lambda context: nearly_none)
    models_alone = {case: compiled(MEASURED, *case) for case in cases(MEASURED)}
    small_alone = compiled(NEXT_TO_NOTHING, DENSE)
    with strategy.scope():
        models = {way: compiled(MEASURED, way) for way in WAYS}
        small = compiled(NEXT_TO_NOTHING, DENSE)
    bare = {
        collective: chained(collective, workers, key)
        for key, collective in enumerate(BARE if workers > 1 else ())
    }
    alone_times, times, bare_times = (defaultdict(list) for _ in range(3))
    added = []
    for _ in range(turns + 1):
        for case, model in models_alone.items():
            meet(strategy)
            alone_times[case].append(of_slowest(strategy, step_times(model, data)))
        for way, model in models.items():
            meet(strategy)
            times[way].append(step_times(model, shared))
        meet(strategy)
        without = of_slowest(strategy, step_times(small_alone, nearly_none))
        meet(strategy)
        added.append(median(step_times(small, nearly_none_shared)) - median(without))
        for collective, seconds in bare.items():
            meet(strategy)
            bare_times[collective].append([seconds() for _ in range(CALLS)])
    result = {
        "compute": computing(MEASURED, medians(alone_times)),
        "steps": medians(times),
        "bare": [[*collective, seconds] for collective, seconds in medians(bare_times).items()],
        "added": median(added[1:]),
    }
    if workers > 1:
        for way, model in models.items():
            check_collectives(way, model, shared)
    else:
        few = batches(REALISTIC, steps // 4)
        # One model at a time: each has a table, and what its optimizer keeps.
        larger = {
            case: median(step_times(compiled(REALISTIC, *case), few)) for case in cases(REALISTIC)
        }
        result["realistic"] = computing(REALISTIC, larger)
        few = batches(LARGE_BATCH, steps // 4)
        result["large batch"] = median(step_times(compiled(LARGE_BATCH, MASKED), few))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
