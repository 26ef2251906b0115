"""Training that is taken up again is training that was never interrupted, bit for bit."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedModel, MaskedOptimizer, MaskedTrainStep
from maskedgrad.testing import assert_same_bits
from tests.features import some_optimizer_classes

RANDOM = np.random.default_rng(0)
NUM_ROWS, WIDTH, IDS = 12, 3, [2, 7]
X = RANDOM.integers(0, NUM_ROWS, size=(24, 5))
Y = RANDOM.normal(size=(24, 1)).astype("float32")
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)

VARIANTS = {
    "plain": {},
    "ema": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "schedule": {"learning_rate": SCHEDULE, "weight_decay": 0.1},
}


def layers():
    return [
        keras.layers.Embedding(NUM_ROWS, WIDTH, name="words"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(1, name="head"),
    ]


def functional():
    inputs = outputs = keras.Input((5,), dtype="int32")
    for layer in layers():
        outputs = layer(outputs)
    return MaskedModel(inputs, outputs)


@keras.saving.register_keras_serializable(package="tests")
class MaskedSequential(MaskedTrainStep, keras.Sequential):
    pass


def sequential():
    return MaskedSequential(layers())


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(MaskedModel):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.words, self.pool, self.head = layers()

    def call(self, ids):
        return self.head(self.pool(self.words(ids)))


MODELS = {"functional": functional, "sequential": sequential, "subclassed": Subclassed}


def compiled(make_model, optimizer):
    model = make_model()
    words = model.words if isinstance(model, Subclassed) else model.get_layer("words")
    model.compile(optimizer, loss="mse", trainable_rows={words: IDS})
    return model


def fit(model, **options):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options).history["loss"]


def assert_same_model(one, other):
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        assert_same_bits(ours, theirs, "a weight")
    slots = one.optimizer.variables, other.optimizer.variables
    for ours, theirs in zip(*slots, strict=True):
        assert_same_bits(ours, theirs, ours.path)


def assert_goes_on_as(model, restored):
    assert_same_model(model, restored)
    assert fit(model) == fit(restored)
    assert_same_model(model, restored)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cls", some_optimizer_classes())
def test_a_loaded_model_goes_on(cls, variant, tmp_path):
    model = compiled(functional, cls(**{"learning_rate": 0.1, **VARIANTS[variant]}))
    fit(model)
    model.save(tmp_path / "model.keras")
    assert_goes_on_as(model, keras.saving.load_model(tmp_path / "model.keras"))


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
def test_a_loaded_model_goes_on_with_its_loss_scale(make_model, outside, tmp_path):
    model = make_model()
    words = model.words if make_model is Subclassed else model.get_layer("words")
    scaled = keras.optimizers.LossScaleOptimizer
    if outside:
        optimizer = scaled(MaskedOptimizer("adamw", {words: IDS}), dynamic_growth_steps=2)
    else:
        optimizer = MaskedOptimizer(scaled(keras.optimizers.AdamW()), {words: IDS})
    model.compile(optimizer, loss="mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    assert_goes_on_as(model, keras.saving.load_model(tmp_path / "model.keras"))


@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
def test_weights_and_slots_restored_by_hand_go_on(make_model, tmp_path):
    model = compiled(make_model, keras.optimizers.Adam(0.1))
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = checkpoint.write(str(tmp_path / "checkpoint"))

    def fresh():
        again = compiled(make_model, keras.optimizers.Adam(0.1))
        again(X)
        again.optimizer.build(again.trainable_variables)
        return again

    by_weights, by_checkpoint = fresh(), fresh()
    by_weights.load_weights(tmp_path / "model.weights.h5")
    tf.train.Checkpoint(model=by_checkpoint, optimizer=by_checkpoint.optimizer).read(path)
    losses = fit(model)
    for restored in (by_weights, by_checkpoint):
        assert fit(restored) == losses
        assert_same_model(restored, model)


@pytest.mark.parametrize("make_model", MODELS.values(), ids=MODELS)
def test_backup_and_restore_goes_on(make_model, tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise InterruptedError

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    def fresh():
        keras.utils.set_random_seed(1)
        model = compiled(make_model, keras.optimizers.AdamW(0.1))
        model(X)
        return model

    uninterrupted = fresh()
    losses = fit(uninterrupted, epochs=4)
    crashed = fresh()
    with pytest.raises(InterruptedError):
        fit(crashed, epochs=4, callbacks=[backup(), Crash()])
    restored = fresh()
    assert fit(restored, epochs=4, callbacks=[backup()]) == losses[2:]
    assert_same_model(restored, uninterrupted)


def test_the_file_holds_one_table_and_a_few_rows_more(tmp_path):
    sizes = []
    for trainable in (False, True):
        inputs = keras.Input((5,), dtype="int32")
        words = keras.layers.Embedding(4096, 64, trainable=trainable)
        cls = MaskedModel if trainable else keras.Model
        outputs = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(words(inputs)))
        model = cls(inputs, outputs)
        rows = {"trainable_rows": {words: slice(-16, None)}} if trainable else {}
        model.compile("adam", loss="mse", **rows)
        fit(model)
        model.save(tmp_path / "model.keras")
        sizes.append((tmp_path / "model.keras").stat().st_size)
    row_bytes = 16 * 64 * 4
    assert sizes[1] - sizes[0] < 8 * row_bytes + 16_384  # two moments; the rest is HDF5's own


def test_a_checkpointed_model_goes_on(tmp_path):
    model = compiled(functional, keras.optimizers.Adam(0.1))
    path = str(tmp_path / "{epoch}.keras")
    fit(model, epochs=2, callbacks=[keras.callbacks.ModelCheckpoint(path)])
    restored = keras.saving.load_model(tmp_path / "1.keras")
    fit(restored)
    assert_goes_on_as(model, restored)


def test_an_exported_model_serves_without_maskedgrad(tmp_path):
    model = compiled(functional, keras.optimizers.Adam(0.1))
    fit(model)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_array_equal(exported.serve(tf.constant(X, "int32")), model(X))
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "exported"))
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    ids = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(ids, X.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(ids, X.astype("int32"))
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    # Another library's kernels add in another order.
    np.testing.assert_allclose(interpreter.get_tensor(output["index"]), model(X), rtol=1e-5)


@pytest.mark.processes
def test_a_stock_model_loads_where_maskedgrad_is_not_installed(tmp_path):
    inputs = outputs = keras.Input((5,), dtype="int32")
    for layer in layers():
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    model.compile(MaskedOptimizer("adam", {model.get_layer("words"): IDS}), loss="mse")
    fit(model)
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    program = (
        "import sys; sys.modules['maskedgrad'] = None\n"  # Python's way to say that there is none
        "import keras, numpy\n"
        "model = keras.saving.load_model('model.keras', compile=False)\n"
        "numpy.save('y.npy', model.predict(numpy.load('x.npy'), verbose=0))\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert_same_bits(np.load(tmp_path / "y.npy"), model.predict(X, verbose=0), "predictions")
