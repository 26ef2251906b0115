"""The kit's oracle on drawn optimizers and tables, with another variable beside the table."""

import contextlib

import keras
import numpy as np
from hypothesis import note, reject
from hypothesis import strategies as st

from maskedgrad.testing import TABLE_PATH, CompactTwin, OptimizerSpec, Table


class Pair(CompactTwin):
    """A masked optimizer on a table, beside the bare one on the table's trainable rows."""

    def __init__(self, spec: OptimizerSpec, table: Table, lazy: bool = False):
        note(f"{spec}\n{table}\nlazy={lazy}")
        self.table = table
        super().__init__(
            spec.make,
            [table.variable(), kernel_variable(table)],
            [table.variable(table.values[table.ids]), kernel_variable(table)],
            {TABLE_PATH: table.ids},
            lazy,
        )

    def apply(self, gradient, compact_gradient, kernel_gradient) -> None:
        self.step([gradient, kernel_gradient], [compact_gradient, kernel_gradient])

    def bare_step(self, optimizer, gradients, variables) -> None:
        try:
            super().bare_step(optimizer, gradients, variables)
        except Exception:
            reject()  # no law where the bare optimizer does not work either


def drawn_pair(data, spec: OptimizerSpec, table: Table) -> Pair:
    """A pair that is lazy or not, where the optimizer can be lazy."""
    if data.draw(st.booleans(), label="lazy"):
        with contextlib.suppress(ValueError):  # that it cannot
            return Pair(spec, table, lazy=True)
    return Pair(spec, table)


def kernel_variable(table: Table) -> keras.Variable:
    """Another variable of the model, of the dtype of the table."""
    with keras.name_scope("dense"):
        return keras.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=table.dtype, name="kernel")
