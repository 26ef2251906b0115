"""Which rows train, as state that is saved and restored."""

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from maskedgrad.masking.compact import CompactTable
from maskedgrad.masking.tables import chunks_of_rows, digest_of_rows
from maskedgrad.rows.saved import decode_trainable_rows, encode_trainable_rows, saved_table
from maskedgrad.rows.targets import MaskedTable, check_same_tables, named, resolve


class RowIds(keras.Layer):
    """Holds the variables that say which rows train. Its file says of which tables too.

    It is a part of the optimizer with numbers of its own in a file, since Keras takes those of an
    optimizer for its variables, and would give them to a stock optimizer that has as many. Keras
    loads parts by the alphabet: `chosen_row_ids` makes room for the state of `inner`, the next.
    https://github.com/keras-team/keras/blob/v3.15.1/keras/src/saving/saving_lib.py#L757

    Args:
        tables: the tables, with their ids.
        variables: all variables that are trained.
        change_rows: a function of `MaskedTable`s, whose rows it lets train.
    """

    def __init__(
        self,
        tables: Sequence[CompactTable],
        variables: Sequence[keras.Variable],
        change_rows: Callable[[list[MaskedTable]], None],
    ):
        super().__init__(name="row_ids", trainable=False)
        # One by one, since a checkpoint of TensorFlow looks into no list of Keras.
        for number, table in enumerate(tables):
            for variable in table.state:
                setattr(self, f"{variable.name}_{number}", variable)
        # In functions, since Keras tracks variables in whatever else a layer holds.
        self._masked: Callable[[], list[MaskedTable]] = lambda: [t.masked() for t in tables]
        self._variables: Callable[[], Sequence[keras.Variable]] = lambda: variables
        self._change_rows = change_rows

    def save_own_variables(self, store: Any) -> None:
        """Saves which rows of which tables train, and their multipliers."""
        masked, variables = self._masked(), self._variables()
        config = encode_trainable_rows(
            (saved_table(table.variable, table.axis, variables), table.rows) for table in masked
        )
        # By the digest `verify` tells tables of one path apart.
        for entry, table in zip(config, masked, strict=True):
            if table.axis == 0:
                chunks = chunks_of_rows(table.variable, table.rows.ids)
                entry["digest"] = digest_of_rows(chunks, np.ones(len(table.rows), bool))
        store["tables"] = np.frombuffer(json.dumps(config).encode(), np.uint8)
        for number, table in enumerate(masked):
            if table.learning_rates is not None:
                store[f"learning_rates_{number}"] = table.learning_rates

    def load_own_variables(self, store: Any) -> None:
        """Lets the rows train that were saved, before the inner optimizer loads their state.

        Raises:
            ValueError: the tables are not those that were saved, or cannot be told.
        """
        names = set(store.keys())
        if "tables" not in names:
            return  # the state of a stock optimizer, of which the inner one warns
        config = json.loads(np.asarray(store["tables"], np.uint8).tobytes())
        masked, saved = self._masked(), decode_trainable_rows(config)
        requests = named(saved) if saved else []  # of an optimizer whose table was frozen whole
        tables = check_same_tables(resolve(requests, self._variables()), masked)
        for number, (now, table) in enumerate(zip(masked, tables, strict=True)):
            name = f"learning_rates_{number}"
            if (name in names) != (now.learning_rates is not None):
                raise ValueError(
                    "Rows must have learning rates of their own where they had when the optimizer "
                    f"was saved. Received: an optimizer where those of {now.path!r} differ in that"
                )
            if name in names:
                tables[number] = table.but(learning_rates=np.asarray(store[name], float))
            if table.rows != now.rows:
                warnings.warn(
                    f"Rows come with their state: of {table.path!r} {table.rows} train now, as "
                    f"when the optimizer was saved, and not {now.rows}. To train others call "
                    "`set_trainable_rows` after loading.",
                    stacklevel=2,
                )
        self._change_rows(tables)
