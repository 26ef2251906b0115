"""`MaskedModel` trains as Keras does, in any way of running, and masks before anything looks."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep
from maskedgrad.model import MaskedFunctional
from maskedgrad.testing import assert_same_bits
from tests.devices import mirrored_strategy
from tests.features import exported, needs

NUM_ROWS, WIDTH, IDS = 12, 3, [2, 7]
FROZEN = np.setdiff1d(np.arange(NUM_ROWS), IDS)
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(NUM_ROWS, WIDTH)).astype("float32")
X = RANDOM.integers(0, NUM_ROWS, size=(32, 5))
Y = RANDOM.normal(size=(32, 1)).astype("float32")

WAYS_OF_RUNNING = {
    "graph": {},
    "eager": {"run_eagerly": True},
    "jit": {"jit_compile": True},
    "several steps": {"steps_per_execution": 3},
}


def words():
    return keras.layers.Embedding(
        NUM_ROWS, WIDTH, embeddings_initializer=lambda *_, **__: MATRIX.copy(), name="words"
    )


def head():
    return [
        keras.layers.GlobalAveragePooling1D(name="pool"),
        keras.layers.Dense(1, kernel_initializer="ones", name="head"),
    ]


def functional(base):
    inputs = keras.Input((5,), dtype="int32")
    outputs = inputs
    for layer in (embedding := words(), *head()):
        outputs = layer(outputs)
    return base(inputs, outputs), embedding


def sequential(base):
    cls = keras.Sequential
    if base is MaskedModel:
        cls = type("MaskedSequential", (MaskedTrainStep, keras.Sequential), {})
    embedding = words()
    return cls([embedding, *head()]), embedding


def subclassed(base):
    class Classifier(base):
        def __init__(self):
            super().__init__()
            self.words, (self.pool, self.head) = words(), head()

        def call(self, ids):
            return self.head(self.pool(self.words(ids)))

    model = Classifier()
    return model, model.words


MODELS = {"functional": functional, "sequential": sequential, "subclassed": subclassed}


def train(model, optimizer, **options):
    model.compile(optimizer, loss="mse", **options)
    history = model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return history.history["loss"]


@pytest.mark.parametrize("running", WAYS_OF_RUNNING)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("built", [False, True], ids=["built by the first batch", "built"])
@pytest.mark.parametrize("cls", [keras.optimizers.AdamW, exported("optimizers.ScheduleFreeAdamW")])
def test_any_model_in_any_way_of_running_trains_the_rows_and_no_others(cls, built, make, running):
    results = []
    for base in (MaskedModel, keras.Model):
        model, layer = make(base)
        if built:
            model(X[:1])
        optimizer = MaskedOptimizer(cls(0.1, weight_decay=0.1), {layer: IDS})
        losses = train(model, optimizer, **WAYS_OF_RUNNING[running])
        table = layer.embeddings.numpy()
        assert_same_bits(table[FROZEN], MATRIX[FROZEN], "frozen rows")
        assert (table[IDS] != MATRIX[IDS]).all()
        results.append((losses, model.get_weights(), optimizer.variables))
    (losses, weights, slots), (stock_losses, stock_weights, stock_slots) = results
    assert losses == stock_losses
    for ours, stock in zip([*weights, *slots], [*stock_weights, *stock_slots], strict=True):
        assert_same_bits(ours, stock, "a weight or a slot")


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_one_step_of_gradient_descent_is_that_of_the_whole_table(make):
    model, layer = make(MaskedModel)
    model.compile(keras.optimizers.SGD(0.5), loss="mse", trainable_rows={layer: IDS})
    whole, whole_layer = make(keras.Model)
    whole.compile(keras.optimizers.SGD(0.5), loss="mse")
    assert model.train_on_batch(X, Y) == whole.train_on_batch(X, Y)
    # Keras adds up repeated slices one by one, in another order.
    np.testing.assert_allclose(
        layer.embeddings.numpy()[IDS], whole_layer.embeddings.numpy()[IDS], rtol=1e-6, atol=1e-7
    )
    assert_same_bits(model.layers[-1].kernel, whole.layers[-1].kernel, "the head")


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("cls", [keras.optimizers.AdamW, exported("optimizers.ScheduleFreeAdamW")])
def test_a_loop_written_by_hand_trains_the_rows_and_no_others(cls, built, jit_compile):
    model, layer = sequential(keras.Model)
    optimizer = MaskedOptimizer(cls(0.1), {layer: IDS})
    if built:
        model(X[:1])

    @tf.function(jit_compile=jit_compile)
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    losses = [float(step(X, Y)) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert_same_bits(layer.embeddings.numpy()[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (layer.embeddings.numpy()[IDS] != MATRIX[IDS]).all()
    assert int(optimizer.iterations) == 5


class Poison(keras.layers.Layer):
    """Passes vectors through, and multiplies the gradient of some of them."""

    def __init__(self, bad_ids, factor):
        super().__init__()
        self.bad_ids, self.factor = bad_ids, factor

    def call(self, vectors, ids):
        bad = tf.reduce_any(tf.expand_dims(ids, -1) == self.bad_ids, axis=-1, keepdims=True)

        @tf.custom_gradient
        def poison(vectors):
            return tf.identity(vectors), lambda up: tf.where(bad, up * self.factor, up)

        return poison(vectors)


def poisoned(base, factor, bad_ids=FROZEN):
    inputs = keras.Input((5,), dtype="int32")
    vectors = (embedding := words())(inputs)
    outputs = Poison(tf.constant(bad_ids, "int32"), factor)(vectors, inputs)
    for layer in head():
        outputs = layer(outputs)
    return base(inputs, outputs), embedding


SCALERS = {
    "none": MaskedOptimizer,
    "inside": lambda inner, rows: MaskedOptimizer(
        keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0), rows
    ),
    "outside": lambda inner, rows: keras.optimizers.LossScaleOptimizer(
        MaskedOptimizer(inner, rows), initial_scale=4.0
    ),
}


@pytest.mark.parametrize("scaler", SCALERS.values(), ids=SCALERS)
@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
@pytest.mark.parametrize("running", ["graph", "jit"])
def test_what_frozen_rows_get_for_a_gradient_changes_nothing_at_all(running, factor, scaler):
    results = []
    for poison in (factor, 1.0):
        model, layer = poisoned(MaskedModel, poison)
        optimizer = scaler(keras.optimizers.Adam(0.1, global_clipnorm=0.1), {layer: IDS})
        losses = train(model, optimizer, **WAYS_OF_RUNNING[running])
        results.append([*model.get_weights(), *optimizer.variables, np.array(losses)])
    for with_poison, without in zip(*results, strict=True):
        assert_same_bits(with_poison, without, "a weight, a slot or a loss")
    assert np.isfinite(results[0][0]).all()


def test_a_loss_scaler_still_sees_what_trainable_rows_get():
    model, layer = poisoned(MaskedModel, float("inf"), bad_ids=IDS)
    optimizer = SCALERS["outside"](keras.optimizers.SGD(0.1), {layer: IDS})
    train(model, optimizer)
    assert float(optimizer.dynamic_scale) < 4.0


@pytest.mark.parametrize("trace", [lambda step: step, tf.function], ids=["eager", "graph"])
def test_a_loss_scaler_sees_nothing_of_frozen_rows_in_the_step_that_builds_the_model(trace):
    class Poisoned(MaskedModel):
        def __init__(self):
            super().__init__()
            self.words, (self.pool, self.head) = words(), head()
            self.poison = Poison(tf.constant(FROZEN, "int32"), float("inf"))

        def call(self, ids):
            return self.head(self.pool(self.poison(self.words(ids), ids)))

    model = Poisoned()
    optimizer = SCALERS["outside"](keras.optimizers.SGD(0.1), {model.words: IDS})
    model.compile(optimizer, loss="mse")
    trace(model.train_step)((tf.constant(X, "int32"), tf.constant(Y)))
    assert float(optimizer.dynamic_scale) == 4.0
    assert (model.words.embeddings.numpy()[IDS] != MATRIX[IDS]).all()


def test_mixed_precision_scales_the_loss_and_freezes():
    keras.config.set_dtype_policy("mixed_float16")
    model, layer = functional(MaskedModel)
    train(model, MaskedOptimizer("adamw", {layer: IDS}))
    assert isinstance(model.optimizer, MaskedOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.LossScaleOptimizer)
    assert_same_bits(layer.embeddings.numpy()[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (layer.embeddings.numpy()[IDS] != MATRIX[IDS]).all()


def test_a_table_looked_up_twice_trains_by_both():
    inputs = keras.Input((5,), dtype="int32"), keras.Input((5,), dtype="int32")
    embedding, pool = words(), keras.layers.GlobalAveragePooling1D()
    outputs = keras.layers.Dot(1)([pool(embedding(x)) for x in inputs])
    model = MaskedModel(list(inputs), outputs)
    model.compile(keras.optimizers.SGD(0.1), loss="mse", trainable_rows={embedding: IDS})
    model.train_on_batch([np.full((1, 5), 2), np.full((1, 5), 7)], Y[:1])
    table = embedding.embeddings.numpy()
    assert_same_bits(table[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (table[IDS] != MATRIX[IDS]).all()


def test_a_table_tied_to_the_output_trains_its_rows_only():
    inputs = keras.Input((5,), dtype="int32")
    embedding = words()

    class Logits(keras.layers.Layer):
        def call(self, hidden):
            return keras.ops.matmul(hidden, keras.ops.transpose(embedding.embeddings))

    hidden = keras.layers.GlobalAveragePooling1D()(embedding(inputs))
    model = MaskedModel(inputs, Logits()(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss=loss, trainable_rows={embedding: IDS})
    model.fit(X, X[:, 0], epochs=2, verbose=0)
    table = embedding.embeddings.numpy()
    assert_same_bits(table[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (table[IDS] != MATRIX[IDS]).all()


def test_rows_of_a_kernel_train_alone():
    inputs = keras.Input((4,))
    dense = keras.layers.Dense(2, name="dense")
    model = MaskedModel(inputs, dense(inputs))
    before = dense.kernel.numpy()
    model.compile("adamw", loss="mse", trainable_rows={"dense/kernel": [3]})
    model.fit(RANDOM.normal(size=(8, 4)), np.ones((8, 2)), verbose=0)
    assert_same_bits(dense.kernel.numpy()[:3], before[:3], "frozen rows")
    assert (dense.kernel.numpy()[3] != before[3]).all()
    assert dense.bias.numpy().any()


@pytest.mark.parametrize(
    "regularizer", [keras.regularizers.L2(1.0), keras.regularizers.OrthogonalRegularizer()]
)
def test_a_regularizer_does_not_reach_frozen_rows(regularizer):
    model, layer = functional(MaskedModel)
    layer.embeddings.regularizer = regularizer
    train(model, MaskedOptimizer("sgd", {layer: IDS}))
    assert_same_bits(layer.embeddings.numpy()[FROZEN], MATRIX[FROZEN], "frozen rows")


def with_its_own_loss_and_metrics(base):
    class Noted(base):
        def __init__(self):
            super().__init__()
            self.words, (self.pool, self.head) = words(), head()
            self.dropout = keras.layers.Dropout(0.5, seed=0)
            # One goes before "loss" in the alphabet, and one after it. Keras updates neither.
            self.means = [keras.metrics.Mean(name=name) for name in ("ease", "zeal")]

        def call(self, ids, training=False):
            return self.head(self.pool(self.dropout(self.words(ids), training=training)))

        def compute_loss(self, *args, training=True, **kwargs):
            loss = super().compute_loss(*args, training=training, **kwargs)
            return loss if training else 2 * loss

    model = Noted()
    return model, model.words


@pytest.mark.parametrize("make", [functional, with_its_own_loss_and_metrics])
def test_what_training_shows_is_what_keras_shows(make):
    histories = []
    for base in (MaskedModel, keras.Model):
        model, layer = make(base)
        model.compile(MaskedOptimizer("sgd", {layer: IDS}), loss="mse", metrics=["mae"])
        # The last batch is smaller, and counts less.
        history = model.fit(X[:30], Y[:30], batch_size=8, epochs=2, shuffle=False, verbose=0)
        histories.append(history.history)
    assert histories[0] == histories[1]


def test_the_loss_of_replicas_is_what_keras_shows():
    losses = []
    for base in (MaskedModel, keras.Model):
        with mirrored_strategy().scope():
            model, layer = functional(base)
            model.compile(MaskedOptimizer("sgd", {layer: IDS}), loss="mse")
        losses.append(model.fit(X, Y, batch_size=8, shuffle=False, verbose=0).history["loss"])
    assert losses[0] == losses[1]


def test_a_step_is_not_traced_again_for_other_rows():
    traces = []

    class Traced(MaskedModel):
        def train_step(self, data):
            traces.append(len(traces))
            return super().train_step(data)

    inputs = keras.Input((5,), dtype="int32")
    outputs = (embedding := words())(inputs)
    for layer in head():
        outputs = layer(outputs)
    model = Traced(inputs, outputs)
    optimizer = MaskedOptimizer("adam", {embedding: IDS})
    model.compile(optimizer, loss="mse")

    def traces_of_fit():
        before = len(traces)
        model.fit(X, Y, verbose=0)
        return len(traces) - before

    assert traces_of_fit() > 0
    assert traces_of_fit() == 0
    for rows in ([3], [3, 4, 5], IDS):
        optimizer.set_trainable_rows({embedding: rows})
        assert traces_of_fit() == 0
    model.make_train_function(force=True)
    assert traces_of_fit() > 0


# ---- the class ----


@pytest.mark.parametrize(
    "make",
    [
        MaskedModel,
        lambda inputs, outputs: MaskedModel(inputs, outputs=outputs),
        lambda inputs, outputs: MaskedModel(inputs=inputs, outputs=outputs, name="named"),
    ],
)
def test_inputs_and_outputs_make_a_functional_model_however_they_are_given(make):
    inputs = keras.Input((3,))
    model = make(inputs, keras.layers.Dense(1)(inputs))
    assert type(model) is MaskedFunctional
    assert type(keras.Model.from_config(model.get_config())).__name__ == "Functional"
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model))
    assert type(again) is MaskedFunctional
    assert MaskedModel.__bases__ == (MaskedTrainStep, keras.Model)


def test_the_summary_takes_what_that_of_keras_takes():
    ours, theirs = (
        [
            (each.name, each.kind, each.default)
            for each in inspect.signature(cls.summary).parameters.values()
        ]
        for cls in (MaskedModel, keras.Model)
    )
    assert ours == theirs


def test_functional_and_subclassed_models_live_in_one_process():
    class WithCall(MaskedModel):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.dense = keras.layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    class WithInputs(MaskedModel):
        def __init__(self, width):
            inputs = keras.Input((width,))
            super().__init__(inputs=inputs, outputs=keras.layers.Dense(1)(inputs))

    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1)(inputs)
    for _ in range(2):
        models = [WithCall(), WithInputs(3), MaskedModel(inputs, outputs)]
        models.append(type("Plain", (MaskedModel,), {})(inputs, outputs))
        for model in models:
            assert isinstance(model, MaskedModel)
            assert model(np.ones((2, 3), "float32")).shape == (2, 1)
    assert WithCall().__class__ is WithCall


def test_compile_wraps_the_optimizer():
    model, layer = functional(MaskedModel)
    model.compile(keras.optimizers.Adam(0.5), "mse", trainable_rows={layer: IDS})
    assert isinstance(model.optimizer, MaskedOptimizer)
    assert float(model.optimizer.learning_rate) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda rows: "adam",
        lambda rows: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
        pytest.param(
            lambda rows: keras.optimizers.MultiOptimizer(
                keras.optimizers.OptimizerMap(MaskedOptimizer("adam", rows))
            ),
            marks=needs("optimizers.MultiOptimizer"),
        ),
    ],
)
def test_an_optimizer_that_masks_nothing_is_refused(make):
    model, layer = functional(MaskedModel)
    with pytest.raises(ValueError, match="every row would train"):
        model.compile(make({layer: IDS}), loss="mse")
    assert not model.compiled


@pytest.mark.parametrize(
    "compile_by",
    [
        lambda model, rows: model.compile(MaskedOptimizer("rmsprop", rows)),
        lambda model, rows: model.compile(MaskedOptimizer("rmsprop", rows), "mse"),
        lambda model, rows: model.compile(optimizer=MaskedOptimizer("rmsprop", rows), loss="mse"),
        lambda model, rows: model.compile(trainable_rows=rows),
        lambda model, rows: model.compile(None, "mse", trainable_rows=rows),
        lambda model, rows: model.compile(loss="mse", trainable_rows=rows),
    ],
)
def test_rows_are_enough_to_compile_and_the_optimizer_is_that_of_keras(compile_by):
    model, layer = functional(MaskedModel)
    compile_by(model, {layer: IDS})
    assert model.compiled
    assert isinstance(model.optimizer.inner_optimizer, keras.optimizers.RMSprop)


@pytest.mark.parametrize("given", [((None, "mse"), {}), ((), {"loss": "mse"})], ids=str)
def test_a_loss_without_rows_is_refused(given):
    args, kwargs = given
    model, _ = functional(MaskedModel)
    with pytest.raises(ValueError, match="every row would train"):
        model.compile(*args, **kwargs)


def test_rows_given_twice_are_refused():
    model, layer = functional(MaskedModel)
    optimizer = MaskedOptimizer("adam", {layer: IDS})
    with pytest.raises(ValueError, match="must not mask rows itself"):
        model.compile(optimizer, loss="mse", trainable_rows={layer: IDS})


@pytest.mark.parametrize("make", [functional, sequential])
def test_a_loaded_model_trains_on_as_if_never_saved(make, tmp_path):
    model, layer = make(MaskedModel)
    custom_objects = {type(model).__name__: type(model)} if make is sequential else None
    layer.embeddings_initializer = "zeros"  # a lambda is not loaded safely
    train(model, MaskedOptimizer(keras.optimizers.AdamW(0.1), {layer: IDS}))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", custom_objects=custom_objects)
    for each in (model, loaded):
        each.fit(X, Y, batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(
        [*model.get_weights(), *model.optimizer.variables],
        [*loaded.get_weights(), *loaded.optimizer.variables],
        strict=True,
    ):
        assert_same_bits(one, other, "a weight or a slot")


def test_a_file_that_lost_its_optimizer_is_refused_and_what_helps_is_said(tmp_path):
    model, layer = functional(MaskedModel)
    layer.embeddings_initializer = "zeros"  # a lambda is not loaded safely
    model.compile("sgd", loss="mse", trainable_rows={layer: IDS})
    model.save(tmp_path / "model.h5")
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"model\.h5.*`compile=False`"):
        keras.saving.load_model(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert_same_bits(loaded.get_weights()[0], model.get_weights()[0], "the table")


def test_a_model_that_is_not_built_yet_is_compiled_as_its_config_says():
    model, _ = subclassed(MaskedModel)
    model.compile("adamw", loss="mse", trainable_rows={"(.*/)?words/embeddings": IDS})
    other, layer = subclassed(MaskedModel)
    other.compile_from_config(model.get_compile_config())
    other.fit(X, Y, verbose=0)
    table = layer.embeddings.numpy()
    assert_same_bits(table[FROZEN], MATRIX[FROZEN], "frozen rows")
    assert (table[IDS] != MATRIX[IDS]).all()


def test_without_any_argument_nothing_is_compiled_and_nothing_trains():
    model = MaskedModel(inputs := keras.Input((2,)), keras.layers.Dense(1)(inputs))
    model.compile()
    with pytest.raises(ValueError, match="must call `compile"):
        model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)


def test_a_compile_that_is_refused_changes_nothing():
    words = keras.layers.Embedding(5, 2)
    model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    model.compile("adam", loss="mse", trainable_rows={words: [1]})
    optimizer = model.optimizer
    with pytest.raises(ValueError, match="matches none"):
        model.compile("sgd", loss="mae", trainable_rows={"nope": [1]})
    assert model.optimizer is optimizer
    assert model.loss == "mse"


def test_an_optimizer_that_masks_nothing_is_refused_where_it_is_assigned_too():
    words = keras.layers.Embedding(5, 2)
    model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    model.compile("adam", loss="mse", trainable_rows={words: [1]})
    before = words.get_weights()[0]
    model.optimizer = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="must be a `MaskedOptimizer`"):
        model.fit(np.array([[0, 1, 2]]), np.ones((1, 3, 2)), verbose=0)
    assert_same_bits(words.get_weights()[0], before, "the table")


@pytest.mark.parametrize("as_given", [lambda one: one, lambda one: [[one]]], ids=["bare", "nested"])
def test_callbacks_may_be_nested_as_in_keras(as_given):
    words = keras.layers.Embedding(5, 2)
    model = MaskedModel(inputs := keras.Input((3,)), words(inputs))
    averaging = keras.optimizers.Adam(use_ema=True)
    model.compile(averaging, loss="mse", trainable_rows={words: [1]})
    x, y = np.array([[0, 1, 2]]), np.ones((1, 3, 2))
    model.fit(x, y, verbose=0, callbacks=as_given(keras.callbacks.TerminateOnNaN()))
    swap = keras.callbacks.SwapEMAWeights()
    for method, data in [(model.fit, (x, y)), (model.evaluate, (x, y)), (model.predict, (x,))]:
        assert method(*data, verbose=0, callbacks=as_given(keras.callbacks.Callback())) is not None
        with pytest.raises(ValueError, match="SwapEMAWeights"):
            method(*data, verbose=0, callbacks=as_given(swap))


def test_keras_still_has_the_method_that_lets_a_model_train_on_several_machines():
    assert callable(keras.Model._maybe_symbolic_build)
