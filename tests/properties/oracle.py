"""The oracle: the same optimizer on a variable that holds the trainable rows and nothing else."""

import keras
import numpy as np
from hypothesis import note, reject

from maskedgrad import MaskedOptimizer
from tests.properties.strategies import TABLE_PATH, OptimizerSpec, Table, assert_same_bits


class Pair:
    """A masked optimizer on a table, beside the bare one on the table's trainable rows."""

    def __init__(self, spec: OptimizerSpec, table: Table):
        note(f"{spec}\n{table}")
        self.table = table
        self.variables = [table.variable(), kernel_variable(table)]
        self.oracle_variables = [table.variable(table.values[table.ids]), kernel_variable(table)]
        self.oracle = spec.make()
        self.oracle.build(self.oracle_variables)
        self.optimizer = MaskedOptimizer(spec.make(), {TABLE_PATH: table.ids})
        self.optimizer.build(self.variables)

    def step(self, gradient, compact_gradient, kernel_gradient) -> None:
        try:
            self.oracle.apply([compact_gradient, kernel_gradient], self.oracle_variables)
        except Exception:
            reject()  # no law where the bare optimizer does not work either
        self.optimizer.apply([gradient, kernel_gradient], self.variables)

    def finalize(self) -> None:
        self.oracle.finalize_variable_values(self.oracle_variables)
        self.optimizer.finalize_variable_values(self.variables)

    def check(self) -> None:
        table, after = self.table, self.variables[0].numpy()
        assert_same_bits(after[table.frozen], table.values[table.frozen], "frozen rows")
        assert_same_bits(after[table.ids], self.oracle_variables[0], "trainable rows")
        assert_same_bits(self.variables[1], self.oracle_variables[1], "another variable")
        for ours, oracles in zip(self.optimizer.variables, self.oracle.variables, strict=True):
            assert_same_bits(ours, oracles, f"slot {ours.path}")


def kernel_variable(table: Table) -> keras.Variable:
    """Another variable of the model, of the dtype of the table."""
    with keras.name_scope("dense"):
        return keras.Variable(np.linspace(-1, 1, 6).reshape(2, 3), dtype=table.dtype, name="kernel")
