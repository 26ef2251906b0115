"""The ways to train some rows of a table, side by side, and what each of them costs.

For comparison only: the demo and the benchmark run them on the same work.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from maskedgrad.distribute.steps import MultiWorkerSteps, returned
from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.model import MaskedModel
from maskedgrad.rows.rows import Rows
from maskedgrad.vectors.pretrained import pretrained_embedding

Head = Callable[[Any], Any]
Ids: TypeAlias = "Sequence[int] | np.ndarray"
SLOWLY = 0.1
LORA_RANK = 8


class Recipe(NamedTuple):
    """A compiled model, and the table that it looks up in, as it is when called for.

    Every recipe is made by the same call: `recipe(matrix, trainable_ids, head,
    optimizer, **compile_options)`.

    - `matrix`: the pretrained table, float32 of shape `(V, D)`. Row 0 stands
      for padding.
    - `trainable_ids`: the ids of the rows that should train, the last K of the
      table in ascending order.
    - `head`: from embedded ids, a symbolic tensor of shape `(batch, length,
      D)`, to the outputs of the model. One that has `ragged = True` takes a
      ragged tensor.
    - `optimizer`: a fresh Keras optimizer.
    - `compile_options`: what else `keras.Model.compile` takes.

    Example:

    >>> matrix = np.ones((5, 2), "float32")
    >>> head = keras.layers.GlobalAveragePooling1D()
    >>> recipe = masked_optimizer(matrix, [4], head, "adamw", loss="mse")
    >>> logs = recipe.model.train_on_batch(np.array([[3, 4]]), np.zeros((1, 2)))
    >>> (recipe.table() != matrix).any(axis=1).tolist()
    [False, False, False, False, True]
    """

    model: keras.Model
    table: Callable[[], np.ndarray]


def frozen_table(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """No row trains: `trainable=False`. See `Recipe`."""
    words = _embedding(matrix, trainable=False)
    model = StockModel(*_inputs_and_outputs(words, head))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: _table(words))


def trainable_table(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """Every row trains: `trainable=True`. See `Recipe`."""
    words = _embedding(matrix)
    model = StockModel(*_inputs_and_outputs(words, head))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: _table(words))


def two_layers(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """A frozen layer plus a trainable one for the last ids. See `Recipe`.

    Row 0 of the trainable layer stands for every ordinary word. It trains too,
    and is added to all of them.

    Raises:
        ValueError: `trainable_ids` are not the last ids of the table.
    """
    num_rows, width = matrix.shape
    num_special = len(trainable_ids)
    _check_last(trainable_ids, num_rows)
    ordinary = _embedding(matrix, trainable=False)
    # Both layers mask, because `Add` drops the mask where one of its inputs
    # has none. What it keeps is whatever either of them keeps.
    added = keras.layers.Embedding(
        num_special + 1, width, embeddings_initializer="zeros", mask_zero=True, name="added"
    )
    place_in_added = np.maximum(np.arange(num_rows) - (num_rows - num_special - 1), 0)

    def embed(ids: Any) -> Any:
        special = keras.ops.relu(ids - (num_rows - num_special - 1))
        return keras.layers.Add()([ordinary(ids), added(special)])

    model = StockModel(*_inputs_and_outputs(embed, head))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: _table(ordinary) + _table(added)[place_in_added])


def gradient_times_mask(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """The table's gradient is multiplied by zeros and ones in a `train_step`. See `Recipe`."""
    words = _embedding(matrix)
    model = GradientTimesMask(*_inputs_and_outputs(words, head))
    model.set_mask(words, _column_mask(matrix, trainable_ids))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: _table(words))


def stop_gradient_mix(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """The layer looks up in `mask * E + stop_gradient((1 - mask) * E)`. See `Recipe`."""
    words = StopGradientEmbedding(*matrix.shape, weights=[matrix], mask_zero=True, name="words")
    words.mask = _column_mask(matrix, trainable_ids)
    model = StockModel(*_inputs_and_outputs(words, head))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: _table(words))


def masked_optimizer(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """`MaskedOptimizer` in a `MaskedModel`. See `Recipe`."""
    words = _embedding(matrix)
    model = MaskedModel(*_inputs_and_outputs(words, head))
    model.compile(MaskedOptimizer(optimizer, {words: trainable_ids}), **compile_options)
    return Recipe(model, lambda: _table(words))


def slow_rows(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """Every row trains, and the others at `SLOWLY` of the speed. See `Recipe`."""
    words = _embedding(matrix)
    model = MaskedModel(*_inputs_and_outputs(words, head))
    others = Rows(trainable_ids, len(matrix)).complement()
    model.compile(
        MaskedOptimizer(
            optimizer,
            {words: slice(None)},
            row_learning_rates={words: {SLOWLY: others}},
        ),
        **compile_options,
    )
    return Recipe(model, lambda: _table(words))


def lora(
    matrix: np.ndarray, trainable_ids: Ids, head: Head, optimizer: Any, **compile_options: Any
) -> Recipe:
    """Keras's own LoRA of the table, of rank `LORA_RANK`. See `Recipe`."""
    words = _embedding(matrix)
    words.enable_lora(LORA_RANK)
    model = StockModel(*_inputs_and_outputs(words, head))
    model.compile(optimizer, **compile_options)
    return Recipe(model, lambda: keras.ops.convert_to_numpy(words.embeddings))


RECIPES = {
    "table frozen": frozen_table,
    "table trainable": trainable_table,
    "two-layer recipe": two_layers,
    "gradient times mask": gradient_times_mask,
    "stop_gradient mix": stop_gradient_mix,
    "maskedgrad": masked_optimizer,
}
# These train the other rows too, on purpose. So the benchmark has no frozen rows to compare.
WITH_OTHER_ROWS = {"maskedgrad, others slowly": slow_rows, "LoRA": lora}


class StepTimes(keras.callbacks.Callback):
    """Notes how long each training step takes.

    Example:

    >>> step_times = StepTimes()
    >>> model = keras.Sequential([keras.layers.Dense(1)])
    >>> model.compile("sgd", loss="mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, batch_size=1, callbacks=[step_times], verbose=0)
    >>> len(step_times.seconds), step_times.median(skip=2) > 0, step_times.median(skip=8) > 0
    (8, True, True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._began = 0.0

    @override
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()

    @override
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def median(self, skip: int) -> float:
        """The median time in seconds.

        Args:
            skip: how many steps at the start to leave out, for TensorFlow
                traces in the first ones. All but the last, if there are no more.
        """
        return float(np.median(self.seconds[skip:] or self.seconds[-1:]))


class Change(NamedTuple):
    """What became of the frozen rows: how many differ in a bit, and by how much at most."""

    rows: int
    largest: float


def frozen_change(before: np.ndarray, after: np.ndarray, trainable_ids: Ids) -> Change:
    """How the rows that should be frozen differ between two tables.

    Args:
        before: the table as it was, float32 of shape `(V, D)`.
        after: the table as it is, likewise.
        trainable_ids: the ids of the rows that are not compared.

    Example:

    >>> before = np.zeros((3, 2), "float32")
    >>> after = np.array([[0, 0], [0, 0.5], [9, 9]], "float32")
    >>> frozen_change(before, after, trainable_ids=[2])
    Change(rows=1, largest=0.5)
    """
    frozen = Rows(trainable_ids, len(before)).complement().ids
    before, after = before[frozen], after[frozen]
    changed = (before.view("uint32") != after.view("uint32")).any(axis=1)
    return Change(int(changed.sum()), float(np.abs(after - before).max(initial=0.0)))


class StockModel(MultiWorkerSteps, keras.Model):
    """A model of Keras that also trains where several workers do, for the demo with workers."""


class GradientTimesMask(StockModel):
    """What users write by hand, after Keras' guide to custom training steps."""

    def set_mask(self, words: keras.layers.Embedding, mask: np.ndarray) -> None:
        """Says whose gradient to multiply, and by what.

        Args:
            words: the layer that owns the table.
            mask: zeros and ones, float32 of shape `(V, 1)`.
        """
        self._words, self._mask = words, mask

    @override
    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        masked = [
            tf.convert_to_tensor(gradient) * self._mask
            if variable is self._words.embeddings
            else gradient
            for gradient, variable in zip(gradients, self.trainable_variables, strict=True)
        ]
        self.optimizer.apply(masked, self.trainable_variables)
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(y, y_pred)
        return returned({metric.name: metric.result() for metric in self.metrics})


class StopGradientEmbedding(keras.layers.Embedding):
    """Stops the gradient of the rows where `mask`, of shape `(V, 1)`, is zero."""

    mask: np.ndarray

    @override
    def call(self, inputs: Any) -> Any:
        table = self.embeddings * self.mask + keras.ops.stop_gradient(
            self.embeddings * (1.0 - self.mask)
        )
        return keras.ops.take(table, inputs, axis=0)


def _embedding(matrix: np.ndarray, **options: Any) -> keras.layers.Embedding:
    return pretrained_embedding(matrix, mask_zero=True, name="words", **options)


def _inputs_and_outputs(embed: Callable[[Any], Any], head: Head) -> tuple[Any, Any]:
    # An old Keras does not know the argument.
    ragged = {"ragged": True} if getattr(head, "ragged", False) else {}
    ids = keras.Input((None,), dtype="int32", name="ids", **ragged)
    return ids, head(embed(ids))


def _column_mask(matrix: np.ndarray, trainable_ids: Ids) -> np.ndarray:
    return Rows(trainable_ids, len(matrix)).mask[:, np.newaxis].astype(matrix.dtype)


def _table(layer: keras.layers.Embedding) -> np.ndarray:
    return layer.get_weights()[0]


def _check_last(trainable_ids: Ids, num_rows: int) -> None:
    if Rows(trainable_ids, num_rows) != Rows(slice(-len(trainable_ids), None), num_rows):
        raise ValueError(
            "The two-layer recipe needs the trainable rows to be the last rows of the table, "
            f"which has {num_rows}. Received: trainable_ids={list(trainable_ids)}. "
            "Reorder the vocabulary."
        )
