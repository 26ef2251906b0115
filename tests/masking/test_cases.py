"""One test for each way in which real use once broke the law, and for its kind."""

import copy
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep, Rows, summary
from maskedgrad.testing import assert_same_bits
from tests.features import needs

X = np.arange(12).reshape(4, 3) % 6
Y = np.ones((4, 1))
VALUES = np.arange(1, 25, dtype="float32").reshape(6, 4)


def make_model(base=MaskedModel):
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(6, 4, name="words")
    return base(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(words(inputs)))), words


class Kept(keras.optimizers.Optimizer):
    """Gradient descent that keeps something beside."""

    def __init__(self, learning_rate=0.1, **options):
        super().__init__(learning_rate=learning_rate, **options)

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.kept = [self.keep(variable) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(learning_rate * gradient)


class Flat(Kept):
    def keep(self, variable):
        return self.add_variable((math.prod(variable.shape),), name="flat")


class Square(Kept):
    def keep(self, variable):
        return self.add_variable((variable.shape[0], variable.shape[0]), name="square")


class ByNumberOfRows(Kept):
    def keep(self, variable):
        return self.add_variable(variable.shape if variable.shape[0] < 4 else (1,), name="size")


class LongerByNumberOfRows(Kept):
    def keep(self, variable):
        num_rows = variable.shape[0]
        return self.add_variable((num_rows + (num_rows >= 4), 4), name="longer")


class MoreByNumberOfRows(Kept):
    def keep(self, variable):
        number = 2 if variable.shape[0] >= 4 else 1
        return [self.add_variable(variable.shape, name="more") for _ in range(number)]


class FewerByNumberOfRows(Kept):
    def keep(self, variable):
        number = 1 if variable.shape[0] >= 4 else 2
        return [self.add_variable(variable.shape, name="fewer") for _ in range(number)]


class ByWidth(Kept):
    def keep(self, variable):
        if variable.shape[-1] >= 4:
            return [self.add_variable((size,), name="factor") for size in variable.shape]
        return self.add_variable(variable.shape, name="whole")


class PythonNumber(Kept):
    def keep(self, variable):
        return 1 / variable.shape[0]


class PythonCount(Kept):
    def keep(self, variable):
        return variable.shape[0]


class VariableNumber(Kept):
    def keep(self, variable):
        return self.add_variable((), keras.initializers.Constant(variable.shape[0]), name="n")


class Padded(Kept):
    num_more = 1

    def keep(self, variable):
        return self.add_variable((variable.shape[0] + self.num_more, 4), name="padded")


class PaddedByTwo(Padded):
    num_more = 2


class PaddedByFour(Padded):
    num_more = 4


@pytest.mark.parametrize("rows", [[2, 3, 4], [1, 2, 3, 4]], ids=["as many", "more"])
@pytest.mark.parametrize(
    "cls",
    [
        *(Flat, Square, PythonNumber, PythonCount, VariableNumber),
        *(Padded, PaddedByTwo, PaddedByFour),
    ],
)
def test_state_that_cannot_follow_is_refused_before_anything_changes(cls, rows):
    assert_refused(cls, rows)


@pytest.mark.parametrize(
    "cls", [ByNumberOfRows, LongerByNumberOfRows, MoreByNumberOfRows, FewerByNumberOfRows]
)
def test_state_that_is_chosen_by_the_number_of_rows_is_refused_where_that_changes(cls):
    assert_refused(cls, [1, 2, 3, 4])


def assert_refused(cls, rows):
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(cls(), {"table": [1, 2, 3]})
    optimizer.apply([tf.constant(VALUES)], [table])
    before = [variable.numpy() for variable in [table, *optimizer.variables]]
    with pytest.raises(ValueError, match="Nothing has changed"):
        optimizer.set_trainable_rows({"table": rows})
    assert optimizer.trainable_rows == {"table": Rows([1, 2, 3], 6)}
    for variable, old in zip([table, *optimizer.variables], before, strict=True):
        assert_same_bits(variable, old, variable.path)
    optimizer.apply([tf.constant(VALUES)], [table])  # the rows of before go on


def test_state_that_is_chosen_by_the_width_of_a_table_follows():
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(ByWidth(), {"table": [1, 2, 3]})
    optimizer.build([table])
    per_row, per_column = optimizer.inner_optimizer.kept[0]
    per_row.assign([1, 2, 3])
    per_column.assign([1, 2, 3, 4])
    optimizer.set_trainable_rows({"table": [2, 3, 4, 5]})
    assert per_row.numpy().tolist() == [2, 3, 0, 0]
    assert per_column.numpy().tolist() == [1, 2, 3, 4]


def test_attributes_that_users_put_on_a_variable_reach_the_inner_optimizer():
    class PerVariable(Kept):
        def keep(self, variable):
            return getattr(variable, "lr_multiplier", 1.0)

    table = keras.Variable(VALUES, name="table")
    table.lr_multiplier = 0.5
    optimizer = MaskedOptimizer(PerVariable(), {"table": [0]})
    optimizer.build([table])
    assert optimizer.inner_optimizer.kept == [0.5]


class NoConfig(keras.optimizers.SGD):
    def __init__(self, beta):
        super().__init__(0.1, momentum=0.9)
        self.beta = beta


def captured():
    optimizer = keras.optimizers.Adam(0.1)
    return keras.optimizers.MultiOptimizer(lambda variable: optimizer)


NOT_REMADE = {
    "callable rate": lambda: keras.optimizers.Adam(lambda: 0.1),
    "no config": lambda: NoConfig(0.5),
    "fresh optimizers": pytest.param(
        lambda: keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD(0.1)),
        marks=needs("optimizers.MultiOptimizer"),
    ),
    "captured optimizer": pytest.param(captured, marks=needs("optimizers.MultiOptimizer")),
}


@pytest.mark.parametrize("make", NOT_REMADE.values(), ids=NOT_REMADE)
def test_what_keras_cannot_remake_trains_changes_rows_and_is_summed_up(make):
    model, words = make_model()
    model.compile(MaskedOptimizer(make(), {words: [1, 2]}), loss="mse")
    model.fit(X, Y, verbose=0)
    inner = model.optimizer.inner_optimizer
    if isinstance(inner, NoConfig):
        inner.beta = 0.7
    model.set_trainable_rows({words: [2, 3]})
    before = words.get_weights()[0]
    model.fit(X, Y, verbose=0)
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [2, 3]
    assert model.optimizer.inner_optimizer is inner
    assert getattr(inner, "beta", 0.7) == 0.7
    lines = []
    summary(model, print_fn=lines.append)
    assert "2 of 6 rows" in "".join(lines)


def test_a_method_that_is_replaced_on_the_inner_optimizer_is_called_for_real_steps_only():
    inner, steps = keras.optimizers.SGD(0.1), []
    apply = inner.apply
    inner.apply = lambda grads, variables=None: (steps.append(1), apply(grads, variables))
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(inner, {"table": [1]})
    optimizer.apply([tf.ones((6, 4))], [table])
    assert steps == [1]


def test_the_train_step_of_a_base_class_runs():
    class Own(keras.Model):
        steps = 0

        def train_step(self, data):
            type(self).steps += 1
            return super().train_step(data)

    class Model(MaskedTrainStep, Own):
        pass

    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(6, 4)
    model = Model(inputs, words(inputs))
    model.compile("sgd", loss="mse", trainable_rows={words: [1]}, run_eagerly=True)
    before = words.get_weights()[0]
    model.fit(X, np.ones((4, 3, 4)), batch_size=2, verbose=0)
    assert Model.steps == 2
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [1]


def test_the_loss_that_is_shown_is_what_a_model_of_its_own_shows():
    histories = []
    for base in (keras.Model, MaskedModel):

        class Own(base):
            def __init__(self):
                super().__init__()
                self.words = keras.layers.Embedding(6, 4)
                self.tracker = keras.metrics.Mean(name="loss")

            def call(self, x):
                return ops.mean(self.words(x), axis=(1, 2), keepdims=False)[:, None]

            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
                loss = ops.mean((y - y_pred) ** 2)
                self.tracker.update_state(loss)
                return loss

            @property
            def metrics(self):
                return [self.tracker]

        keras.utils.set_random_seed(0)
        model = Own()
        model.compile(MaskedOptimizer(keras.optimizers.SGD(1e-6), {model.words: [1]}))
        histories.append(model.fit(X, Y, batch_size=3, shuffle=False, verbose=0).history)
    assert histories[0] == histories[1]


def test_learning_rates_of_rows_are_given_to_compile():
    model, words = make_model()
    model.compile(
        "sgd", loss="mse", trainable_rows={words: [1, 2]}, row_learning_rates={words: {0: [2]}}
    )
    before = words.get_weights()[0]
    model.fit(X, Y, verbose=0)
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [1]


def test_learning_rates_of_rows_without_rows_are_refused():
    model, words = make_model()
    optimizer = MaskedOptimizer("sgd", {words: [1]})
    with pytest.raises(ValueError, match="must come with `trainable_rows`"):
        model.compile(optimizer, loss="mse", row_learning_rates={words: {0.5: [1]}})


@pytest.mark.parametrize("make_copy", [copy.copy, copy.deepcopy])
def test_a_copy_of_a_masked_variable_looks_up_in_itself(make_copy):
    table = keras.Variable(VALUES, name="table")
    MaskedOptimizer("sgd", {"table": [1]}).build([table])
    twin = copy.deepcopy(make_copy(table))
    twin.assign(np.zeros_like(VALUES))
    assert not tf.gather(twin, [0]).numpy().any()
    assert_same_bits(tf.gather(table, [0]), VALUES[:1], "the original")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_ids_that_no_table_has_reach_no_row(jit_compile):
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(keras.optimizers.SGD(1.0), {"table": slice(1, None)})
    optimizer.build([table])
    ids = tf.constant([7, -1, 2, 10**6])
    step = tf.function(
        lambda: optimizer.apply([tf.IndexedSlices(tf.ones((4, 4)), ids)]), jit_compile=jit_compile
    )
    step()
    moved = (table.numpy() != VALUES).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [2]


def test_two_tables_of_one_path_are_told_by_what_lists_them():
    inputs = [keras.Input((3,), dtype="int32") for _ in range(2)]
    layers = [keras.layers.Embedding(6, 4, name="words") for _ in range(2)]
    towers = [keras.Model(i, layer(i)) for i, layer in zip(inputs, layers, strict=True)]
    model = MaskedModel(
        inputs, keras.layers.Add()([t(i) for t, i in zip(towers, inputs, strict=True)])
    )
    model.compile("adam", loss="mse", trainable_rows={layers[0]: [1], layers[1]: [2]})
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="masked_tables"):
        _ = model.optimizer.trainable_rows
    first, second = model.optimizer.masked_tables()
    assert first.variable is layers[0].embeddings
    assert second.variable is layers[1].embeddings
    model.set_trainable_rows({second: [5], first: [4]})
    assert [table.rows for table in model.optimizer.masked_tables()] == [Rows([4], 6), Rows([5], 6)]


@pytest.mark.parametrize(
    ("name", "message"),
    [("inner_optimizer", "No optimizer can be around"), ("slow", "every row would train")],
)
def test_an_optimizer_around_a_masked_one_is_refused_unless_it_scales_the_loss(name, message):
    class Around(keras.optimizers.SGD):
        def __init__(self, inner_optimizer):
            super().__init__(momentum=0.9)
            setattr(self, name, inner_optimizer)

    model, words = make_model()
    masked = MaskedOptimizer("sgd", {words: [1]})
    with pytest.raises(ValueError, match=message):
        model.compile(Around(masked), loss="mse")
    model.compile(keras.optimizers.LossScaleOptimizer(masked), loss="mse")
    assert model.optimizer is masked
    assert isinstance(masked.inner_optimizer, keras.optimizers.LossScaleOptimizer)


def test_a_scaler_around_a_masked_optimizer_is_taken_again_after_a_compile_that_was_refused():
    model, words = make_model()
    scaler = keras.optimizers.LossScaleOptimizer(masked := MaskedOptimizer("sgd", {words: [1]}))
    with pytest.raises(TypeError, match="los"):
        model.compile(scaler, los="mse")
    model.compile(scaler, loss="mse")
    assert model.optimizer is masked
    assert masked.inner_optimizer is scaler


def test_a_second_loss_scaler_is_refused():
    bare = keras.optimizers.SGD(loss_scale_factor=8.0)
    if keras.optimizers.LossScaleOptimizer(bare).inner_optimizer.loss_scale_factor is not None:
        pytest.skip("In this Keras an optimizer is not told that a scaler is put around it.")
    keras.config.set_dtype_policy("mixed_float16")
    model, words = make_model(keras.Model)
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    optimizer = MaskedOptimizer(scaler, {words: [1]})
    with pytest.raises(ValueError, match="must be scaled once"):
        keras.optimizers.LossScaleOptimizer(optimizer)
    with pytest.raises(ValueError, match="auto_scale_loss=False"):
        model.compile(optimizer, loss="mse")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("base", "options"), [(keras.Model, {"auto_scale_loss": False}), (MaskedModel, {})]
)
def test_a_loss_scaler_inside_scales_the_loss_as_in_stock_keras(base, options):
    keras.config.set_dtype_policy("mixed_float16")
    tables = []
    for is_masked in (False, True):
        keras.utils.set_random_seed(0)
        model, words = make_model(base if is_masked else keras.Model)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
        if is_masked:
            optimizer = MaskedOptimizer(optimizer, {words: range(6)})
        model.compile(optimizer, loss="mse", run_eagerly=True, **(options if is_masked else {}))
        model.train_on_batch(X, Y)
        tables.append(words.get_weights()[0])
    assert_same_bits(*tables, "the table")


class TouchedRows(Kept):
    """Momentum; of the rows in slices alone, where it is given slices."""

    def keep(self, variable):
        return self.add_variable_from_reference(variable, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.kept[self._get_variable_index(variable)]
        if isinstance(gradient, tf.IndexedSlices):
            new = 0.9 * tf.gather(momentum, gradient.indices) + gradient.values
            momentum.value.scatter_update(tf.IndexedSlices(new, gradient.indices))
            variable.scatter_sub(tf.IndexedSlices(learning_rate * new, gradient.indices))
        else:
            momentum.assign(0.9 * momentum + gradient)
            variable.assign_sub(learning_rate * momentum)


@pytest.mark.parametrize(
    ("rows", "lazy", "is_given_slices"),
    [([1, 2], False, False), ([1, 2], True, True), (range(6), False, True)],
    ids=["some", "lazy", "all"],
)
def test_what_an_optimizer_that_treats_slices_in_its_own_way_is_given(rows, lazy, is_given_slices):
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(TouchedRows(), {"table": rows}, lazy=lazy)
    bare_table, bare = keras.Variable(VALUES[list(rows)], name="table"), TouchedRows()
    for row in (1, 2, 2):
        ones = tf.ones([1, 4])
        optimizer.apply([tf.IndexedSlices(ones, tf.constant([row]), tf.constant([6, 4]))], [table])
        shape = tf.constant(bare_table.shape, tf.int32)
        gradient = tf.IndexedSlices(ones, tf.constant([list(rows).index(row)]), shape)
        bare.apply([gradient if is_given_slices else tf.convert_to_tensor(gradient)], [bare_table])
    assert_same_bits(table.numpy()[list(rows)], bare_table, "the rows that train")


class TakesNoSlices(Kept):
    def keep(self, variable):
        return None

    def update_step(self, gradient, variable, learning_rate):
        variable.assign_sub(gradient * 0.5)  # slices have no product


def test_an_optimizer_that_takes_no_slices_is_given_none_where_all_rows_train():
    table = keras.Variable(VALUES, name="table")
    optimizer = MaskedOptimizer(TakesNoSlices(), {"table": range(6)})
    slices = tf.IndexedSlices(tf.ones([2, 4]), tf.constant([1, 1]), tf.constant([6, 4]))
    optimizer.apply([slices], [table])
    assert_same_bits(table.numpy()[1], VALUES[1] - 1, "the row that is looked up twice")


def test_a_checkpoint_of_a_masked_optimizer_has_no_learning_rate_for_a_stock_one(tmp_path):
    table = keras.Variable(VALUES, name="table")
    masked, stock = MaskedOptimizer("adam", {"table": [1]}), keras.optimizers.Adam(0.5)
    for optimizer in (masked, stock):
        optimizer.build([table])
    prefix = tf.train.Checkpoint(optimizer=masked).save(tmp_path / "state")
    tf.train.Checkpoint(optimizer=stock).restore(prefix).expect_partial()
    assert float(stock.learning_rate) == 0.5


@pytest.mark.parametrize("jit_compile", [False, True])
def test_rows_and_their_state_are_on_the_device_of_the_table(jit_compile):
    with tf.device("/CPU:1"):
        model, words = make_model()
        model.compile("adam", "mse", jit_compile=jit_compile, trainable_rows={words: [1, 2]})
        model.fit(X, Y, verbose=0)
        model.set_trainable_rows({words: [1, 2, 5]})
        before = words.get_weights()[0]
        model.fit(X, Y, verbose=0)
    assert {variable.value.device[-5:] for variable in model.optimizer.variables} == {"CPU:1"}
    moved = (words.get_weights()[0] != before).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [1, 2, 5]
