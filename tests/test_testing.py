"""The kit for users: it passes where the law holds, and goes red where it is broken."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import find, given
from hypothesis import strategies as st

import maskedgrad
from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, Rows
from maskedgrad.masking import compact
from maskedgrad.masking.compact import CompactTable
from maskedgrad.masking.gradients import touched_rows
from maskedgrad.testing import (
    Walk,
    assert_same_bits,
    assert_trains_like_compact,
    check_model,
    frozen_rows_unchanged,
    gradients,
    optimizers,
    row_sets,
)
from tests.devices import mirrored_strategy
from tests.features import needs_muon

NUM_ROWS, IDS = 8, [6, 7]
VALUES = np.random.default_rng(0).normal(size=(NUM_ROWS, 3)).astype("float32")
BATCH = np.array([[0, 6, 6], [7, 1, 1]]), np.ones((2, 1), "float32")
PAGE = (Path(__file__).parent.parent / "docs" / "testing.md").read_text()
# By name, what stands below a paragraph that begins with it.
NAMED_BLOCK = r"^`([^`\n]+/[^`\n]+)`(?:[^\n]+\n)+\n```\w+\n(.*?)^```$"
PAGE_FILES = dict(re.findall(NAMED_BLOCK, PAGE, re.M | re.S))
WORKFLOW = PAGE_FILES[".github/workflows/frozen_rows.yml"]


@keras.saving.register_keras_serializable(package="tests")
class Shrinking(keras.layers.Embedding):
    """A table that a layer moves behind the optimizer's back."""

    def call(self, ids, training=False):
        if training:
            self.embeddings.assign(0.9 * self.embeddings)
        return super().call(ids)

    def compute_output_spec(self, ids, training=False):
        return super().compute_output_spec(ids)


@keras.saving.register_keras_serializable(package="tests")
class Stubborn(MaskedOptimizer):
    """An optimizer that goes on training the rows that it began with."""

    def set_trainable_rows(self, trainable_rows):
        if not self.built:
            super().set_trainable_rows(trainable_rows)


def make_model(
    model_class=MaskedModel,
    optimizer_class=MaskedOptimizer,
    embedding=keras.layers.Embedding,
    inner="adamw",
    **options,
):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    words = embedding(NUM_ROWS, 2, name="words")
    head = keras.layers.Dense(1, name="head")
    outputs = head(keras.layers.Flatten()(words(inputs)))
    model = model_class(inputs, outputs)
    model.compile(optimizer_class(inner, {words: IDS}), loss="mse", **options)
    return model


def new_table():
    return keras.Variable(VALUES, name="table")


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
def test_training_that_masks_passes(model_class):
    model = make_model(model_class)
    with frozen_rows_unchanged(model):
        model.fit(*BATCH, verbose=0)
    with frozen_rows_unchanged(model):
        model.fit(*BATCH, verbose=0)


def test_a_loss_scaler_around_the_masks_is_seen_through():
    model = make_model()
    words = model.get_layer("words")
    scaled = keras.optimizers.LossScaleOptimizer(MaskedOptimizer("adam", {words: IDS}))
    model.compile(scaled, loss="mse")
    with frozen_rows_unchanged(model):
        model.fit(*BATCH, verbose=0)
    with pytest.raises(AssertionError, match="words/embeddings"), frozen_rows_unchanged(model):
        words.embeddings.assign(words.embeddings + 1)


def test_the_rows_of_a_variable_that_may_change_may_change():
    table = new_table()
    with frozen_rows_unchanged(table, rows=IDS):
        MaskedOptimizer("adamw", {"table": IDS}).apply([tf.ones_like(VALUES)], [table])
    more = np.isin(np.arange(NUM_ROWS), IDS)[:, None]
    with pytest.raises(AssertionError, match="2 of 8 frozen"), frozen_rows_unchanged(table):
        table.assign(table + more)


@pytest.mark.parametrize(
    ("before", "after"),
    [(0, 0x80000000), (0x7FC00000, 0x7FC00001), (1, 2), (0x3F800000, 0x3F800001)],
    ids=["sign of zero", "payload of NaN", "denormal", "last bit"],
)
@pytest.mark.parametrize("variable_class", [keras.Variable, tf.Variable])
def test_one_bit_is_enough(variable_class, before, after):
    old, new = (np.uint32([[value], [5]]).view("float32") for value in (before, after))
    variable = variable_class(old, name="table")
    with frozen_rows_unchanged(variable):
        variable.assign(old)
    with pytest.raises(AssertionError, match="1 of 2 frozen"), frozen_rows_unchanged(variable):
        variable.assign(new)


def test_a_mirrored_variable_is_watched():
    with mirrored_strategy().scope():
        table = new_table()
    with pytest.raises(AssertionError, match="7 of 7"), frozen_rows_unchanged(table, rows=[0]):
        table.assign(-table)


def test_rows_along_another_axis_are_watched():
    inputs = keras.Input((2,))
    head = keras.layers.Dense(5, name="head")
    model = MaskedModel(inputs, head(inputs))
    model.compile("adamw", loss="mse", trainable_rows={AlongAxis(head, -1): [3, 4]})
    for _ in range(2):  # the optimizer is built by the first
        with frozen_rows_unchanged(model):
            model.fit(np.ones((1, 2)), np.ones((1, 5)), verbose=0)
    column = np.float32([[0, 1, 0, 0, 0]])
    message = r"1 of 3 frozen rows of 'head/kernel'.*: row 1 by 1"
    with pytest.raises(AssertionError, match=message), frozen_rows_unchanged(model):
        head.kernel.assign(head.kernel + column)


def test_the_largest_changes_are_named():
    table, more = new_table(), np.zeros_like(VALUES)
    more[[1, 3, 4], 0] = [8, 64, 16]
    with pytest.raises(AssertionError) as caught, frozen_rows_unchanged(table, rows=[0]):
        table.assign(table + more)
    assert "3 of 7 frozen rows of 'table' changed" in str(caught.value)
    assert "row 3 by 64, row 4 by 16, row 1 by 8." in str(caught.value)


def test_what_fails_by_itself_is_not_covered_up():
    table = new_table()

    def negate_and_fail():
        table.assign(-table)
        raise KeyError

    with pytest.raises(KeyError), frozen_rows_unchanged(table):
        negate_and_fail()


def weight_decay(table):
    optimizer = keras.optimizers.AdamW(0.01, weight_decay=0.01)
    return lambda: [optimizer.apply([tf.zeros_like(VALUES)], [table]) for _ in range(3)]


def own_constraint(table):
    table.constraint = keras.constraints.MaxNorm(0.5)  # along the columns, as is its default
    return lambda: keras.optimizers.SGD(0.1).apply([tf.zeros_like(VALUES)], [table])


def bound_on_norms(table):
    constraint = keras.constraints.MaxNorm(0.5, axis=1)
    return lambda: table.assign(constraint(table.value))


def bound_below(table):
    return lambda: table.assign(keras.ops.maximum(table, 0))


def stale_momentum(table):
    optimizer = keras.optimizers.Adam(0.001)
    gradient = np.where(np.isin(np.arange(NUM_ROWS), [2, 3])[:, None], VALUES, 0)
    optimizer.apply([tf.constant(gradient)], [table])
    return lambda: optimizer.apply([tf.zeros_like(VALUES)], [table])


def mask_that_multiplies(table):
    gradient = np.where(np.arange(NUM_ROWS)[:, None] == 2, np.float32(np.inf), VALUES)
    mask = np.float32(np.arange(NUM_ROWS) == 0)[:, None]
    return lambda: keras.optimizers.SGD(0.1).apply([tf.constant(gradient) * mask], [table])


def assignment(table):
    values = VALUES.copy()
    values[5] = 9
    return lambda: table.assign(values)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (weight_decay, "weight decay: all of them were multiplied by 0.9997"),
        (own_constraint, "a constraint"),
        (bound_on_norms, "a constraint"),
        (bound_below, "a constraint"),
        (stale_momentum, "stale momentum"),
        (mask_that_multiplies, "infinity times zero"),
        (assignment, "an assignment"),
    ],
)
def test_the_likely_cause_is_named(change, cause):
    table = new_table()
    change_now = change(table)
    message = f"Likely cause: .*{cause}"
    with pytest.raises(AssertionError, match=message), frozen_rows_unchanged(table, rows=[0]):
        change_now()


def unmasked():
    model = make_model()
    keras.Model.compile(model, "adam", loss="mse")
    return model


def unbuilt():
    words = keras.layers.Embedding(NUM_ROWS, 2)
    model = keras.Sequential([words])
    model.compile(MaskedOptimizer("adam", {words: IDS}), loss="mse")
    return model


@pytest.mark.parametrize(
    ("watched", "rows", "error", "message"),
    [
        (unmasked, None, ValueError, "compiled with a `MaskedOptimizer`"),
        (unbuilt, None, ValueError, "Call it on a batch"),
        (make_model, [1], ValueError, "`rows` is for a variable"),
        (lambda: keras.Variable(1.0), None, ValueError, "scalar"),
        (new_table, [NUM_ROWS], ValueError, "must be below"),
        (lambda: VALUES, None, TypeError, "Expected a `keras.Model`"),
    ],
)
def test_what_cannot_be_watched_is_refused(watched, rows, error, message):
    with pytest.raises(error, match=message), frozen_rows_unchanged(watched(), rows):
        pass


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
def test_a_model_takes_every_step_of_a_walk(model_class):
    walk = Walk(lambda: make_model(model_class, run_eagerly=True), [BATCH])
    for _ in range(2):
        walk.save_and_load_model()
        walk.train(0)
        walk.change_rows([0, 6])
        walk.save_and_load_weights()
        walk.evaluate(0)
        walk.train(0)
        walk.predict(0)


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
def test_a_model_that_keeps_the_law_passes_every_walk(model_class):
    check_model(lambda: make_model(model_class), [BATCH], max_examples=2, max_steps=4)


def test_only_rows_that_have_a_learning_rate_are_drawn():
    def model_with_rows_at_rest():
        model = make_model(run_eagerly=True)
        words = model.get_layer("words")
        rates = {words: {0: [0, 1, 2]}}
        optimizer = MaskedOptimizer("sgd", {words: IDS}, row_learning_rates=rates)
        model.compile(optimizer, loss="mse", run_eagerly=True)
        return model

    assert Walk(model_with_rows_at_rest, [BATCH]).trainable_ids() == [[3, 4, 5, 6, 7]]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("broken", "steps"),
    [
        ({"embedding": Shrinking}, ["walk.train(0)"]),
        (
            {"optimizer_class": Stubborn},
            ["walk.change_rows([0])", "walk.train(0)"],
        ),
    ],
    ids=["layer", "optimizer"],
)
def test_a_walk_that_fails_is_shrunk_to_a_program_that_fails(broken, steps):
    def make_broken_model():
        model = make_model(**broken, run_eagerly=True)
        model.optimizer.build(model.trainable_variables)
        return model

    with pytest.raises(AssertionError) as caught:
        check_model(make_broken_model, [BATCH], max_examples=200, max_steps=2)
    message = str(caught.value)
    program = message[message.index("from maskedgrad.testing import Walk") :]
    assert program.strip().splitlines()[-len(steps) - 1 :] == [
        "walk = Walk(make_model, data)",
        *steps,
    ]
    with pytest.raises(AssertionError, match="frozen rows of 'words/embeddings' changed"):
        exec(program, {"make_model": make_broken_model, "data": [BATCH]})  # noqa: S102


def trains_like_compact(make, data):
    assert_trains_like_compact(make, keras.optimizers.Adam, data, {"words/embeddings": IDS})


@pytest.mark.parametrize("check", [check_model, trains_like_compact])
def test_what_checks_a_model_needs_batches(check):
    with pytest.raises(ValueError, match="at least one batch"):
        check(make_model, [])
    with pytest.raises(TypeError, match=r"a tuple with an array.*\[\(x, y\)\]"):
        check(make_model, BATCH)


def test_a_choice_of_rows_that_is_refused_leaves_a_walk_as_it_was():
    walk = Walk(lambda: make_model(run_eagerly=True), [BATCH])
    with pytest.raises(ValueError, match="no row at all"):
        walk.change_rows([])
    walk.train(0)


def test_a_variable_of_an_open_shape_is_watched():
    variable = tf.Variable(np.ones((3, 2)), shape=tf.TensorShape(None))
    with frozen_rows_unchanged(variable, rows=[0]):
        variable.assign([[9.0, 9.0], [1.0, 1.0], [1.0, 1.0]])
    for changed in (np.zeros((3, 2)), np.ones((4, 2))):
        with (
            pytest.raises(AssertionError, match=r"frozen rows of|was of shape"),
            frozen_rows_unchanged(variable, rows=[0]),
        ):
            variable.assign(changed)


def test_values_that_differ_in_their_dtype_alone_are_told_apart():
    with pytest.raises(AssertionError, match=r"float64 of shape \(\)(.|\n)*float32 of shape \(\)"):
        assert_same_bits(np.float32(1), np.float64(1), "a number")


def test_models_that_share_a_table_are_not_taken_for_fresh_ones():
    model = make_model()
    with pytest.raises(ValueError, match=r"shares \['words/embeddings'"):
        check_model(lambda: model, [BATCH])


@keras.saving.register_keras_serializable("test_testing")
class BackWithoutMasks(keras.Model):
    def compile_from_config(self, config):
        self.compile("adamw", loss="mse")


@keras.saving.register_keras_serializable("test_testing")
class BackWithOtherRows(keras.Model):
    def compile_from_config(self, config):
        self.compile(MaskedOptimizer("sgd", {"words/embeddings": [0]}), loss="mse")


@pytest.mark.parametrize(
    ("model_class", "said"),
    [(BackWithoutMasks, r"with its `MaskedOptimizer`"), (BackWithOtherRows, "all of its state")],
)
def test_a_model_that_loses_its_optimizer_in_a_file_is_seen(model_class, said):
    walk = Walk(lambda: make_model(model_class, run_eagerly=True), [BATCH])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tells that it skips the state
        with pytest.raises(AssertionError, match=said):
            walk.save_and_load_model()


@pytest.mark.parametrize(
    "rows",
    [{"words/embeddings": IDS}, {"head/kernel": [1, 2]}, {AlongAxis("words/embeddings", 1): [0]}],
    ids=["of a lookup", "of a kernel", "along an axis"],
)
@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.AdamW(0.1),
        pytest.param(lambda: keras.optimizers.Muon(0.1), marks=needs_muon()),
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_overwrite_frequency=2),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.1)),
    ],
    ids=["AdamW", "Muon", "averages", "loss scale"],
)
def test_a_model_trains_as_its_twin_does(make_optimizer, rows):
    assert_trains_like_compact(make_model, make_optimizer, [BATCH, BATCH], rows)


def test_a_lazy_model_trains_as_its_twin_does_on_the_touched_rows(monkeypatch):
    ids, y = BATCH
    no_trainable_row = np.zeros_like(ids)
    batches = [BATCH, (ids[:1], y[:1]), (no_trainable_row, y), (ids[1:], y[1:]), BATCH]
    arguments = make_model, lambda: keras.optimizers.Adam(0.1), batches
    rows = {"words/embeddings": [0, *IDS]}
    assert_trains_like_compact(*arguments, rows, lazy=True)

    def all_but_one(*args):
        return tuple(each[1:] for each in touched_rows(*args))

    monkeypatch.setattr(compact, "touched_rows", all_but_one)
    with pytest.raises(AssertionError, match="trainable rows of words/embeddings"):
        assert_trains_like_compact(*arguments, rows, lazy=True)


def skip_a_row(monkeypatch):
    def scatter_all_but_one(table, strategy, step_rows):
        rows = tf.convert_to_tensor(table.compact.value)[1:]
        table.variable.value.scatter_update(tf.IndexedSlices(rows, table.ids.value[1:]))

    monkeypatch.setattr(CompactTable, "scatter_step", scatter_all_but_one)


def train_a_frozen_row(monkeypatch):
    make = CompactTable.__init__

    def make_with_one_more(table, masked, *args):
        more = masked.rows | Rows([0], masked.rows.num_rows)
        make(table, masked.but(rows=more), *args)

    monkeypatch.setattr(CompactTable, "__init__", make_with_one_more)


def step_too_far(monkeypatch):
    scatter = CompactTable.scatter_step

    def scatter_more(table, strategy, step_rows):
        table.compact.assign(table.compact.value * (1 + 1e-6))
        scatter(table, strategy, step_rows)

    monkeypatch.setattr(CompactTable, "scatter_step", scatter_more)


@pytest.mark.parametrize("damage", [skip_a_row, train_a_frozen_row, step_too_far])
def test_the_twin_sees_a_library_that_is_broken(damage, monkeypatch):
    damage(monkeypatch)
    with pytest.raises(AssertionError):
        assert_trains_like_compact(
            make_model,
            lambda: keras.optimizers.AdamW(0.1),
            [BATCH],
            {"words/embeddings": IDS},
        )


def test_a_walk_sees_a_library_that_trains_a_frozen_row(monkeypatch):
    train_a_frozen_row(monkeypatch)
    with pytest.raises(AssertionError, match="1 of 6 frozen rows of 'words/embeddings' changed"):
        check_model(lambda: make_model(run_eagerly=True), [BATCH], max_examples=20)


def test_a_twin_of_other_weights_is_refused():
    def make_other_model():
        model = make_model()
        model.layers[-1].kernel.assign(np.random.default_rng().normal(size=(6, 1)))
        return model

    arguments = keras.optimizers.Adam, [BATCH], {"words/embeddings": IDS}
    with pytest.raises(ValueError, match="set_random_seed"):
        assert_trains_like_compact(make_other_model, *arguments)
    with pytest.raises(ValueError, match="must return a model that is built"):
        assert_trains_like_compact(unbuilt, *arguments)


@given(num_rows=st.integers(1, 9), data=st.data())
def test_row_sets_are_what_rows_takes(num_rows, data):
    ids = data.draw(row_sets(num_rows))
    assert Rows(ids, num_rows).ids.tolist() == ids
    assert ids


def repeats_an_id(gradient):
    return isinstance(gradient, tf.IndexedSlices) and len(np.unique(gradient.indices)) < len(
        gradient.indices
    )


def is_poisoned(gradient):
    values = getattr(gradient, "values", gradient)
    return values is not None and not np.isfinite(values).all()


@pytest.mark.parametrize(
    "is_wanted",
    [repeats_an_id, is_poisoned, tf.is_tensor, lambda gradient: gradient is None],
    ids=["repeated", "poisoned", "dense", "none"],
)
def test_gradients_of_every_kind_are_drawn(is_wanted):
    find(gradients((4, 2), poisoned_rows=[1]), is_wanted)


@given(spec=optimizers())
def test_an_optimizer_that_is_drawn_is_made_afresh_each_time(spec):
    one, config = spec.make(), []
    for _ in range(2):
        keras.utils.clear_session(free_memory=False)  # names begin anew
        assert spec.make() is not one
        keras.utils.clear_session(free_memory=False)
        config.append(spec.make().get_config())
    assert config[0] == config[1]


def run_pytest(folder, *arguments):
    """Pytest in a process of its own, which finds the plugin because maskedgrad is installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(maskedgrad.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


PLUGIN_TESTS = """
import keras, numpy as np, pytest

@pytest.fixture
def table():
    return keras.Variable(np.ones((3, 2), "float32"), name="table")

@pytest.mark.frozen_rows
def test_that_moves_a_frozen_row(frozen_rows, table):
    frozen_rows(table, rows=[0])
    table.assign(2 * table)

def test_that_moves_the_row_that_may_move(frozen_rows, table):
    frozen_rows(table, rows=[0])
    table.assign(table + np.float32([[1], [0], [0]]))

def test_that_fails_by_itself(frozen_rows, table):
    frozen_rows(table)
    table.assign(2 * table)
    raise KeyError("of its own")
"""


@pytest.mark.processes
def test_the_fixture_fails_the_test_that_moves_a_frozen_row(tmp_path):
    (tmp_path / "test_tables.py").write_text(PLUGIN_TESTS)
    finished = run_pytest(tmp_path, "--strict-markers", "-p", "no:cacheprovider")
    assert "2 failed, 1 passed" in finished.stdout, finished.stdout + finished.stderr
    assert "error" not in finished.stdout.splitlines()[-1]
    assert "2 of 2 frozen rows of 'table' changed" in finished.stdout
    assert "KeyError: 'of its own'" in finished.stdout
    assert "3 of 3" not in finished.stdout


def test_the_plugin_itself_imports_nothing_that_takes_time():
    script = (
        "import sys, maskedgrad_pytest; "
        "print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    heavy = ["tensorflow", "keras", "numpy", "hypothesis", "maskedgrad"]
    finished = subprocess.run(
        [sys.executable, "-c", script, *heavy],
        capture_output=True,
        text=True,
        check=True,
    )
    assert finished.stdout.strip() == "[]"


@pytest.mark.processes
def test_the_tests_of_the_page_pass_as_they_are_copied(tmp_path):
    for name, text in PAGE_FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    command = re.search(r"run: python -m pytest (.*\$PROFILE)$", WORKFLOW, re.M)[1]
    finished = run_pytest(tmp_path, *shlex.split(command.replace("$PROFILE", "quick")))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "3 passed" in finished.stdout


def test_the_workflow_of_the_page_names_the_profiles_of_the_page():
    named = re.search(r"'(\w+)' \|\| '(\w+)'", WORKFLOW).groups()
    conftest = PAGE_FILES["tests/conftest.py"]
    assert sorted(named) == sorted(re.findall(r'register_profile\("(\w+)"', conftest))


def test_the_workflow_of_the_page_is_one():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(WORKFLOW)["jobs"]["frozen-rows"]
    assert job["runs-on"]
    assert all("run" in step or "uses" in step for step in job["steps"])


def test_frozen_rows_need_no_extra_and_what_draws_names_it(monkeypatch):
    for module in [name for name in sys.modules if name.startswith("maskedgrad.testing")]:
        monkeypatch.delitem(sys.modules, module)
    # The package holds the module too.
    monkeypatch.setattr(maskedgrad, "testing", None)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    testing = importlib.import_module("maskedgrad.testing")
    table = keras.Variable(VALUES)
    with testing.frozen_rows_unchanged(table, rows=[1]):
        testing.assert_same_bits(table, VALUES, "the table")
    for name in ["gradients", "check_model"]:
        with pytest.raises(ImportError, match=r'pip install "maskedgrad\[testing\]"'):
            getattr(testing, name)
    assert not hasattr(testing, "sorcery")


def test_all_that_is_exported_is_there():
    assert all(hasattr(maskedgrad.testing, name) for name in maskedgrad.testing.__all__)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "maskedgrad.testing.strategies")
    monkeypatch.setitem(sys.modules, "hypothesis", None)  # Python's way to say that there is none
    with pytest.raises(ImportError, match=r'pip install "maskedgrad\[testing\]"'):
        importlib.import_module("maskedgrad.testing.strategies")
