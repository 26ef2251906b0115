"""The wrapper is a Keras optimizer, and refuses what it cannot mean."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedOptimizer, Rows
from maskedgrad.masking.of_model import masked_optimizer_in
from maskedgrad.testing import assert_same_bits
from tests.features import needs

IDS = [1, 4]


def built_layer(name="words", rows=6, **arguments):
    layer = keras.layers.Embedding(rows, 3, name=name, **arguments)
    layer.build()
    return layer


def kernel():
    with keras.name_scope("dense"):
        return keras.Variable(np.ones((2, 2)), dtype="float32", name="kernel")


def dense_gradients(*variables):
    return [tf.ones(variable.shape, variable.dtype) for variable in variables]


# ---- a Keras optimizer ----


@pytest.mark.parametrize("identifier", ["adamw", {"class_name": "Adam", "config": {}}])
def test_the_inner_optimizer_is_what_keras_optimizers_get_takes(identifier):
    optimizer = MaskedOptimizer(identifier, {built_layer(): IDS})
    assert isinstance(optimizer, keras.optimizers.Optimizer)
    assert isinstance(optimizer.inner_optimizer, keras.optimizers.Optimizer)
    assert keras.optimizers.get(optimizer) is optimizer


def test_the_learning_rate_is_the_inner_one():
    optimizer = MaskedOptimizer(keras.optimizers.SGD(0.5), {built_layer(): IDS})
    assert float(optimizer.learning_rate) == 0.5
    optimizer.learning_rate = 0.25
    assert float(optimizer.inner_optimizer.learning_rate) == 0.25
    schedule = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
    layer = built_layer()
    optimizer = MaskedOptimizer(keras.optimizers.SGD(schedule), {layer: IDS})
    optimizer.apply(dense_gradients(layer.embeddings), [layer.embeddings])
    assert float(optimizer.learning_rate) == 0.5
    with pytest.raises(TypeError, match="not settable"):
        optimizer.learning_rate = 1.0


def test_iterations_count_steps_and_apply_gradients_returns_them():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    pairs = list(zip(dense_gradients(layer.embeddings), [layer.embeddings], strict=True))
    assert [int(optimizer.apply_gradients(pairs)) for _ in range(3)] == [1, 2, 3]
    assert int(optimizer.iterations) == 3


def test_the_state_is_that_of_the_trainable_rows_and_then_their_ids():
    layer = built_layer()
    optimizer = MaskedOptimizer("adam", {layer: IDS})
    optimizer.build([layer.embeddings])
    shapes = [tuple(variable.shape) for variable in optimizer.variables]
    assert shapes == [(), (), (2, 3), (2, 3), (2,)]
    assert optimizer.variables[-1].numpy().tolist() == IDS
    assert not any(variable is layer.embeddings for variable in optimizer.variables)


def test_a_checkpoint_holds_no_table(tmp_path):
    layer = built_layer(rows=997)
    optimizer = MaskedOptimizer("adam", {layer: IDS})
    optimizer.build([layer.embeddings])
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "checkpoint"))
    shapes = dict(tf.train.list_variables(path)).values()
    assert not any(997 in shape for shape in shapes)


def test_a_second_build_changes_nothing():
    layer = built_layer()
    optimizer = MaskedOptimizer("adam", {layer: IDS})
    optimizer.build([layer.embeddings])
    variables = optimizer.variables
    optimizer.build([layer.embeddings])
    assert all(a is b for a, b in zip(variables, optimizer.variables, strict=True))


def test_apply_without_variables_means_those_of_build():
    layer, other = built_layer(), kernel()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    with pytest.raises(ValueError, match="must be built"):
        optimizer.apply(dense_gradients(layer.embeddings))
    optimizer.build([layer.embeddings, other])
    before = other.numpy()
    optimizer.apply(dense_gradients(layer.embeddings, other))
    assert (other.numpy() < before).all()


def test_a_step_starts_from_what_the_table_holds_now():
    layer = built_layer()
    optimizer = MaskedOptimizer(keras.optimizers.SGD(1.0), {layer: IDS})
    optimizer.build([layer.embeddings])
    layer.embeddings.assign(np.full((6, 3), 5.0))
    optimizer.apply(dense_gradients(layer.embeddings), [layer.embeddings])
    assert layer.embeddings.numpy()[:, 0].tolist() == [5, 4, 5, 5, 4, 5]
    layer.embeddings.assign(np.full((6, 3), 7.0))
    with optimizer.gathered_rows():
        pass
    assert (layer.embeddings.numpy() == 7).all()


@pytest.mark.parametrize(
    "cls", [keras.optimizers.SGD, pytest.param(keras.optimizers.Adam, marks=pytest.mark.thorough)]
)
def test_a_variable_of_tensorflow_stands_for_the_table_that_holds_it(cls):
    tables = []
    for of_keras in (True, False):
        layer, other = built_layer(embeddings_initializer="ones"), kernel()
        optimizer = MaskedOptimizer(cls(weight_decay=0.1), {layer: IDS})
        optimizer.build([layer.embeddings, other])
        given = [layer.embeddings, other] if of_keras else [layer.embeddings.value, other.value]
        optimizer.apply_gradients(zip(dense_gradients(*given), given, strict=True))
        tables.append([layer.embeddings, other])
    for ours, expected in zip(tables[1], tables[0], strict=True):
        assert_same_bits(ours, expected, "a variable")
    moved = (tables[1][0].numpy() != 1).any(axis=1)
    assert np.flatnonzero(moved).tolist() == IDS


ROWS_THAT_ARE_CHANGED_LATER = {
    "ids": (lambda: [1, 4], lambda ids: ids.append(2)),
    "mask": (lambda: np.arange(6) % 3 == 1, lambda mask: mask.fill(True)),
}


@pytest.mark.parametrize("name", ROWS_THAT_ARE_CHANGED_LATER)
def test_rows_are_those_that_were_given_whatever_becomes_of_what_gave_them(name):
    make, change = ROWS_THAT_ARE_CHANGED_LATER[name]
    layer, rows, rates = built_layer(), make(), np.ones(6)
    given, given_rates = {layer: rows}, {layer: {0.5: (rated := [1])}}
    optimizer = MaskedOptimizer("sgd", given, row_learning_rates=given_rates)
    by_array = MaskedOptimizer("sgd", given, row_learning_rates={layer: rates})
    change(rows)
    rated.append(4)
    rates[1] = 0.0
    given[layer] = [0]
    by_rows, by_array = (
        each.masked_tables([layer.embeddings])[0] for each in (optimizer, by_array)
    )
    assert by_rows.rows == by_array.rows == Rows(IDS, 6)
    assert by_rows.learning_rates.tolist() == [0.5, 1.0]


def test_the_paths_of_all_state_begin_with_the_name_of_the_inner_optimizer():
    # Keras finds state in a state tree by its path: of another optimizer it finds all, or none.
    layer = built_layer()
    inner = keras.optimizers.Adam(name="of_words")
    rates = {layer: {0.5: [1]}}
    optimizer = MaskedOptimizer(inner, {layer: IDS}, row_learning_rates=rates)
    optimizer.build([layer.embeddings])
    assert {variable.path.split("/")[0] for variable in optimizer.variables} == {"of_words"}


def test_no_gradients_at_all_is_no_step():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    optimizer.apply([], [])
    assert not optimizer.built


def test_gradients_and_variables_must_be_of_one_length():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    optimizer.build([layer.embeddings])
    before = layer.embeddings.numpy()
    with pytest.raises(ValueError, match="of one length"):
        optimizer.apply([*dense_gradients(layer.embeddings), None], [layer.embeddings])
    assert_same_bits(layer.embeddings, before, "the table")


def test_slices_may_tell_their_shape_as_a_tuple():
    layer = built_layer()
    before, shape = layer.embeddings.numpy(), tuple(layer.embeddings.shape)
    slices = tf.IndexedSlices(tf.ones((1, shape[1])), tf.constant(IDS[:1]), shape)
    MaskedOptimizer("sgd", {layer: IDS}).apply([slices], [layer.embeddings])
    assert np.flatnonzero((layer.embeddings.numpy() != before).any(axis=1)).tolist() == IDS[:1]


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("by_path", [False, True])
def test_a_table_that_is_given_twice_is_refused(by_path, built):
    layer = built_layer()
    before = layer.embeddings.numpy()
    optimizer = MaskedOptimizer("sgd", {layer.embeddings.path if by_path else layer: IDS})
    if built:
        optimizer.build([layer.embeddings])
    with pytest.raises(ValueError, match=r"must be given once.*2 times"):
        optimizer.apply(dense_gradients(layer.embeddings) * 2, [layer.embeddings] * 2)
    assert_same_bits(layer.embeddings, before, "the table")


def test_a_variable_that_is_given_twice_takes_both_gradients_as_in_keras():
    layer, twice, stock = built_layer(), kernel(), kernel()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    one, two = dense_gradients(stock)[0], 3 * dense_gradients(stock)[0]
    optimizer.build([layer.embeddings, twice])
    optimizer.apply(
        [*dense_gradients(layer.embeddings), one, two], [layer.embeddings, twice, twice]
    )
    keras.optimizers.SGD().apply([one, two], [stock, stock])
    assert_same_bits(twice, stock, "the kernel")


def test_a_variable_that_was_not_built_is_refused():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    optimizer.build([layer.embeddings])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(dense_gradients(kernel()), [kernel()])


def test_the_loss_is_scaled_by_the_inner_optimizer():
    inner = keras.optimizers.SGD(loss_scale_factor=8.0)
    optimizer = MaskedOptimizer(inner, {built_layer(): IDS})
    assert float(optimizer.scale_loss(2.0)) == 16.0
    assert optimizer.loss_scale_factor == 8.0
    bare = keras.optimizers.SGD(loss_scale_factor=8.0)
    for wrapped in (bare, optimizer):
        keras.optimizers.LossScaleOptimizer(wrapped)  # may take scaling over from what it wraps
    assert inner.loss_scale_factor == bare.loss_scale_factor


def test_set_weights_restores_the_state_through_any_wrapper():
    layer = built_layer()
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    optimizer = MaskedOptimizer(inner, {layer: IDS})
    with pytest.raises(ValueError, match="must be built"):
        optimizer.set_weights([])
    optimizer.apply(dense_gradients(layer.embeddings), [layer.embeddings])
    saved = [variable.numpy() for variable in optimizer.variables]
    optimizer.apply(dense_gradients(layer.embeddings), [layer.embeddings])
    optimizer.set_weights(saved)
    for variable, value in zip(optimizer.variables, saved, strict=True):
        assert_same_bits(variable, value, variable.path)
    for weights in (saved[:-1], [*saved, saved[-1]], [*saved[:-1], saved[-1][:1]]):
        with pytest.raises(ValueError, match="shapes"):
            optimizer.set_weights(weights)


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
@pytest.mark.parametrize("how", ["table", "other", "table by name", "other by name"])
def test_weight_decay_can_be_excluded(how, wrap):
    layer, other = built_layer(), kernel()
    variables = [layer.embeddings, other]
    inner = wrap(keras.optimizers.SGD(0.5, weight_decay=0.5))
    optimizer = MaskedOptimizer(inner, {layer: IDS})
    excluded = variables[0 if how.startswith("table") else 1]
    if how.endswith("name"):
        optimizer.exclude_from_weight_decay(var_names=[excluded.name])
    else:
        optimizer.exclude_from_weight_decay(var_list=[excluded])
    before = [variable.numpy() for variable in variables]
    optimizer.apply([tf.zeros(variable.shape) for variable in variables], variables)
    changed = [
        (variable.numpy() != value).any() for variable, value in zip(variables, before, strict=True)
    ]
    assert changed == [excluded is not variable for variable in variables]
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


@needs("optimizers.MultiOptimizer")
def test_optimizers_route_a_table_by_its_own_path_and_name():
    layer = built_layer()
    seen = []

    def choose(variable):
        seen.append((variable.path, variable.name, variable.value.name, tuple(variable.shape)))
        return keras.optimizers.SGD()  # anew for each, also for the trials of `RowState`

    optimizer = MaskedOptimizer(keras.optimizers.MultiOptimizer(choose), {layer: IDS})
    with keras.name_scope("somewhere"):
        optimizer.build([layer.embeddings])
    table = layer.embeddings
    names = table.path, table.name, table.value.name
    assert {each[:3] for each in seen} == {names}
    assert seen[-1] == (*names, (2, 3))


@pytest.mark.parametrize("built", [False, True])
def test_a_config_makes_the_same_optimizer(built):
    layer = built_layer()
    optimizer = MaskedOptimizer(
        keras.optimizers.AdamW(0.125, clipnorm=2.0), {layer: IDS}, name="mine"
    )
    if built:
        optimizer.build([layer.embeddings])
    config = keras.saving.serialize_keras_object(optimizer)
    assert config["registered_name"] == "maskedgrad>MaskedOptimizer"
    again = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(again) == config
    again.build([layer.embeddings])
    assert again.trainable_rows == {"words/embeddings": Rows(IDS, 6)}
    assert again.name == "mine"
    assert again.inner_optimizer.get_config() == optimizer.inner_optimizer.get_config()


def test_a_config_of_an_unbuilt_layer_finds_its_table_by_name():
    layer = keras.layers.Embedding(6, 3, name="words")
    config = MaskedOptimizer("sgd", {layer: slice(-2, None)}).get_config()
    again = MaskedOptimizer.from_config(config)
    again.build([kernel(), built_layer().embeddings])
    assert again.trainable_rows == {"words/embeddings": Rows([4, 5], 6)}


def test_the_optimizer_inside_others_is_found():
    optimizer = MaskedOptimizer("sgd", {built_layer(): IDS})
    assert masked_optimizer_in(keras.optimizers.LossScaleOptimizer(optimizer)) is optimizer
    assert masked_optimizer_in(keras.optimizers.SGD()) is None
    assert masked_optimizer_in(None) is None


def test_its_text_tells_the_rows_before_and_after_it_is_built():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {"words/embeddings": [1, 4]})
    assert repr(optimizer) == "MaskedOptimizer(SGD, {'words/embeddings': [1, 4]})"
    optimizer.build([layer.embeddings])
    tables = "[MaskedTable('words/embeddings', Rows('1,4', num_rows=6))]"
    assert repr(optimizer) == f"MaskedOptimizer(SGD, {tables})"


def test_every_name_is_listed_but_the_one_that_a_loss_scaler_has_too():
    """Keras saves what it finds listed by its name, and each would take the other's state."""
    optimizer = MaskedOptimizer("adam", {built_layer(): IDS})
    assert set(object.__dir__(optimizer)) - set(dir(optimizer)) == {"inner_optimizer"}


def test_rows_are_counted_as_chosen_by_build_and_by_each_change():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer: IDS})
    counts = [optimizer.num_row_changes]
    optimizer.build([layer.embeddings])
    for ids in ([0], [0, 1]):
        counts.append(optimizer.num_row_changes)
        optimizer.set_trainable_rows({layer: ids})
    assert [*counts, optimizer.num_row_changes] == [0, 1, 2, 3]


@needs("optimizers.MultiOptimizer")
def test_the_optimizers_of_an_inner_one_are_told():
    inner = keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD())
    layer = built_layer()
    optimizer = MaskedOptimizer(inner, {layer: IDS})
    optimizer.build([layer.embeddings])
    assert optimizer.optimizers is inner.optimizers
    assert not hasattr(MaskedOptimizer("sgd", {layer: IDS}), "optimizers")


@pytest.mark.parametrize("change", ["stays", "moves"])
def test_state_of_a_stock_optimizer_leaves_the_rows_that_train(change, tmp_path):
    masked, stock = (
        keras.Sequential([keras.Input((2,)), keras.layers.Embedding(6, 3, name="words")])
        for _ in range(2)
    )
    stock.compile("adam", loss="mse")
    stock.optimizer.build(stock.trainable_variables)
    stock.save_weights(tmp_path / "stock.weights.h5")
    masked.compile(MaskedOptimizer("adam", {masked.layers[0]: IDS}), loss="mse")
    masked.optimizer.build(masked.trainable_variables)
    if change == "moves":
        masked.optimizer.set_trainable_rows({masked.layers[0]: [2]})
    before = [variable.numpy() for variable in masked.optimizer.variables]
    masked.load_weights(tmp_path / "stock.weights.h5")
    for variable, value in zip(masked.optimizer.variables, before, strict=True):
        assert_same_bits(variable, value, variable.path)


# ---- reading sparsely ----


def test_a_table_of_a_layer_that_is_built_is_read_sparsely_from_the_start():
    layer = built_layer()
    MaskedOptimizer("sgd", {layer: IDS})
    assert hasattr(layer.embeddings, "sparse_read")


def test_a_table_that_is_named_by_its_path_is_read_sparsely_once_it_is_known():
    layer = built_layer()
    optimizer = MaskedOptimizer("sgd", {layer.embeddings.path: IDS})
    assert not hasattr(layer.embeddings, "sparse_read")
    optimizer.prepare([layer.embeddings])
    assert hasattr(layer.embeddings, "sparse_read")
    assert not optimizer.built


@pytest.mark.parametrize(("by_path", "traces"), [(False, ["sparse"]), (True, ["dense", "sparse"])])
def test_a_step_is_traced_again_where_the_first_trace_read_the_table_whole(by_path, traces):
    seen = []

    class Traced(keras.Model):
        def train_step(self, data):
            seen.append("sparse" if hasattr(words.embeddings, "sparse_read") else "dense")
            return super().train_step(data)

    words = keras.layers.Embedding(6, 3)
    model = Traced(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    target = words.embeddings.path if by_path else words
    model.compile(MaskedOptimizer("sgd", {target: IDS}), loss="mse")
    model.fit(np.zeros((2, 3)), np.zeros((2, 3, 3)), verbose=0)
    assert seen == traces


def test_a_function_that_builds_what_it_trains_runs_what_reads_sparsely():
    layer, sparse = keras.layers.Embedding(6, 3), []
    optimizer = MaskedOptimizer("sgd", {layer: IDS})

    @tf.function
    def step(ids):
        sparse.append(layer.built and hasattr(layer.embeddings, "sparse_read"))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        gradients = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply(gradients, layer.trainable_variables)

    step(tf.constant(IDS))
    assert sparse == [False, True]


def test_a_function_that_cannot_be_traced_again_stops_before_it_trains_nothing():
    layer, made = keras.layers.Embedding(6, 3), []
    optimizer = MaskedOptimizer("sgd", {layer: IDS})

    @tf.function
    def step(ids):
        if not made:  # a first value that TensorFlow cannot make before it runs the function
            made.append(tf.Variable(tf.reduce_sum(ids)))
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        gradients = tape.gradient(loss, layer.trainable_variables)
        optimizer.apply(gradients, layer.trainable_variables)

    with pytest.raises(tf.errors.InvalidArgumentError, match="held no value yet"):
        step(tf.constant(IDS))


# ---- bad input ----


def test_the_error_of_a_wrong_optimizer_names_it():
    class Foreign:
        """As an optimizer of another library is: neither Keras 3 nor TensorFlow."""

    with pytest.raises(TypeError, match=r"Keras 3 optimizer.*Foreign"):
        MaskedOptimizer(Foreign(), {built_layer(): IDS})
    with pytest.raises(TypeError, match="Keras 3 optimizer"):
        MaskedOptimizer(None, {built_layer(): IDS})
    with pytest.raises(TypeError, match="Keras 3 optimizer"):
        MaskedOptimizer(keras.optimizers.SGD, {built_layer(): IDS})


@pytest.mark.parametrize(
    "wrap",
    [
        lambda optimizer: optimizer,
        keras.optimizers.LossScaleOptimizer,
        pytest.param(
            lambda optimizer: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(keras.optimizers.SGD(), {"a": optimizer})
            ),
            marks=needs("optimizers.MultiOptimizer"),
        ),
    ],
)
def test_a_wrapped_wrapper_is_refused(wrap):
    inner = MaskedOptimizer("sgd", {built_layer(): IDS})
    with pytest.raises(ValueError, match="must not mask rows itself"):
        MaskedOptimizer(wrap(inner), {built_layer(): IDS})


@pytest.mark.parametrize("lazy", [False, True])
def test_a_built_inner_optimizer_is_refused(lazy):
    layer = built_layer()
    inner = keras.optimizers.Adam()
    optimizer = MaskedOptimizer(inner, {layer: IDS}, lazy=lazy)
    inner.build([layer.embeddings])
    with pytest.raises(ValueError, match="not be built yet"):
        optimizer.build([layer.embeddings])
    with pytest.raises(ValueError, match="not be built yet"):
        MaskedOptimizer(inner, {layer: IDS})


@pytest.mark.parametrize("target", [3, None, ("words", "embeddings"), np.ones(2).tobytes()])
def test_a_target_must_be_a_layer_or_a_path(target):
    with pytest.raises(TypeError, match="layer of Keras 3 or the path"):
        MaskedOptimizer("sgd", {target: IDS})


@pytest.mark.parametrize("rows", [[6], [-1], [1, 1], [[1]], [True], []])
def test_rows_of_a_built_layer_are_checked_at_once(rows):
    with pytest.raises(ValueError, match="'words'"):
        MaskedOptimizer("sgd", {built_layer(): rows})


@pytest.mark.parametrize("rows", [[-1], [1, 1], [[1]]])
def test_rows_of_an_unbuilt_layer_are_checked_as_far_as_they_can_be(rows):
    with pytest.raises(ValueError, match="Row"):
        MaskedOptimizer("sgd", {keras.layers.Embedding(6, 3): rows})


def frozen_layer():
    layer = built_layer()
    layer.trainable = False
    return layer


def lora_layer():
    layer = built_layer()
    layer.enable_lora(2)
    return layer


def quantized_layer():
    layer = built_layer()
    layer.quantize("int8")
    return layer


@pytest.mark.parametrize(
    ("make_layer", "message"),
    [
        (frozen_layer, "trainable = True"),
        (lora_layer, "LoRA"),
        (quantized_layer, "quantized"),
    ],
)
def test_a_table_that_does_not_train_is_refused(make_layer, message):
    with pytest.raises(ValueError, match=message):
        MaskedOptimizer("sgd", {make_layer(): IDS})


def test_a_layer_with_more_than_a_table_is_refused():
    layer = keras.layers.Dense(3, name="dense")
    layer.build((None, 4))
    with pytest.raises(ValueError, match=r"owns 2 variables(.|\n)*dense/kernel"):
        MaskedOptimizer("sgd", {layer: [0]})


def test_a_layer_that_is_not_in_the_model_is_refused():
    optimizer = MaskedOptimizer("sgd", {built_layer(): IDS})
    with pytest.raises(ValueError, match=r"not among the variables(.|\n)*Is it the layer"):
        optimizer.build([kernel()])
    with pytest.raises(ValueError, match=r"another layer with the same name.*get_layer"):
        optimizer.build([built_layer().weights[0]])
    optimizer = MaskedOptimizer("sgd", {keras.layers.Embedding(6, 3): IDS})
    with pytest.raises(ValueError, match="not built"):
        optimizer.build([kernel()])


@pytest.mark.parametrize(
    "trainable_rows", [{"words/embeddings": [6]}, {"nothing": [1]}, {"dense/.*": [1], "d.*": [1]}]
)
def test_a_refused_build_changes_nothing(trainable_rows):
    layer, other = built_layer(), kernel()
    optimizer = MaskedOptimizer("adam", trainable_rows)
    before, state = layer.embeddings.numpy(), len(optimizer.variables)
    with pytest.raises(ValueError, match=r"(words|nothing|dense)"):
        optimizer.apply(dense_gradients(layer.embeddings, other), [layer.embeddings, other])
    assert not optimizer.built
    assert not optimizer.inner_optimizer.built
    assert len(optimizer.variables) == state
    assert_same_bits(layer.embeddings, before, "the table")
    assert not hasattr(layer.embeddings, "sparse_read")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_keras_backend_is_refused(backend, monkeypatch):
    layer = built_layer()
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(ValueError, match=rf"needs Keras to run on TensorFlow.*'{backend}'"):
        MaskedOptimizer("sgd", {layer: IDS})


def test_a_model_that_trains_nothing_has_no_table():
    with pytest.raises(ValueError, match=r"matches none of the variables that are trained\. "):
        MaskedOptimizer("adam", {"words/embeddings": IDS}).build([])


def test_an_optimizer_that_is_built_has_prepared_already():
    layer, tied = built_layer(), built_layer("tied")
    optimizer = MaskedOptimizer("adam", {layer: IDS})
    optimizer.build([layer.embeddings])
    optimizer.prepare([tied.embeddings])  # not looked at
    assert optimizer.trainable_rows == {layer.embeddings.path: Rows(IDS, 6)}
