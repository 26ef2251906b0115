"""One case of the benchmark, measured in a process of its own.

`python -m maskedgrad.cli.bench_worker CASE` reads a case and writes its
measurements, each as one line of JSON.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from maskedgrad.cli.bench_work import (
    REFUSED,
    Case,
    Measurement,
    PeakMemory,
    changed_rows,
    median_time,
    trainable_ids,
    work,
)
from maskedgrad.cli.recipes import RECIPES, Head, Ids, Recipe, StepTimes
from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.reports.counting import state_bytes


def main(arguments: list[str]) -> int:
    """Measures the case that the one argument holds."""
    case = Case(**json.loads(arguments[0]))
    try:
        measurement = measure(case)
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    print(json.dumps(measurement._asdict()))
    return 0


def measure(case: Case) -> Measurement:
    """Trains a model as `case` says, and measures it."""
    matrix, tokens = work(case)
    optimizer = keras.optimizers.get(case.optimizer)
    gradients = GradientBytes(optimizer, case.batch * case.length, case.trainable)
    memory = PeakMemory(matrix.nbytes)
    recipe = build(case, matrix, gradients.optimizer)
    batches = batches_of(tokens, case)
    memory.start()
    before = inference_times(recipe.model, batches, case)
    step = training_time(recipe.model, batches, case.steps_per_execution)
    peak_bytes = memory.peak()
    after = inference_times(recipe.model, batches, case)
    return Measurement(
        step=step,
        predict_before=before[0],
        predict_after=after[0],
        evaluate_before=before[1],
        evaluate_after=after[1],
        peak_bytes=peak_bytes,
        state_bytes=state_bytes(recipe.model.optimizer),
        replica_bytes=gradients.bytes,
        changed_rows=changed_rows(matrix, recipe.table(), case),
    )


def build(case: Case, matrix: np.ndarray, optimizer: keras.optimizers.Optimizer) -> Recipe:
    """The compiled model of a case."""
    head = HEADS[case.model](case)
    loss = "sparse_categorical_crossentropy" if case.model == "tied" else "binary_crossentropy"
    recipe = WAYS[case.way](
        matrix,
        trainable_ids(case),
        head,
        optimizer,
        loss=loss,
        jit_compile=case.jit,
        steps_per_execution=case.steps_per_execution,
    )
    if isinstance(head, TiedHead):
        words = recipe.model.get_layer("words")
        head.output.table = lambda: words.embeddings
    return recipe


def masked_in_stock_model(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """`MaskedOptimizer` in a `keras.Model`. See `Recipe`."""
    masked, table = RECIPES["maskedgrad"](matrix, trainable_ids, head, optimizer, loss="mse")
    model = keras.Model(masked.inputs, masked.outputs)
    rows = {masked.get_layer("words"): trainable_ids}
    model.compile(MaskedOptimizer(optimizer, rows), **compile_options)
    return Recipe(model, table)


def masked_lazily(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """`MaskedOptimizer` with `lazy`. See `Recipe`."""
    model, table = RECIPES["maskedgrad"](matrix, trainable_ids, head, optimizer, loss="mse")
    rows = {model.get_layer("words"): trainable_ids}
    model.compile(MaskedOptimizer(optimizer, rows, lazy=True), **compile_options)
    return Recipe(model, table)


WAYS: dict[str, Callable[..., Recipe]] = {
    **RECIPES,
    "maskedgrad, lazy": masked_lazily,
    "maskedgrad, stock Model": masked_in_stock_model,
}


def training_time(
    model: keras.Model, batches: tf.data.Dataset, steps_per_execution: int = 1
) -> float:
    """The median time of a training step in seconds, without what TensorFlow traces."""

    def times(count: int) -> list[float]:
        calls = StepTimes()
        steps = count * steps_per_execution
        model.fit(batches, steps_per_epoch=steps, callbacks=[calls], shuffle=False, verbose=0)
        return [seconds / steps_per_execution for seconds in calls.seconds]

    return median_time(times)


def inference_times(
    model: keras.Model, batches: tf.data.Dataset, case: Case
) -> tuple[float | None, float | None]:
    """The median time of a batch in seconds, in `predict` and in `evaluate`."""
    if case.model == "tied":
        # `predict` would hold a score of every word for every text.
        return None, None

    def times_of(run: Callable[..., Any]) -> Callable[[int], list[float]]:
        def times(count: int) -> list[float]:
            calls = InferenceTimes()
            run(batches, steps=count * case.steps_per_execution, callbacks=[calls], verbose=0)
            return calls.seconds

        return times

    return median_time(times_of(model.predict)), median_time(times_of(model.evaluate))


class InferenceTimes(keras.callbacks.Callback):
    """Notes how long each batch of `predict` or `evaluate` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    @override
    def on_predict_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()

    @override
    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    on_test_batch_begin = on_predict_batch_begin
    on_test_batch_end = on_predict_batch_end


class GradientBytes:
    """Counts what the gradients of a step weigh when an optimizer is given them.

    That is what data-parallel training sends between replicas: a dense
    gradient whole, and of `IndexedSlices` the values and the ids.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, num_tokens: int, num_rows: int):
        self.optimizer = optimizer
        self.bytes = 0
        apply = optimizer.apply

        def counted(grads: Any, trainable_variables: Any = None) -> Any:
            grads = list(grads)
            self.bytes = sum(_weight(grad, num_tokens, num_rows) for grad in grads)
            return apply(grads, trainable_variables)

        optimizer.apply = counted


def _weight(gradient: Any, num_tokens: int, num_rows: int) -> int:
    """The bytes of a gradient, of which a graph may not know how many slices or rows it has."""
    if gradient is None:
        return 0
    if isinstance(gradient, tf.IndexedSlices):
        parts = gradient.values, gradient.indices
        return sum(_weight(part, num_tokens, num_tokens) for part in parts)
    return math.prod(size or num_rows for size in gradient.shape) * gradient.dtype.size


def batches_of(tokens: np.ndarray, case: Case) -> tf.data.Dataset:
    """The batches of a case, over and over, with a label for each text."""
    num_classes = case.rows if case.model == "tied" else 2
    labels = np.random.default_rng(1).integers(0, num_classes, (len(tokens), 1)).astype("float32")
    given = tf.RaggedTensor.from_tensor(tokens) if case.model == "ragged" else tokens
    texts = tf.data.Dataset.from_tensor_slices((given, labels))
    return texts.batch(case.batch, drop_remainder=True).cache().repeat()


def _classified(features: Any) -> Any:
    hidden = keras.layers.Dense(64, activation="relu")(features)
    return keras.layers.Dense(1, activation="sigmoid")(hidden)


def _pool_head(case: Case) -> Head:
    return lambda embedded: _classified(keras.layers.GlobalAveragePooling1D()(embedded))


def _lstm_head(case: Case) -> Head:
    return lambda embedded: _classified(keras.layers.LSTM(64)(embedded))


def _transformer_head(case: Case) -> Head:
    def head(embedded: Any) -> Any:
        attention = keras.layers.MultiHeadAttention(num_heads=4, key_dim=max(1, case.width // 4))
        attended = keras.layers.Add()([embedded, attention(embedded, embedded)])
        normalized = keras.layers.LayerNormalization()(attended)
        return _classified(keras.layers.GlobalAveragePooling1D()(normalized))

    return head


class RaggedMean(keras.layers.Layer):
    """The mean of each ragged text."""

    @override
    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor((inputs.shape[0], inputs.shape[-1]), dtype=inputs.dtype)

    @override
    def call(self, inputs: Any) -> Any:
        return tf.reduce_mean(inputs, axis=1)


class RaggedHead:
    """Classifies the mean of texts that come as a ragged tensor."""

    ragged = True

    def __init__(self, case: Case):
        self.mean = RaggedMean()

    def __call__(self, embedded: Any) -> Any:
        """The scores as probabilities, of shape `(batch, 1)`."""
        return _classified(self.mean(embedded))


class TiedHead:
    """Scores every word by its product with the pooled text, in the table's own rows."""

    def __init__(self, case: Case):
        self.output = TiedOutput(case.rows)
        self.width = case.width

    def __call__(self, embedded: Any) -> Any:
        """The scores as probabilities, of shape `(batch, rows)`."""
        pooled = keras.layers.GlobalAveragePooling1D()(embedded)
        return self.output(keras.layers.Dense(self.width)(pooled))


class TiedOutput(keras.layers.Layer):
    """An output layer that has no weights but those of the table."""

    table: Callable[[], Any]

    def __init__(self, num_rows: int):
        super().__init__()
        self.num_rows = num_rows

    @override
    def compute_output_spec(self, inputs: Any) -> Any:
        return keras.KerasTensor((inputs.shape[0], self.num_rows), dtype=inputs.dtype)

    @override
    def call(self, inputs: Any) -> Any:
        return keras.ops.softmax(inputs @ keras.ops.transpose(self.table()))


HEADS = {
    "pool": _pool_head,
    "ragged": RaggedHead,
    "lstm": _lstm_head,
    "transformer": _transformer_head,
    "tied": TiedHead,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
