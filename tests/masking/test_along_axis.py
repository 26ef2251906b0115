"""Rows may lie along any axis: the columns of an output layer, and the entries of its bias."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from maskedgrad import AlongAxis, MaskedModel, MaskedOptimizer, RowPatch, mask_gradients
from maskedgrad.testing import TABLE_PATH, assert_same_bits, optimizers, tables
from tests.devices import mirrored_strategy
from tests.features import some_optimizer_classes

NUM_CLASSES, IDS = 7, [2, 6]
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(16, NUM_CLASSES)).astype("float32")


def classifier(model_class=MaskedModel, build=True):
    inputs = keras.Input((3,))
    head = keras.layers.Dense(NUM_CLASSES, name="head", bias_initializer="ones")
    if not build:
        return keras.Sequential([head]), head
    return model_class(inputs, head(inputs)), head


def assert_only_outputs_train(before, after):
    for one, other in zip(before, after, strict=True):
        changed = (one.view("uint32") != other.view("uint32")).reshape(-1, NUM_CLASSES).any(axis=0)
        assert np.flatnonzero(changed).tolist() == IDS


@pytest.mark.parametrize("cls", some_optimizer_classes())
@given(data=st.data())
def test_rows_along_any_axis_train_as_if_alone(cls, data):
    table, spec = data.draw(tables()), data.draw(optimizers(cls))
    assume(table.values.ndim > 1)
    axis = data.draw(st.integers(1, table.values.ndim - 1), label="axis")
    table.values = np.moveaxis(table.values, 0, axis).copy()
    variable = table.variable()
    compact = table.variable(np.take(table.values, table.ids, axis))
    oracle = spec.make()
    oracle.build([compact])
    named = axis - data.draw(st.sampled_from([0, table.values.ndim]), label="from the end")
    optimizer = MaskedOptimizer(spec.make(), {AlongAxis(TABLE_PATH, named): table.ids})
    optimizer.build([variable])
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for _ in range(data.draw(st.integers(1, 3), label="steps")):
        values = random.normal(size=table.values.shape).astype(table.values.dtype)
        np.moveaxis(values, axis, 0)[table.frozen] = np.inf
        selected = tf.constant(np.take(values, table.ids, axis))
        # A tensor to both: NumPy divides a bfloat16 array by a loss scale in float32.
        gradient = tf.constant(values)
        if data.draw(st.booleans(), label="sparse"):
            gradient = tf.IndexedSlices(gradient, tf.range(len(values)), tf.constant(values.shape))
        try:
            oracle.apply([selected], [compact])
        except Exception:
            reject()  # no law where the bare optimizer does not work either
        optimizer.apply([gradient], [variable])
        after = variable.numpy()
        assert_same_bits(
            np.take(after, table.frozen, axis), np.take(table.values, table.frozen, axis), "frozen"
        )
        assert_same_bits(np.take(after, table.ids, axis), compact, "trainable")
    for ours, theirs in zip(optimizer.inner_optimizer.variables, oracle.variables, strict=True):
        assert_same_bits(ours, theirs, f"slot {ours.path}")


@pytest.mark.parametrize("options", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
@pytest.mark.parametrize("model_class", [keras.Model, MaskedModel])
def test_a_layer_stands_for_its_kernel_and_its_bias(model_class, options):
    model, head = classifier(model_class)
    before = head.get_weights()
    model.compile(MaskedOptimizer("adamw", {AlongAxis(head, -1): IDS}), loss="mse", **options)
    model.fit(X, Y, verbose=0)
    assert_only_outputs_train(before, head.get_weights())


def test_replicas_train_the_same_outputs():
    with mirrored_strategy().scope():
        model, head = classifier()
        before = head.get_weights()
        model.compile(MaskedOptimizer("adamw", {AlongAxis(head, -1): IDS}), loss="mse")
    model.fit(X, Y, verbose=0)
    assert_only_outputs_train(before, head.get_weights())
    first, second = head.kernel.value.values
    assert_same_bits(first, second, "replicas")


def test_a_layer_that_is_not_built_is_named_too_and_comes_back_from_a_config():
    optimizers_of = []
    model, head = classifier(build=False)
    optimizers_of.append(MaskedOptimizer("adam", {AlongAxis(head, -1): IDS}))
    optimizers_of.append(MaskedOptimizer.from_config(optimizers_of[0].get_config()))
    model.build((None, 3))
    optimizers_of.append(MaskedOptimizer("adam", {AlongAxis(head, -1): IDS}))
    optimizers_of.append(MaskedOptimizer.from_config(optimizers_of[2].get_config()))
    for optimizer in optimizers_of:
        optimizer.build(model.trainable_variables)
        assert [list(rows) for rows in optimizer.trainable_rows.values()] == [IDS, IDS]
        assert next(iter(optimizer.trainable_rows)) == AlongAxis(head.kernel.path, 1)
        built_again = MaskedOptimizer.from_config(optimizer.get_config())
        assert built_again.get_config() == optimizer.get_config()


def test_a_saved_model_trains_on_as_if_never_saved(tmp_path):
    model, head = classifier()
    model.compile(MaskedOptimizer("adam", {AlongAxis(head, -1): IDS}), loss="mse")
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, loaded):
        one.fit(X, Y, verbose=0, shuffle=False)
    for ours, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        assert_same_bits(ours, theirs, "weights")


def test_outputs_that_stay_keep_their_state_when_rows_change():
    model, head = classifier()
    optimizer = MaskedOptimizer("adam", {AlongAxis(head, -1): IDS})
    model.compile(optimizer, loss="mse")
    model.fit(X, Y, verbose=0)
    momentum = next(v for v in optimizer.variables if v.path.endswith("kernel_momentum"))
    kept = momentum.numpy()[:, 1]
    optimizer.set_trainable_rows({AlongAxis(head, -1): [0, 6]})
    momentum = next(v for v in optimizer.variables if v.path.endswith("kernel_momentum"))
    assert momentum.numpy()[:, 0].tolist() == [0, 0, 0]
    assert_same_bits(momentum.numpy()[:, 1], kept, "row 6")
    with pytest.raises(ValueError, match="along the same axes"):
        optimizer.set_trainable_rows({head.kernel.path: [0], head.bias.path: [0]})


def test_columns_learn_at_rates_of_their_own():
    model, head = classifier()
    before = head.get_weights()[0]
    target = AlongAxis(head, -1)
    sgd = keras.optimizers.SGD(0.1)
    model.compile(
        MaskedOptimizer(sgd, {target: IDS}, row_learning_rates={target: {0.5: [6]}}), loss="mse"
    )
    model.train_on_batch(X, Y)
    whole, head_of_whole = classifier()
    head_of_whole.set_weights([before, np.ones(NUM_CLASSES)])
    whole.compile(
        MaskedOptimizer(keras.optimizers.SGD(0.1), {AlongAxis(head_of_whole, -1): IDS}), "mse"
    )
    whole.train_on_batch(X, Y)
    ours, theirs = (h.get_weights()[0] - before for h in (head, head_of_whole))
    assert_same_bits(ours[:, 2], theirs[:, 2], "a column of multiplier 1")
    # Both differences were rounded when the step was added to the kernel.
    np.testing.assert_allclose(ours[:, 6], 0.5 * theirs[:, 6], atol=1e-6)


@given(
    values=st.lists(st.floats(width=32), min_size=12, max_size=12),
    ids=st.lists(st.integers(0, 3), min_size=1, unique=True),
    sparse=st.booleans(),
)
def test_gradients_are_masked_along_any_axis(values, ids, sparse):
    kernel = keras.Variable(np.zeros((3, 4), "float32"), name="kernel")
    values = np.array(values, "float32").reshape(3, 4)
    gradient = tf.constant(values)
    if sparse:
        gradient = tf.IndexedSlices(gradient, tf.constant([2, 0, 2]), tf.constant([3, 4]))
    (masked,) = mask_gradients([gradient], [kernel], {AlongAxis("kernel", 1): ids})
    expected = np.where(np.isin(np.arange(4), ids), values, 0)
    assert_same_bits(masked.values if sparse else masked, expected.astype("float32"), "masked")
    if sparse:
        assert masked.indices.numpy().tolist() == [2, 0, 2]


def test_a_row_patch_holds_rows_of_the_first_axis_only():
    model, head = classifier()
    model.compile(MaskedOptimizer("adam", {AlongAxis(head, -1): IDS}), loss="mse")
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="along axis 1"):
        RowPatch.from_model(model)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda head: AlongAxis(3, 1), TypeError, "`target` must be a layer or the path"),
        (lambda head: AlongAxis(AlongAxis(head, 1), 1), TypeError, "must be a layer or the path"),
        (lambda head: AlongAxis(head, "last"), TypeError, "`axis` must be an int"),
        (lambda head: AlongAxis(head, True), TypeError, "`axis` must be an int"),
        (lambda head: AlongAxis(head, 1), ValueError, "is -1"),
        (lambda head: AlongAxis(head, 0), ValueError, "one length"),
        (lambda head: AlongAxis(head.kernel.path, -3), ValueError, "has 2 axes"),
        (lambda head: AlongAxis(keras.layers.Dropout(0.1), -1), ValueError, "owns no variable"),
        (lambda head: AlongAxis(keras.layers.Dense(3), -1), ValueError, "is not built"),
        (lambda head: head, ValueError, r"AlongAxis\(layer, axis\)"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(make, error, message):
    model, head = classifier()
    with pytest.raises(error, match=message):
        MaskedOptimizer("adam", {make(head): [1]}).build(model.trainable_variables)
