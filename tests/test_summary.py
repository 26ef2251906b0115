"""The summary counts what trains, and what the optimizer holds for it."""

import io
import math
import re
import sys

import keras
import numpy as np
import pytest

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, MaskedTrainStep
from maskedgrad.reports.counting import count_parameters, readable_bytes, summary
from maskedgrad.testing import bits
from tests.features import some_optimizer_classes

X = np.arange(12).reshape(4, 3)


def functional(base):
    words, model = small_model(base)
    return model, {words: [1, 5]}


def small_model(base, num_rows=20):
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(num_rows, 4, name="words")
    frozen = keras.layers.Dense(5, trainable=False)
    outputs = keras.layers.Dense(2, name="head")(frozen(keras.layers.Flatten()(words(inputs))))
    return words, base(inputs, outputs)


def several_tables(base):
    inputs = keras.Input((3,), dtype="int32")
    words, tags = keras.layers.Embedding(20, 4), keras.layers.Embedding(12, 2)
    joined = keras.layers.Concatenate()([words(inputs), tags(inputs)])
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(joined))
    return base(inputs, outputs), {words: [0], tags: slice(-3, None)}


def shared_table(base):
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(20, 4)
    both = keras.layers.Add()([words(inputs), words(inputs + 1)])
    return base(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(both))), {words: range(7)}


def nested(base):
    words, inner = small_model(keras.Model)
    inputs = keras.Input((3,), dtype="int32")
    return base(inputs, keras.layers.Dense(2)(inner(inputs))), {words: [1, 5]}


def subclassed(base):
    class Subclassed(base):
        def __init__(self):
            super().__init__()
            self.words = keras.layers.Embedding(20, 4)
            self.pool = keras.layers.GlobalAveragePooling1D()
            self.head = keras.layers.Dense(2)

        def call(self, ids):
            return self.head(self.pool(self.words(ids)))

    model = Subclassed()
    model(X)
    return model, {model.words: [1, 5]}


def sequential(base):
    classes = (MaskedTrainStep,) if base is MaskedModel else ()
    model = type("OneAfterAnother", (*classes, keras.Sequential), {})()
    words = keras.layers.Embedding(20, 4)
    for layer in (keras.Input((3,)), words, keras.layers.Flatten(), keras.layers.Dense(2)):
        model.add(layer)
    return model, {words: [1, 5]}


def along_an_axis(base):
    words, model = small_model(base)
    return model, {words: [3], AlongAxis(model.get_layer("head"), -1): [1]}


MODELS = [functional, several_tables, shared_table, nested, subclassed, sequential, along_an_axis]
BASES = [keras.Model, MaskedModel]


def inside(optimizer, rows):
    return MaskedOptimizer(keras.optimizers.LossScaleOptimizer(optimizer), rows)


def outside(optimizer, rows):
    return keras.optimizers.LossScaleOptimizer(MaskedOptimizer(optimizer, rows))


WRAPPERS = {"masked": MaskedOptimizer, "scaled inside": inside, "scaled outside": outside}


def text_of(print_text, *arguments, **options):
    texts = []
    print_text(*arguments, print_fn=texts.append, **options)
    (text,) = texts
    return text


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("make_model", MODELS)
def test_trainable_is_what_a_step_moves(make_model, base):
    model, rows = make_model(base)
    # Decay moves every number that trains and is not zero, the loss what starts at zero.
    optimizer = MaskedOptimizer(keras.optimizers.AdamW(0.1, weight_decay=0.5), rows)
    model.compile(optimizer, loss="mse", run_eagerly=True)
    before = model.get_weights()
    unbuilt = count_parameters(model)
    model.train_on_batch(X, np.ones((4, 2)))
    pairs = zip(before, model.get_weights(), strict=True)
    moved = sum(int((bits(one) != bits(other)).sum()) for one, other in pairs)
    count = count_parameters(model)
    assert unbuilt == count._replace(optimizer=None)
    assert count.trainable == (moved, 4 * moved)
    assert count.total == (sum(w.size for w in before), sum(w.nbytes for w in before))
    assert count.frozen.parameters == count.total.parameters - moved
    assert count.frozen.bytes == count.total.bytes - 4 * moved


def test_each_table_is_counted():
    model, rows = several_tables(MaskedModel)
    model.compile("sgd", loss="mse", trainable_rows=rows)
    words, tags = count_parameters(model).tables
    assert words == ("embedding/embeddings", 0, 1, 20, (4, 16))
    assert tags == ("embedding_1/embeddings", 0, 3, 12, (6, 24))


def test_a_table_that_no_longer_trains_is_frozen():
    model, rows = functional(MaskedModel)
    model.compile("sgd", loss="mse", trainable_rows=rows)
    model.optimizer.build(model.trainable_variables)
    model.get_layer("words").trainable = False
    count = count_parameters(model)
    assert count.tables == []
    assert count.trainable.parameters == model.get_layer("head").count_params()


@pytest.mark.parametrize("num_rows", [12, 500, 100_000])  # bytes, kilobytes and megabytes
def test_a_model_that_masks_nothing_has_the_numbers_and_the_text_of_keras(num_rows):
    _, model = small_model(keras.Model, num_rows)
    model.compile("adam", loss="mse")
    model.optimizer.build(model.trainable_variables)
    text = text_of(summary, model)
    assert text == text_of(model.summary)
    count = count_parameters(model)
    assert closing(text, "Trainable params") == written(count.trainable)
    assert closing(text, "Non-trainable params") == written(count.frozen)
    number = sum(math.prod(variable.shape) for variable in model.optimizer.variables)
    assert closing(text, "Optimizer params") == written((number, count.optimizer.state))
    assert count.optimizer == (count.optimizer.state, 0, count.optimizer.state)


def closing(text, label):
    return re.search(rf"^ {label}: (.*)$", text, re.MULTILINE)[1]


def written(size):
    return f"{size[0]:,} ({readable_bytes(size[1])})"


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("cls", some_optimizer_classes())
def test_unmasked_is_the_state_of_the_optimizer_that_is_built_on_whole_tables(cls, wrap):
    def optimizer():
        return cls(use_ema=True, gradient_accumulation_steps=2)

    model, rows = along_an_axis(MaskedModel)
    model.compile(wrap(optimizer(), rows), loss="mse")
    model.optimizer.build(model.trainable_variables)
    inner = model.optimizer.inner_optimizer
    is_scaled = isinstance(inner, keras.optimizers.LossScaleOptimizer)
    whole = keras.optimizers.LossScaleOptimizer(optimizer()) if is_scaled else optimizer()
    whole.build(model.trainable_variables)
    memory = count_parameters(model).optimizer
    assert memory.unmasked == num_bytes(whole.variables)
    assert memory.state == num_bytes(inner.variables)


def num_bytes(variables):
    return sum(variable.numpy().nbytes for variable in variables)


def test_masking_holds_the_trainable_rows_and_their_ids():
    model, rows = functional(MaskedModel)
    model.compile("sgd", loss="mse", trainable_rows=rows)
    model.optimizer.build(model.trainable_variables)
    # Two rows of four float32 numbers, and two int64 ids.
    assert count_parameters(model).optimizer.masking == 2 * 4 * 4 + 2 * 8


OPTIONS = [{}, {"expand_nested": True}, {"show_trainable": True}, {"line_length": 70}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_follows_the_table_of_keras_is_ours_alone(options):
    model, rows = nested(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    model.optimizer.build(model.trainable_variables)
    of_keras, ours = text_of(model_summary(model), **options), text_of(summary, model, **options)
    lines = (
        " Total parameters: 163 (652.00 B)\n"
        " Trainable parameters: 26 (104.00 B)\n"
        "   words/embeddings: 2 of 20 rows, 8 parameters (32.00 B)\n"
        " Frozen parameters: 137 (548.00 B)\n"
        " Optimizer memory: 220.00 B of state and 48.00 B for masking; "
        "796.00 B of state without maskedgrad\n"
    )
    assert ours.endswith(lines)
    above = ours.removesuffix(lines)
    assert of_keras.startswith(above)
    assert re.fullmatch(r"\W+", above.splitlines()[-1])  # the lower border of the table


def model_summary(model):
    return lambda **options: keras.Model.summary(model, **options)


def test_it_prints_what_it_hands_to_print_fn(capsys):
    model, rows = functional(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    summary(model)
    assert capsys.readouterr().out == text_of(summary, model)


class Terminal(io.StringIO):
    """A terminal that keeps what is written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


def printed_to_a_terminal(print_text, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(sys, "stdout", Terminal())
        print_text()
        return sys.stdout.getvalue()


def test_a_terminal_shows_the_table_in_the_colours_of_keras(monkeypatch):
    model, rows = functional(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    of_keras = printed_to_a_terminal(model_summary(model), monkeypatch)
    ours = printed_to_a_terminal(model.summary, monkeypatch)
    table, closing_of_keras = of_keras.split("\x1b[1m Total params: ")
    assert "\x1b[38;5;34m" in table
    assert closing_of_keras.count("params") == 2
    (closing,) = re.findall(r"^ Total parameters(?s:.*)", ours, re.MULTILINE)
    assert ours == table + closing
    assert ours == printed_to_a_terminal(lambda: summary(model), monkeypatch)


NOTEBOOK = """
import keras, maskedgrad
words = keras.layers.Embedding(20, 4, name="words")
model = maskedgrad.MaskedModel(inputs := keras.Input((3,)), words(inputs))
model.compile("adam", loss="mse", trainable_rows={words: [1]})
model.summary()
"""


@pytest.mark.thorough
def test_a_notebook_shows_the_table_in_the_colours_of_keras(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK)])
    nbclient.NotebookClient(notebook, timeout=300).execute(cwd=str(tmp_path))
    outputs = notebook.cells[0].outputs
    shown = [output.data["text/html"] for output in outputs if output.output_type == "display_data"]
    name, table = shown
    assert "masked_functional" in name
    assert "color: #00af00" in table
    (text,) = [output.text for output in outputs if output.get("name") == "stdout"]
    assert text.startswith(" Total parameters: 80 (320.00 B)\n Trainable parameters: 4 (16.00 B)")


def test_it_logs_where_keras_logs(capsys, caplog):
    model, rows = functional(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    keras.config.disable_interactive_logging()
    try:
        with caplog.at_level("INFO", logger="absl"):
            summary(model)
    finally:
        keras.config.enable_interactive_logging()
    assert not capsys.readouterr().out
    assert caplog.messages == [text_of(summary, model)]


def test_a_masked_model_has_it_as_its_own_summary():
    model, rows = functional(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    assert text_of(model.summary) == text_of(summary, model)


def test_it_says_what_is_not_known_yet():
    layers = [words := keras.layers.Embedding(20, 4), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(MaskedOptimizer("adam", {words: [1]}), loss="mse", run_eagerly=True)
    text = text_of(summary, model)
    assert "Which rows train is known once the model is built" in text
    assert "Optimizer memory: known once the first training step has built the optimizer" in text
    model.train_on_batch(X, np.ones((4, 3, 2)))
    assert "known" not in text_of(summary, model)


def test_rows_along_another_axis_are_said_to_be():
    model, rows = along_an_axis(MaskedModel)
    model.compile("adam", loss="mse", trainable_rows=rows)
    text = text_of(summary, model)
    assert "head/kernel: 1 of 2 rows along axis 1, 5 parameters (20.00 B)" in text
    assert "head/bias: 1 of 2 rows, 1 parameter (4.00 B)" in text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0.00 B"),
        (1023, "1023.00 B"),
        (1024, "1.00 KB"),
        (3 * 2**39, "1.50 TB"),
        (2**60, "1024.00 PB"),
    ],
)
def test_bytes_are_counted_in_the_largest_unit_that_they_fill(num_bytes, text):
    assert readable_bytes(num_bytes) == text
