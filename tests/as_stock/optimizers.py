"""Situations: every optimizer, schedule and option that Keras has, and optimizers of one's own."""

import inspect

import keras
import numpy as np
import tensorflow as tf

from maskedgrad.testing import optimizer_classes
from tests.as_stock.harness import LENGTH, entered, fitted, learned, rare_situation, situation
from tests.as_stock.inputs import READS, Reads
from tests.features import feature

for place, cls in enumerate(optimizer_classes()):
    entered(
        f"the_optimizer_{cls.__name__}",
        lambda way, cls=cls: fitted(way.small(cls(0.1))),
        often=place % 8 == 4,
    )

OPTIONS = {
    "weight_decay": 0.1,
    "clipnorm": 0.1,
    "global_clipnorm": 0.1,
    "clipvalue": 0.01,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
}
for name, value in OPTIONS.items():
    entered(
        f"the_option_{name}",
        lambda way, o={name: value}: fitted(way.small(keras.optimizers.AdamW(0.1, **o))),
        often=name in {"use_ema", "gradient_accumulation_steps"},
    )


@rare_situation
def the_option_loss_scale_factor(way):
    # Of a dense gradient: Keras fails over slices, which it divides.
    inputs = keras.Input((LENGTH,), dtype="int32")
    outputs = keras.layers.Dense(1)(Reads(READS["one_hot"])(inputs))
    adam = keras.optimizers.Adam(loss_scale_factor=4.0)
    return fitted(way.compiled(way.model(inputs, outputs), adam))


@rare_situation
def averages_that_overwrite_weights(way):
    adam = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2)
    return fitted(way.small(adam, run_eagerly=False), epochs=3)


@rare_situation
def accumulated_gradients_in_a_graph(way):
    sgd = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)
    return fitted(way.small(sgd, run_eagerly=False), batch_size=2, epochs=3)


SCHEDULES = {
    "CosineDecay": (0.1, 4),
    "CosineDecayRestarts": (0.1, 2),
    "ExponentialDecay": (0.1, 2, 0.5),
    "InverseTimeDecay": (0.1, 2, 0.5),
    "PiecewiseConstantDecay": ([1, 3], [0.1, 0.05, 0.01]),
    "PolynomialDecay": (0.1, 4),
}


def schedule_classes():
    exported = vars(keras.optimizers.schedules).values()
    base = keras.optimizers.schedules.LearningRateSchedule
    found = [cls for cls in exported if inspect.isclass(cls) and issubclass(cls, base)]
    return {cls.__name__ for cls in found} - {base.__name__}


for name, arguments in SCHEDULES.items():

    def with_schedule(way, name=name, arguments=arguments):
        schedule = getattr(keras.optimizers.schedules, name)(*arguments)
        return fitted(way.small(keras.optimizers.SGD(schedule)), batch_size=2)

    entered(f"the_schedule_{name}", with_schedule, often=False)


@situation
def options_that_are_read_and_set_on_the_optimizer_of_a_model(way):
    model = way.small(keras.optimizers.SGD(0.1, momentum=0.5))
    optimizer = model.optimizer
    read = optimizer.momentum, optimizer.weight_decay, optimizer.use_ema
    optimizer.weight_decay, optimizer.clipvalue, optimizer.nesterov = 0.5, 0.01, True
    return read, fitted(model), optimizer.weight_decay, hasattr(optimizer, "beta_1")


@situation
def a_learning_rate_that_is_called(way):
    model = way.small(keras.optimizers.Adam(lambda: 0.1))
    fitted(model)
    model.summary(print_fn=lambda line: None)
    return fitted(model)


class NoConfig(keras.optimizers.SGD):
    """Takes what its config does not have."""

    def __init__(self, beta):
        super().__init__(0.1, momentum=0.9)
        self.beta = beta


@situation
def an_optimizer_without_a_usable_config(way):
    model = way.small(NoConfig(0.5), run_eagerly=False)
    before = fitted(model)
    model.summary(print_fn=lambda line: None)
    return before, fitted(model)


@rare_situation
def an_optimizer_without_a_usable_config_that_is_saved(way):
    model = way.small(NoConfig(0.5))
    model.save(way.folder / "model.keras")
    keras.saving.load_model(way.folder / "model.keras", custom_objects={"NoConfig": NoConfig})


class TouchedRows(keras.optimizers.Optimizer):
    """Momentum of the rows in `tf.IndexedSlices` alone, as LazyAdam has it."""

    def __init__(self, learning_rate=0.1, **options):
        super().__init__(learning_rate=learning_rate, **options)

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self.momentums[self._get_variable_index(variable)]
        if not isinstance(gradient, tf.IndexedSlices):
            momentum.assign(0.9 * momentum + gradient)
            variable.assign_sub(learning_rate * momentum)
            return
        ids, places = tf.unique(gradient.indices)
        added = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(ids))
        new = 0.9 * tf.gather(momentum, ids) + added
        momentum.value.scatter_update(tf.IndexedSlices(new, ids))
        variable.scatter_sub(tf.IndexedSlices(learning_rate * new, ids))


@situation
def an_optimizer_that_steps_the_rows_of_slices_alone(way):
    return [fitted(way.small(TouchedRows(), run_eagerly=eager)) for eager in (True, False)]


class Stamped(keras.optimizers.Optimizer):
    """Counts the slices that it is given."""

    def __init__(self):
        super().__init__(learning_rate=0.1)
        self.kinds = []

    def update_step(self, gradient, variable, learning_rate):
        self.kinds.append((type(gradient).__name__, variable.name, tuple(variable.shape)))
        variable.assign_sub(learning_rate * tf.convert_to_tensor(gradient))


@rare_situation
def what_an_optimizer_is_given(way):
    optimizer = Stamped()
    model = way.small(optimizer)
    return fitted(model), sorted(set(optimizer.kinds))


class AppliesItself(keras.optimizers.SGD):
    """Has a step of its own, beside that of Keras."""

    def apply(self, grads, trainable_variables=None):
        super().apply(
            [None if g is None else 2.0 * tf.convert_to_tensor(g) for g in grads],
            trainable_variables,
        )


@rare_situation
def an_optimizer_with_an_apply_of_its_own(way):
    return fitted(way.small(AppliesItself(0.1), run_eagerly=False))


class PerVariable(keras.optimizers.SGD):
    """Goes by what users put on a variable."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * getattr(variable, "rate", 1.0))


@rare_situation
def an_optimizer_that_reads_attributes_of_variables(way):
    model = way.small(PerVariable(0.1))
    model.get_layer("words").embeddings.rate = 0.5
    return fitted(model)


@situation
def no_weight_decay_of_the_table(way):
    results = []
    for by in ("list", "names"):
        model = way.small(keras.optimizers.AdamW(0.1, weight_decay=0.5))
        table = model.get_layer("words").embeddings
        excluded = {"var_list": [table]} if by == "list" else {"var_names": ["embeddings"]}
        model.optimizer.exclude_from_weight_decay(**excluded)
        results.append(fitted(model))
    return results


@rare_situation
def constraints(way):
    model = way.small(keras.optimizers.SGD(0.5))
    model.get_layer("words").embeddings.constraint = keras.constraints.UnitNorm(axis=0)
    return fitted(model)


@rare_situation
def regularizers(way):
    model = way.small(keras.optimizers.SGD(0.5))
    model.get_layer("words").embeddings.regularizer = keras.regularizers.L2(0.1)
    return fitted(model, validation_split=0.5)


@rare_situation
def values_that_are_final(way):
    model = way.small(keras.optimizers.Adam(0.1, use_ema=True))
    for _ in range(2):
        model.train_on_batch(np.arange(6).reshape(2, 3), np.ones((2, 1)))
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return learned(model)


if feature("optimizers.MultiOptimizer"):

    @situation
    def an_optimizer_for_each_variable(way):
        routes = {".*/kernel": keras.optimizers.SGD(0.1, momentum=0.9)}
        routing = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.1), routes)
        return fitted(way.small(keras.optimizers.MultiOptimizer(routing)))

    @rare_situation
    def optimizers_that_a_function_makes(way):
        made = {}

        def route(variable):
            return made.setdefault(variable.path, keras.optimizers.Adam(0.1))

        return fitted(way.small(keras.optimizers.MultiOptimizer(route)))
