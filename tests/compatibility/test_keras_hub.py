"""Layers, backbones and tasks of keras_hub, made from a small config, with nothing to download."""

import re

import keras
import keras_hub
import numpy as np
import pytest

from maskedgrad import AlongAxis, MaskedOptimizer, MaskedTrainStep, summary
from tests.compatibility.helpers import (
    IDS,
    LENGTH,
    NUM_ROWS,
    WIDTH,
    X,
    Y,
    assert_only_trained,
    bits,
    in_both_models,
)
from tests.compatibility.table import refused, works
from tests.compatibility.test_layers import assert_trains_as_without_masks
from tests.test_graph import assert_no_gradient_is_made_of, memory_of

TABLES = "Layers that hold tables"
MODELS = "Whole models of keras_hub"
NEXT_TOKEN = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


# ---- layers that hold tables ----


def next_token_model(model_class, **options):
    """Tokens in, logits of the next token out, by one `ReversibleEmbedding`."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    # Initialized wide, so that one step shows in every row.
    tokens = keras_hub.layers.ReversibleEmbedding(
        NUM_ROWS, WIDTH, embeddings_initializer="normal", name="tokens", **options
    )
    hidden = keras.layers.Dense(WIDTH, activation="tanh", name="hidden")(tokens(inputs))
    return model_class(inputs, tokens(hidden, reverse=True)), tokens


def assert_predicts_with(model, tokens, kernel):
    """The logits are those of the table and the output columns as they are now."""
    hidden = np.tanh(
        tokens.embeddings.numpy()[X] @ model.get_layer("hidden").kernel.numpy()
        + model.get_layer("hidden").bias.numpy()
    )
    # NumPy adds in another order.
    np.testing.assert_allclose(model(X).numpy(), hidden @ kernel, rtol=1e-4, atol=1e-6)


@works(TABLES, "`keras_hub.layers.ReversibleEmbedding`, tied")
@in_both_models
def test_rows_of_a_tied_table_train(model_class):
    (model, tokens), (whole, _) = next_token_model(model_class), next_token_model(keras.Model)
    tables = [(tokens.embeddings, IDS, 0)]
    assert_trains_as_without_masks(
        model, whole, {tokens: IDS}, X, np.roll(X, -1, axis=1), tables=tables, loss=NEXT_TOKEN
    )
    assert_predicts_with(model, tokens, tokens.embeddings.numpy().T)


@works(
    TABLES,
    "`keras_hub.layers.ReversibleEmbedding`, untied",
    "Named by paths: rows of `embeddings`, and columns of `reverse_embeddings` by `AlongAxis`.",
)
@in_both_models
def test_rows_and_output_columns_of_an_untied_table_train(model_class):
    (model, tokens), (whole, _) = (
        next_token_model(each, tie_weights=False) for each in (model_class, keras.Model)
    )
    assert_trains_as_without_masks(
        model,
        whole,
        {tokens.embeddings.path: IDS, AlongAxis("(.*/)?reverse_embeddings", 1): IDS},
        X,
        np.roll(X, -1, axis=1),
        tables=[(tokens.embeddings, IDS, 0), (tokens.reverse_embeddings, IDS, 1)],
        loss=NEXT_TOKEN,
    )
    assert_predicts_with(model, tokens, tokens.reverse_embeddings.numpy())


@refused(
    TABLES,
    "A layer that owns two tables, such as an untied `ReversibleEmbedding`, as the target",
    "Name each table by its path, or the layer inside that owns it.",
)
@pytest.mark.parametrize("kind", ["untied", "tokens and positions"])
def test_a_layer_of_two_tables_is_no_target(kind):
    if kind == "untied":
        _, layer = next_token_model(keras.Model, tie_weights=False)
    else:
        layer = keras_hub.layers.TokenAndPositionEmbedding(NUM_ROWS, LENGTH, WIDTH)
        layer.build((None, LENGTH))
    with pytest.raises(ValueError, match="owns 2 variables"):
        MaskedOptimizer("adamw", {layer: IDS})


@works(
    TABLES,
    "`keras_hub.layers.TokenAndPositionEmbedding`",
    "The target is its `token_embedding`, or its `position_embedding`, or both.",
)
@in_both_models
def test_rows_of_tokens_and_of_positions_train(model_class):
    def make(model_class):
        inputs = keras.Input((LENGTH,), dtype="int32")
        both = keras_hub.layers.TokenAndPositionEmbedding(NUM_ROWS, LENGTH, WIDTH, mask_zero=True)
        return model_class(inputs, keras.layers.GRU(1)(both(inputs))), both

    (model, both), (whole, _) = make(model_class), make(keras.Model)
    tokens, positions = both.token_embedding, both.position_embedding
    assert_trains_as_without_masks(
        model,
        whole,
        {tokens: IDS, positions: [0, 2]},
        X,
        Y,
        tables=[(tokens.embeddings, IDS, 0), (positions.position_embeddings, [0, 2], 0)],
    )


# ---- BERT ----

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "quick", "brown", "fox", "sleeps"]
NEW_WORDS = ["zorb", "quux"]
NEW_IDS = [len(WORDS), len(WORDS) + 1]
TEXTS = ["the quick zorb", "the brown quux sleeps", "the fox", "zorb the quux"]
LABELS = np.array([0, 1, 1, 0])


def bert_backbone(vocabulary_size):
    return keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary_size,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        dropout=0.0,
        max_sequence_length=8,
    )


def bert_preprocessor():
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=WORDS + NEW_WORDS)
    return keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)


@works(MODELS, "`BertBackbone` with a head of one's own")
@in_both_models
def test_new_words_train_beneath_a_head_of_ones_own(model_class):
    def make(model_class):
        backbone = bert_backbone(len(WORDS + NEW_WORDS))
        pooled = backbone(backbone.input)["pooled_output"]
        return model_class(backbone.input, keras.layers.Dense(2)(pooled)), backbone

    (model, backbone), (whole, _) = make(model_class), make(keras.Model)
    tokens = backbone.token_embedding
    assert_trains_as_without_masks(
        model,
        whole,
        {tokens: NEW_IDS},
        bert_preprocessor()(TEXTS),
        LABELS,
        tables=[(tokens.embeddings, NEW_IDS, 0)],
        loss=NEXT_TOKEN,
    )


class MaskedTextClassifier(MaskedTrainStep, keras_hub.models.BertTextClassifier):
    """A text classifier with a `train_step` that masks gradients."""


@works(
    MODELS,
    "`BertTextClassifier` with its preprocessor, from raw strings",
    "As it is, or as `class MaskedTextClassifier(MaskedTrainStep, BertTextClassifier)`.",
)
@pytest.mark.parametrize(
    "model_class",
    [
        pytest.param(keras_hub.models.BertTextClassifier, marks=pytest.mark.thorough),
        MaskedTextClassifier,
    ],
)
@pytest.mark.processes  # the time that it takes
def test_new_words_train_from_raw_strings(model_class):
    model, whole = (
        each(
            bert_backbone(len(WORDS + NEW_WORDS)),
            num_classes=2,
            preprocessor=bert_preprocessor(),
            dropout=0.0,
            compile=False,
        )
        for each in (model_class, keras_hub.models.BertTextClassifier)
    )
    before = whole.predict_on_batch(TEXTS)
    tokens = model.backbone.token_embedding
    tables = [(tokens.embeddings, NEW_IDS, 0)]
    assert_trains_as_without_masks(
        model, whole, {tokens: NEW_IDS}, TEXTS, LABELS, tables=tables, loss="auto"
    )
    logits = model.predict(TEXTS, verbose=0)
    np.testing.assert_array_equal(logits, model.predict_on_batch(TEXTS))
    assert logits.shape == (len(TEXTS), 2)
    assert (logits != before).all()


# ---- GPT-2: the output is tied to the table ----

MERGES = ["Ġ a", "Ġ t", "a i", "Ġa i", "r p", "Ġai rp", "o r", "or t", "Ġairp ort", "Ġa t"]
NEW_TOKENS = ["<city>", "<name>"]
END = "<|endoftext|>"
SENTENCES = [" airport at<city>", "<name> at<city>", " airport at<name>"]


def gpt2_tokenizer(new_tokens, **options):
    parts = {part for merge in MERGES for part in [*merge.split(" "), merge.replace(" ", "")]}
    tokens = [*sorted(parts), END, *new_tokens]  # the first is the padding
    return keras_hub.models.GPT2Tokenizer(
        vocabulary={token: place for place, token in enumerate(tokens)}, merges=MERGES, **options
    )


def gpt2_backbone(vocabulary_size):
    return keras_hub.models.GPT2Backbone(
        vocabulary_size=vocabulary_size,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=8,
    )


def gpt2_preprocessor():
    tokenizer = gpt2_tokenizer(NEW_TOKENS, unsplittable_tokens=[END, *NEW_TOKENS])
    return keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8)


def gpt2(model_class, preprocessor=None):
    """A model, not compiled, the layer of its table, and the ids of the new tokens."""
    tokenizer = gpt2_preprocessor().tokenizer
    backbone = gpt2_backbone(tokenizer.vocabulary_size())
    model = model_class(backbone, preprocessor=preprocessor, compile=False)
    return model, backbone.token_embedding, [tokenizer.token_to_id(token) for token in NEW_TOKENS]


def tokenized():
    """The inputs of `SENTENCES`, and the tokens that come next."""
    x, y, _ = gpt2_preprocessor()(SENTENCES)
    return x, y


@keras.saving.register_keras_serializable(package="tests")
class MaskedCausalLM(MaskedTrainStep, keras_hub.models.GPT2CausalLM):
    """A causal language model with a `train_step` that masks gradients."""


in_both_causal_lms = pytest.mark.parametrize(
    "model_class",
    [pytest.param(keras_hub.models.GPT2CausalLM, marks=pytest.mark.thorough), MaskedCausalLM],
)


@works(
    MODELS,
    "`GPT2CausalLM`, tied",
    "As it is, or as `class MaskedCausalLM(MaskedTrainStep, GPT2CausalLM)`.",
)
@in_both_causal_lms
def test_new_tokens_of_a_causal_language_model_train(model_class):
    (model, tokens, ids), (whole, *_) = gpt2(model_class), gpt2(keras_hub.models.GPT2CausalLM)
    assert_trains_as_without_masks(
        model, whole, {tokens: ids}, *tokenized(), tables=[(tokens.embeddings, ids, 0)], loss="auto"
    )


@works(
    MODELS,
    "`GPT2CausalLM.fit()` on raw strings, and `generate()`, also compiled before the training",
    "What is generated says the new tokens once they have trained.",
)
@in_both_causal_lms
@pytest.mark.processes  # the time that it takes
def test_new_tokens_are_generated_once_they_have_trained(model_class):
    model, tokens, ids = gpt2(model_class, gpt2_preprocessor())
    before = tokens.embeddings.numpy()
    optimizer = MaskedOptimizer(keras.optimizers.Adam(0.05), {tokens: ids})
    model.compile(optimizer, sampler="greedy")
    prompt, sentence = "<name> at", SENTENCES[1]
    longest = 4  # the start, the two tokens of the prompt, and one more
    assert model.generate(prompt, max_length=longest) != sentence
    model.fit([sentence] * 200, batch_size=2, verbose=0)
    assert model.generate(prompt, max_length=longest) == sentence
    assert_only_trained(before, tokens.embeddings.numpy(), ids)


@works(
    MODELS,
    "`backbone.enable_lora(rank)` with the rows of new tokens",
    "It freezes every layer: `backbone.token_embedding.trainable = True` after it.",
)
@in_both_causal_lms
@pytest.mark.processes  # the time that it takes
def test_new_tokens_train_beside_lora(model_class):
    model, tokens, ids = gpt2(model_class)
    model.backbone.enable_lora(2)
    tokens.trainable = True
    trains = {variable.path for variable in model.trainable_variables}
    assert sum("lora" in path for path in trains) == 4  # two matrices each for queries and values
    before = {variable.path: variable.numpy() for variable in model.weights}
    model.compile(MaskedOptimizer("adamw", {tokens: ids}))
    model.fit(*tokenized(), batch_size=2, verbose=0)
    after = {variable.path: variable.numpy() for variable in model.weights}
    table = tokens.embeddings.path
    assert_only_trained(before[table], after[table], ids)
    moved = {path for path in before if (bits(before[path]) != bits(after[path])).any()}
    assert moved == trains


@works(
    MODELS,
    "A stock task that is saved and loaded",
    "Compile it again: Keras warns that it did not, and the optimizer that a task makes itself "
    "trains every row.",
)
@pytest.mark.processes  # the time that it takes
def test_a_loaded_task_trains_its_rows_once_it_is_compiled_again(tmp_path):
    model, tokens, ids = gpt2(keras_hub.models.GPT2CausalLM, gpt2_preprocessor())
    model.compile(MaskedOptimizer("adamw", {tokens: ids}))
    model.train_on_batch(SENTENCES)
    model.save(tmp_path / "task.keras")
    with pytest.warns(UserWarning, match="`compile\\(\\)` was not called"):
        loaded = keras.saving.load_model(tmp_path / "task.keras")
    loaded_tokens = loaded.backbone.token_embedding
    before = tokens.embeddings.numpy()
    np.testing.assert_array_equal(bits(loaded_tokens.embeddings.numpy()), bits(before))
    loaded.compile(MaskedOptimizer("adamw", {loaded_tokens: ids}))
    loaded.train_on_batch(SENTENCES)
    assert_only_trained(before, loaded_tokens.embeddings.numpy(), ids)


@works(MODELS, "A task that is a `MaskedTrainStep` too, saved and loaded")
@pytest.mark.processes  # the time that it takes
def test_a_loaded_masked_task_trains_its_rows(tmp_path):
    model, tokens, ids = gpt2(MaskedCausalLM, gpt2_preprocessor())
    model.compile(MaskedOptimizer("adamw", {tokens: ids}))
    model.train_on_batch(SENTENCES)
    model.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    before = tokens.embeddings.numpy()
    for each in (model, loaded):
        each.train_on_batch(SENTENCES)
        assert_only_trained(before, each.backbone.token_embedding.embeddings.numpy(), ids)


@works(
    MODELS,
    "A task with frozen layers or LoRA, saved and loaded",
    "Neither is saved, by Keras and keras_hub themselves: what was frozen trains again, but for "
    "the rows of a masked table. Freeze it again before `compile`; `maskedgrad.summary` shows "
    "what trains.",
)
def test_a_summary_shows_that_a_loaded_task_trains_what_was_frozen(tmp_path):
    model, tokens, ids = gpt2(MaskedCausalLM, gpt2_preprocessor())
    model.backbone.enable_lora(2)
    tokens.trainable = True
    model.compile(MaskedOptimizer("adamw", {tokens: ids}))
    model.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert not [variable for variable in loaded.weights if "lora" in variable.path]
    assert len(loaded.trainable_variables) > len(model.trainable_variables)
    shown = []
    for each in (model, loaded):
        lines: list[str] = []
        summary(each, print_fn=lines.append)
        found = re.search(r"Trainable parameters: ([\d,]+)", "\n".join(lines))
        shown.append(int(found[1].replace(",", "")))
    assert shown[1] > shown[0]


@refused(
    MODELS,
    "`keras.callbacks.SwapEMAWeights` in the `fit` of a task that is a `MaskedTrainStep` too",
    "Use `maskedgrad.callbacks.SwapEMAWeights`.",
)
def test_a_swap_that_leaves_out_the_tables_is_refused_in_a_task():
    model, tokens, ids = gpt2(MaskedCausalLM, gpt2_preprocessor())
    model.compile(MaskedOptimizer(keras.optimizers.Adam(use_ema=True), {tokens: ids}))
    with pytest.raises(ValueError, match="which swaps the table's rows too"):
        model.fit(SENTENCES, callbacks=[keras.callbacks.SwapEMAWeights()], verbose=0)


# ---- Llama: an output layer of its own ----

NUM_TOKENS, LAST = 30, [28, 29]
PROMPTS = {
    "token_ids": np.array([[1, 5, 28, 7, 29, 3], [1, 29, 8, 28, 4, 2]]),
    "padding_mask": np.ones((2, 6), "int32"),
}


def llama(tie_word_embeddings):
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=NUM_TOKENS,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        tie_word_embeddings=tie_word_embeddings,
    )
    model = keras_hub.models.LlamaCausalLM(backbone, compile=False)
    return model, backbone.token_embedding


@works(
    MODELS,
    "`LlamaCausalLM`, untied: new tokens in the table and in the output layer",
    '`{tokens.embeddings.path: ids, AlongAxis("(.*/)?reverse_embeddings", 1): ids}`',
)
def test_new_tokens_of_an_untied_model_train_at_both_ends():
    (model, tokens), (whole, _) = llama(False), llama(False)
    assert_trains_as_without_masks(
        model,
        whole,
        {tokens.embeddings.path: LAST, AlongAxis("(.*/)?reverse_embeddings", 1): LAST},
        PROMPTS,
        np.roll(PROMPTS["token_ids"], -1, axis=1),
        tables=[(tokens.embeddings, LAST, 0), (tokens.reverse_embeddings, LAST, 1)],
        loss="auto",
        sampler="greedy",
    )
    started = {"token_ids": PROMPTS["token_ids"], "padding_mask": np.arange(6) < [[4], [4]]}
    generated = model.generate(started, stop_token_ids=None)["token_ids"]
    logits = model(PROMPTS).numpy()
    np.testing.assert_array_equal(generated[:, 4], logits[:, 3].argmax(axis=-1))


@works(MODELS, "`LlamaCausalLM` with `tie_word_embeddings=True`")
def test_new_tokens_of_a_tied_llama_train():
    (model, tokens), (whole, _) = llama(True), llama(True)
    assert_trains_as_without_masks(
        model,
        whole,
        {tokens: LAST},
        PROMPTS,
        np.roll(PROMPTS["token_ids"], -1, axis=1),
        tables=[(tokens.embeddings, LAST, 0)],
        loss="auto",
    )


# ---- what a tied output costs ----

MANY_TOKENS = 10_007
TIED = {
    "GPT2": {"num_heads": 1, "max_sequence_length": 6},
    "Gemma": {"num_query_heads": 1, "num_key_value_heads": 1, "head_dim": 16},
    "Llama": {"num_query_heads": 1, "num_key_value_heads": 1, "tie_word_embeddings": True},
}


def tied_language_model(family, is_frozen):
    options = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 16, **TIED[family]}
    backbone = getattr(keras_hub.models, f"{family}Backbone")(
        vocabulary_size=MANY_TOKENS, **options
    )
    backbone.token_embedding.trainable = not is_frozen
    causal_lm = getattr(keras_hub.models, f"{family}CausalLM")
    return causal_lm(backbone, compile=False), backbone.token_embedding


@works(
    MODELS,
    "`GPT2CausalLM`, `GemmaCausalLM` and `LlamaCausalLM`, tied, at the cost of a frozen table",
    "Neither the dense gradient of the table nor a copy of it is made.",
)
@pytest.mark.thorough  # `tests/test_graph.py` has smaller models
@pytest.mark.parametrize("family", TIED)
def test_a_tied_language_model_makes_no_gradient_of_its_table(family):
    (model, tokens), (frozen, _) = (
        tied_language_model(family, is_frozen) for is_frozen in (False, True)
    )
    model.compile(MaskedOptimizer("adam", {tokens: LAST}), loss=NEXT_TOKEN, jit_compile=False)
    frozen.compile("adam", loss=NEXT_TOKEN, jit_compile=False)
    x = {name: value[:1] for name, value in PROMPTS.items()}
    batch = x, np.roll(x["token_ids"], -1, axis=1)
    before = memory_of(tokens.embeddings)
    assert_no_gradient_is_made_of(tokens.embeddings, model, frozen, batch)
    assert memory_of(tokens.embeddings) == before
