"""`SwapEMAWeights` for an optimizer that masks rows."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from typing_extensions import override

from maskedgrad.masking.inner import moving_averages
from maskedgrad.masking.optimizer import MaskedOptimizer


class SwapEMAWeights(keras.callbacks.Callback):
    """Evaluates, predicts and saves with the averaged weights, tables included.

    Equivalent to `keras.callbacks.SwapEMAWeights` for an optimizer that masks
    nothing. That callback swaps the variables that an optimizer holds, and of a
    masked table that is the compact variable, which no layer reads: with it,
    every weight of the model is swapped but the tables. Frozen rows have no
    average, and keep their bits. And after `predict` the callback of Keras
    leaves the averages in the model; this one takes them out again. Where an
    evaluation ends in an error, they stay until this callback is used again,
    and are taken out then, also after another `compile`.

    Args:
        swap_on_epoch: bool, as for `keras.callbacks.SwapEMAWeights`. A callback
            that stops the training, such as `EarlyStopping`, comes before this
            one then.

    Raises:
        ValueError: the model is not compiled with a `MaskedOptimizer` whose
            inner optimizer has `use_ema=True`.

    Example:

    >>> inputs = keras.Input((2,), dtype="int32")
    >>> words = keras.layers.Embedding(5, 2)
    >>> model = MaskedModel(inputs, words(inputs))
    >>> averaging = keras.optimizers.Adam(use_ema=True)
    >>> model.compile(MaskedOptimizer(averaging, {words: [4]}), loss="mse")
    >>> _ = model.fit(np.array([[3, 4]]), np.ones((1, 2, 2)), verbose=0)
    >>> loss = model.evaluate(np.array([[3, 4]]), np.ones((1, 2, 2)), verbose=0,
    ...                       callbacks=[callbacks.SwapEMAWeights()])
    """

    def __init__(self, swap_on_epoch: bool = False):
        super().__init__()
        self.swap_on_epoch = swap_on_epoch
        self._swapped: MaskedOptimizer | None = None  # whose averages the model holds

    @override
    def set_model(self, model: keras.Model) -> None:
        optimizer = getattr(model, "optimizer", None)
        if not isinstance(optimizer, MaskedOptimizer) or not _averages(optimizer.inner_optimizer):
            raise ValueError(
                "`maskedgrad.callbacks.SwapEMAWeights` needs a model that is compiled with a "
                "`MaskedOptimizer` around an optimizer with `use_ema=True`. Received: "
                f"optimizer={optimizer!r}. For an optimizer that masks nothing there is "
                "`keras.callbacks.SwapEMAWeights`; a `LossScaleOptimizer` and a swap do not go "
                "together: compile with `auto_scale_loss=False`."
            )
        super().set_model(model)
        self._hold_averages(False)  # which may be in place since an evaluation that failed

    @override
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.swap_on_epoch:
            self._hold_averages(False)

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.swap_on_epoch:
            self._hold_averages(True)
            if self.model.stop_training or epoch == self.params["epochs"] - 1:
                self._keep_averages()

    @override
    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._hold_averages(True)

    @override
    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._hold_averages(False)

    @override
    def on_predict_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._hold_averages(True)

    @override
    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        self._hold_averages(False)

    def _hold_averages(self, wanted: bool) -> None:
        """Makes the model hold its averages, if they are wanted, or else its weights."""
        holding = self.model.optimizer if wanted else None
        if self._swapped is holding:
            return
        if self._swapped is not None:  # perhaps by the optimizer of a `compile` before
            _swap_all(self._swapped)
            self._swapped.around_row_changes = contextlib.nullcontext
            self._swapped = None
        if holding is not None:
            _swap_all(holding)
            # A row that is frozen meanwhile is to stay at its weight, whatever the order of
            # callbacks.
            holding.around_row_changes = self._with_weights
            self._swapped = holding

    @contextlib.contextmanager
    def _with_weights(self) -> Iterator[None]:
        """A context in which the model holds its weights, and after which its averages."""
        self._hold_averages(False)
        try:
            yield
        finally:
            self._hold_averages(True)

    def _keep_averages(self) -> None:
        """Makes the averages the weights, so that none are swapped."""
        # At the end of a training Keras assigns to each weight the average that the optimizer has.
        optimizer = self.model.optimizer
        with contextlib.ExitStack() as undo:
            with optimizer.gathered_rows():
                for variable, average in moving_averages(optimizer.inner_optimizer):
                    undo.callback(average.assign, keras.ops.convert_to_numpy(average))
                    average.assign(variable)
            undo.pop_all()
        self._swapped = None
        optimizer.around_row_changes = contextlib.nullcontext


def _swap_all(optimizer: MaskedOptimizer) -> None:
    """Swaps all variables of an optimizer with their averages, or none if that fails."""
    pairs = list(moving_averages(optimizer.inner_optimizer))
    with contextlib.ExitStack() as written:
        with optimizer.gathered_rows(), contextlib.ExitStack() as undo:
            for pair in pairs:
                _swap(*pair)
                undo.callback(_swap, *pair)
            # The tables are written last, one after the other, and one of them may fail.
            swapped_in = [keras.ops.convert_to_numpy(variable) for variable, _ in pairs]
            written.callback(_swap_back, optimizer, swapped_in)
            undo.pop_all()
        written.pop_all()


def _swap_back(optimizer: MaskedOptimizer, swapped_in: Sequence[np.ndarray]) -> None:
    """Swaps back where some tables hold what was swapped in, and others were not written."""
    pairs = moving_averages(optimizer.inner_optimizer)
    with optimizer.gathered_rows():
        for (variable, average), value in zip(pairs, swapped_in, strict=True):
            variable.assign(average)
            average.assign(value)


def _swap(variable: keras.Variable, average: keras.Variable) -> None:
    weight = keras.ops.convert_to_numpy(variable)
    variable.assign(average)
    try:
        average.assign(weight)
    except BaseException:
        variable.assign(weight)
        raise


def _averages(optimizer: Any) -> bool:
    """Returns whether an optimizer keeps averages where the callback of Keras looks for them."""
    return any(
        getattr(one, "use_ema", False) for one in getattr(optimizer, "optimizers", [optimizer])
    )
