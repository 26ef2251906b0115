"""What callbacks share: the tables of the model that trains, and which of their rows train."""

from collections.abc import Sequence
from typing import Any

import keras
from typing_extensions import override

from maskedgrad.masking.of_model import masked_optimizer_in, masked_tables
from maskedgrad.masking.optimizer import MaskedOptimizer
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable


def masked_optimizer_of(callback: keras.callbacks.Callback) -> MaskedOptimizer:
    """The `MaskedOptimizer` of the model that a callback is used with.

    Raises:
        ValueError: there is none.
    """
    optimizer = masked_optimizer_in(callback.model.optimizer)
    if optimizer is None:
        raise ValueError(
            f"`{type(callback).__name__}` needs a model whose optimizer masks rows. "
            f"Received: the model {callback.model.name!r} with "
            f"optimizer={callback.model.optimizer!r}. Compile it with a `MaskedOptimizer`."
        )
    return optimizer


class FollowsRows(keras.callbacks.Callback):
    """A callback that is told which rows train before they do.

    It looks before each step and at both ends of an epoch. The first look is
    at the first epoch, since other callbacks load weights when training
    begins; or once the model is built, if its first batch does that.
    """

    _num_row_changes: int | None = None
    _rows: Sequence[Rows] = ()

    def rows_chosen(self, tables: Sequence[MaskedTable], num_changes: int | None) -> None:
        """Takes note of the rows that train now. A class that is derived from this one defines it.

        It is called once at first, and again where other rows may train.

        Args:
            tables: the masked tables and their rows, always in one order.
            num_changes: how many times rows were chosen since the last call,
                of which `tables` are the last; `None` in the first call.
        """
        raise NotImplementedError

    @override
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        masked_optimizer_of(self)
        self._num_row_changes = None

    @override
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._look(closely=True)

    @override
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._look()

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._look(closely=True)

    def _look(self, closely: bool = False) -> None:
        optimizer = masked_optimizer_of(self)
        now, before = optimizer.num_row_changes, self._num_row_changes
        # Until the optimizer is built, its rows change without being counted.
        if now == before and optimizer.built and not closely:
            return
        tables = masked_tables(self.model)
        rows = [table.rows for table in tables]
        if tables and (now != before or not optimizer.built or rows != self._rows):
            # Nor are those that a checkpoint of TensorFlow restores, perhaps some steps ago.
            unseen = 2 if now == before and optimizer.built else now - (before or 0)
            self.rows_chosen(tables, None if before is None else unseen)
            self._num_row_changes, self._rows = now, rows
