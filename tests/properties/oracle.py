"""The kit's oracle on drawn optimizers and tables, with another variable beside the table."""

import keras
import numpy as np
from hypothesis import note, reject

from maskedgrad.testing import TABLE_PATH, CompactTwin, OptimizerSpec, Table


class Pair(CompactTwin):
    """A masked optimizer on a table, beside the bare one on the table's trainable rows."""

    def __init__(self, spec: OptimizerSpec, table: Table):
        note(f"{spec}\n{table}")
        self.table = table
        super().__init__(
            spec.make,
            [table.variable(), kernel_variable(table)],
            [table.variable(table.values[table.ids]), kernel_variable(table)],
            {TABLE_PATH: table.ids},
        )

    def apply(self, gradient, compact_gradient, kernel_gradient) -> None:
        self.step([gradient, kernel_gradient], [compact_gradient, kernel_gradient])

    def step_twin(self, gradients) -> None:
        try:
            super().step_twin(gradients)
        except Exception:
            reject()  # no law where the bare optimizer does not work either


def kernel_variable(table: Table) -> keras.Variable:
    """Another variable of the model, of the dtype of the table."""
    with keras.name_scope("dense"):
        return keras.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=table.dtype, name="kernel")
