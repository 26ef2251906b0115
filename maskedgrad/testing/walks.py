"""`check_model`: random walks over what happens to a model in its life."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from maskedgrad.masking.of_model import masked_optimizer_in
from maskedgrad.messages import shorten
from maskedgrad.model import MaskedTrainStep
from maskedgrad.rows.rows import Rows
from maskedgrad.rows.targets import MaskedTable
from maskedgrad.testing.batches import batches_of
from maskedgrad.testing.bits import assert_same_bits
from maskedgrad.testing.frozen_rows import tables_of, unchanged_outside_of


class Walk:
    """A model, and what can happen to it. Each step checks that frozen rows keep their bits.

    What is frozen is known from what `make_model` and `change_rows` were told,
    not from what the optimizer believes later.

    Args:
        make_model: as for `check_model`.
        data: as for `check_model`.

    Raises:
        AssertionError: in a step, if something changes that must not.

    Example:

    >>> def make_model():
    ...     words = keras.layers.Embedding(5, 2)
    ...     model = keras.Sequential([keras.Input((3,)), words])
    ...     model.compile(MaskedOptimizer("adamw", {words: [4]}), loss="mse")
    ...     return model
    >>> walk = Walk(make_model, [(np.array([[0, 1, 4]]), np.ones((1, 3, 2)))])
    >>> walk.train(0)
    >>> walk.change_rows([1, 2])
    >>> walk.train(0)
    """

    def __init__(self, make_model: Callable[[], keras.Model], data: Iterable[Any]):
        self._make_model = make_model
        self._batches = list(data)
        self.model = make_model()
        self._rows = [table.rows for table in tables_of(self.model)]

    def train(self, batch: int) -> None:
        """Trains on a batch: nothing but trainable rows of a masked table may move."""
        with unchanged_outside_of(self._tables()):
            self.model.fit(self._dataset(batch), shuffle=False, verbose=0)

    def evaluate(self, batch: int) -> None:
        """Evaluates on a batch: nothing may change."""
        with self._nothing_changes():
            self.model.evaluate(self._dataset(batch), verbose=0)

    def predict(self, batch: int) -> None:
        """Predicts for a batch: nothing may change."""
        with self._nothing_changes():
            self.model.predict(self._dataset(batch), verbose=0)

    def save_and_load_weights(self) -> None:
        """Goes on with a fresh model of the same rows that loads the weights of this one."""
        with self._nothing_changes(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.weights.h5"
            self.model.save_weights(path)
            self.model = self._make_model()
            self._build_optimizer()
            self._set_rows(self._rows)
            self.model.load_weights(path)

    def save_and_load_model(self) -> None:
        """Goes on with the model that a `.keras` file of this one holds."""
        with self._nothing_changes(), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            self.model.save(path)
            self.model = keras.saving.load_model(path)

    def change_rows(self, *rows: Any) -> None:
        """Changes which rows train, without a change of values.

        Args:
            *rows: for each masked table, in the order of the model's
                variables, the rows that train from now on.
        """
        with unchanged_outside_of(
            [dataclasses.replace(table, rows=_no_row(table)) for table in self._tables()]
        ):
            chosen = [
                Rows(given, table.rows.num_rows)
                for given, table in zip(rows, self._tables(), strict=True)
            ]
            self._set_rows(chosen)
            self._rows = chosen

    def trainable_ids(self) -> list[list[int]]:
        """For each masked table, the rows that could train: all that have a learning rate."""
        every_row = {table: slice(None) for table in tables_of(self.model)}
        optimizer = masked_optimizer_in(self.model.optimizer)
        tables = optimizer.check_rows(every_row, self.model.trainable_variables)
        return [table.rows.ids.tolist() for table in tables]

    def _tables(self) -> list[MaskedTable]:
        return [
            dataclasses.replace(table, rows=rows)
            for table, rows in zip(tables_of(self.model), self._rows, strict=True)
        ]

    def _dataset(self, batch: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensors(self._batches[batch])

    def _set_rows(self, rows: Sequence[Rows]) -> None:
        masked_optimizer_in(self.model.optimizer).set_trainable_rows(
            dict(zip(tables_of(self.model), rows, strict=True))
        )
        if not isinstance(self.model, MaskedTrainStep):
            self.model.make_train_function(force=True)

    def _build_optimizer(self) -> None:
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)

    @contextlib.contextmanager
    def _nothing_changes(self) -> Iterator[None]:
        self._build_optimizer()  # what is loaded comes built, and state is compared
        before = self._state()
        yield
        if masked_optimizer_in(getattr(self.model, "optimizer", None)) is None:
            raise AssertionError(
                "A model must come back from its file with its `MaskedOptimizer`. Received: one "
                f"with optimizer={getattr(self.model, 'optimizer', None)!r}, which trains every "
                "row. See the class's `get_config`, `get_compile_config` and `compile_from_config`."
            )
        if len(self._state()) != len(before):
            raise AssertionError(
                "A model must come back from its file with all its variables, and its optimizer "
                f"with all of its state. Expected: {[name for name, _ in before]}. "
                f"Received: {[name for name, _ in self._state()]}"
            )
        for (name, old), (_, new) in zip(before, self._state(), strict=True):
            assert_same_bits(new, old, name)

    def _state(self) -> list[tuple[str, np.ndarray]]:
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [(variable.path, np.asarray(variable).copy()) for variable in variables]


class Step(NamedTuple):
    """A method of `Walk`, and what it is called with."""

    method: str
    arguments: tuple[Any, ...] = ()

    def take(self, walk: Walk) -> None:
        """Calls the method."""
        getattr(walk, self.method)(*self.arguments)

    def source(self) -> str:
        """The call as Python source."""
        return f"walk.{self.method}({', '.join(map(repr, self.arguments))})"


def check_model(
    make_model: Callable[[], keras.Model],
    data: Iterable[Any],
    *,
    max_examples: int | None = None,
    max_steps: int = 6,
) -> None:
    """Checks by random walks that a model's frozen rows keep their bits, whatever happens to it.

    Equivalent to many a `Walk` with steps drawn by Hypothesis: train on a
    batch, evaluate, predict, save and load weights, save and load the `.keras`
    file, change which rows train. A walk that fails is shrunk to the shortest
    that does, and shown as Python source.

    Args:
        make_model: a function that returns a fresh model, built and compiled
            with a `MaskedOptimizer`, as often as it is called. Its own classes
            must be registered with Keras, as `keras.saving.load_model` demands.
        data: batches as `fit` takes them: `(x, y)` or `(x, y, sample_weight)`
            of arrays, or a `tf.data.Dataset` of these.
        max_examples: int, how many walks. By default a tenth of what the
            Hypothesis profile says, since each makes and trains a model.
        max_steps: int, how long a walk is at most.

    Raises:
        AssertionError: something changed that must not, or a step failed. The
            message ends with the shortest walk that does.
        TypeError: `make_model` returns something else than a model, or `data` is one batch.
        ValueError: there is no batch; or the model is not built, masks no
            table, or shares variables with the one before.

    Example:

    >>> def make_model():
    ...     words = keras.layers.Embedding(5, 2)
    ...     model = keras.Sequential([keras.Input((3,)), words])
    ...     model.compile(MaskedOptimizer("adamw", {words: [4]}), loss="mse")
    ...     return model
    >>> batch = np.array([[0, 1, 4]]), np.ones((1, 3, 2))
    >>> check_model(make_model, [batch], max_examples=1, max_steps=1)
    """
    batches = batches_of(data)
    first = Walk(make_model, batches)
    _check_apart(first.model, make_model())
    steps = _steps(first.trainable_ids(), len(batches))

    @settings(
        max_examples=max_examples or max(1, settings().max_examples // 10),
        deadline=None,  # the first steps are traced, which takes long
        # Walks of one model say nothing of another, and Hypothesis could not tell them apart.
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.target, Phase.shrink],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.lists(steps, min_size=1, max_size=max_steps))
    def every_walk_is_safe(walk_steps: list[Step]) -> None:
        walk = Walk(make_model, batches)
        for number, step in enumerate(walk_steps, start=1):
            try:
                step.take(walk)
            except Exception as error:
                raise AssertionError(_report(error, walk_steps[:number])) from error

    every_walk_is_safe()


def _check_apart(model: keras.Model, other: keras.Model) -> None:
    """Raises a `ValueError` if two models share a variable: what is loaded into one is in both."""
    known = {id(variable) for variable in model.weights}
    shared = [variable.path for variable in other.weights if id(variable) in known]
    if shared:
        raise ValueError(
            "`make_model` must return a fresh model each time it is called. Received: one that "
            f"shares {shorten(shared)} with the one before. Make its layers in the function."
        )


def _steps(trainable_ids: Sequence[Sequence[int]], num_batches: int) -> st.SearchStrategy[Step]:
    batches = st.tuples(st.integers(0, num_batches - 1))
    row_sets = st.tuples(
        *(st.sets(st.sampled_from(ids), min_size=1).map(sorted) for ids in trainable_ids)
    )
    return st.one_of(
        st.builds(Step, st.just("train"), batches),
        st.builds(Step, st.just("change_rows"), row_sets),
        st.builds(Step, st.sampled_from(["evaluate", "predict"]), batches),
        st.sampled_from([Step("save_and_load_weights"), Step("save_and_load_model")]),
    )


def _report(error: Exception, steps: Sequence[Step]) -> str:
    source = "\n".join(step.source() for step in steps)
    return (
        f"{type(error).__name__} in the last step of a walk: {error}\n\n"
        "The walk, as a program, with the same `make_model` and `data`:\n\n"
        f"from maskedgrad.testing import Walk\n\nwalk = Walk(make_model, data)\n{source}\n"
    )


def _no_row(table: MaskedTable) -> Rows:
    return Rows([], table.rows.num_rows)
