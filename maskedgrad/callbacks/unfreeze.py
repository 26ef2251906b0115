"""`UnfreezeSchedule`: other rows train from chosen epochs on."""

from collections.abc import Mapping
from typing import Any

import keras
from typing_extensions import override

from maskedgrad.callbacks.tables import masked_optimizer_of
from maskedgrad.masking.of_model import masked_tables
from maskedgrad.rows import RowsLike, TrainableRows
from maskedgrad.rows.asked import copied
from maskedgrad.rows.rows import canonical
from maskedgrad.rows.targets import describe, named


class UnfreezeSchedule(keras.callbacks.Callback):
    """Changes which rows train when chosen epochs begin.

    Equivalent to a call of `MaskedOptimizer.set_trainable_rows` when such an
    epoch begins, before its first step. The rows take the place of those that
    trained before, they do not add to them; to add, name both, by `|` of
    `Rows`. Rows that stay keep their state, rows that join start with
    fresh state, and rows that leave are frozen at once.

    Before the first of these epochs the rows train that trained before
    `fit`. Training that is resumed, by `initial_epoch` or from a backup,
    goes on with the rows of the latest epoch that is named, up to its own. A
    backup restores the rows with their state, so it is resumed exactly.

    Args:
        schedule: a mapping from epoch, counted from 0, to rows; or to a
            mapping from target to rows, as `set_trainable_rows` takes it,
            where the optimizer has several targets.

    Raises:
        TypeError, ValueError: `schedule` is not such a mapping; the optimizer
            of the model masks nothing; or rows do not fit its tables. That
            is checked for all epochs when training begins, before anything
            changes; and once more in its epoch, for a model that is not
            built by then.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [4]})
    >>> special = Rows([4], num_rows=5)
    >>> rare = Rows([1, 2], num_rows=5)
    >>> schedule = callbacks.UnfreezeSchedule({0: special, 1: special.union(rare), 2: slice(None)})
    >>> _ = model.fit(np.array([[0, 1, 4]]), np.ones((1, 3, 2)), epochs=2, verbose=0,
    ...               callbacks=[schedule])
    >>> model.optimizer.trainable_rows
    {'words/embeddings': Rows('1:3,4', num_rows=5)}
    """

    def __init__(self, schedule: Mapping[int, RowsLike | TrainableRows]):
        super().__init__()
        _check_schedule(schedule)
        self._schedule = copied({epoch: schedule[epoch] for epoch in sorted(schedule)})
        self._has_begun = False

    @override
    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        masked_optimizer_of(self)
        for epoch, rows in self._schedule.items():
            try:
                self._check_fit(self._by_target(rows))
            except (TypeError, ValueError) as error:
                raise _of_epoch(epoch, error) from error
        self._has_begun = False

    @override
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        named = [each for each in self._schedule if each <= epoch]
        # A training that is resumed may begin after an epoch that is named.
        if named and (named[-1] == epoch or not self._has_begun):
            rows = self._by_target(self._schedule[named[-1]])
            masked_optimizer_of(self).set_trainable_rows(rows)
            # Some optimizers need a function that is traced for their number of rows. Keras looks
            # it up anew in each step.
            self.model.make_train_function(force=True)
        self._has_begun = True

    def _by_target(self, rows: Any) -> Mapping[Any, Any]:
        if isinstance(rows, Mapping):
            return rows
        optimizer = masked_optimizer_of(self)
        targets = list(optimizer.masked_tables() or optimizer.trainable_rows)
        if len(targets) != 1:
            raise ValueError(
                "Rows alone can be given where the optimizer has one target. Received: rows alone, "
                f"while it has {', '.join(map(describe, targets))}. "
                "Give a mapping from target to rows."
            )
        return dict.fromkeys(targets, rows)

    def _check_fit(self, trainable_rows: Mapping[Any, Any]) -> None:
        optimizer = masked_optimizer_of(self)
        if not masked_tables(self.model):
            named(trainable_rows)
            return
        optimizer.check_rows(trainable_rows, self.model.trainable_variables)


def _check_schedule(schedule: Any) -> None:
    if not isinstance(schedule, Mapping):
        raise TypeError(
            "`schedule` must be a mapping from epoch to rows, such as `{0: [3, 7], 2: "
            f"slice(None)}}`. Received: schedule={schedule!r}"
        )
    if not schedule:
        raise ValueError("`schedule` must name at least one epoch. Received: schedule={}")
    for epoch, rows in schedule.items():
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(
                "An epoch of `schedule` must be an int that is not negative. "
                f"Received: the epoch {epoch!r}"
            )
        try:
            if isinstance(rows, Mapping):
                named(rows)
            else:
                canonical(rows)
        except (TypeError, ValueError) as error:
            raise _of_epoch(epoch, error) from error


def _of_epoch(epoch: int, error: Exception) -> Exception:
    return type(error)(f"The rows of epoch {epoch}: {error}")
