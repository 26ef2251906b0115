"""Each backbone of keras_hub, extended by two tokens: what it was stays, and the new train."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from maskedgrad import MaskedOptimizer, Rows, extend
from tests.compatibility import backbones
from tests.compatibility.helpers import assert_only_trained, bits
from tests.compatibility.table import refused, works

MODELS = "Whole models of keras_hub"
NEW = ["<city>", "<name>"]
V = backbones.VOCABULARY
# One of each kind: a head tied and untied, a config that forgets to tell so, a table within a
# layer of its own with positions, a model of two towers.
USUAL = ["BertBackbone", "GPT2Backbone", "LlamaBackbone", "CLIPBackbone", "Phi3Backbone"]
LISTED = {**backbones.NOT_TRIED, **backbones.REFUSED}
OTHERS = [name for name in backbones.names() if name not in LISTED]


extended = works(
    MODELS,
    "`extend` of a backbone of keras_hub: BERT, GPT-2, Llama, CLIP, Phi-3",
    "So is every other that has a table of tokens, but those that stand here: "
    "`python -m pytest tests/compatibility/test_backbones.py -m matrix`.",
)


@extended
@pytest.mark.parametrize("name", USUAL)
def test_a_backbone_is_extended(name):
    assert_extended(name)


@extended
@pytest.mark.matrix
@pytest.mark.parametrize("name", [name for name in OTHERS if name not in USUAL])
def test_every_other_backbone_is_extended(name):
    assert_extended(name)


@refused(MODELS, "`extend` of `PARSeqBackbone`", "Its output has two rows fewer than its table.")
@pytest.mark.parametrize("name", backbones.REFUSED)
def test_a_backbone_that_cannot_be_extended_is_refused(name):
    model = backbones.small(name)
    with pytest.raises(ValueError, match=r"only a weight with one axis of 30 can be extended"):
        extend(model, NEW, table="token_embedding")


@refused(
    MODELS,
    "Not tried: `extend` of " + ", ".join(f"`{name}`" for name in sorted(backbones.NOT_TRIED)),
    "They are made of parts that keras_hub does not export. Extend the text encoder, if it is one.",
)
@pytest.mark.parametrize("name", backbones.NOT_TRIED)
def test_what_is_not_tried_cannot_be_made_from_numbers(name):
    if name not in backbones.names():
        pytest.skip(f"this keras_hub has no {name}")
    with pytest.raises(TypeError, match="missing"):
        backbones.small(name)


def assert_extended(name):
    model = backbones.small(name)
    table = table_of(model, name)
    before = [weight.numpy() for weight in model.weights]
    larger, new = extend(model, NEW, "mean", table=table)
    assert new == Rows([V, V + 1], V + 2)
    assert type(larger) is type(model)
    assert_old_rows_are_kept(before, model, larger)
    old_ids = backbones.batch(model, np.arange(V))
    assert_same_bits(model(old_ids), larger(old_ids))
    place = [each is table for each in layers_of(model)].index(True)
    assert_new_rows_train(larger, layers_of(larger)[place], new)


def layers_of(model):
    return model._flatten_layers()


def table_of(model, name):
    tables = {
        each.path: each for each in layers_of(model) if isinstance(each, keras.layers.Embedding)
    }
    if name in backbones.TABLES:
        return tables[backbones.TABLES[name]]
    held = (getattr(each, "token_embedding", None) for each in layers_of(model))
    held = [each for each in held if isinstance(each, keras.layers.Embedding)]
    return (held or list(tables.values()))[0]


def assert_old_rows_are_kept(before, model, larger):
    assert stems(larger) == stems(model)
    for old, now, weight in zip(before, model.weights, larger.weights, strict=True):
        assert (bits(old) == bits(now.numpy())).all()
        kept = weight.numpy()[tuple(slice(size) for size in old.shape)]
        assert (bits(kept) == bits(old)).all(), weight.path


def stems(model):
    """Paths without the numbers that Keras gives to names it makes itself."""
    return [re.sub(r"_\d+(/|$)", r"\1", weight.path) for weight in model.weights]


def assert_same_bits(outputs, others):
    for output, other in zip(keras.tree.flatten(outputs), keras.tree.flatten(others), strict=True):
        kept = other.numpy()[tuple(slice(size) for size in output.shape)]
        if kept.shape == other.shape:
            assert (bits(kept) == bits(output.numpy())).all()
        else:  # a matrix with more columns is multiplied in other blocks
            np.testing.assert_allclose(kept, output.numpy(), rtol=1e-5, atol=1e-6)


def assert_new_rows_train(model, table, new):
    """The new rows move by a step, and no other row, where the batch holds them all."""
    x = backbones.batch(model, np.arange(V - 4, V + 2))
    with tf.GradientTape() as tape:
        outputs = [each for each in keras.tree.flatten(model(x)) if each.dtype.is_floating]
        targets = np.random.default_rng(1)
        loss = sum(
            tf.reduce_mean(tf.square(tf.cast(each, "float32") - targets.normal(size=each.shape)))
            for each in outputs
        )
    variables = [table.embeddings]
    optimizer = MaskedOptimizer(keras.optimizers.Adam(0.01), {table.embeddings.path: new})
    optimizer.build(variables)
    before = table.embeddings.numpy()
    optimizer.apply(tape.gradient(loss, variables), variables)
    assert_only_trained(before, table.embeddings.numpy(), new.ids)
