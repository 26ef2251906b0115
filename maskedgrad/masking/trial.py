"""Whether the step of a row depends on other rows, found by trial."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.distribute.one_device import apply_alone
from maskedgrad.masking.inner import nested_optimizers
from maskedgrad.masking.tables import same_bits

# The tables of a trial have some rows that a step touches, and others.
NUM_TOUCHED, NUM_ROWS = 3, 6
# An optimizer may do something in each n-th step only.
NUM_IDLE_STEPS = 12


class RowSteps(NamedTuple):
    """How an optimizer steps rows.

    `problem`: why a step on some rows alone, with their state, differs from one on a table whose
    other rows have no gradient; empty if it does not. `keeps_idle_rows`: whether rows of which the
    gradient is zero keep their bits and those of their state, and change no step of other rows.
    """

    problem: str
    keeps_idle_rows: bool


class Trial(NamedTuple):
    """A built copy of an optimizer.

    `tables` are variables of rows along the first axis, and `row_state` their state; `others` is
    what the optimizer trains beside them, and has to be given too.
    """

    optimizer: Any
    tables: Sequence[keras.Variable]
    row_state: Sequence[keras.Variable]
    others: Sequence[keras.Variable]

    def variables_of_rows(self) -> list[keras.Variable]:
        """The tables, and their state."""
        return [*self.tables, *self.row_state]

    def other_state(self) -> list[keras.Variable]:
        """The state that is not of rows."""
        of_rows = {id(variable) for variable in self.row_state}
        return [v for v in self.optimizer.variables if id(v) not in of_rows]

    def step(self, gradients: Sequence[np.ndarray]) -> None:
        """A step with the first rows of some gradients."""
        of_tables = zip(gradients, self.tables, strict=True)
        self.apply([tf.constant(g[: table.shape[0]], table.dtype) for g, table in of_tables])

    def apply(self, gradients: Sequence[Any]) -> None:
        """A step with gradients of the tables."""
        others = [tf.ones(variable.shape, variable.dtype) for variable in self.others]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            variables = [*self.tables, *self.others]
            apply_alone(self.optimizer, [*gradients, *others], variables)

    def take_state(self, other: "Trial") -> None:
        """Takes the values of another trial, of which this has the first rows."""
        for mine, theirs in zip(self.variables_of_rows(), other.variables_of_rows(), strict=True):
            mine.assign(theirs.numpy()[: mine.shape[0]])
        for mine, theirs in zip(self.other_state(), other.other_state(), strict=True):
            mine.assign(theirs)


def try_row_steps(made: Callable[[int], Trial], is_lazy: bool) -> RowSteps:
    """Finds out how an optimizer steps rows.

    Args:
        made: makes a trial on tables of a number of rows.
        is_lazy: whether `problem` is to be found.
    """
    many = made(NUM_ROWS)
    random = np.random.default_rng(0)

    def gradients(scale_of_idle: float) -> list[np.ndarray]:
        scales = np.where(np.arange(NUM_ROWS) < NUM_TOUCHED, 1.0, scale_of_idle)
        scales *= float(many.optimizer.scale_loss(tf.ones([])))
        shapes = [table.shape for table in many.tables]
        return [(random.standard_normal(shape).T * scales).T for shape in shapes]

    def idle_rows() -> list[np.ndarray]:
        return [variable.numpy()[NUM_TOUCHED:] for variable in many.variables_of_rows()]

    def idle_rows_stay() -> bool:
        before = idle_rows()
        many.step(gradients(0.0))
        return all(map(same_bits, before, idle_rows()))

    keeps = idle_rows_stay()  # from the first step on
    many.step(gradients(1.0))
    keeps = keeps and idle_rows_stay()
    if not keeps and not is_lazy:
        return RowSteps("", keeps_idle_rows=False)
    few = made(NUM_TOUCHED)
    problem = _difference(few, many, gradients(0.0))
    keeps = keeps and not problem and not _difference(few, many, gradients(1e6))
    return RowSteps(problem, keeps and all(idle_rows_stay() for _ in range(NUM_IDLE_STEPS)))


def _difference(few: Trial, many: Trial, gradients: Sequence[np.ndarray]) -> str:
    """Returns how a step of `many` differs from one on `few` of its rows; empty if it does not."""
    few.take_state(many)
    pairs = [
        *zip(few.variables_of_rows(), many.variables_of_rows(), strict=True),
        *zip(few.other_state(), many.other_state(), strict=True),
    ]
    before = [mine.numpy() for mine, _ in pairs]
    few.step(gradients)
    many.step(gradients)
    for (mine, theirs), old in zip(pairs, before, strict=True):
        ours, others = mine.numpy(), theirs.numpy()[tuple(slice(n) for n in mine.shape)]
        moved = np.abs(others - old).max(initial=0.0)
        some = 5000 * np.finfo(np.result_type(ours, np.float32)).eps  # as sums over more rows may
        if not np.allclose(ours, others, rtol=some, atol=max(some, 1e-6) * moved, equal_nan=True):
            return f"the step of a row depends on other rows, as {theirs.path!r} shows"
    return ""


def option_without_lazy_meaning(optimizer: Any) -> str:
    """Returns what speaks against `lazy` among an optimizer's options; empty if nothing does."""
    for nested, option in itertools.product(
        nested_optimizers(optimizer), ("use_ema", "gradient_accumulation_steps")
    ):
        if getattr(nested, option, None):
            return f"`{option}` is about rows that a batch does not look up, too"
    return ""
