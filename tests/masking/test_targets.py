"""What is named is one table, or refused: by users before a build, and by configs after loading."""

import contextlib

import keras
import numpy as np
import pytest

from maskedgrad import AlongAxis, MaskedOptimizer
from maskedgrad.rows.saved import decode_trainable_rows, encode_trainable_rows, saved_table
from maskedgrad.rows.targets import named, resolve, saved
from tests.features import feature

ReversibleEmbedding = feature("layers.ReversibleEmbedding")
if ReversibleEmbedding is None:  # keras_hub had it before Keras did
    from keras_hub.layers import ReversibleEmbedding


def variable(path, shape):
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.zeros(shape), name=name)


@pytest.fixture
def variables():
    return [variable("words/table", (5, 2)), variable("tags/table", (3, 2)), variable("a/b", ())]


def test_an_exact_path_goes_before_a_regular_expression(variables):
    variables.append(variable("words/tabl.", (4, 2)))
    (table,) = resolve(named({"words/tabl.": [1]}), variables)
    assert table.variable is variables[-1]


def test_a_pattern_names_every_table_whose_whole_path_it_matches(variables):
    tables = resolve(named({".*/table": [1]}), variables)
    assert [table.variable.path for table in tables] == ["words/table", "tags/table"]
    with pytest.raises(ValueError, match="matches none"):
        resolve(named({"table": [1]}), variables)


def saved_of(variables, place, rows):
    """What a config says of one of the variables, all of which were trained."""
    saved = saved_table(variables[place], 0, variables)
    return decode_trainable_rows(encode_trainable_rows([(saved, rows)]))


def test_a_saved_table_is_found_by_its_path(variables):
    saved = saved_of(variables, 1, [2])
    (table,) = resolve(named(saved), variables)
    assert table.variable is variables[1]
    assert list(table.rows) == [2]
    # Beside others, and elsewhere among them, since the layers around were frozen.
    with pytest.warns(UserWarning, match="3 variables were trained"):
        (table,) = resolve(named(saved), variables[1:])
    assert table.variable is variables[1]


def test_a_saved_table_is_found_by_its_place_where_all_names_are_new(variables):
    again = [
        variable("model/words_1/table", (5, 2)),
        variable("model/tags_1/table", (3, 2)),
        variable("model/a_1/b", ()),
    ]
    for place in (0, 1):
        (table,) = resolve(named(saved_of(variables, place, [2])), again)
        assert table.variable is again[place]


def test_two_tables_of_one_path_are_told_apart_by_their_places():
    twins = [variable("words/table", (5, 2)) for _ in range(2)]
    again = [variable("words/table", (5, 2)) for _ in range(2)]
    for place in (0, 1):
        (table,) = resolve(named(saved_of(twins, place, [2])), again)
        assert table.variable is again[place]


@pytest.mark.parametrize(
    "found",
    [
        [("words/table", (6, 2)), ("tags/table", (3, 2)), ("a/b", ())],  # of another shape
        [("terms/table", (5, 2)), ("tags/table", (3, 2)), ("a/b", ())],  # of another name
        [("tags/table", (3, 2)), ("a/b", ())],  # gone
        [("words_1/table", (5, 2)), ("words_2/table", (5, 2))],  # two that it may be
        [("words/table", (5, 2)), ("words/table", (5, 2)), ("tags/table", (3, 2)), ("a/b", ())],
    ],
)
def test_a_saved_table_that_is_not_found_beyond_doubt_is_refused(variables, found):
    saved = saved_of(variables, 0, [1])
    with pytest.raises(ValueError, match=r"beyond doubt(.|\n)*'words/table', shape \(5, 2\)"):
        resolve(named(saved), [variable(*each) for each in found])


@pytest.mark.parametrize(
    ("found", "is_refused"),
    [
        ([("a/b", ())], False),  # it was frozen whole, or quantized
        ([("a/b", ()), ("head/kernel", (4, 3))], False),
        ([], False),
        ([("a/b", ()), ("terms/table", (9, 2))], True),  # which may be it, of other rows
        ([("a/b", ()), ("words/table", (4, 3))], True),  # of its path
        ([("a/b", ()), ("head/kernel", (4, 3)), ("head/bias", ())], True),  # as many as were
    ],
)
def test_a_saved_table_that_trains_no_more_is_left_out_where_nothing_can_be_it(
    variables, found, is_refused
):
    saved, found = saved_of(variables, 0, [1]), [variable(*each) for each in found]
    assert len(variables) == 3
    if is_refused:
        with pytest.raises(ValueError, match="beyond doubt"):
            resolve(named(saved), found)
    else:
        assert resolve(named(saved), found) == []


@pytest.mark.parametrize(
    ("trainable_rows", "error", "message"),
    [
        ({"nothing": [1]}, ValueError, r"matches none(.|\n)*words/table  \(5, 2\)"),
        ({"a/b": [0]}, ValueError, "scalar"),
        ({"words/table": [1], ".*ds/table": [2]}, ValueError, "Two targets"),
        ({"words/table": []}, ValueError, "no row at all"),
        ({"words/table": [5]}, ValueError, r"'words/table'.*below 5"),
        ({"words/table": [0.5]}, TypeError, r"integers.*\[0\.5\]"),
        ({"(": [1]}, ValueError, "regular expression"),
        ({"a{99999999999}": [1]}, ValueError, "regular expression"),
        ({"(" * 5000 + ")" * 5000: [1]}, ValueError, "regular expression"),
        ({}, ValueError, "at least one"),
        ([("words/table", [1])], TypeError, "mapping"),
        (None, TypeError, "mapping"),
    ],
)
def test_targets_that_mean_nothing_are_refused(variables, trainable_rows, error, message):
    with pytest.raises(error, match=message):
        resolve(named(trainable_rows), variables)


def test_a_path_that_two_variables_share_is_refused(variables):
    variables.append(variable("words/table", (5, 2)))
    with pytest.raises(ValueError, match=r"must name one variable.*2 variables of this path"):
        resolve(named({"words/table": [1]}), variables)


def test_layers_of_one_name_are_two_tables_in_every_form():
    first, second = layers = [keras.layers.Embedding(3, 2, name="words") for _ in range(2)]
    for layer in layers:
        layer.build()
    variables = [layer.embeddings for layer in layers]
    optimizer = MaskedOptimizer("sgd", {first: [0], second: [1]})
    optimizer.build(variables)
    tables = optimizer.masked_tables()
    found = [(id(table.variable), list(table.rows)) for table in tables]
    assert found == [(id(variables[0]), [0]), (id(variables[1]), [1])]
    with pytest.raises(ValueError, match="Two tables have one path"):
        _ = optimizer.trainable_rows
    optimizer.set_trainable_rows({tables[1]: [2], tables[0]: [0, 1]})
    assert [list(table.rows) for table in optimizer.masked_tables()] == [[0, 1], [2]]
    again = MaskedOptimizer.from_config(optimizer.get_config())
    again.build(variables)
    found = [(id(table.variable), list(table.rows)) for table in again.masked_tables()]
    assert found == [(id(variables[0]), [0, 1]), (id(variables[1]), [2])]


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(4, 3, use_bias=False),
        keras.layers.Conv1D(4, 3, use_bias=False),
        keras.layers.DepthwiseConv2D(3, use_bias=False),
        keras.layers.Dense(4, use_bias=False),
        keras.layers.EinsumDense("...a,ab->...b", 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_of_a_kernel_must_say_its_axis(layer):
    """The first axis of such a kernel is its height, or what comes in."""
    ranks = {"Conv2D": 4, "DepthwiseConv2D": 4, "Conv1D": 3, "Dense": 2, "EinsumDense": 2}
    layer.build((1, 8, 8, 5)[-ranks[type(layer).__name__] :])
    with pytest.raises(ValueError, match=r"which axis(.|\n)*AlongAxis\(layer, axis\)"):
        named({layer: [0]})
    assert named({AlongAxis(layer, -1): [0]})


@pytest.mark.parametrize(
    "pattern",
    [".*embeddings", "tokens/reverse_embeddings", *(AlongAxis(".*embeddings", a) for a in (0, 1))],
    ids=repr,
)
def test_a_table_that_is_turned_round_must_say_its_axis(pattern):
    tokens = ReversibleEmbedding(5, 5, tie_weights=False, name="tokens")
    tokens.build()
    with pytest.raises(ValueError, match=r"AlongAxis\('tokens/reverse_embeddings', 1\)"):
        resolve(named({pattern: [4]}), tokens.weights)
    turned = AlongAxis("tokens/reverse_embeddings", 1)
    tables = resolve(named({"tokens/embeddings": [4], turned: [4]}), tokens.weights)
    assert [table.axis for table in tables] == [0, 1]
    (saved_pattern,) = saved(named({turned: [4]})[0][0])
    assert resolve(named({saved_pattern: [4]}), tokens.weights)[0].axis == 1


@pytest.mark.parametrize("rows", [[0], [3], [100]])
def test_an_axis_of_several_lengths_is_refused_for_what_it_is(rows):
    layer = keras.layers.SeparableConv2D(4, 3)
    layer.build((1, 8, 8, 5))
    with pytest.raises(ValueError, match="must be of one length"):
        named({AlongAxis(layer, -1): rows})
