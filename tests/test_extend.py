"""A table gets rows for new words, or two tables become one; what was learned stays."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from maskedgrad import MaskedModel, MaskedOptimizer, Rows, change_vocabulary
from maskedgrad.rows.vocabulary import ids_by_word
from maskedgrad.testing import bits
from maskedgrad.vectors.extension import extend
from maskedgrad.vectors.merging import merge_two_tables
from tests.features import feature

V, D = 7, 3
NEW = ["<city>", "<name>"]
ALL_IDS = np.arange(V).reshape(1, V)

ReversibleEmbedding = feature("layers.ReversibleEmbedding")
if ReversibleEmbedding is None:  # keras_hub had it before Keras did
    from keras_hub.layers import ReversibleEmbedding


@keras.saving.register_keras_serializable(package="test_extend")
class Bias(keras.layers.Layer):
    def build(self, input_shape):
        self.bias = self.add_weight(shape=input_shape[-1:], initializer="normal", name="bias")

    def call(self, inputs):
        return inputs + self.bias


@keras.saving.register_keras_serializable(package="test_extend")
class TiedOutput(keras.layers.Layer):
    def __init__(self, words, **kwargs):
        super().__init__(**kwargs)
        self.words = words

    def get_config(self):
        return {**super().get_config(), "words": keras.saving.serialize_keras_object(self.words)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("words")), **config)

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.words.embeddings))


def embedded(model_class=keras.Model, name="words"):
    words = keras.layers.Embedding(V, D, mask_zero=True, name=name)
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Dense(4, name="hidden")(words(inputs))
    return model_class(inputs, keras.layers.Dropout(0.5)(hidden))


def tied(model_class=keras.Model, tie_weights=True):
    words = ReversibleEmbedding(V, D, tie_weights=tie_weights, name="words")
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Dense(D, activation="tanh", name="hidden")(words(inputs))
    return model_class(inputs, Bias(name="bias")(words(hidden, reverse=True)))


def nested(model_class=keras.Model):
    inputs = keras.Input((None,), dtype="int32")
    inner = embedded()
    return model_class(inputs, keras.layers.Dense(2)(inner(inputs)))


def sequential(model_class=keras.Sequential):
    return model_class(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(V, D),
            keras.layers.LSTM(2),
            keras.Sequential([keras.layers.Dense(2)]),
        ]
    )


def branched(model_class=keras.Model):
    inputs = {name: keras.Input((3,), dtype="int32", name=name) for name in ("title", "text")}
    words = keras.layers.Embedding(V, D, name="words")
    head = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(2)], name="head")
    return model_class(inputs, {name: head(words(ids)) for name, ids in inputs.items()})


MODELS = {
    "embedded": embedded,
    "tied": tied,
    "reversible, not tied": lambda: tied(tie_weights=False),
    "nested": nested,
    "sequential": sequential,
    "masked": lambda: tied(MaskedModel),
}


@pytest.mark.parametrize("name", MODELS)
def test_old_ids_give_the_same_outputs_and_every_old_weight_keeps_its_bits(name):
    model = MODELS[name]()
    before = [weight.numpy() for weight in model.weights]
    larger, new = extend(model, NEW)

    assert new == Rows([V, V + 1], num_rows=V + 2)
    assert type(larger) is type(model)
    assert larger.name == model.name
    assert [layer.name for layer in larger.layers] == [layer.name for layer in model.layers]
    for old, now, weight in zip(before, model.weights, larger.weights, strict=True):
        assert (bits(old) == bits(now.numpy())).all()
        kept = weight.numpy()[tuple(slice(size) for size in old.shape)]
        assert (bits(kept) == bits(old)).all()
    outputs = model(ALL_IDS).numpy()
    assert (bits(larger(ALL_IDS).numpy()[..., : outputs.shape[-1]]) == bits(outputs)).all()
    assert np.isfinite(larger(np.array([[V, V + 1]])).numpy()).all()


@pytest.mark.parametrize("name", ["embedded", "tied", "nested", "masked"])
def test_a_functional_model_keeps_the_paths_of_its_weights(name):
    model = MODELS[name]()
    larger, _ = extend(model, NEW)
    assert [weight.path for weight in larger.weights] == [weight.path for weight in model.weights]


def test_names_and_structure_of_inputs_and_outputs_and_shared_layers_are_kept():
    model = branched()
    larger, _ = extend(model, NEW)
    batch = {"text": ALL_IDS[:, :3], "title": ALL_IDS[:, 3:6]}
    before, after = model(batch), larger(batch)
    assert before.keys() == after.keys()
    for name in before:
        assert (bits(before[name]) == bits(after[name])).all()
    assert len(larger.weights) == len(model.weights)


def test_a_layer_that_two_levels_share_is_still_one():
    words = keras.layers.Embedding(V, D, name="words")
    inputs = keras.Input((None,), dtype="int32")
    inner = keras.Model(inputs, words(inputs))
    larger, _ = extend(keras.Model(inputs, inner(inputs) + words(inputs)), NEW)
    assert [tuple(weight.shape) for weight in larger.weights] == [(V + 2, D)]


def test_a_tied_output_and_its_bias_grow_with_the_table():
    model = tied()
    larger, _ = extend(model, NEW, {"<city>": [1, 3], "<name>": [2]})
    assert larger.output_shape == (None, None, V + 2)
    for old, weight in zip(model.weights, larger.weights, strict=True):
        if "hidden" not in old.path:
            assert weight.shape[0] == V + 2
            expected = np.stack([old.numpy()[[1, 3]].mean(0), old.numpy()[2]])
            np.testing.assert_allclose(weight.numpy()[V:], expected, rtol=1e-6)
    outputs = larger(ALL_IDS).numpy()
    np.testing.assert_allclose(outputs[..., V + 1], outputs[..., 2], rtol=1e-5)


def test_an_output_that_is_not_tied_keeps_its_own_table():
    words = keras.layers.Embedding(V, D)
    inputs = keras.Input((None,), dtype="int32")
    larger, _ = extend(keras.Model(inputs, keras.layers.Dense(V)(words(inputs))), NEW)
    assert larger.output_shape == (None, None, V)


def test_the_new_rows_are_ready_to_train():
    model = tied(MaskedModel)
    words = model.get_layer("words")
    model.compile("adam", loss="mse", trainable_rows={words: [1]})
    model.train_on_batch(ALL_IDS, np.zeros((1, V, V)))
    larger, new = extend(model, NEW)
    assert not larger.compiled
    words = larger.get_layer("words")
    before = words.get_weights()[0]
    assert (bits(before[:V]) == bits(model.get_layer("words").get_weights()[0])).all()
    larger.compile(MaskedOptimizer("adamw", {words: new}), loss="mse")
    larger.fit(np.array([[1, V, V + 1]]), np.ones((1, 3, V + 2)), epochs=3, verbose=0)
    moved = (bits(words.get_weights()[0]) != bits(before)).any(axis=1)
    assert np.flatnonzero(moved).tolist() == new.ids.tolist()


@given(
    st.sampled_from([keras.layers.Embedding, ReversibleEmbedding]),
    st.integers(1, 4),
    st.sampled_from(["zeros", "mean", "normal", {"0": [1]}]),
    st.sampled_from(["float32", "bfloat16", "mixed_float16"]),
)
def test_a_layer_grows_at_its_end_only(layer_class, num_new, initializer, dtype):
    layer = layer_class(V, D, mask_zero=True, dtype=dtype, name="words")
    layer.build(None)
    larger, new = extend(layer, [str(i) for i in range(num_new)], initializer)
    assert new == Rows(slice(V, None), V + num_new)
    old, table = (tf.convert_to_tensor(words.embeddings.value) for words in (layer, larger))
    assert table.dtype == old.dtype
    assert tf.reduce_all(
        tf.equal(tf.bitcast(table[:V], unsigned(old)), tf.bitcast(old, unsigned(old)))
    )
    config = {**layer.get_config(), "input_dim": V + num_new}
    assert larger.get_config() == config


def unsigned(tensor):
    return {4: tf.uint32, 2: tf.uint16}[tensor.dtype.size]


def test_a_function_gives_the_new_rows():
    layer = keras.layers.Embedding(V, D)
    layer.build(None)

    def initializer(words, table):
        return np.stack([table[len(word) - 6] for word in words])

    larger, _ = extend(layer, ["<city>", "<cities>"], initializer)
    table = larger.get_weights()[0]
    assert (bits(table[V:]) == bits(table[[0, 2]])).all()


@pytest.mark.parametrize(
    "rows",
    [[3, 1, 1, 1], np.array([3, 1, 1, 1], "uint8"), (1, 1), Rows([1, 4], V), slice(1, 4), range(3)],
    ids=repr,
)
@pytest.mark.parametrize("how", ["extend", "change_vocabulary"])
def test_the_rows_that_describe_a_word_may_repeat_and_be_of_any_form(how, rows):
    table = np.random.default_rng(0).normal(size=(V, D)).astype("float32")
    old = [f"w{row}" for row in range(V)]
    if how == "extend":
        larger, _ = extend(embedding(table), ["<city>"], {"<city>": rows})
    else:
        larger, _ = change_vocabulary(embedding(table), old, [*old, "<city>"], {"<city>": rows})
    chosen = rows.ids if isinstance(rows, Rows) else rows
    chosen = list(chosen) if isinstance(chosen, range) else chosen
    described_by = table[chosen if isinstance(chosen, slice) else np.array(chosen)]
    expected = described_by.mean(axis=0, dtype="float64").astype("float32")
    assert (bits(larger.get_weights()[0][V]) == bits(expected)).all()


def test_the_seed_makes_drawn_rows_the_same():
    layer = keras.layers.Embedding(V, D)
    layer.build(None)
    draws = [extend(layer, NEW, "mean", noise=1.0, seed=s)[0].get_weights()[0] for s in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0][V:] != draws[2][V:]).all()


@pytest.mark.parametrize(
    ("lookup", "text"),
    [
        (lambda: keras.layers.StringLookup(vocabulary=["cat", "dog"]), ["<city>", "cat", "cow"]),
        (
            lambda: keras.layers.TextVectorization(
                vocabulary=["cat", "dog"], standardize=None, max_tokens=4
            ),
            ["<city>", "cat <name>", "cow"],
        ),
    ],
    ids=["StringLookup", "TextVectorization"],
)
def test_a_lookup_in_the_model_learns_the_words(lookup, text):
    lookup = lookup()
    num_rows = lookup.vocabulary_size()
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, keras.layers.Embedding(num_rows, D)(lookup(inputs)))
    larger, new = extend(model, NEW)
    ids = keras.Model(larger.inputs, larger.layers[1].output)(tf.constant(text)).numpy()
    expected = lookup(tf.constant(text)).numpy()
    unknown = lookup(tf.constant(["cow"])).numpy().max()
    assert (ids[expected != unknown] == expected[expected != unknown]).all()
    assert new.ids[0] in ids[0].ravel()
    assert ids[2].max() == unknown
    with pytest.raises(ValueError, match="knows: \\['cat'\\]"):
        extend(model, ["cat"])


def preprocessed(form):
    """A model whose lookup is inside of a model of its own, and whose table may be so too."""
    lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"])
    table = keras.layers.Embedding(3, D, name="words")
    text, inputs = keras.Input((1,), dtype="string"), keras.Input((1,), dtype="string")
    if form == "sequential":
        return keras.Model(inputs, table(keras.Sequential([text, lookup])(inputs)))
    preprocessing = keras.Model(text, {"text": text, "ids": lookup(text)})
    if form == "twice":
        preprocessing = keras.Model(text, preprocessing(text))
        tokens = keras.Input((1,), dtype="int64")
        table = keras.Model(tokens, table(tokens))
    return keras.Model(inputs, table(preprocessing(inputs)["ids"]))


@pytest.mark.parametrize("form", ["functional", "sequential", "twice"])
def test_a_lookup_in_a_model_for_preprocessing_is_that_of_the_table(form):
    model, text = preprocessed(form), tf.constant([["cat"], ["dog"], ["cow"]])
    expected = model(text).numpy()
    larger, new = extend(model, ["<city>"], "zeros")
    assert new == Rows([3], 4)
    assert not larger(tf.constant([["<city>"]])).numpy().any()
    assert (bits(larger(text).numpy()) == bits(expected)).all()
    moved, _ = change_vocabulary(model, ["[UNK]", "cat", "dog"], ["[UNK]", "ox", "dog", "cat"])
    assert (bits(moved(text).numpy()) == bits(expected)).all()


@pytest.mark.parametrize("beside", ["other words", "ids"])
@pytest.mark.parametrize("how", ["extend", "change_vocabulary"])
def test_rows_that_other_ids_may_reach_are_not_free(how, beside):
    lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"], name="animals")
    inputs = [keras.Input((1,), dtype="string"), keras.Input((1,), dtype="string")]
    others = keras.layers.StringLookup(vocabulary=["oak"])(inputs[1]) + 3
    if beside == "ids":
        inputs[1] = others = keras.Input((1,), dtype="int64")
    ids = keras.layers.Concatenate()([lookup(inputs[0]), others])
    model = keras.Model(inputs, keras.layers.Embedding(5, D)(ids))
    vocabulary = lookup, ["[UNK]", "dog", "cat"]
    call, arguments = (extend, [NEW]) if how == "extend" else (change_vocabulary, vocabulary)
    with pytest.raises(ValueError, match=r"Only the layer 'animals'.*from 3 to 4"):
        call(model, *arguments)


@pytest.mark.parametrize("are_alike", [True, False])
def test_one_of_two_lookups_of_a_table_may_be_named(are_alike):
    others = ["cat", "dog"] if are_alike else ["oak", "elm", "yew"]
    lookups = [keras.layers.StringLookup(vocabulary=words) for words in (["cat", "dog"], others)]
    inputs = [keras.Input((1,), dtype="string") for _ in lookups]

    def towers(num_rows):
        table = keras.layers.Embedding(num_rows, D)
        return keras.Model(inputs, [table(lookups[0](inputs[0])), table(lookups[1](inputs[1]))])

    larger, new = extend(towers(3), ["<city>"], vocabulary=lookups[0])
    assert new == Rows([3], 4)
    know = ["<city>" in ids_by_word(each) for each in larger.layers if hasattr(each, "adapt")]
    assert sorted(know) == [are_alike, True]
    if not are_alike:  # a row to spare of one is a word's of the other
        with pytest.raises(ValueError, match="must be known whether they are free"):
            extend(towers(4), ["<city>"], vocabulary=lookups[0])


def read_twice(beside, num_rows=3):
    """A model in which a lookup gives its ids to a table and to something else."""
    inputs = keras.Input((1,), dtype="string")
    ids = keras.layers.StringLookup(vocabulary=["cat", "dog"])(inputs)
    words = keras.layers.Embedding(3, D, name="words")(ids)
    other = {
        "table": keras.layers.Embedding(num_rows, 1, name="other"),
        "shifted": lambda ids: keras.layers.Embedding(num_rows, 1, name="other")(ids + 1),
        "one-hot": keras.layers.CategoryEncoding(3, "one_hot", name="other"),
        "one-hot operation": lambda ids: keras.ops.one_hot(ids, 3),
    }[beside](ids)
    return keras.Model(inputs, [words, other])


def test_tables_of_one_lookup_change_alike():
    model, text = read_twice("table"), tf.constant([["cat"], ["dog"], ["cow"]])
    expected = model(text)
    larger, new = extend(model, NEW, table="words")
    moved, _ = change_vocabulary(
        model, ["[UNK]", "cat", "dog"], ["[UNK]", "dog", "cat"], table="words"
    )
    for copy in (larger, moved):
        for old, now in zip(expected, copy(text), strict=True):
            assert (bits(now.numpy()) == bits(old.numpy())).all()
    assert [each.numpy().shape for each in larger(tf.constant([[NEW[1]]]))] == [
        (1, 1, D),
        (1, 1, 1),
    ]
    assert new == Rows([3, 4], 5)
    # A row to spare is that of the new word.
    larger, _ = extend(read_twice("table", 4), ["<city>"], table="words")
    assert larger.get_layer("other").input_dim == 4


@keras.saving.register_keras_serializable(package="test_extend")
class TokensAndPositions(keras.layers.Layer):
    """As in Keras's example of text classification with a Transformer."""

    def __init__(self, length, num_words, width, **kwargs):
        super().__init__(**kwargs)
        self.arguments = {"length": length, "num_words": num_words, "width": width}
        self.tokens = keras.layers.Embedding(num_words, width, name="tokens")
        self.positions = keras.layers.Embedding(length, width, name="positions")

    def call(self, ids):
        return self.tokens(ids) + self.positions(keras.ops.arange(keras.ops.shape(ids)[-1]))

    def get_config(self):
        return {**super().get_config(), **self.arguments}


def test_a_table_of_positions_within_a_layer_is_no_table_of_the_words():
    lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"])
    inputs = keras.Input((2,), dtype="string")
    model = keras.Model(inputs, TokensAndPositions(2, 3, D)(lookup(inputs)))
    expected = model(text := tf.constant([["cat", "dog"]])).numpy()
    larger, new = extend(model, ["<city>"], table="tokens")
    moved, _ = change_vocabulary(
        model, ["[UNK]", "cat", "dog"], ["[UNK]", "ox", "dog", "cat"], table="tokens"
    )
    assert new == Rows([3], 4)
    for copy in (larger, moved):
        assert (bits(copy(text).numpy()) == bits(expected)).all()


@pytest.mark.parametrize("beside", ["shifted", "table"])
def test_a_table_that_has_no_row_for_a_new_id_is_refused(beside):
    with pytest.raises(ValueError, match="'other' reads them too"):
        extend(read_twice(beside, 4), NEW[: 2 - (beside == "shifted")], table="words")


@pytest.mark.parametrize("beside", ["one-hot", "one-hot operation", "table", "shifted"])
def test_what_reads_ids_and_cannot_change_with_them_is_refused(beside):
    words = ["[UNK]", "dog", "cat"]
    model = read_twice(beside, 4)
    with pytest.raises(ValueError, match="reads them too"):
        change_vocabulary(model, ["[UNK]", "cat", "dog"], words, table="words")


@pytest.mark.parametrize(
    "layer",
    [keras.layers.Hashing(V), keras.layers.Discretization([0.0, 1.0])],
    ids=["Hashing", "Discretization"],
)
def test_a_table_whose_ids_are_made_by_a_rule_gets_no_words(layer):
    is_text = isinstance(layer, keras.layers.Hashing)
    inputs = keras.Input((1,), dtype="string" if is_text else "float32")
    model = keras.Model(inputs, keras.layers.Embedding(V, D)(layer(inputs)))
    with pytest.raises(ValueError, match=r"No text would reach.*`vocabulary=`"):
        extend(model, NEW)
    assert extend(model, NEW, vocabulary=list("abcdefg"))[1] == Rows([V, V + 1], V + 2)


def test_ids_that_are_changed_on_their_way_need_a_vocabulary():
    lookup = keras.layers.StringLookup()
    lookup.adapt(["a", "b", "c"])
    inputs = keras.Input((), dtype="string")
    ids = keras.ops.minimum(lookup(inputs), 2)
    model = keras.Model(inputs, keras.layers.Embedding(V, D)(ids))
    with pytest.raises(ValueError, match=r"4 ids.*7 rows.*vocabulary="):
        extend(model, NEW)
    larger, new = extend(model, NEW, vocabulary=list("abcdefg"))
    assert new == Rows([V, V + 1], V + 2)
    copied = next(la for la in larger.layers if isinstance(la, keras.layers.StringLookup))
    assert copied.get_vocabulary() == lookup.get_vocabulary()


def two_tables():
    inputs = keras.Input((None,), dtype="int32")
    words = keras.layers.Embedding(V, D, name="words")(inputs)
    places = keras.layers.Embedding(V, D, name="places")(keras.ops.cumsum(inputs * 0, axis=1))
    return keras.Model(inputs, words + places)


def test_the_table_is_named_where_there_are_several():
    model = two_tables()
    for table in ("words", model.get_layer("words")):
        larger, _ = extend(model, NEW, table=table)
        assert larger.get_layer("words").input_dim == V + 2
        assert larger.get_layer("places").input_dim == V
    for table in (None, "nowhere"):
        with pytest.raises(ValueError, match="'words', 'places'"):
            extend(model, NEW, table=table)


def captured(use):
    words = keras.layers.Embedding(V, D, name="words")
    inputs = keras.Input((None,), dtype="int32")
    return keras.Model(inputs, use(words(inputs), words))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.words = keras.layers.Embedding(V, D)

    def call(self, inputs):
        return self.words(inputs)


UNBUILT = keras.layers.Embedding(V, D)


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (lambda: captured(lambda x, words: TiedOutput(words)(x)), ValueError),
        (
            lambda: captured(lambda x, words: keras.ops.einsum("bld,vd->blv", x, words.embeddings)),
            ValueError,
        ),
        (
            lambda: captured(
                lambda x, words: keras.ops.matmul(x, keras.ops.transpose(words.embeddings))
            ),
            ValueError,
        ),
        (
            lambda: captured(
                lambda x, words: keras.layers.Reshape((-1, V, 1))(
                    ReversibleEmbedding(V, D)(x, reverse=True)
                )
            ),
            ValueError,
        ),
        (Subclassed, ValueError),
        (lambda: UNBUILT, ValueError),
        (lambda: keras.Sequential([keras.layers.Embedding(V, D)]), ValueError),
        (lambda: keras.layers.Dense(3), ValueError),
        (lambda: "model", TypeError),
    ],
    ids=[
        "tied by a layer of its own",
        "tied by an operation",
        "tied by a constant",
        "two embedding layers",
        "subclassed",
        "unbuilt layer",
        "unbuilt model",
        "another layer",
        "not a model",
    ],
)
def test_what_cannot_be_extended_is_refused_and_says_what_to_do(model, error):
    with pytest.raises(error, match=r"by hand|By hand|extend|Call it|Received"):
        extend(model(), NEW)


def test_a_layer_bound_to_the_old_number_of_rows_is_refused():
    words = ReversibleEmbedding(V, D, name="words")
    inputs = keras.Input((4,), dtype="int32")
    outputs = keras.layers.Reshape((4, V, 1))(words(words(inputs), reverse=True))
    with pytest.raises(ValueError, match=r"9 rows.*By hand"):
        extend(keras.Model(inputs, outputs), NEW)


@pytest.mark.thorough
@pytest.mark.parametrize("change", ["lora", "int8"])
def test_a_table_that_is_more_than_its_rows_is_refused(change):
    model = embedded()
    words = model.get_layer("words")
    if change == "lora":
        words.enable_lora(2)
    else:
        words.quantize("int8")
    with pytest.raises(ValueError, match="LoRA"):
        extend(model, NEW)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"words": "<city>"}, TypeError, "in a list"),
        ({"words": []}, ValueError, "at least one"),
        ({"words": ["a", "a"]}, ValueError, "twice"),
        ({"initializer": "often"}, ValueError, "often"),
        ({"initializer": {"<town>": [1]}}, ValueError, "<town>"),
        ({"initializer": {"<city>": []}}, ValueError, "at least one row"),
        ({"initializer": {"<city>": [V]}}, ValueError, f"below {V}"),
        ({"initializer": {"<city>": ["town"]}}, TypeError, "integers"),
        ({"initializer": lambda words, table: table}, ValueError, "shape"),
        ({"noise": np.nan}, ValueError, "noise"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        extend(**{"model_or_layer": embedded(), "words": NEW, **arguments})


def embedding(table, **options) -> keras.layers.Embedding:
    layer = keras.layers.Embedding(*table.shape, **options)
    layer.build(None)
    layer.set_weights([table])
    return layer


@given(st.integers(0, V - 1), st.integers(0, 5))
def test_merged_tables_give_the_outputs_of_the_two_layers(first_special, seed):
    generator = np.random.default_rng(seed)
    frozen = embedding(generator.normal(size=(V, D)), trainable=False, mask_zero=True, name="words")
    added = embedding(generator.normal(size=(V - first_special, D)))

    def place_in_added(ids):
        return keras.ops.relu(ids - first_special)

    expected = frozen(ALL_IDS) + added(place_in_added(ALL_IDS))
    for mapping in (place_in_added, np.maximum(np.arange(V) - first_special, 0)):
        merged = merge_two_tables(frozen, added, mapping)
        np.testing.assert_allclose(merged(ALL_IDS), expected, rtol=1e-6)
        assert (merged.name, merged.mask_zero, merged.trainable) == ("words", True, True)


def test_rows_to_which_nothing_is_added_keep_their_bits():
    frozen, added = embedding(np.ones((4, 2))), embedding(np.full((1, 2), 5.0))
    merged = merge_two_tables(frozen, added, [-1, -1, 0, -1])
    assert merged.get_weights()[0].tolist() == [[1, 1], [1, 1], [6, 6], [1, 1]]
    assert frozen.get_weights()[0].tolist() == [[1, 1]] * 4


@pytest.mark.parametrize(
    ("frozen", "added", "mapping", "error", "message"),
    [
        (np.ones((2, 2)), np.ones((1, 3)), [0, 0], ValueError, "2 and 3"),
        (np.ones((2, 2)), np.ones((1, 2)), [0], ValueError, "shape \\(1,\\)"),
        (np.ones((2, 2)), np.ones((1, 2)), [0, 1], ValueError, "below 1"),
        (np.ones((2, 2)), np.ones((1, 2)), [0, -2], ValueError, "or -1"),
        (np.ones((2, 2)), np.ones((1, 2)), [0.0, 0.0], TypeError, "float64"),
    ],
)
def test_tables_that_cannot_be_merged_are_refused(frozen, added, mapping, error, message):
    with pytest.raises(error, match=message):
        merge_two_tables(embedding(frozen), embedding(added), mapping)
    with pytest.raises(TypeError, match="Embedding"):
        merge_two_tables("frozen", embedding(added), mapping)


def test_only_layers_that_look_rows_up_and_do_no_more_are_merged():
    class Twice(keras.layers.Embedding):
        def call(self, inputs):
            return 2 * super().call(inputs)

    stock, other = embedding(np.ones((4, 2))), Twice(4, 2)
    other.build(None)
    for layers in ((stock, other), (other, stock)):
        with pytest.raises(TypeError, match="Received: a Twice"):
            merge_two_tables(*layers, [0, 1, 2, 3])


def test_the_two_layer_recipe_moves_every_ordinary_word():
    """The leak: row 0 of the trainable layer trains, and is added to all of them."""
    first_special = V - 2
    inputs = keras.Input((None,), dtype="int32")
    frozen = keras.layers.Embedding(V, D, trainable=False)
    added = keras.layers.Embedding(3, D, embeddings_initializer="zeros")
    outputs = frozen(inputs) + added(keras.ops.relu(inputs - (first_special - 1)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss="mse")
    before = model(ALL_IDS).numpy()[0]
    model.fit(np.array([[1, V - 1]]), np.ones((1, 2, D)), verbose=0)
    change = model(ALL_IDS).numpy()[0] - before
    ordinary = change[:first_special]
    assert (ordinary != 0).all()
    np.testing.assert_allclose(ordinary, np.tile(ordinary[0], (first_special, 1)), rtol=1e-4)


def test_what_an_operation_is_given_may_be_of_any_other_shape():
    model = captured(lambda x, words: keras.ops.add(x, np.ones(D, "float32")))
    larger, _ = extend(model, NEW)
    x = np.arange(V)[np.newaxis]
    assert (bits(larger(x)) == bits(model(x))).all()


def test_a_weight_that_grows_by_more_than_the_table_is_refused():
    words = ReversibleEmbedding(V, D, name="words")
    inputs = keras.Input((4,), dtype="int32")
    scores = words(words(inputs), reverse=True)
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()([scores, scores]))
    with pytest.raises(ValueError, match=f"only a weight with one axis of {V} can be extended"):
        extend(keras.Model(inputs, outputs), NEW)


# ---- rows are those that the lookup gives ----

TEXTS = ["cat dog", "dog cow", "cat hen"]


def adapted(kind, **options):
    lookup = {
        "strings": keras.layers.StringLookup,
        "texts": keras.layers.TextVectorization,
    }[kind](**options)
    lookup.adapt(TEXTS if kind == "texts" else ["cat", "dog", "cow", "hen", "cat"])
    return lookup


def beneath(lookup, num_rows):
    inputs = keras.Input((1,), dtype="string")
    words = keras.layers.Embedding(num_rows, D, name="words")
    hidden = words(lookup(inputs))
    return keras.Model(inputs, keras.layers.Dense(2)(hidden))


@given(
    kind=st.sampled_from(["strings", "texts"]),
    spare=st.integers(0, 4),
    max_tokens=st.sampled_from([None, 6, 50]),
    words=st.lists(st.sampled_from(["ox", "emu", "gnu", "yak"]), min_size=1, unique=True),
)
def test_every_row_is_the_one_that_the_lookup_gives_its_word(kind, spare, max_tokens, words):
    lookup = adapted(kind, max_tokens=max_tokens)
    size = lookup.vocabulary_size()
    model = beneath(lookup, size + spare)
    text = tf.constant([["cat"], ["hen"], ["unknown"]])
    larger, new = extend(model, words)
    learned = larger.layers[1]
    given_ids = [learned(tf.constant([word])).numpy().ravel()[0] for word in words]
    assert given_ids == list(range(size, size + len(words))) == new.ids.tolist()
    assert new.num_rows == size + max(spare, len(words))
    assert (bits(larger(text).numpy()) == bits(model(text).numpy())).all()
    assert lookup.vocabulary_size() == size
    again, more = extend(larger, ["zebu"])
    assert again.layers[1](tf.constant(["zebu"])).numpy().ravel()[0] == more.ids[0]


def test_a_lookup_that_was_adapted_again_and_fits_no_more_is_refused():
    lookup = adapted("strings")
    model = beneath(lookup, lookup.vocabulary_size())
    lookup.adapt([f"w{place}" for place in range(20)])
    with pytest.raises(ValueError, match=r"21 ids.*5 rows.*change_vocabulary"):
        extend(model, NEW)


def test_a_word_that_no_text_would_reach_is_refused():
    lookup = adapted("texts")
    for word in ("<city>", "City", "new york"):
        with pytest.raises(ValueError, match="No text would reach a row"):
            extend(beneath(lookup, 6), [word])


@pytest.mark.parametrize("words", [["40"], [40]])
@pytest.mark.parametrize("is_adapted", [True, False])
def test_an_integer_lookup_learns_integers(words, is_adapted):
    lookup = keras.layers.IntegerLookup(vocabulary=None if is_adapted else [10, 20, 30])
    if is_adapted:
        lookup.adapt(np.array([[10], [20], [30], [20]]))
    inputs = keras.Input((1,), dtype="int64")
    model = keras.Model(inputs, keras.layers.Embedding(4, D)(lookup(inputs)))
    larger, new = extend(model, words)
    assert larger.layers[1](np.array([40])).numpy().tolist() == new.ids.tolist() == [4]
    x = np.array([[10], [20], [30], [99]])
    assert (bits(larger(x).numpy()) == bits(model(x).numpy())).all()
    with pytest.raises(TypeError, match="integers only"):
        extend(model, ["forty"])


NUMBERS = np.array([[1.0], [2.0], [10.0]], "float32")


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (keras.layers.Normalization, NUMBERS),
        (lambda: keras.layers.Discretization(num_bins=3), NUMBERS),
        (lambda: keras.layers.IntegerLookup(output_mode="one_hot"), np.array([[1], [2], [2]])),
        (lambda: keras.layers.StringLookup(output_mode="tf_idf"), np.array([["x"], ["y"], ["x"]])),
        (lambda: keras.layers.TextVectorization(output_mode="tf_idf"), np.array([["x y"]] * 3)),
    ],
    ids=["Normalization", "Discretization", "integers", "strings", "texts"],
)
@pytest.mark.parametrize("is_subclassed", [False, True])
def test_what_layers_adapted_is_in_the_copy(layer, values, is_subclassed):
    layer = layer()
    layer.adapt(values)
    ids, other = keras.Input((2,), dtype="int32"), keras.Input((1,), dtype=values_dtype(values))
    if is_subclassed:
        model = Beside(keras.layers.Embedding(V, D), layer)
        x = [tf.constant([[1, 2]] * 3), tf.constant(values)]
        model(x)
    else:
        flat = keras.layers.Flatten()(keras.layers.Embedding(V, D)(ids))
        side = keras.layers.Flatten()(keras.ops.cast(layer(other), "float32"))
        model = keras.Model([ids, other], keras.layers.Concatenate()([flat, side]))
        x = [tf.constant([[1, 2]] * 3), tf.constant(values)]
    larger, _ = extend(model, NEW)
    assert (bits(larger(x).numpy()) == bits(model(x).numpy())).all()


def values_dtype(values):
    return "string" if values.dtype.kind == "U" else values.dtype.name


@keras.saving.register_keras_serializable(package="test_extend")
class Beside(keras.Model):
    """A subclassed model that follows `get_config`, with a table and what was adapted."""

    def __init__(self, words, other, **kwargs):
        super().__init__(**kwargs)
        self.words, self.other = words, other
        self.head = keras.layers.Dense(2)

    def call(self, inputs):
        flat = keras.ops.reshape(self.words(inputs[0]), (3, 2 * D))
        side = keras.ops.cast(self.other(inputs[1]), "float32")
        return keras.ops.concatenate([self.head(flat), side], axis=-1)

    def get_config(self):
        parts = {"words": self.words, "other": self.other}
        serialized = {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {**super().get_config(), **serialized}

    @classmethod
    def from_config(cls, config):
        parts = {
            key: keras.saving.deserialize_keras_object(config.pop(key))
            for key in ("words", "other")
        }
        return cls(**parts, **config)

    def build(self, input_shape):
        self.words.build(input_shape[0])
        if not self.other.built:
            self.other.build(input_shape[1])
        self.head.build((None, 2 * D))
        self.built = True


def test_two_towers_share_a_table_and_each_lookup_learns():
    words = keras.layers.Embedding(6, D, name="words")
    lookups = [keras.layers.StringLookup(vocabulary=list("abcde")) for _ in range(2)]
    inputs = [keras.Input((1,), dtype="string") for _ in lookups]
    towers = [words(look(each)) for look, each in zip(lookups, inputs, strict=True)]
    larger, new = extend(keras.Model(inputs, keras.layers.Add()(towers)), ["f"])
    learned = [each for each in larger.layers if isinstance(each, keras.layers.StringLookup)]
    assert [int(each(tf.constant("f"))) for each in learned] == [new.ids[0]] * 2
    lookups[1].set_vocabulary(list("edcba"))
    with pytest.raises(ValueError, match="must have one vocabulary"):
        extend(keras.Model(inputs, keras.layers.Add()(towers)), ["f"])


def test_a_lookup_of_another_table_of_the_same_size_stays():
    inputs = [keras.Input((1,), dtype="string", name=name) for name in ("word", "country")]
    lookups = [
        keras.layers.StringLookup(vocabulary=list(letters), name=f"of_{letters}")
        for letters in ("abcd", "wxyz")
    ]
    tables = [keras.layers.Embedding(5, D, name=name) for name in ("words", "countries")]
    both = [table(look(x)) for table, look, x in zip(tables, lookups, inputs, strict=True)]
    larger, new = extend(keras.Model(inputs, keras.layers.Add()(both)), ["e"], table="words")
    assert new.ids.tolist() == [5]
    assert larger.get_layer("of_wxyz").get_vocabulary() == lookups[1].get_vocabulary()
    assert larger.get_layer("countries").input_dim == 5


class Tokenizer:
    """What the tokenizers of Hugging Face have, as far as it is asked for."""

    def __init__(self, words):
        self.ids = {word: place for place, word in enumerate(words)}

    def get_vocab(self):
        return dict(self.ids)

    def add_tokens(self, words):
        for word in words:
            self.ids.setdefault(word, len(self.ids))


@pytest.mark.parametrize("padding", [0, 1, 10])
@pytest.mark.parametrize("kind", ["duck", "tokenizers", "mapping", "list"])
def test_words_go_where_a_tokenizer_outside_of_the_model_will_have_them(padding, kind):
    words = list("abcdefg")
    vocabulary = {
        "duck": lambda: Tokenizer(words),
        "tokenizers": lambda: hugging_face(words),
        "mapping": lambda: dict(zip(words, range(7), strict=True)),
        "list": lambda: words,
    }[kind]()
    table = embedding(np.random.default_rng(0).normal(size=(7 + padding, D)))
    larger, new = extend(table, NEW, vocabulary=vocabulary)
    assert new == Rows([7, 8], 7 + max(2, padding))
    assert (bits(larger.get_weights()[0][:7]) == bits(table.get_weights()[0][:7])).all()
    if hasattr(vocabulary, "add_tokens"):
        assert set(vocabulary.get_vocab()) == set(words)
        vocabulary.add_tokens(NEW)
        assert [vocabulary.get_vocab()[word] for word in NEW] == new.ids.tolist()
        if padding:
            with pytest.raises(ValueError, match=r"rows of its \d+ already"):
                extend(table, NEW, vocabulary=vocabulary)
        else:
            assert extend(table, NEW, vocabulary=vocabulary)[1] == new
    with pytest.raises(ValueError, match=r"8 ids.*7 rows"):
        extend(embedding(np.ones((7, D))), NEW, vocabulary=list("abcdefgh"))


def hugging_face(words):
    tokenizers = pytest.importorskip("tokenizers")
    ids = {word: place for place, word in enumerate(words)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=words[0]))


# ---- a vocabulary that changed ----


@given(st.permutations(list("abcdef")), st.integers(0, 6), st.integers(0, 2))
def test_rows_move_by_word_to_another_vocabulary(words, num_kept, num_new):
    old = list("abcdef")
    new_words = [*words[: max(num_kept, 1)], *(f"new{place}" for place in range(num_new))]
    lookup = keras.layers.StringLookup(vocabulary=old, name="lookup")
    model = beneath(lookup, 7)
    moved, new = change_vocabulary(model, ["[UNK]", *old], ["[UNK]", *new_words])
    learned = moved.layers[1]
    assert learned.get_vocabulary() == ["[UNK]", *new_words]
    text = tf.constant([[word] for word in [*words[: max(num_kept, 1)], "unknown"]])
    assert (bits(moved(text).numpy()) == bits(model(text).numpy())).all()
    assert new.ids.tolist() == list(range(len(new_words) + 1 - num_new, len(new_words) + 1))


def test_a_lookup_that_was_adapted_again_gets_its_rows_back():
    lookup = adapted("strings")
    model = beneath(lookup, lookup.vocabulary_size())
    old = lookup.get_vocabulary()
    expected = model(tf.constant([["cat"], ["hen"]])).numpy()
    lookup.adapt(["hen", "hen", "hen", "yak", "yak", "cat"])
    moved, new = change_vocabulary(model, old, lookup)
    assert (bits(moved(tf.constant([["cat"], ["hen"]])).numpy()) == bits(expected)).all()
    assert new.ids.tolist() == [moved.layers[1].get_vocabulary().index("yak")]


@pytest.mark.parametrize("num_oov", [0, 1, 2, 4])
@pytest.mark.parametrize("oov_token", ["[UNK]", "<unk>", "__OOV__", -1, -5])
def test_words_that_were_kept_as_the_lookup_lists_them_are_its_rows(oov_token, num_oov):
    kind = "strings" if isinstance(oov_token, str) else "integers"
    lookup_class, words = {
        "strings": (keras.layers.StringLookup, ["cat", "dog", "cow"]),
        "integers": (keras.layers.IntegerLookup, [7, 5, 9]),
    }[kind]
    options = {"num_oov_indices": num_oov, "oov_token": oov_token}
    lookup = lookup_class(**options, vocabulary=words)
    inputs = keras.Input((1,), dtype="string" if kind == "strings" else "int64")
    table = keras.layers.Embedding(lookup.vocabulary_size(), D, name="words")
    model = keras.Model(inputs, table(lookup(inputs)))
    old = lookup.get_vocabulary()
    assert ids_by_word(old) == ids_by_word(lookup)
    values = tf.constant([[word] for word in words])
    expected = model(values).numpy()
    again = lookup_class(**options, vocabulary=words[::-1])
    for new in (again, again.get_vocabulary()):
        moved, _ = change_vocabulary(model, old, new)
        assert moved.layers[1].get_vocabulary() == again.get_vocabulary()
        assert (bits(moved(values).numpy()) == bits(expected)).all()


def test_a_row_that_no_word_has_any_more_is_of_no_word():
    words = embedding(np.arange(5.0)[:, None])
    old = {"[UNK]": 0, "cat": 1, "dog": 2, "cow": 4}  # row 3 has no word
    moved, new = change_vocabulary(words, old, {"[UNK]": 0, "cow": 2, "cat": 5})
    assert moved.get_weights()[0].ravel().tolist() == [0, 0, 4, 3, 0, 1]
    moved, new = change_vocabulary(words, old, ["[UNK]", "[UNK]", "cat", "dog"])
    assert moved.get_weights()[0].ravel().tolist() == [0, 0, 1, 2]
    assert len(new) == 0


@pytest.mark.parametrize("initializer", [{"x": [V]}, {"x": []}, {"cat": [0]}, {"x": ["cat"]}])
def test_what_describes_no_new_word_of_another_vocabulary_is_refused(initializer):
    old = ["cat", *(f"w{row}" for row in range(1, V))]
    with pytest.raises((ValueError, TypeError), match=r"[Rr]ow|describe"):
        change_vocabulary(embedding(np.ones((V, D))), old, [*old, "x"], initializer)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (list("abcdefgh"), list("ab"), "8 ids.*7 rows"),
        (list("abcdefg"), list("xyz"), "in common"),
        (list("abcdefg"), list("gfe"), "which is neither"),
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(old, new, message):
    model = beneath(keras.layers.StringLookup(vocabulary=list("uvwxyz")), 7)
    with pytest.raises(ValueError, match=message):
        change_vocabulary(model, old, new)


@keras.saving.register_keras_serializable(package="test_extend")
class OfWords(keras.Model):
    """A subclassed model whose words say how large its table is."""

    def __init__(self, words, **kwargs):
        super().__init__(**kwargs)
        self.words = words
        self.lookup = keras.layers.StringLookup(vocabulary=words)
        self.table = keras.layers.Embedding(len(words) + 1, D)

    def call(self, inputs):
        return self.table(self.lookup(inputs))

    def get_config(self):
        return {**super().get_config(), "words": self.words}


def test_a_config_that_holds_the_words_gets_the_new_ones():
    model, text = OfWords(["cat", "dog"]), tf.constant([["cat"], ["unknown"]])
    expected = model(text).numpy()
    larger, new = extend(model, NEW)
    assert larger.words == ["cat", "dog", *NEW]
    assert larger.lookup(tf.constant(NEW)).numpy().tolist() == new.ids.tolist() == [3, 4]
    assert (bits(larger(text).numpy()) == bits(expected)).all()


@keras.saving.register_keras_serializable(package="test_extend")
class OfFixedWords(keras.Model):
    """A subclassed model that makes its lookup of the same words whatever its config says."""

    def __init__(self, rows=3, **kwargs):
        super().__init__(**kwargs)
        self.rows = rows
        self.lookup = keras.layers.StringLookup(vocabulary=["cat", "dog"])
        self.table = keras.layers.Embedding(rows, D)

    def call(self, inputs):
        return self.table(self.lookup(inputs))

    def get_config(self):
        return {"rows": self.rows, "name": self.name}


def test_a_lookup_that_would_forget_its_words_when_it_is_saved_is_refused():
    model = OfFixedWords()
    model(tf.constant([["cat"]]))
    message = "a saved copy would have the old words"
    with pytest.raises(ValueError, match=message):
        extend(model, NEW)
    with pytest.raises(ValueError, match=message):
        change_vocabulary(model, ["[UNK]", "cat", "dog"], ["[UNK]", "dog", "cat"])


@pytest.mark.parametrize("new", ["dca", "db+ca", "dabc", "a"])
@pytest.mark.parametrize("kind", ["words in its config", "lookups both ways", "adapted again"])
def test_every_lookup_of_a_model_moves_with_the_rows(kind, new):
    """No word is left with the row of another."""
    if kind == "words in its config":
        model = OfWords(list("abcd"))
        model(tf.constant([["a"]]))
    else:
        inputs = keras.Input((1,), dtype="string")
        there, back = (
            keras.layers.StringLookup(vocabulary=list("abcd"), invert=invert) for invert in (0, 1)
        )
        table = keras.layers.Embedding(5, D)
        model = keras.Model(inputs, [table(there(inputs)), back(there(inputs))])
    text = tf.constant([[word] for word in new if word != "+"])
    expected = keras.tree.flatten(model(text))
    if kind == "adapted again":
        there.set_vocabulary(list(new))
    moved, _ = change_vocabulary(model, ["[UNK]", *"abcd"], ["[UNK]", *new])
    for before, after in zip(expected, keras.tree.flatten(moved(text)), strict=True):
        assert before.numpy().tolist() == after.numpy().tolist()


@pytest.mark.parametrize("output", ["Dense", "TimeDistributed", "tied"])
def test_words_that_come_out_of_a_model_are_those_that_it_learned(output):
    identity = keras.initializers.Identity()
    there, back = (
        keras.layers.StringLookup(vocabulary=list("abc"), invert=invert) for invert in (0, 1)
    )
    table = ReversibleEmbedding(4, 4, embeddings_initializer=identity, name="words")
    dense = keras.layers.Dense(4, kernel_initializer=identity)
    inputs = keras.Input((1,), dtype="string")
    hidden = table(there(inputs))
    scores = {
        "Dense": dense,
        "TimeDistributed": keras.layers.TimeDistributed(dense),
        "tied": lambda hidden: table(hidden, reverse=True),
    }[output](hidden)
    words = back(keras.ops.argmax(keras.layers.Softmax()(scores), axis=-1))
    text = tf.constant([["a"], ["b"], ["c"]])
    moved, _ = change_vocabulary(
        keras.Model(inputs, words), ["[UNK]", *"abc"], ["[UNK]", *"cab"], table="words"
    )
    assert (moved(text) == text).numpy().all()


@keras.saving.register_keras_serializable(package="test_extend")
class Decoding(OfWords):
    def __init__(self, words, **kwargs):
        super().__init__(words, **kwargs)
        self.back = keras.layers.StringLookup(vocabulary=words, invert=True)
        self.scores = keras.layers.Dense(len(words) + 1)

    def call(self, inputs):
        return self.back(keras.ops.argmax(self.scores(super().call(inputs)), axis=-1))


def test_what_a_lookup_names_must_be_seen():
    model = Decoding(["cat", "dog"])
    model(tf.constant([["cat"]]))
    with pytest.raises(ValueError, match=r"must be seen whether.*Decoding, which is no graph"):
        change_vocabulary(model, ["[UNK]", "cat", "dog"], ["[UNK]", "dog", "cat"])


@pytest.mark.parametrize(
    ("between", "new", "message"),
    [
        (lambda ids: ids + 1, ["[UNK]", "b", "a"], "cannot be seen.*`set_vocabulary` or `adapt`"),
        (lambda ids: keras.ops.minimum(ids, 2), ["[UNK]", "b", "a"], "cannot be seen"),
        (lambda ids: ids, {"[UNK]": 0, "b": 1, "a": 3}, "must follow each other"),
    ],
)
def test_a_lookup_that_cannot_move_with_the_rows_is_refused(between, new, message):
    inputs = keras.Input((1,), dtype="string")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Model(inputs, keras.layers.Embedding(4, D)(between(lookup(inputs))))
    with pytest.raises(ValueError, match=message):
        change_vocabulary(model, ["[UNK]", "a", "b"], new)


def test_words_are_of_the_type_that_the_lookup_knows():
    def model(lookup, dtype):
        inputs = keras.Input((1,), dtype=dtype)
        return keras.Model(inputs, keras.layers.Embedding(4, D)(lookup(inputs)))

    integers = model(keras.layers.IntegerLookup(vocabulary=[7, 8, 9]), "int64")
    assert extend(integers, [np.int64(42), "43"])[0].layers[1](42).numpy() == 4
    with pytest.raises(TypeError, match="knows strings only"):
        extend(model(keras.layers.StringLookup(vocabulary=["a", "b", "c"]), "string"), [42])
    with pytest.raises(TypeError, match="must be strings"):
        extend(embedding(np.ones((4, D))), [42], vocabulary=list("abcd"))


def test_a_tokenizer_that_takes_no_tokens_is_refused():
    class Deaf(Tokenizer):
        def add_tokens(self, words):
            pass

    with pytest.raises(ValueError, match="must take the new words by `add_tokens`"):
        extend(embedding(np.ones((7, D))), NEW, vocabulary=Deaf(list("abcdefg")))


def tied_by_words():
    words = ReversibleEmbedding(4, D, name="words")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b", "c"], name="lookup")
    inputs = keras.Input((2,), dtype="string")
    hidden = keras.layers.Dense(D)(words(lookup(inputs)))
    model = MaskedModel(inputs, Bias()(words(hidden, reverse=True)))
    model.compile("adam", loss="mse", trainable_rows={words: [1]})
    return model, lookup


def spoils_what_it_is_given(words, table):
    """First values for the table, and an error for the bias that grows with it."""
    with pytest.raises(ValueError, match="read-only"):
        table[:] = np.nan
    if table.shape[1] == 1:
        raise RuntimeError("no first value for a bias")
    return np.zeros((len(words), table.shape[1]))


@pytest.mark.parametrize(
    "change",
    [
        lambda model, initializer: extend(model, ["d"], initializer),
        lambda model, initializer: change_vocabulary(
            model, ["[UNK]", "a", "b", "c"], ["[UNK]", "d", "c", "a"], initializer
        ),
    ],
    ids=["extend", "change_vocabulary"],
)
def test_a_model_is_as_it_was_where_a_larger_one_cannot_be_made(change):
    model, lookup = tied_by_words()
    before, config = model.get_weights(), model.get_config()
    with pytest.raises(RuntimeError, match="for a bias"):
        change(model, spoils_what_it_is_given)
    for weight, value in zip(model.get_weights(), before, strict=True):
        assert (bits(weight) == bits(value)).all()
    assert lookup.get_vocabulary() == ["[UNK]", "a", "b", "c"]
    assert model.get_config() == config


def test_a_vocabulary_knows_all_of_the_new_words_or_none():
    words = {f"w{row}": row for row in range(V)}
    with pytest.raises(ValueError, match=r"must know all of the new words or none.*\['new'\] of"):
        extend(embedded(), ["new", "newer"], vocabulary={**words, "new": V})


def test_an_id_that_is_far_beyond_the_table_is_refused():
    model = embedded()
    words = {f"w{row}": row for row in range(V)}
    with pytest.raises(ValueError, match=r"follow the 7 rows.*Received: the ids"):
        extend(model, ["new"], vocabulary={**words, "new": V + 9})


def test_a_vocabulary_begins_with_what_a_lookup_keeps_for_itself():
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"])
    with pytest.raises(ValueError, match=r"must begin as that of .* with \['\[UNK\]'\]"):
        change_vocabulary(beneath(lookup, 3), ["[UNK]", "a", "b"], ["a", "b", "c"])


def test_a_lookup_that_standardizes_by_a_function_learns_words():
    lookup = keras.layers.TextVectorization(vocabulary=["a", "b"], standardize=tf.strings.upper)
    larger, new = extend(beneath(lookup, 4), ["C"])
    assert new == Rows([4], 5)
    assert larger.layers[1].get_vocabulary() == ["", "[UNK]", "a", "b", "C"]


def with_an_inverse(words):
    """A model that is given ids, and says words."""
    inputs = keras.Input((2,), dtype="int32")
    inverse = keras.layers.StringLookup(vocabulary=words, invert=True, name="inverse")
    table = keras.layers.Embedding(len(words) + 1, D, name="words")
    return keras.Model(inputs, [table(inputs), inverse(inputs)])


def words_in(model, name):
    return model.get_layer(name).get_vocabulary()


@pytest.mark.parametrize("given", ["none", "its lookup", "a lookup outside", "its words"])
def test_a_vocabulary_says_what_the_lookup_of_the_model_says(given):
    known = ["[UNK]", "a", "b"]
    lookup = keras.layers.StringLookup(vocabulary=known[1:], name="lookup")
    model = beneath(lookup, 3)
    outside = keras.layers.StringLookup(vocabulary=known[1:])
    vocabulary = {"none": None, "its lookup": lookup, "a lookup outside": outside}.get(given, known)
    larger, new = extend(model, ["c"], vocabulary=vocabulary)
    assert new == Rows([3], 4)
    assert words_in(larger, "lookup") == [*known, "c"]
    assert lookup.get_vocabulary() == outside.get_vocabulary() == known
    with pytest.raises(ValueError, match="must be that of"):
        extend(model, ["c"], vocabulary=["[UNK]", "b", "a"])


def test_an_inverse_lookup_learns_the_words_of_its_table():
    larger, _ = extend(with_an_inverse(["a", "b"]), ["c"])
    assert words_in(larger, "inverse") == ["[UNK]", "a", "b", "c"]
    inverse = keras.layers.StringLookup(vocabulary=["a", "b"], invert=True, name="inverse")
    lookup = keras.layers.StringLookup(vocabulary=["a", "b"], name="lookup")
    inputs = keras.Input((1,), dtype="string")
    ids = lookup(inputs)
    both = keras.Model(inputs, [keras.layers.Embedding(3, D)(ids), inverse(ids)])
    larger, _ = extend(both, ["c"])
    assert words_in(larger, "lookup") == words_in(larger, "inverse") == ["[UNK]", "a", "b", "c"]
    with pytest.raises(ValueError, match="words that it knows"):
        extend(with_an_inverse(["a", "b"]), ["b"])


def test_what_is_frozen_or_adapted_by_lora_is_so_in_the_copy():
    model = embedded()
    hidden = model.get_layer("hidden")
    hidden.enable_lora(2)
    hidden.lora_kernel_b.assign(np.ones(hidden.lora_kernel_b.shape))
    hidden.bias.trainable = False
    larger, _ = extend(model, NEW)
    copy = larger.get_layer("hidden")
    assert copy.lora_enabled
    assert [w.trainable for w in copy.weights] == [w.trainable for w in hidden.weights]
    assert (bits(larger(ALL_IDS)) == bits(model(ALL_IDS))).all()


@keras.saving.register_keras_serializable(package="test_extend")
class Sized(keras.Model):
    """A subclassed model that makes its table by one of two entries that are both V."""

    def __init__(self, vocabulary_length, sizes, is_bound=False, **kwargs):
        if vocabulary_length != V:
            raise ValueError("it knows one vocabulary alone")
        super().__init__(**kwargs)
        self.arguments = {"vocabulary_length": V, "sizes": list(sizes), "is_bound": is_bound}
        self.table = keras.layers.Embedding(V if is_bound else sizes[0], sizes[1])

    def call(self, inputs):
        return self.table(inputs)

    def get_config(self):
        return {**super().get_config(), **self.arguments}


def test_which_entry_of_a_config_is_the_number_of_rows_is_found_by_trying():
    model = Sized(V, [V, D])
    outputs = model(ALL_IDS)
    larger, _ = extend(model, NEW)
    assert larger.arguments["sizes"] == [V + 2, D]
    assert (bits(larger(ALL_IDS)) == bits(outputs)).all()
    bound = Sized(V, [V, D], is_bound=True)
    bound(ALL_IDS)
    with pytest.raises(ValueError, match=r"no entry.*one vocabulary alone.*still has 7 rows"):
        extend(bound, NEW)
