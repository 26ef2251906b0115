"""A copy of a model masks the same tables, or says that it cannot tell them."""

import copy
import itertools
import re

import keras
import numpy as np
import pytest

from maskedgrad import MaskedModel, MaskedOptimizer
from tests.features import clones_are_compiled

NUM_ROWS, ROW = 8, 3
X = [np.arange(24).reshape(8, 3) % NUM_ROWS] * 2
Y = np.arange(8.0)[:, np.newaxis]


def words(name):
    return keras.layers.Embedding(NUM_ROWS, 2, name=name)


def two_towers(base, names):
    """A functional model of two towers, each with a table in a layer of one of `names`."""
    inputs = [keras.Input((3,), dtype="int32") for _ in names]
    layers = [words(name) for name in names]
    towers = [
        keras.Model(given, keras.layers.Flatten()(layer(given)), name=f"tower_{number}")
        for number, (given, layer) in enumerate(zip(inputs, layers, strict=True))
    ]
    joined = keras.layers.Concatenate()([t(i) for t, i in zip(towers, inputs, strict=True)])
    return base(inputs, keras.layers.Dense(1)(joined)), layers


def tables_of_towers(model):
    towers = [model.get_layer(f"tower_{number}") for number in range(2)]
    layers = [layer for tower in towers for layer in tower.layers]
    return [each.embeddings for each in layers if isinstance(each, keras.layers.Embedding)]


class Recommender:
    """Mixed into a model class: two tables, which attributes tell apart."""

    def __init__(self, names=(None, None), **options):
        super().__init__(**options)
        self.names = names
        self.first, self.second = words(names[0]), words(names[1])
        self.head = keras.layers.Dense(1)

    def call(self, x):
        return self.head(self.first(x[0])[:, 0] * self.second(x[1])[:, 0])

    def get_config(self):
        return {"names": self.names}


@keras.saving.register_keras_serializable("tests")
class Stock(Recommender, keras.Model):
    pass


@keras.saving.register_keras_serializable("tests")
class Masked(Recommender, MaskedModel):
    pass


def tables_of_attributes(model):
    return [model.first.embeddings, model.second.embeddings]


def subclassed(base, names):
    model = (Masked if base is MaskedModel else Stock)(names, name="rec")
    model([x[:1] for x in X])
    return model, [model.first, model.second]


def saved(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


COPIES = {
    "saved": saved,
    "saved after other layers were made": lambda model, folder: (
        model.save(folder / "model.keras"),
        [keras.layers.Embedding(2, 2), keras.layers.Dense(1)],
        keras.saving.load_model(folder / "model.keras"),
    )[-1],
    "copied": lambda model, folder: copy.deepcopy(model),
    "cloned": lambda model, folder: keras.models.clone_model(model),
}
MAKERS = {
    "functional": (two_towers, tables_of_towers),
    "subclassed": (subclassed, tables_of_attributes),
}
NAMES = [("words", "words"), ("words_1", "words_2"), ("words", "items"), (None, None)]
CASES = [
    case
    for case in itertools.product(MAKERS, [keras.Model, MaskedModel], NAMES, range(2), COPIES)
    if (case[0], case[4]) != ("subclassed", "cloned")  # Keras clones functional models
]
# Each eighth of them holds some of every kind.
CASES = [CASES[place] for place in np.random.default_rng(0).permutation(len(CASES))]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("half", [0, 1])
def test_a_copy_masks_the_same_table_or_refuses(half, built, frozen, tmp_path):
    """Which table that is, is seen by what moves: nothing but `ROW`.

    Names of their own tell tables apart, and a `MaskedModel` does where all of them train.
    """
    cases = CASES[4 * half + 2 * built + frozen :: 8]  # each once, in one of the four settings
    for number, (kind, base, names, which, how) in enumerate(cases):
        make, tables_of = MAKERS[kind]
        keras.utils.set_random_seed(0)
        model, layers = make(base, names)
        layers[1 - which].trainable = not frozen
        optimizer = MaskedOptimizer("sgd", {layers[which]: [ROW]})
        model.compile(optimizer, loss="mse", run_eagerly=True)  # one step: a graph would not pay
        if built:
            model.optimizer.build(model.trainable_variables)
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            other = COPIES[how](model, folder)
            if how == "cloned" and not clones_are_compiled():
                assert not other.compiled
                continue
            before = [table.numpy() for table in tables_of(other)]
            other.train_on_batch(X, Y)
        except ValueError as error:
            if not re.search("beyond doubt. Saved: .* Found", str(error)):
                raise
            assert names != ("words", "items"), (kind, base, names, which, how)
            assert frozen or base is not MaskedModel, (kind, base, names, which, how)
            continue
        moved = [
            np.flatnonzero((table.numpy() != old).any(axis=1)).tolist()
            for table, old in zip(tables_of(other), before, strict=True)
        ]
        assert moved[which] == [ROW], (kind, base, names, which, how, moved)


def test_an_exact_path_of_two_tables_is_refused():
    model, _ = two_towers(MaskedModel, ("words", "words"))
    with pytest.raises(ValueError, match="must name one variable"):
        model.compile("sgd", loss="mse", trainable_rows={"words/embeddings": [1]})


def test_a_loaded_model_that_trains_more_variables_says_so(tmp_path):
    model, layers = subclassed(MaskedModel, ("users", "items"))
    layers[0].trainable = False
    model.compile("sgd", loss="mse", trainable_rows={layers[1]: [ROW]})
    model.optimizer.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="3 variables were trained when .* 4 are trained here"):
        loaded = saved(model, tmp_path)
    (table,) = loaded.optimizer.masked_tables()
    assert table.variable is loaded.second.embeddings
