"""No operation of a step is as large as the table: what the graphs say, and what memory says."""

import collections
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.python.framework import op_callbacks

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep
from maskedgrad.masking.tables import read_rows, write_rows
from tests.features import feature, needs, some_optimizer_classes

ReversibleEmbedding = feature("layers.ReversibleEmbedding")
if ReversibleEmbedding is None:  # keras_hub had it before Keras did
    from keras_hub.layers import ReversibleEmbedding

NUM_ROWS, WIDTH = 10_007, 3  # a prime that is far above every other size here
BATCH, LENGTH = 4, 5
IDS = [3, 5, 10_006]
TOKENS = np.array([[1, 3, 3, 5, 0]] * BATCH, "int32")
LABELS = np.ones((BATCH, 1), "float32")


def pooled(embedded):
    return keras.layers.GlobalAveragePooling1D()(embedded)


def recurrent(embedded):
    return keras.layers.LSTM(6)(embedded)


def attentive(embedded):
    return pooled(keras.layers.MultiHeadAttention(2, 2)(embedded, embedded))


def make_model(model_class, read=pooled, **input_options):
    inputs = keras.Input((LENGTH,), batch_size=BATCH, dtype="int32", **input_options)
    words = keras.layers.Embedding(NUM_ROWS, WIDTH, mask_zero=read is recurrent, name="words")
    return model_class(inputs, keras.layers.Dense(1)(read(words(inputs)))), words


def compiled(model_class, optimizer, read=pooled, **compile_options):
    model, words = make_model(model_class, read)
    model.compile(MaskedOptimizer(optimizer, {words: IDS}), loss="mse", **compile_options)
    return model


def compiled_lazily(optimizer, num_trainable, **options):
    model, words = make_model(MaskedModel)
    ids = np.random.default_rng(0).choice(NUM_ROWS, num_trainable, replace=False)
    model.compile(MaskedOptimizer(optimizer, {words: ids}, **options), loss="mse")
    return model


def large_operations(step, batch, size=NUM_ROWS) -> list[str]:
    """The operations that compute `size` numbers, as many as the table has rows, or more.

    TensorFlow runs what the outputs and the side effects of a function need,
    so what neither needs is not looked at. Nor is a read of which nobody takes
    the value: Keras asks a table for its shape by such a read, and TensorFlow
    drops it when it optimizes the graph, as the test of memory below confirms.
    The arguments of a function are not operations: the one integer a row that
    says where a row stands is one.
    """
    concrete = tf.function(step, autograph=False).get_concrete_function(batch)
    # A graph that calls the step has it, and all that it calls, in its library.
    caller = tf.function(concrete, autograph=False).get_concrete_function(batch)
    library = caller.graph.as_graph_def(add_shapes=True).library
    assert library.function
    return [
        f"{node.op} {node.name} {shape}"
        for function in library.function
        for node in needed_nodes(function)
        for shape in output_shapes(node)
        if np.prod(shape) >= size
    ]


def needed_nodes(function: function_pb2.FunctionDef) -> Iterator:
    nodes = {node.name: node for node in function.node_def}
    references = [*function.ret.values(), *(f"^{name}" for name in function.control_ret.values())]
    seen = set()
    while references:
        reference = references.pop()
        name = reference.lstrip("^").split(":")[0]
        is_order_only = reference.startswith("^")
        if name in seen or name not in nodes:
            continue
        if is_order_only and nodes[name].op == "ReadVariableOp":
            continue
        seen.add(name)
        yield nodes[name]
        references += nodes[name].input


def output_shapes(node) -> Iterator[list[int]]:
    for shape in node.attr["_output_shapes"].list.shape:
        if not shape.unknown_rank:
            yield [max(dimension.size, 1) for dimension in shape.dim]


def assert_small(model, batch=None):
    batch = (tf.constant(TOKENS), tf.constant(LABELS)) if batch is None else batch
    for step, data in [
        (model.test_step, batch),
        (model.predict_step, batch[:1]),
        (model.train_step, batch),
    ]:
        assert large_operations(step, data) == [], step.__name__


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
@pytest.mark.parametrize("optimizer_class", some_optimizer_classes())
def test_a_step_is_smaller_than_the_table_for_any_optimizer(optimizer_class, model_class):
    assert_small(compiled(model_class, optimizer_class()))


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
@pytest.mark.parametrize("read", [recurrent, attentive])
def test_a_step_is_smaller_than_the_table_whatever_reads_it(read, model_class):
    assert_small(compiled(model_class, "adam", read))


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1},
        {"use_ema": True, "ema_overwrite_frequency": 2},
        {"gradient_accumulation_steps": 2},
        {"global_clipnorm": 1.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_step_is_smaller_than_the_table_with_any_option(options, model_class):
    assert_small(compiled(model_class, keras.optimizers.Adam(**options)))


@pytest.mark.parametrize("first", ["test_step", "train_step"])
def test_a_step_is_smaller_than_the_table_that_is_named_by_its_path(first):
    model, words = make_model(MaskedModel)
    model.compile(MaskedOptimizer("adam", {words.embeddings.path: IDS}), loss="mse")
    batch = tf.constant(TOKENS), tf.constant(LABELS)
    assert large_operations(getattr(model, first), batch) == []
    assert_small(model)


def test_a_step_of_a_model_built_once_compiled_is_smaller_than_the_table():
    class MaskedSequential(MaskedTrainStep, keras.Sequential):
        pass

    words, pool = keras.layers.Embedding(NUM_ROWS, WIDTH), keras.layers.GlobalAveragePooling1D()
    model = MaskedSequential([words, pool, keras.layers.Dense(1)])
    model.compile("adam", loss="mse", trainable_rows={words: IDS})
    model(TOKENS)
    batch = tf.constant(TOKENS), tf.constant(LABELS)
    assert large_operations(model.train_step, batch) == []


def test_a_function_that_may_make_no_variable_trains_all_the_same():
    model, words = make_model(keras.Model)
    model.compile(MaskedOptimizer("adam", {words.embeddings.path: IDS}), loss="mse")
    before = words.get_weights()[0]
    step = tf.function(lambda batch, train: model.train_step(batch) if train else {})
    batch = tf.constant(TOKENS), tf.constant(LABELS)
    step(batch, False)
    step(batch, True)
    assert set(np.flatnonzero((words.get_weights()[0] != before).any(axis=1))) <= set(IDS)
    assert (words.get_weights()[0] != before).any()


def test_a_step_is_smaller_than_the_table_with_loss_scaling_around_the_masks():
    keras.config.set_dtype_policy("mixed_float16")
    model, words = make_model(MaskedModel)
    masked = MaskedOptimizer("adam", {words: IDS})
    model.compile(keras.optimizers.LossScaleOptimizer(masked), loss="mse")
    assert_small(model)


class Means(keras.layers.Layer):
    """The mean of each ragged text, by the given way to look up."""

    def __init__(self, look_up):
        super().__init__()
        self.words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
        self.look_up = look_up

    def build(self, input_shape):
        self.words.build()

    def call(self, ids):
        return tf.reduce_mean(self.look_up(self.words, ids), axis=1)


@needs("Input", "ragged")
@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
@pytest.mark.parametrize(
    "look_up",
    [tf.ragged.map_flat_values, lambda words, ids: words(ids)],
    ids=["flat values", "directly"],
)
def test_a_step_is_smaller_than_the_table_with_ragged_texts(look_up, model_class):
    inputs = keras.Input((None,), dtype="int32", ragged=True)
    means = Means(look_up)
    model = model_class(inputs, keras.layers.Dense(1)(means(inputs)))
    model.compile(MaskedOptimizer("adam", {means.words: IDS}), loss="mse")
    batch = tf.ragged.constant([[1, 3], [5], [3, 3], [0]]), tf.constant(LABELS)
    assert_small(model, batch)


def test_ragged_ids_look_up_what_their_flat_values_look_up():
    words = keras.layers.Embedding(7, WIDTH)
    words.build()
    ids = tf.ragged.constant([[1, 3], [], [6]])
    before = words(ids).to_list()
    MaskedOptimizer("adam", {words: [3]}).build(words.trainable_variables)
    assert words(ids).to_list() == before


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
def test_a_step_that_builds_the_model_is_smaller_than_the_table(model_class):
    class Pooled(model_class):
        def __init__(self):
            super().__init__()
            self.words = keras.layers.Embedding(NUM_ROWS, WIDTH, name="words")
            self.score = keras.layers.Dense(1)

        def call(self, tokens):
            return self.score(keras.ops.mean(self.words(tokens), axis=1))

    model = Pooled()
    model.compile(MaskedOptimizer("adam", {model.words: IDS}), loss="mse")
    model.train_on_batch(TOKENS, LABELS)
    assert_small(model)


def largest_operand(model) -> int:
    """The most numbers that an operation of an eager step is given.

    How many rows a step works on is open in a graph, so that its operations do not tell. What
    nobody is given is read for its shape alone.
    """
    sizes = []

    def look(op_type, inputs, *others):
        operands = [] if op_type in {b"Identity", b"Shape"} else inputs
        sizes.extend(int(np.prod(each.shape)) for each in operands if each.dtype != tf.resource)

    model.train_on_batch(TOKENS, LABELS)
    op_callbacks.add_op_callback(look)
    try:
        model.train_step((tf.constant(TOKENS), tf.constant(LABELS)))
    finally:
        op_callbacks.remove_op_callback(look)
    return max(sizes)


@pytest.mark.parametrize("num_trainable", [5_000, NUM_ROWS])
def test_a_lazy_step_is_smaller_than_the_rows_that_train(num_trainable):
    assert largest_operand(compiled_lazily("adam", num_trainable, lazy=True)) < 500


@pytest.mark.parametrize("name", ["sgd", "adagrad"])
def test_a_step_is_as_small_where_idle_rows_keep_their_bits_anyway(name):
    assert largest_operand(compiled_lazily(name, 5_000)) < 500


def test_a_step_that_moves_all_rows_that_train_is_seen():
    assert largest_operand(compiled_lazily("adam", 5_000)) >= 5_000 * WIDTH


def test_a_table_that_trains_whole_is_seen():
    model, _ = make_model(keras.Model)
    model.compile("adam", loss="mse")
    assert large_operations(model.train_step, (tf.constant(TOKENS), tf.constant(LABELS)))


class Tied(keras.layers.Layer):
    """Scores every word by its row of the table of `words`."""

    def __init__(self, words):
        super().__init__()
        self.table = lambda: words.embeddings

    def call(self, hidden):
        return keras.ops.matmul(hidden, keras.ops.transpose(self.table()))


def tied_model(model_class, by_layer):
    """A model whose table is its output layer too, and the layer that owns the table."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    if by_layer:
        words = keras.layers.Embedding(NUM_ROWS, 8, name="words")
    else:
        words = ReversibleEmbedding(NUM_ROWS, 8, name="words")
    output = Tied(words) if by_layer else functools.partial(words, reverse=True)
    return model_class(inputs, output(keras.layers.Dense(8)(words(inputs)))), words


def operations_on_the_table(model, size, batch):
    """How many operations of each type a step has that compute as many numbers as the table."""
    operations = large_operations(model.train_step, batch, size)
    return collections.Counter(operation.split()[0] for operation in operations)


def assert_no_gradient_is_made_of(table, model, frozen, batch):
    """A step does nothing with the table that the step of a frozen table does not, but read it."""
    model.train_on_batch(*batch)
    frozen.train_on_batch(*batch)
    tensors = keras.tree.map_structure(tf.constant, tuple(batch))
    size = int(np.prod(table.shape))
    # `fit` does not know how large a batch is, since the last of an epoch may be smaller.
    for given in (tensors, keras.tree.map_structure(of_any_size, tensors)):
        computed, expected = (operations_on_the_table(m, size, given) for m in (model, frozen))
        assert expected
        assert set(computed - expected) <= {"ReadVariableOp", "Identity"}


def of_any_size(batch):
    return tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)


NEXT = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
@pytest.mark.parametrize("by_layer", [True, False])
def test_a_tied_output_makes_no_gradient_of_the_table(by_layer, model_class):
    (model, words), (frozen, its_words) = (
        tied_model(each, by_layer) for each in (model_class, keras.Model)
    )
    its_words.trainable = False
    model.compile(MaskedOptimizer("adam", {words: IDS}), loss=NEXT)
    frozen.compile("adam", loss=NEXT)
    batch = TOKENS[:1], np.roll(TOKENS[:1], 1, axis=1)
    assert_no_gradient_is_made_of(words.embeddings, model, frozen, batch)


# The output of these shares the memory of their input.
SHARING = {"Identity", "Reshape", "ExpandDims", "Squeeze"}


def those_that_compute_with(tensor) -> Iterator[tf.Operation]:
    for op in tensor.consumers():
        if op.type in SHARING:
            yield from those_that_compute_with(op.outputs[0])
        else:
            yield op


def those_before(op) -> set[str]:
    """The names of the operations that must have ended before one begins."""
    found, left = set(), [op]
    while left:
        op = left.pop()
        before = [*op.control_inputs, *(tensor.op for tensor in op.inputs)]
        left += [each for each in before if each.name not in found]
        found |= {each.name for each in before}
    return found


def test_no_read_of_a_whole_table_lasts_until_its_rows_are_written():
    """Or TensorFlow copies the table for the write, if that comes first by chance.

    The gradient of the table needs no read of it here, but that of the other kernel does.
    """
    table, kernel = [
        keras.Variable(np.ones((size, 8), "float32"), name=name)
        for size, name in ((NUM_ROWS, "table"), (4, "kernel"))
    ]
    optimizer = MaskedOptimizer("adam", {"table": IDS})
    batch = tf.ones([2, 4]), tf.constant([IDS[0], 1])

    def step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = NEXT(labels, tf.matmul(tf.matmul(inputs, kernel), table, transpose_b=True))
        gradients = tape.gradient(loss, [table.value, kernel.value])
        optimizer.apply(gradients, [table, kernel])

    step(*batch)
    graph = tf.function(step, autograph=False).get_concrete_function(*batch).graph
    operations = graph.get_operations()
    (written,) = [op for op in operations if op.type == "ResourceScatterUpdate"]
    handle = written.inputs[0]
    reads = [op for op in handle.consumers() if op.type == "ReadVariableOp"]
    lasting = {op.name for read in reads for op in those_that_compute_with(read.outputs[0])}
    assert len(lasting) > 1
    assert lasting <= those_before(written)


def memory_of(table) -> tuple[int, bool]:
    """Where a table lies in memory, and whether dense reads share that memory."""
    first, second = table.value.read_value(), table.value.read_value()
    at, also_at = (np.asarray(memoryview(each)).ctypes.data for each in (first, second))
    return at, at == also_at


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"steps_per_execution": 2}, marks=pytest.mark.thorough),
        pytest.param({"run_eagerly": True}, marks=pytest.mark.thorough),
        pytest.param({"jit_compile": True}, marks=pytest.mark.thorough),
    ],
    ids=lambda options: next(iter(options), "plain"),
)
def test_a_tied_table_is_neither_moved_nor_copied(options):
    model, words = tied_model(MaskedModel, by_layer=False)
    model.compile(MaskedOptimizer("adam", {words: IDS}), loss=NEXT, **options)
    before = memory_of(words.embeddings)
    for _ in range(2):
        model.fit(TOKENS[:1], np.roll(TOKENS[:1], 1, axis=1), verbose=0)
        assert memory_of(words.embeddings) == before
        assert before[1]


@pytest.mark.parametrize(
    "use",
    [read_rows, lambda table, ids: write_rows(table, ids, np.ones((len(IDS), 8)))],
    ids=["read", "written"],
)
def test_a_table_whose_rows_are_read_or_written_is_neither_moved_nor_copied(use):
    table = keras.layers.Embedding(NUM_ROWS, 8)
    table.build()
    before = memory_of(table.embeddings)
    use(table.embeddings, np.array(IDS))
    assert memory_of(table.embeddings) == before
    assert before[1]


def test_a_tied_table_trains_on_replicas():
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model, words = tied_model(MaskedModel, by_layer=False)
        model.compile(MaskedOptimizer("adam", {words: IDS}), loss=NEXT, jit_compile=False)
    before = words.embeddings.numpy()
    tokens = TOKENS[:2]
    model.fit(tokens, np.roll(tokens, 1, axis=1), verbose=0)
    moved = (words.embeddings.numpy() != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == IDS


PEAK_SCRIPT = """
import sys
from pathlib import Path
import keras, numpy as np
from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep

NUM_ROWS, WIDTH = 500_000, 128
TABLE = NUM_ROWS * WIDTH * 4
model_class, named, options = eval(sys.argv[1])

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

inputs = keras.Input((10,), dtype="int32")
words = keras.layers.Embedding(NUM_ROWS, WIDTH, embeddings_initializer="zeros", name="words")
outputs = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(words(inputs)))
model = model_class(inputs, outputs)
target = words if named == "layer" else words.embeddings.path
model.compile(MaskedOptimizer("adam", {target: [3, 5]}), loss="mse", **options)
tokens, labels = np.full((64, 10), 3, "int32"), np.ones((64, 1), "float32")
if named == "layer":
    model.evaluate(tokens, labels, batch_size=2, verbose=0)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model.fit(tokens, labels, batch_size=2, verbose=0)
model.evaluate(tokens, labels, batch_size=2, verbose=0)
model.predict(tokens, batch_size=2, verbose=0)
print((status("VmHWM") - before) / TABLE)
"""


@pytest.mark.processes
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="needs a peak of memory that can be reset"
)
@pytest.mark.parametrize(
    "case",
    [
        "(keras.Model, 'layer', {})",
        "(keras.Model, 'path', {})",
        "(MaskedModel, 'layer', {})",
        "(MaskedModel, 'layer', {'jit_compile': True})",
        "(keras.Model, 'layer', {'steps_per_execution': 8})",
    ],
)
def test_fit_evaluate_and_predict_never_copy_the_table(case):
    finished = subprocess.run(
        [sys.executable, "-c", PEAK_SCRIPT, case], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert float(finished.stdout) < 0.9
