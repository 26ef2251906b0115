"""Situations: saving, loading and copying."""

import copy
import pickle

import keras
import numpy as np
import tensorflow as tf

from tests.as_stock.harness import (
    NUM_ROWS,
    X,
    Y,
    entered,
    fitted,
    learned,
    rare_situation,
    situation,
    unwrapped,
)


def trained(way, optimizer="adam"):
    # Not "mse", which Keras does not find in a legacy file.
    model = way.small(optimizer, loss=keras.losses.MeanSquaredError())
    model.train_on_batch(X, Y)
    return model


def whole(suffix):
    def save(model, folder):
        path = folder / f"model{suffix}"
        model.save(path)
        return keras.saving.load_model(path)

    return save


def weights_into_another(model, folder):
    path = folder / "model.weights.h5"
    model.save_weights(path)
    other = keras.models.clone_model(model)
    other.compile_from_config(model.get_compile_config())
    other.optimizer.build(other.trainable_variables)
    other.load_weights(path)
    return other


def checkpoint(model, folder):
    prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(folder / "state")
    model.train_on_batch(X, Y)
    status = tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(prefix)
    status.assert_consumed()
    return model


COPIES = {
    "a_keras_file": whole(".keras"),
    "a_legacy_h5_file": whole(".h5"),
    "a_file_of_weights": weights_into_another,
    "a_checkpoint": checkpoint,
    "a_clone": lambda model, folder: keras.models.clone_model(model),
    "a_deep_copy": lambda model, folder: copy.deepcopy(model),
    "a_pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),  # noqa: S301 - our own
}
for name, make_copy in COPIES.items():

    def train_on(way, make_copy=make_copy):
        model = trained(way)
        other = make_copy(model, way.folder)
        if not other.compiled:
            return model.get_weights()
        other.run_eagerly = True
        return fitted(other), fitted(model)

    entered(f"training_goes_on_in_{name}", train_on, often=name not in {"a_pickle", "a_clone"})


@rare_situation
def a_model_that_is_saved_before_it_trains(way):
    model = way.small()
    model.save(way.folder / "model.keras")
    return fitted(keras.saving.load_model(way.folder / "model.keras"))


def quantized(model):
    model.quantize("int8")


def frozen(model):
    model.get_layer("words").trainable = False
    model.compile(model.optimizer, loss="mse", run_eagerly=True)


for change in (quantized, frozen):

    def saved_twice(way, change=change):
        """A model whose table trains no more; its copies predict, train and are saved again."""
        model, results = trained(way), []
        change(model)
        for number in range(2):
            path = way.folder / f"model_{number}.keras"
            model.save(path)
            model = keras.saving.load_model(path)
            model.run_eagerly = True
            results += [model.predict(X, verbose=0), fitted(model)]
        return results

    entered(f"a_model_that_is_{change.__name__}_after_training_and_saved", saved_twice)


@situation
def a_legacy_h5_file_and_a_keras_file_after_it(way):
    # Keras takes the optimizer out of the compile config as it writes the first.
    model = trained(way)
    model.save(way.folder / "model.h5")
    model.save(way.folder / "model.keras")
    loaded = keras.saving.load_model(way.folder / "model.keras", compile=False)
    return loaded.get_weights(), fitted(model)


@rare_situation
def a_file_that_is_loaded_without_compiling(way):
    model = trained(way)
    model.save(way.folder / "model.keras")
    loaded = keras.saving.load_model(way.folder / "model.keras", compile=False)
    return loaded.get_weights(), fitted(way.compiled(loaded))


@rare_situation
def weights_for_a_model_whose_optimizer_is_not_built(way):
    model = trained(way)
    model.save_weights(way.folder / "model.weights.h5")
    other = way.small()
    other.load_weights(way.folder / "model.weights.h5")
    return fitted(other)


@rare_situation
def weights_that_do_not_fit(way):
    model = trained(way)
    model.save_weights(way.folder / "model.weights.h5")
    inputs = keras.Input((3,), dtype="int32")
    words = keras.layers.Embedding(NUM_ROWS + 1, 4, name="words")
    flat = keras.layers.Flatten()(words(inputs))
    other = way.compiled(way.model(inputs, keras.layers.Dense(1, name="head")(flat)))
    other.load_weights(way.folder / "model.weights.h5", skip_mismatch=True)
    return fitted(other)


@rare_situation
def weights_that_do_not_fit_and_are_not_to_be_skipped(way):
    model = trained(way)
    model.save_weights(way.folder / "model.weights.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).load_weights(
        way.folder / "model.weights.h5"
    )


@rare_situation
def an_export(way):
    model = trained(way)
    model.export(way.folder / "exported", verbose=False)
    loaded = tf.saved_model.load(str(way.folder / "exported"))
    return loaded.serve(tf.constant(X))


@rare_situation
def state_trees(way):
    model = trained(way)
    tree = model.get_state_tree()
    fitted(model)
    model.set_state_tree(tree)
    return fitted(model)


@rare_situation
def what_an_optimizer_holds_set_by_hand(way):
    model = trained(way)
    values = [variable.numpy() for variable in unwrapped(model.optimizer).variables]
    fitted(model)
    for variable, value in zip(unwrapped(model.optimizer).variables, values, strict=True):
        variable.assign(value)
    return fitted(model)


@rare_situation
def an_optimizer_from_its_config(way):
    optimizer = way.optimizer(keras.optimizers.AdamW(0.1, weight_decay=0.3, clipnorm=0.5))
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    model = way.small()
    model.compile(again, loss="mse", run_eagerly=True)
    return fitted(model)


@rare_situation
def a_subclassed_model(way):
    @keras.saving.register_keras_serializable(package=f"as_stock_{id(way)}")
    class Own(way.model):
        def __init__(self, **options):
            super().__init__(**options)
            self.words = keras.layers.Embedding(NUM_ROWS, 4, name="words")
            self.head = keras.layers.Dense(1)

        def call(self, ids):
            return self.head(keras.ops.mean(self.words(ids), axis=1))

    model = way.compiled(Own())
    model.train_on_batch(X, Y)
    model.save(way.folder / "model.keras")
    loaded = keras.saving.load_model(way.folder / "model.keras")
    loaded.run_eagerly = True
    return fitted(loaded), fitted(model)


# A variable.


def table_of(way):
    return trained(way).get_layer("words").embeddings


def looked_up(variable):
    """What all lookups in a variable give."""
    return [
        variable.numpy(),
        tf.gather(variable, [0, 2]),
        keras.ops.take(variable, [0, 2], axis=0),
        tf.nn.embedding_lookup(variable, [0, 2]),
        variable[1],
        tf.convert_to_tensor(variable),
    ]


VARIABLES = {
    "a_deep_copy_of_a_variable": copy.deepcopy,
    "a_copy_of_a_variable": copy.copy,
    "a_pickle_of_a_variable": lambda variable: pickle.loads(pickle.dumps(variable)),  # noqa: S301 - our own
}
for name, copied in VARIABLES.items():

    def look_up(way, copied=copied):
        variable = table_of(way)
        other = copied(variable)
        other.assign(np.full(other.shape, 7.0))
        return looked_up(other), looked_up(variable)

    entered(name, look_up, often=name != "a_copy_of_a_variable")


@rare_situation
def a_layer_from_its_config(way):
    layer = trained(way).get_layer("words")
    other = type(layer).from_config(layer.get_config())
    other.build()
    other.set_weights(layer.get_weights())
    return other(X)


@rare_situation
def weights_that_are_final_by_epoch(way):
    model = way.small(keras.optimizers.Adam(0.1, use_ema=True))
    after = fitted(model)
    model.save(way.folder / "model.keras")
    return after, learned(keras.saving.load_model(way.folder / "model.keras"))
