"""What was asked to be masked: a value that is replaced whole."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from maskedgrad.messages import shorten
from maskedgrad.rows.multipliers import named_rates, rows_by_rate, with_learning_rates
from maskedgrad.rows.saved import SavedTable, saved_table
from maskedgrad.rows.targets import MaskedTable, Named, named, resolve, saved


class Asked:
    """What was asked to be masked, validated as far as that goes before there are tables.

    Args:
        trainable_rows: as `MaskedOptimizer` takes them.
        row_learning_rates: as `MaskedOptimizer` takes them.
        decay_exclusions: variables, and names of variables, without weight decay.
        variables: all variables that are trained, once they are known.
        is_lazy: whether a step leaves rows alone that its batch does not look up.

    Raises:
        TypeError, ValueError: what can be known to be wrong before there are tables.
    """

    def __init__(
        self,
        trainable_rows: Mapping[Any, Any],
        row_learning_rates: Any = None,
        decay_exclusions: tuple[list[Any], list[str]] | None = None,
        variables: Sequence[keras.Variable] | None = None,
        is_lazy: bool = False,
    ):
        if not isinstance(is_lazy, bool):
            raise TypeError(f"`lazy` must be True or False. Received: lazy={shorten(is_lazy)}")
        self.trainable_rows = copied(trainable_rows)
        self.row_learning_rates = copied(row_learning_rates)
        self.decay_exclusions = decay_exclusions
        self.variables = variables
        self.is_lazy = is_lazy
        self.rows: list[tuple[Named, Any]] = named(self.trainable_rows)
        self._rates: list[tuple[Named, Any]] = named_rates(self.row_learning_rates)

    def but(self, **changes: Any) -> "Asked":
        """The same with other `trainable_rows`, `decay_exclusions` or `variables`."""
        other = copy.copy(self)
        vars(other).update({name: copied(value) for name, value in changes.items()})
        if "trainable_rows" in changes:
            other.rows = named(other.trainable_rows)
        if other.variables is not None:
            # By themselves, since a layer that is frozen or quantized later names them no more.
            other._rates = [
                (Named(table, table.variable, table.axis), rates)
                for table, rates in self.rated(other.variables)
            ]
        return other

    def tables(self, variables: Sequence[keras.Variable]) -> list[MaskedTable]:
        """The tables that are named among `variables`, with what trains of them and how fast."""
        return with_learning_rates(resolve(self.rows, variables), self._rates, variables)

    def rated(self, variables: Sequence[keras.Variable]) -> list[tuple[MaskedTable, Any]]:
        """The tables whose rows have learning rates of their own, each with these."""
        return [
            (table, rates)
            for name, rates in self._rates
            for table in resolve([(name, slice(None))], variables)
        ]

    def saved_rows(self) -> list[tuple[SavedTable, Any]]:
        """The rows, by what a config says of their tables."""
        tables = [] if self.variables is None else resolve(self.rows, self.variables)
        if not tables:  # they are not known yet, or do not train any more
            return [(table, rows) for name, rows in self.rows for table in saved(name)]
        return [(saved_table(t.variable, t.axis, self.variables), t.rows) for t in tables]

    def saved_rates(self) -> list[tuple[SavedTable, Any]]:
        """The learning rates of rows, each with its rows, by what a config says of their tables."""
        if self.variables is None:
            return [
                (table, rows_by_rate(name.given, rates))
                for name, rates in self._rates
                for table in saved(name)
            ]
        return [
            (saved_table(t.variable, t.axis, self.variables), rows_by_rate(t, rates))
            for t, rates in self.rated(self.variables)
        ]


def copied(value: Any) -> Any:
    """A copy of what may be changed later by whoever gave it, and is read again."""
    if isinstance(value, Mapping):
        return {key: copied(each) for key, each in value.items()}
    return value.copy() if isinstance(value, (list, np.ndarray)) else value
