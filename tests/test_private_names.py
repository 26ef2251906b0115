"""Every name of Keras or TensorFlow that is not public, and that the package relies upon.

Such a name may go in any release, or come to mean something else. `NAMES`
lists each one, with why nothing public serves. For each there is a test that
fails when that happens, and others read the source and fail for a private name
that `NAMES` does not list: use a public one, or add a row and a test for it.
"""

import ast
import builtins
import functools
import importlib
import inspect
import itertools
import pkgutil
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import maskedgrad
from maskedgrad import MaskedOptimizer
from maskedgrad.masking import inner, tracing
from tests.devices import mirrored_strategy
from tests.features import needs

PACKAGE = Path(maskedgrad.__file__).parent


class Name(NamedTuple):
    """A name, the one file that uses it, and why nothing public serves."""

    name: str
    file: str
    why: str


NAMES = [
    Name(
        "__internal__", "masking/masking.py", "tables are written once for all replicas of a step"
    ),
    Name("_distribution_strategy", "masking/inner.py", "a trial of an optimizer needs one device"),
    Name("_flatten_layers", "vectors/layers.py", "the layers inside of a layer that is no model"),
    Name("_get_control_flow_context", "masking/tracing.py", "whether XLA is to compile a graph"),
    Name("_inbound_nodes", "vectors/layers.py", "what an operation is called with, constants too"),
    Name("_initial_epoch", "callbacks/backup.py", "a callback says which epoch `fit` starts from"),
    Name(
        "_maybe_symbolic_build",
        "distribute/steps.py",
        "what `fit` builds a model with stops where workers are several",
    ),
    Name(
        "_model_variables_moving_average",
        "masking/inner.py",
        "averages start in the first step only, and rows may join later",
    ),
    Name("_optimizer_map", "masking/inner.py", "a function that leads to optimizers to be copied"),
    Name("_self_", "masking/variables.py", "what TensorFlow notes on a variable, not its user"),
    Name("_trainable_variables", "masking/inner.py", "which variable an average is of"),
    Name("_unique_id", "masking/variables.py", "by what an optimizer knows its variables"),
    Name(
        "_value", "masking/variables.py", "a Keras variable that is to hold another of TensorFlow"
    ),
    # Without an underscore, and without a word in the documentation:
    Name(
        "handle", "masking/variables.py", "a replica's own part of a table, which is read by rows"
    ),
    Name(
        "is_initialized",
        "masking/optimizer.py",
        "a first trace makes variables that hold nothing yet",
    ),
    Name("one_step_on_data", "masking/tracing.py", "whether it is Keras that traces a step"),
    Name("sparse_read", "masking/variables.py", "`tf.gather` reads rows by it, of what has it"),
]
GUARDS: dict[str, Callable] = {}


def guards(*names: str) -> Callable[[Callable], Callable]:
    """Marks the test that fails when one of `names` goes or means something else."""

    def enter(test: Callable) -> Callable:
        GUARDS.update(dict.fromkeys(names, test))
        return test

    return enter


def of(owner: Any, name: str) -> Any:
    """`owner.name`, or a failure that says what it was for."""
    if not hasattr(owner, name):
        (row,) = (row for row in NAMES if row.name == name)
        pytest.fail(f"{owner!r} has no `{name}`, which maskedgrad/{row.file} uses: {row.why}.")
    return getattr(owner, name)


def variable(name: str = "table", value: float = 1.0) -> keras.Variable:
    return keras.Variable(np.full((3, 2), value, "float32"), name=name)


def small_model(model_class: type = keras.Model) -> keras.Model:
    inputs = keras.Input((4,))
    model = model_class(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", loss="mse")
    return model


BATCH = np.ones((2, 4), "float32"), np.ones((2, 1), "float32")


# ---- what each name does ----


@guards("__internal__")
def test_a_merge_call_is_made_once_for_all_replicas_and_outside_of_them():
    interim = of(tf, "__internal__").distribute.interim
    strategy, seen = mirrored_strategy(), []

    def look(strategy):
        seen.append(tf.distribute.in_cross_replica_context())

    strategy.run(lambda: interim.maybe_merge_call(look, strategy))
    assert seen == [True]
    one_device = tf.distribute.get_strategy()
    interim.maybe_merge_call(seen.append, one_device)
    assert seen[1:] == [one_device]


@guards("_distribution_strategy")
def test_a_copy_of_an_optimizer_is_of_one_device():
    strategy = mirrored_strategy()
    with strategy.scope():
        optimizer = keras.optimizers.SGD(1.0)
    assert of(optimizer, "_distribution_strategy") is strategy
    trained = variable("trained")
    inner.unbuilt_copy(optimizer).apply([tf.ones((3, 2))], [trained])
    assert not trained.numpy().any()


@guards("_get_control_flow_context")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_tells_whether_it_is_for_xla(jit_compile):
    of(tf.Graph(), "_get_control_flow_context")
    seen = []

    def look():
        seen.append(tracing.is_compiled_by_xla())
        return tf.constant(0)

    step = tf.function(lambda: tf.cond(tf.constant(True), tf.function(look), look))
    tf.function(step, jit_compile=jit_compile)()
    assert set(seen) == {jit_compile}
    assert not tracing.is_compiled_by_xla()


@needs("optimizers.MultiOptimizer")
@guards("_optimizer_map")
def test_a_copy_of_several_optimizers_does_not_lead_to_the_originals():
    original = keras.optimizers.SGD(1.0)
    several = keras.optimizers.MultiOptimizer(lambda variable: original)
    of(several, "_optimizer_map")
    trained = variable("trained")
    inner.unbuilt_copy(several).apply([tf.ones((3, 2))], [trained])
    assert not trained.numpy().any()
    assert not original.built


@guards("_self_")
def test_tensorflow_marks_what_it_notes_on_a_variable():
    noted = variable()
    before = {*vars(noted)}
    assert tf.train.Checkpoint(noted=noted).noted is noted
    names = {*vars(noted)} - before
    assert names
    assert all(name.startswith("_self_") for name in names)


@guards("_unique_id")
def test_an_optimizer_knows_a_variable_by_its_id():
    first, second = variable("first"), variable("second")
    optimizer = keras.optimizers.SGD(1.0, momentum=0.5)
    optimizer.build([first])
    second.value._unique_id = of(first.value, "_unique_id")
    optimizer.apply([tf.ones((3, 2))], [second])
    assert not second.numpy().any()


@guards("_value")
def test_a_variable_is_what_it_holds():
    changed, kept = variable(), of(variable(value=2.0), "_value")
    changed._value = kept
    assert changed.value is kept
    changed.assign_add(np.ones((3, 2), "float32"))
    assert (kept.numpy() == 3.0).all()
    assert (changed.numpy() == 3.0).all()


@guards("_flatten_layers")
def test_the_layers_inside_of_a_layer_are_listed_an_outer_one_before_its_own():
    inner = keras.layers.Dense(1)
    outer = keras.layers.TimeDistributed(inner)
    model = keras.Sequential([keras.Input((3, 2)), outer])
    layers = of(model, "_flatten_layers")()
    assert layers[0] is model
    assert layers.index(outer) < layers.index(inner)
    assert [layer for layer in layers if layer is inner] == [inner]


@guards("_inbound_nodes")
def test_an_operation_tells_what_it_is_called_with():
    inputs, constant = keras.Input((4,)), np.ones((4, 3), "float32")
    model = keras.Model(inputs, keras.ops.matmul(inputs, constant))
    (node,) = of(model.operations[-1], "_inbound_nodes")
    given, captured = node.arguments.args
    assert keras.utils.is_keras_tensor(given)
    assert tuple(captured.shape) == (4, 3)
    assert not node.arguments.kwargs


@guards("_initial_epoch")
def test_a_callback_says_which_epoch_training_starts_from():
    class Resumes(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            of(self.model, "_initial_epoch")
            self.model._initial_epoch = 2

    history = small_model().fit(*BATCH, epochs=4, verbose=0, callbacks=[Resumes()])
    assert history.epoch == [2, 3]


@guards("_maybe_symbolic_build")
def test_fit_builds_a_model_by_a_batch_or_by_an_iterator_of_batches():
    class Looks(keras.Sequential):
        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            assert data_batch is None
            self.batch = next(next(batches for *_, batches in iterator))
            assert not self.built
            super()._maybe_symbolic_build(data_batch=self.batch)
            self.was_built = self.built

    of(keras.Model, "_maybe_symbolic_build")
    model = Looks([keras.layers.Dense(1)])
    model.compile("sgd", loss="mse")
    model.fit(*BATCH, verbose=0)
    for ours, theirs in zip(model.batch, BATCH, strict=True):
        assert (ours.numpy() == theirs).all()


@guards("_model_variables_moving_average", "_trainable_variables")
def test_an_optimizer_lists_its_averages_by_what_they_are_of():
    first, second = variable("first"), variable("second")
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    optimizer.build([first, second])
    averages = of(optimizer, "_model_variables_moving_average")
    of_what = of(optimizer, "_trainable_variables")
    assert [id(each) for each in of_what] == [id(first), id(second)]
    for value, average in enumerate(averages, 5):
        average.assign(np.full((3, 2), value, "float32"))
    optimizer.finalize_variable_values([first, second])
    assert (first.numpy() == 5).all()
    assert (second.numpy() == 6).all()


def test_only_averages_that_an_optimizer_keeps_are_found():
    """In a new Keras a variable that its gradient overwrites has none."""
    scale, table = variable("scale"), variable("table")
    scale.overwrite_with_gradient = True
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    optimizer.build([scale, table])
    kept = [each is not None for each in of(optimizer, "_model_variables_moving_average")]
    found = {id(each) for each, _ in inner.moving_averages(optimizer)}
    assert [id(scale) in found, id(table) in found] == kept


@guards("handle")
def test_each_replica_of_a_table_has_a_handle_of_its_own():
    strategy, read = mirrored_strategy(), []
    with strategy.scope():
        table = tf.Variable(np.arange(6.0).reshape(3, 2))

    def look(part):
        read.append(
            tf.raw_ops.ResourceGather(
                resource=of(part, "handle"), indices=[2], dtype=part.dtype
            ).numpy()
        )

    strategy.extended.update(table, look, group=False)
    assert [rows.tolist() for rows in read] == [[[4.0, 5.0]]] * 2


@guards("is_initialized")
def test_a_variable_that_a_first_trace_makes_says_that_it_holds_nothing():
    made, seen = [], []

    @tf.function
    def step():
        if not made:
            made.append(tf.Variable(1.0))
        tracing.outside_of_graphs(lambda: seen.append(bool(of(made[0], "is_initialized")())))
        return made[0].read_value()

    assert step() == 1
    assert seen == [False, True]


@guards("one_step_on_data")
def test_keras_names_the_function_in_which_it_traces_a_step():
    class Looks(keras.Model):
        def train_step(self, data):
            self.graph = tf.compat.v1.get_default_graph().name
            return super().train_step(data)

    model = small_model(Looks)
    model.fit(*BATCH, verbose=0)
    assert model.graph == tracing.KERAS_TRACES == "one_step_on_data", (
        "`trace_again` of maskedgrad/masking/tracing.py does nothing if Keras calls it otherwise"
    )


@guards("sparse_read")
def test_tf_gather_asks_what_it_reads_for_a_sparse_read():
    """`read_sparsely` leans on that, and training would be slow, not wrong, without it."""
    layer = keras.layers.Embedding(6, 3)
    layer.build()
    of(layer.embeddings.value, "sparse_read")
    MaskedOptimizer("sgd", {layer: [1, 4]}).build([layer.embeddings])
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec([2], "int32"))
    reads = [op.type for op in graph.graph.get_operations()]
    assert "ResourceGather" in reads
    assert "GatherV2" not in reads


# ---- the list is whole ----

# Run as programs, the second by a Python that has PyTorch and need not have maskedgrad.
PROGRAMS = {"maskedgrad.__main__", "maskedgrad.cli.bench_peers"}
# What any class, function, module or named tuple has, for everyone to use.
OF_PYTHON = {
    *dir(type),
    *dir(types.ModuleType),
    *dir(types.FunctionType),
    *dir(builtins),
    *("__contains__", "__file__", "__getitem__", "__iter__", "__len__", "__main__", "__path__"),
    "__signature__",
    *("_asdict", "_fields", "_make", "_replace"),
}
HIDDEN_MODULES = "keras.src", "tensorflow.python"


def is_private(name: str) -> bool:
    is_underscored = name.startswith("_") and name.isidentifier() and name.strip("_") != ""
    return (is_underscored and name not in OF_PYTHON) or name.startswith(HIDDEN_MODULES)


def defined_in(tree: ast.AST) -> set[str]:
    """The names of functions, classes, variables, and attributes of `self`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case (
                ast.FunctionDef(name=str(name))
                | ast.ClassDef(name=str(name))
                | ast.alias(asname=str(name))
                | ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store())
            ):
                names.add(name)
    return names


def used_in(tree: ast.AST) -> set[str]:
    """The names of attributes and modules, and strings, which `getattr` takes."""
    pieces = {
        id(piece)
        for text in ast.walk(tree)
        if isinstance(text, ast.JoinedStr)
        for piece in text.values
    }
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Constant(value=str(name)) if id(node) not in pieces:
                names.add(name)
            case ast.Import(names=aliases):
                names.update(alias.name for alias in aliases)
            case ast.ImportFrom(module=str(module), names=aliases):
                names.update(f"{module}.{alias.name}" for alias in aliases)
                names.update(alias.name for alias in aliases if not module.startswith("maskedgrad"))
    return names


def overridden() -> set[tuple[str, str]]:
    """The file and the name, for what a class of the package has of a class of another library."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.walk_packages(maskedgrad.__path__, "maskedgrad.")
        if module.name not in PROGRAMS
    ]
    classes = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    # Of a mixin, only what is derived from it tells what it overrides.
    return {
        (Path(inspect.getfile(ours)).relative_to(PACKAGE).as_posix(), name)
        for cls in classes
        for ours in filter(is_ours, cls.__mro__)
        for theirs in itertools.filterfalse(is_ours, cls.__mro__)
        for name in (vars(ours).keys() | kept_by(ours)) & {*dir(theirs), *kept_by(theirs)}
    }


@functools.cache
def kept_by(cls: type) -> frozenset[str]:
    """The names of the attributes that a class sets on `self`."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # written in C
        return frozenset()
    return frozenset(
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "maskedgrad"


def private_names() -> set[tuple[str, str]]:
    """The file and the name, for each private name of another library that the package uses.

    A name that the package defines somewhere passes for its own, unless a
    class of the package has it from elsewhere.
    """
    trees = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    own = {name for tree in trees.values() for name in defined_in(tree)}
    theirs = {(file, name) for file, name in overridden() if name in own}
    own -= {name for _, name in theirs}
    used = {(file, name) for file, tree in trees.items() for name in used_in(tree) - own}
    return {(file, name) for file, name in used | theirs if is_private(name)}


def test_every_private_name_has_a_row_and_stands_in_one_file():
    listed = {(row.file, row.name) for row in NAMES if is_private(row.name)}
    used = private_names()
    assert sorted(used - listed) == [], "use a public name, or add a row and a test that guards it"
    assert sorted(listed - used) == [], "NAMES lists what is not used any more"


def test_every_row_without_an_underscore_is_still_used():
    for row in NAMES:
        assert row.name in (PACKAGE / row.file).read_text(encoding="utf-8"), row


def test_every_row_has_a_test_that_guards_it():
    assert GUARDS.keys() == {row.name for row in NAMES}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("model._secret", {"_secret"}),
        ("getattr(model, '_secret')", {"_secret"}),
        ("super()._secret()", {"_secret"}),
        ("tf.__internal__.eager_context()", {"__internal__"}),
        ("import keras.src.ops", {"keras.src.ops"}),
        ("from tensorflow.python import ops", {"tensorflow.python.ops"}),
        ("from tensorflow import _api", {"_api"}),
        ("f'{name}_moved'", set()),
        ("pair._replace(first=1).__class__", set()),
    ],
)
def test_the_scan_finds_a_private_name_wherever_it_stands(source, found):
    assert {name for name in used_in(ast.parse(source)) if is_private(name)} == found
