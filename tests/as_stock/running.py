"""Situations: ways of running a step, and of giving it data."""

import keras
import numpy as np
import tensorflow as tf

from tests.as_stock.harness import (
    LENGTH,
    NUM_ROWS,
    WIDTH,
    X,
    Y,
    entered,
    fitted,
    learned,
    rare_situation,
    situation,
)

REPEATED = np.array([[1, 1, 2], [2, 2, 1], [3, 1, 3], [1, 2, 1]], "int32")
RUNNING = {
    "eagerly": {"run_eagerly": True},
    "in_a_graph": {"run_eagerly": False},
    "under_xla": {"jit_compile": True},
    "several_steps_per_execution": {"run_eagerly": False, "steps_per_execution": 3},
}
for name, options in RUNNING.items():
    entered(f"fit_{name}", lambda way, options=options: fitted(way.small(**options)))


@situation
def ids_that_a_batch_repeats(way):
    return [
        fitted(way.small(optimizer, run_eagerly=eager), REPEATED)
        for optimizer, eager in (("adam", True), ("rmsprop", True), ("sgd", False))
    ]


@rare_situation
def a_last_batch_that_is_smaller(way):
    return fitted(way.small("sgd", run_eagerly=False), batch_size=3)


@situation
def train_and_test_and_predict_on_batches(way):
    model = way.small(metrics=["mae"])
    logs = [model.train_on_batch(X, Y, return_dict=True) for _ in range(2)]
    logs.append(model.test_on_batch(X, Y, return_dict=True))
    return logs, model.predict_on_batch(X), learned(model)


@rare_situation
def evaluate_and_predict_between_fits(way):
    model = way.small(run_eagerly=False)
    first = fitted(model, epochs=1)
    seen = model.evaluate(X, Y, verbose=0), model.predict(X, verbose=0)
    return first, seen, fitted(model, epochs=1)


def generator():
    while True:
        yield X[:2], Y[:2]
        yield X[2:], Y[2:]


class Batches(keras.utils.PyDataset):
    """Two batches."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return X[index::2], Y[index::2]


DATA = {
    "a_generator": lambda: (generator(), {"steps_per_epoch": 2}),
    "a_dataset": lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(3), {}),
    "an_endless_dataset": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).repeat(),
        {"steps_per_epoch": 3},
    ),
    "a_py_dataset": lambda: (Batches(), {}),
    "batches_with_weights": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y, np.arange(4.0))).batch(2),
        {},
    ),
}
for name, make in DATA.items():

    def fit_data(way, make=make):
        data, options = make()
        return fitted(way.small(), data, None, **options)

    entered(f"fit_{name}", fit_data, often=name == "a_dataset")

OPTIONS = {
    "sample_weight": {"sample_weight": np.array([1.0, 0.0, 2.0, 0.5])},
    "validation_split": {"validation_split": 0.5},
    "validation_data": {"validation_data": (X[::-1], Y), "validation_freq": 2},
    "initial_epoch": {"initial_epoch": 1, "epochs": 3},
    "shuffle": {"shuffle": True},
}
for name, fit_options in OPTIONS.items():
    often = name == "validation_data"
    entered(f"fit_with_{name}", lambda way, o=fit_options: fitted(way.small(), **o), often)


@rare_situation
def fit_with_class_weight(way):
    model = way.small(loss="binary_crossentropy")
    return fitted(model, y=np.array([[0], [1], [1], [0]]), class_weight={0: 1.0, 1: 3.0})


@situation
def a_model_that_its_first_batch_builds(way):
    class Own(way.model):
        def __init__(self):
            super().__init__()
            self.words = keras.layers.Embedding(NUM_ROWS, WIDTH)
            self.head = keras.layers.Dense(1)

        def call(self, ids):
            return self.head(keras.ops.mean(self.words(ids), axis=1))

    return fitted(way.compiled(Own(), run_eagerly=False))


@rare_situation
def a_sequential_model_that_its_first_batch_builds(way):
    layers = [keras.layers.Embedding(NUM_ROWS, WIDTH), keras.layers.Flatten()]
    return fitted(way.compiled(way.sequential([*layers, keras.layers.Dense(1)])))


@rare_situation
def a_model_that_is_compiled_again(way):
    model = way.small("sgd")
    before = fitted(model)
    return before, fitted(way.compiled(model, "adam"))


@situation
def a_model_that_is_compiled_again_with_the_same_optimizer(way):
    model = way.small("adam")
    before = fitted(model)
    model.compile(model.optimizer, loss="mae", run_eagerly=True)
    return before, fitted(model)


@rare_situation
def a_train_function_that_is_made_anew(way):
    model = way.small(run_eagerly=False)
    before = fitted(model, epochs=1)
    model.make_train_function(force=True)
    return before, fitted(model, epochs=1)


@situation
def a_learning_rate_that_is_assigned(way):
    model = way.small("sgd")
    rates, before = [float(model.optimizer.learning_rate)], fitted(model)
    model.optimizer.learning_rate = 0.5
    after = fitted(model)
    model.optimizer.learning_rate.assign(0.25)
    rates += [float(model.optimizer.learning_rate), int(model.optimizer.iterations)]
    return rates, before, after, fitted(model)


@situation
def weights_that_are_set_between_steps(way):
    model = way.small(run_eagerly=False)
    before = fitted(model, epochs=1)
    table = model.get_layer("words")
    table.set_weights([np.full((NUM_ROWS, WIDTH), 2.0, "float32")])
    middle = fitted(model, epochs=1)
    table.embeddings.assign_add(np.ones((NUM_ROWS, WIDTH)))
    return before, middle, fitted(model, epochs=1)


@rare_situation
def a_session_that_is_cleared_between_fits(way):
    model = way.small(run_eagerly=False)
    before = fitted(model, epochs=1)
    keras.backend.clear_session()
    return before, fitted(model, epochs=1)


@rare_situation
def a_layer_that_is_frozen_before_compile(way):
    model = way.small()
    model.get_layer("head").trainable = False
    return fitted(way.compiled(model))


@rare_situation
def data_of_another_length(way):
    return fitted(way.small(run_eagerly=False), y=Y[:2])


@rare_situation
def data_of_another_width(way):
    return fitted(way.small(run_eagerly=False), np.zeros((4, LENGTH + 1), "int32"))


@rare_situation
def fit_without_compile(way):
    inputs = keras.Input((LENGTH,), dtype="int32")
    return fitted(way.model(inputs, keras.layers.Embedding(NUM_ROWS, WIDTH)(inputs)))


# Loops that are written by hand.


def loop(way, wrap, optimizer="adam", apply="apply"):
    """What three steps of a loop of one's own leave."""
    model = way.small(optimizer)
    variables = model.trainable_variables
    model.optimizer.build(variables)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, variables)
        if apply == "apply":
            model.optimizer.apply(gradients, variables)
        elif apply == "apply alone":
            model.optimizer.apply(gradients)
        else:
            model.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    step = wrap(step)
    return [step(tf.constant(X), tf.constant(Y)) for _ in range(3)], learned(model)


entered("a_loop_by_hand", lambda way: loop(way, lambda step: step), often=False)
entered("a_loop_by_hand_in_a_graph", lambda way: loop(way, tf.function), often=False)
entered(
    "a_loop_by_hand_under_xla", lambda way: loop(way, lambda s: tf.function(s, jit_compile=True))
)
entered(
    "a_loop_of_gradients_alone",
    lambda way: loop(way, lambda step: step, apply="apply alone"),
    often=False,
)
entered("a_loop_of_pairs", lambda way: loop(way, tf.function, apply="pairs"))


def table():
    return keras.Variable(np.arange(6.0, dtype="float32").reshape(3, 2), name="table")


def other():
    return keras.Variable(np.ones(2, "float32"), name="other")


def applied(give):
    """A situation: what an optimizer makes of gradients that are given to it by hand."""

    def run(way):
        variables = [table(), other()]
        optimizer = way.optimizer(keras.optimizers.Adam(0.1, weight_decay=0.1))
        give(optimizer, variables)
        return [variable.numpy() for variable in variables], int(optimizer.iterations)

    return run


ONES = tf.ones((3, 2)), tf.ones(2)
GIVEN = {
    "dense_gradients": lambda optimizer, v: optimizer.apply(list(ONES), v),
    "no_gradient_of_the_table": lambda optimizer, v: optimizer.apply([None, ONES[1]], v),
    "no_gradient_of_the_other": lambda optimizer, v: optimizer.apply([ONES[0], None], v),
    "no_gradient_at_all": lambda optimizer, v: optimizer.apply([None, None], v),
    "no_variables": lambda optimizer, v: optimizer.apply([], []),
    "too_few_gradients": lambda optimizer, v: optimizer.apply([ONES[0]], v),
    "gradients_without_variables": lambda optimizer, v: optimizer.apply(list(ONES)),
    "gradients_of_another_shape": lambda optimizer, v: optimizer.apply(
        [tf.ones((4, 2)), ONES[1]], v
    ),
    "an_unknown_variable": lambda optimizer, v: (
        optimizer.build(v),
        optimizer.apply([*ONES, tf.ones(2)], [*v, other()]),
    ),
    "variables_in_another_order": lambda optimizer, v: (
        optimizer.build(v),
        optimizer.apply([ONES[1], ONES[0]], v[::-1]),
    ),
    "some_of_the_variables": lambda optimizer, v: (
        optimizer.build(v),
        optimizer.apply([ONES[0]], v[:1]),
    ),
    "a_generator_of_gradients": lambda optimizer, v: optimizer.apply((g for g in ONES), v),
    "numpy_gradients": lambda optimizer, v: optimizer.apply([g.numpy() for g in ONES], v),
    "gradients_of_float64": lambda optimizer, v: optimizer.apply(
        [tf.cast(g, "float64") for g in ONES], v
    ),
    "gradients_that_are_not_finite": lambda optimizer, v: optimizer.apply(
        [ONES[0] * np.nan, ONES[1] * np.inf], v
    ),
}
for name, give in GIVEN.items():
    often = name in {"no_gradient_of_the_table", "no_gradient_at_all", "an_unknown_variable"}
    entered(f"an_optimizer_given_{name}", applied(give), often)
