"""The set of trainable rows changes: rows move only while they train, and start fresh."""

import itertools
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, reject
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer, Rows
from maskedgrad.masking.compact import CompactTable
from maskedgrad.masking.masking import Masking
from maskedgrad.masking.variables import RowVariable
from maskedgrad.testing import (
    TABLE_PATH,
    Table,
    assert_same_bits,
    gradients_of,
    optimizer_classes,
    optimizers,
    row_sets,
    tables,
)
from tests.features import some_optimizer_classes
from tests.properties.oracle import kernel_variable
from tests.properties.strategies import kernel_gradients

VALUES = np.random.default_rng(0).normal(size=(6, 2)).astype("float32")


@given(data=st.data())
def test_a_row_moves_only_in_steps_in_which_it_trains(data):
    cls = data.draw(st.sampled_from(optimizer_classes()))
    table = data.draw(tables())
    variables = [table.variable(), kernel_variable(table)]
    optimizer = MaskedOptimizer(data.draw(optimizers(cls)).make(), {TABLE_PATH: table.ids})
    sets = st.lists(row_sets(len(table.values)), min_size=1, max_size=4)
    for ids in data.draw(sets, label="row sets"):
        optimizer.set_trainable_rows({TABLE_PATH: ids})
        now = Table(variables[0].numpy(), np.array(ids))
        try:
            for _ in range(data.draw(st.integers(0, 2), label="steps")):
                gradient, _ = data.draw(gradients_of(now, kinds=("dense", "sparse")))
                step = [gradient, data.draw(kernel_gradients(now))]
                optimizer.apply(step, variables)
        except tf.errors.InvalidArgumentError:
            reject()  # Keras does not mix these dtypes, wrapped or not
        after = variables[0].numpy()
        assert_same_bits(after[now.frozen], now.values[now.frozen], "frozen rows")


# What writes when rows change.
WRITING = {
    function.__code__
    for function in (
        *(Masking.change_rows, Masking._take),
        *(CompactTable.take_rows, RowVariable.assign_rows),
    )
}


class ErrorAtLine:
    """A context in which memory is out once, at the n-th line of what writes, in new threads."""

    def __init__(self, number):
        self.num_left = number

    def __enter__(self):
        self.before = threading.gettrace()
        threading.settrace(self.trace)

    def __exit__(self, *_):
        threading.settrace(self.before)

    def trace(self, frame, event, _):
        if frame.f_code not in WRITING:
            return None
        if event == "line":
            self.num_left -= 1
            if self.num_left == -1:
                raise MemoryError
        return self.trace


@pytest.mark.parametrize("lazy", [False, True])
def test_an_error_at_any_line_of_a_change_leaves_all_as_it_was(lazy):
    table = keras.Variable(VALUES, name="table")
    rates = {"table": {0.5: [1], 0.1: [4]}}
    optimizer = MaskedOptimizer("adam", {"table": [1, 2]}, row_learning_rates=rates, lazy=lazy)
    slices = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 2]), tf.constant([6, 2]))
    optimizer.apply([slices], [table])
    before = [variable.numpy() for variable in [table, *optimizer.variables]]
    for number in itertools.count():
        try:
            with ErrorAtLine(number):
                optimizer.set_trainable_rows({"table": [2, 4, 5]})
        except MemoryError:
            assert optimizer.trainable_rows == {"table": Rows([1, 2], 6)}
            now = [variable.numpy() for variable in [table, *optimizer.variables]]
            for one, other in zip(now, before, strict=True):
                assert_same_bits(one, other, f"with an error at line {number}")
        else:
            break
    assert number > 20
    assert optimizer.trainable_rows == {"table": Rows([2, 4, 5], 6)}


@given(sets=st.lists(row_sets(6), min_size=2, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_each_row_follows_an_optimizer_of_its_own_that_is_made_when_it_joins(sets, seed):
    """Gradient descent with momentum treats every number alone, so rows have oracles apart."""
    random = np.random.default_rng(seed)
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), {"table": sets[0]})
    optimizer.build([table])
    alone, expected = {}, VALUES.copy()
    for ids in sets:
        optimizer.set_trainable_rows({"table": ids})
        alone = {row: alone.get(row) or keras.optimizers.SGD(0.1, momentum=0.9) for row in ids}
        variables = {row: keras.Variable(expected[row]) for row in ids}
        for row in ids:
            if alone[row].built:
                velocity = alone[row].variables[-1].numpy()
                alone[row] = keras.optimizers.SGD(0.1, momentum=0.9)
                alone[row].build([variables[row]])
                alone[row].variables[-1].assign(velocity)
        for _ in range(2):
            gradient = random.normal(size=VALUES.shape).astype("float32")
            optimizer.apply([tf.constant(gradient)], [table])
            for row in ids:
                alone[row].apply([tf.constant(gradient[row])], [variables[row]])
        for row in ids:
            expected[row] = variables[row].numpy()
        assert_same_bits(table, expected, "the table")


@pytest.mark.parametrize("cls", some_optimizer_classes())
def test_rows_that_join_start_with_the_state_of_a_new_optimizer(cls):
    values = np.random.default_rng(0).normal(size=(6, 7)).astype("float32")
    table, gradient = keras.Variable(values, name="table"), tf.ones_like(values)
    optimizer = MaskedOptimizer(cls(), {"table": [0, 1]})
    optimizer.apply([gradient], [table])
    kept = rows_of_state(optimizer)
    optimizer.set_trainable_rows({"table": [1, 2, 3]})
    fresh = MaskedOptimizer(cls(), {"table": [1, 2, 3]})
    fresh.build([table])
    state, new = rows_of_state(optimizer), rows_of_state(fresh)
    assert state.keys() == new.keys() == kept.keys()
    for path, rows in state.items():
        assert_same_bits(rows[1:], new[path][1:], f"{path} of rows that join")
        assert_same_bits(rows[0], kept[path][1], f"{path} of the row that stays")
    assert int(optimizer.iterations) == 1


def rows_of_state(optimizer):
    """The state that belongs to rows, which then lie along the first axis, by name."""
    found = {}
    for variable, table in optimizer.row_state():
        values = variable.numpy()
        (axis,) = (axis for axis, size in enumerate(values.shape) if size == len(table.rows))
        of_what = variable.path.partition("/")[2]  # before it stands the optimizer's own name
        found[of_what] = np.moveaxis(values, axis, 0)
    return found


def test_an_average_starts_from_the_row_that_joins():
    table = keras.Variable(VALUES, name="table")
    inner = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=1)
    optimizer = MaskedOptimizer(inner, {"table": [0]})
    optimizer.apply([tf.ones_like(VALUES)], [table])
    optimizer.set_trainable_rows({"table": [0, 1]})
    optimizer.apply([tf.ones_like(VALUES)], [table])
    np.testing.assert_allclose(table, VALUES, rtol=1e-6)  # averages of equals, but rounded


def test_the_axis_of_rows_is_found_where_state_has_another_shape():
    first, second = keras.Variable(VALUES, name="first"), keras.Variable(VALUES.T, name="second")
    optimizer = MaskedOptimizer("adafactor", {"first": [0, 1, 2], "second": [1]})
    optimizer.build([first, second])
    # For each table Adafactor keeps a mean for each row, one for each column, and one of all.
    of_rows = [(tuple(state.shape), table.path) for state, table in optimizer.row_state()]
    assert of_rows == [((3,), "first"), ((3, 2), "first"), ((1,), "second"), ((1, 6), "second")]
    optimizer.set_trainable_rows({"first": [5], "second": [0, 1]})
    shapes = [tuple(state.shape) for state, _ in optimizer.row_state()]
    assert shapes == [(1,), (1, 2), (2,), (2, 6)]


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_masked_model_trains_the_new_rows_without_being_compiled_again(jit_compile, wrap):
    model, words = small_model(MaskedModel)
    optimizer = MaskedOptimizer("adamw", {words: [0]})
    model.compile(wrap(optimizer), loss="mse", jit_compile=jit_compile)
    for ids in ([0], [1, 2], [2, 5], [0, 1, 2, 3, 4, 5]):
        optimizer.set_trainable_rows({words: ids})
        before = words.embeddings.numpy()
        model.fit(np.arange(6).reshape(2, 3), np.ones((2, 1)), verbose=0)
        changed = (words.embeddings.numpy() != before).any(axis=1)
        assert np.flatnonzero(changed).tolist() == ids


def small_model(base):
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(6, 2, name="words")
    outputs = keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs)))
    return base(inputs, outputs), words


def changed_rows(model, words):
    """The rows that a batch in which all are looked up moves."""
    before = words.embeddings.numpy()
    model.train_on_batch(np.arange(6).reshape(2, 3), np.ones((2, 1)))
    return np.flatnonzero((words.embeddings.numpy() != before).any(axis=1)).tolist()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_stock_model_trains_the_new_rows_by_the_function_that_it_has(jit_compile):
    model, words = small_model(keras.Model)
    optimizer = MaskedOptimizer("adamw", {words: [0]})
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    assert changed_rows(model, words) == [0]
    function = model.train_function
    for ids in ([1], [2, 5], [0, 1, 2, 3, 4, 5]):
        optimizer.set_trainable_rows({words: ids})
        assert changed_rows(model, words) == ids
    assert model.train_function is function


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_stock_model_stops_where_its_function_was_traced_for_another_number(jit_compile):
    model, words = small_model(keras.Model)
    inner = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    optimizer = MaskedOptimizer(inner, {words: [0, 1]})
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    changed_rows(model, words)
    assert changed_rows(model, words) == [0, 1]
    optimizer.set_trainable_rows({words: [1, 2]})
    changed_rows(model, words)
    assert changed_rows(model, words) == [1, 2]
    optimizer.set_trainable_rows({words: [3]})
    before = words.embeddings.numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="make_train_function"):
        changed_rows(model, words)
    assert_same_bits(words.embeddings, before, "the table")
    model.make_train_function(force=True)
    changed_rows(model, words)
    assert changed_rows(model, words) == [3]


def test_what_is_excluded_from_weight_decay_stays_excluded():
    table = keras.Variable(VALUES, name="table")
    inner = keras.optimizers.SGD(0.5, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_names=["table"])
    optimizer = MaskedOptimizer(inner, {"table": [0]})
    optimizer.build([table])
    optimizer.set_trainable_rows({"table": [1]})
    optimizer.apply([tf.zeros_like(VALUES)], [table])
    assert_same_bits(table, VALUES, "the table")


NAMES = ["table", "other", "t.*|o.*"]
REFUSED = [
    (masked, named, rows)
    for masked, named, rows in itertools.product(NAMES, NAMES, [(9,), (), (1,)])
    if named != masked or rows != (1,)
]


@pytest.mark.parametrize(("masked", "named", "rows"), REFUSED)
def test_a_refused_change_changes_nothing(masked, named, rows):
    table, other = keras.Variable(VALUES, name="table"), keras.Variable(VALUES, name="other")
    optimizer = MaskedOptimizer("adam", {masked: [0]})
    optimizer.build([table, other])
    inner, before = optimizer.inner_optimizer, optimizer.trainable_rows
    with pytest.raises(ValueError, match=r"table|other"):
        optimizer.set_trainable_rows({named: rows})
    assert optimizer.inner_optimizer is inner
    assert optimizer.trainable_rows == before


def test_rows_that_no_table_can_have_are_refused_before_there_is_a_table():
    optimizer = MaskedOptimizer("adam", {"table": [0]})
    with pytest.raises(ValueError, match="negative"):
        optimizer.set_trainable_rows({"table": [-1]})
    assert optimizer.trainable_rows == {"table": [0]}


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("others", [[4, 5], [1, 2, 3]])
def test_rows_come_with_the_state_that_was_saved_of_them(others, name, tmp_path):
    model, words = small_model(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows={words: [0, 1]})
    assert changed_rows(model, words) == [0, 1]
    (model.save if name.endswith("keras") else model.save_weights)(tmp_path / name)

    loaded, words = small_model(MaskedModel)
    loaded.compile("adam", loss="mse", trainable_rows={words: others})
    loaded.optimizer.build(loaded.trainable_variables)
    with pytest.warns(UserWarning, match="Rows come with their state"):
        loaded.load_weights(tmp_path / name)
    assert loaded.optimizer.trainable_rows == {"words/embeddings": Rows([0, 1], 6)}
    for ours, saved in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        assert_same_bits(ours, saved, ours.path)
    assert changed_rows(loaded, words) == [0, 1]
    changed_rows(model, model.get_layer("words"))
    for ours, saved in zip(loaded.weights, model.weights, strict=True):
        assert_same_bits(ours, saved, ours.path)


@pytest.mark.parametrize("others", [[4, 5], [1, 2, 3]])
def test_rows_come_with_the_state_of_a_checkpoint(others, tmp_path):
    table, again = (keras.Variable(VALUES, name="table") for _ in range(2))
    optimizer, restored = (MaskedOptimizer("adam", {"table": rows}) for rows in ([0, 1], others))
    optimizer.apply([tf.ones_like(VALUES)], [table])
    restored.build([again])
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(optimizer=restored).read(path).assert_consumed()
    assert restored.trainable_rows == {"table": Rows([0, 1], 6)}
    for ours, saved in zip(restored.variables, optimizer.variables, strict=True):
        assert_same_bits(ours, saved, ours.path)
    before = again.numpy()
    restored.apply([tf.ones_like(VALUES)], [again])
    assert np.flatnonzero((again.numpy() != before).any(axis=1)).tolist() == [0, 1]


ASKED = {
    "trainable_rows": lambda optimizer: optimizer.trainable_rows,
    "masked_tables": lambda optimizer: optimizer.masked_tables(),
    "row_state": lambda optimizer: optimizer.row_state(),
    "get_config": lambda optimizer: optimizer.get_config(),
    "save": lambda optimizer: optimizer.save_own_variables({}),
    "repr": repr,
    "every attribute": lambda optimizer: [getattr(optimizer, name, 0) for name in dir(optimizer)],
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_no_question_changes_anything(ask, tmp_path):
    model, words = small_model(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows={words: [0, 1]})
    model.train_on_batch(np.arange(6).reshape(2, 3), np.ones((2, 1)))
    model.save_weights(tmp_path / "saved.weights.h5")
    model.optimizer.set_trainable_rows({words: [1, 2, 3]})
    with pytest.warns(UserWarning, match="Rows come with their state"):
        model.load_weights(tmp_path / "saved.weights.h5")
    before = [variable.numpy() for variable in model.optimizer.variables]
    inner = model.optimizer.inner_optimizer
    ask(model.optimizer)
    assert model.optimizer.inner_optimizer is inner
    for variable, value in zip(model.optimizer.variables, before, strict=True):
        assert_same_bits(variable, value, variable.path)


def test_rows_that_are_set_after_loading_train(tmp_path):
    model, words = small_model(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows={words: [0, 1]})
    model.optimizer.build(model.trainable_variables)
    model.save_weights(tmp_path / "saved.weights.h5")
    model.load_weights(tmp_path / "saved.weights.h5")
    model.set_trainable_rows({words: [4, 5]})
    assert model.optimizer.trainable_rows == {"words/embeddings": Rows([4, 5], 6)}
    assert changed_rows(model, words) == [4, 5]
