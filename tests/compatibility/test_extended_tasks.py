"""Tasks of keras_hub whose tokenizer learns new words together with the table."""

import io

import keras
import keras_hub
import numpy as np
import pytest

from maskedgrad import MaskedModel, MaskedOptimizer, extend
from tests.compatibility.helpers import assert_only_trained, bits
from tests.compatibility.table import refused, works
from tests.compatibility.test_keras_hub import (
    NEW_TOKENS,
    WORDS,
    bert_backbone,
    gpt2_backbone,
    gpt2_tokenizer,
)

MODELS = "Whole models of keras_hub"


def gpt2(padding=0):
    tokenizer = gpt2_tokenizer([])
    size = tokenizer.vocabulary_size()
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=8)
    return keras_hub.models.GPT2CausalLM(gpt2_backbone(size + padding), preprocessor), size


@works(
    MODELS,
    "`extend` of a task with a byte-pair tokenizer, then `generate`, `fit`, save, load, `extend`",
    "The new words are tokens of its tokenizer, also after loading. Rows to spare come first.",
)
@pytest.mark.parametrize(
    "padding", [1, *(pytest.param(n, marks=pytest.mark.thorough) for n in (0, 5))]
)
@pytest.mark.processes  # the time that it takes
def test_a_causal_language_model_learns_words(tmp_path, padding):
    model, size = gpt2(padding)
    model.compile(sampler="greedy")
    model.backbone.enable_lora(2)
    prompt, sentence = "<name> at", "<name> at<city>"
    expected = model.generate(" airport", max_length=4)
    larger, new = extend(model, NEW_TOKENS, "mean")
    tokenizer = larger.preprocessor.tokenizer
    assert new.ids.tolist() == [tokenizer.token_to_id(token) for token in NEW_TOKENS]
    assert new.ids.tolist() == [size, size + 1]
    assert larger.backbone.vocabulary_size == new.num_rows == size + max(2, padding)
    assert model.preprocessor.tokenizer.vocabulary_size() == size
    assert not larger.compiled
    assert larger.generate(" airport", max_length=4) == expected
    trained = [variable.path for variable in larger.trainable_variables]
    assert trained == [variable.path for variable in model.trainable_variables]
    larger.backbone.save_lora_weights(str(tmp_path / "small.lora.h5"))

    table = larger.backbone.token_embedding
    table.trainable = True
    before = table.embeddings.numpy()
    larger.compile(MaskedOptimizer(keras.optimizers.Adam(0.05), {table: new}), sampler="greedy")
    larger.fit([sentence] * 200, batch_size=2, verbose=0)
    assert_only_trained(before, table.embeddings.numpy(), new.ids)
    assert larger.generate(prompt, max_length=4) == sentence


@works(MODELS, "`extend` of a task that was saved and loaded")
def test_a_loaded_task_learns_more_words(tmp_path):
    larger, new = extend(gpt2()[0], NEW_TOKENS)
    larger.save(tmp_path / "task.keras")
    loaded = keras.saving.load_model(tmp_path / "task.keras")
    assert np.asarray(loaded.preprocessor.tokenizer("<city>")).tolist() == [new.ids[0]]
    again, more = extend(loaded, ["<third>"])
    assert np.asarray(again.preprocessor.tokenizer("<city><third>")).tolist() == [
        new.ids[0],
        more.ids[0],
    ]
    with pytest.raises(ValueError, match="knows: \\['<city>'\\]"):
        extend(loaded, ["<city>"])


def bert():
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=WORDS)
    return bert_backbone(len(WORDS)), tokenizer


@works(
    MODELS,
    "`extend` of a task with a WordPiece tokenizer",
    "A word that is lowercased or split at punctuation becomes a special token.",
)
@pytest.mark.parametrize("words", [["zorb", "quux"], ["<city>", "Zorb"]])
@pytest.mark.processes  # the time that it takes
def test_a_classifier_learns_words(tmp_path, words):
    backbone, tokenizer = bert()
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8)
    model = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor)
    expected = model.predict(["the quick fox"], verbose=0)
    larger, new = extend(model, words)
    assert (bits(larger.predict(["the quick fox"], verbose=0)) == bits(expected)).all()
    larger.save(tmp_path / "task.keras")
    for each in (larger, keras.saving.load_model(tmp_path / "task.keras")):
        ids = np.asarray(each.preprocessor.tokenizer(f"the {words[0]} {words[1]}")).tolist()
        assert ids == [WORDS.index("the"), *new.ids]


@works(MODELS, "`extend` of a `BertMaskedLM`", "Its head shares the table, and its bias grows.")
def test_a_head_that_shares_the_table_grows():
    model = keras_hub.models.BertMaskedLM(bert()[0])
    x = {
        "token_ids": np.array([[2, 5, 6, 3]]),
        "segment_ids": np.zeros((1, 4), "int32"),
        "padding_mask": np.ones((1, 4), "int32"),
        "mask_positions": np.array([[1]]),
    }
    larger, new = extend(model, ["zorb"])
    old, now = model(x).numpy(), larger(x).numpy()
    assert now.shape[-1] == new.num_rows == old.shape[-1] + 1
    shapes = [tuple(weight.shape) for weight in larger.weights]
    assert shapes.count((new.num_rows,)) == 1


def sentence_piece(**options):
    """What a SentencePiece tokenizer is made of, for some words of English."""
    sentencepiece = pytest.importorskip("sentencepiece")
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "the fox"]),
        model_writer=proto,
        model_type="UNIGRAM",
        minloglevel=2,
        **options,
    )
    return proto.getvalue()


@works(
    MODELS,
    "`extend` of a task with a SentencePiece tokenizer",
    "New words are pieces that the user defines. It needs the package `sentencepiece`.",
)
def test_a_sentence_piece_tokenizer_learns_words(tmp_path):
    proto = sentence_piece(
        vocab_size=21,
        pad_id=0,
        unk_id=3,
        bos_id=2,
        eos_id=1,
        pad_piece="<pad>",
        unk_piece="<unk>",
        bos_piece="<bos>",
        eos_piece="<eos>",
    )
    tokenizer = keras_hub.models.GemmaTokenizer(proto)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=21,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=8)
    larger, new = extend(keras_hub.models.GemmaCausalLM(backbone, preprocessor), NEW_TOKENS)
    larger.save(tmp_path / "task.keras")
    for each in (larger, keras.saving.load_model(tmp_path / "task.keras")):
        assert new.ids[0] in np.asarray(each.preprocessor.tokenizer("the <city>")).tolist()


@refused(
    MODELS,
    "Teaching words to a tokenizer that has a token of its own behind them, such as XLM-RoBERTa's",
    "`extend` gives the rows and warns, since that token would move to another row.",
)
def test_no_token_of_a_tokenizer_moves_for_a_new_word():
    proto = sentence_piece(vocab_size=20, unk_id=0, bos_id=1, eos_id=2)
    tokenizer = keras_hub.models.XLMRobertaTokenizer(proto)
    size = tokenizer.vocabulary_size()
    table = keras.layers.Embedding(size, 4)
    table.build(None)
    with pytest.warns(UserWarning, match=f"would give a new word the id {tokenizer.mask_token_id}"):
        larger, new = extend(table, ["zorb"], vocabulary=tokenizer)
    assert new.ids.tolist() == [size]
    assert (bits(larger.get_weights()[0][:size]) == bits(table.get_weights()[0])).all()


@refused(
    MODELS,
    "Teaching words to a tokenizer that leaves none whole, such as CLIP's",
    "`extend` gives the rows and warns: the ids are put into `token_ids` by hand.",
)
def test_a_tokenizer_that_takes_no_words_is_told_of():
    backbone, _ = bert()

    @keras.saving.register_keras_serializable(package="maskedgrad tests")
    class Fixed(keras_hub.models.BertTokenizer):
        def set_vocabulary(self, vocabulary):
            super().set_vocabulary(vocabulary if vocabulary is None else WORDS)

    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(Fixed(WORDS), sequence_length=8)
    model = keras_hub.models.BertTextClassifier(backbone, 2, preprocessor)
    with pytest.warns(UserWarning, match=r"rows 10 to 11 .*'zorb', 'quux'.*takes no more words"):
        _, new = extend(model, ["zorb", "quux"])
    assert new.ids.tolist() == [10, 11]


@works(
    MODELS,
    "Textual inversion: one new token of a `CLIPTextEncoder`",
    "A recipe is in [adding words](adding_words.md#textual-inversion).",
)
def test_one_token_of_an_encoder_learns_and_nothing_else():
    encoder = keras_hub.models.CLIPTextEncoder(40, 8, 8, 2, 2, 16, max_sequence_length=6)
    encoder, new = extend(encoder, ["<my-cat>"], {"<my-cat>": [5]})
    tokens = encoder.embedding.token_embedding
    unet = keras.layers.Dense(3, trainable=False)
    model = MaskedModel(encoder.input, unet(encoder.output))
    for layer in encoder.layers:
        layer.trainable = layer is encoder.embedding
    encoder.embedding.position_embedding.trainable = False
    model.compile("adamw", loss="mse", trainable_rows={tokens: new})
    before = {weight.path: weight.numpy() for weight in model.weights}
    ids = np.array([[1, 7, 40, 9, 2, 0]] * 4)
    model.fit({"token_ids": ids}, np.ones((4, 6, 3)), verbose=0)
    for weight in model.weights:
        moved = weight is tokens.embeddings
        assert (bits(weight.numpy()) != bits(before[weight.path])).any() == moved
    assert_only_trained(before[tokens.embeddings.path], tokens.embeddings.numpy(), new.ids)


@works(MODELS, "`extend` of a backbone of which some layers are quantized, the table not")
def test_quantized_layers_stay_quantized():
    backbone, _ = bert()
    x = {
        "token_ids": np.array([[2, 5, 6, 3]]),
        "segment_ids": np.zeros((1, 4), "int32"),
        "padding_mask": np.ones((1, 4), "int32"),
    }
    backbone.get_layer("pooled_dense").quantize("int8")
    larger, _ = extend(backbone, ["zorb"])
    assert larger.get_layer("pooled_dense").quantization_mode == "int8"
    for name, output in backbone(x).items():
        assert (bits(larger(x)[name].numpy()) == bits(output.numpy())).all()


@pytest.mark.thorough
@refused(MODELS, "`extend` of a model whose table is quantized", "Extend it, then quantize it.")
def test_a_quantized_backbone_is_refused():
    backbone, _ = bert()
    backbone.quantize("int8")
    with pytest.raises(ValueError, match="quantized or has LoRA"):
        extend(backbone, ["zorb"])


@works(
    MODELS,
    "`extend` of a tied `LlamaCausalLM`",
    "Its config does not tell that it is tied; the copy is.",
)
def test_what_a_config_forgets_to_tell_is_in_the_copy():
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=30,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        tie_word_embeddings=True,
    )
    larger, new = extend(keras_hub.models.LlamaCausalLM(backbone), NEW_TOKENS)
    assert larger.backbone.token_embedding.tie_weights
    assert (new.num_rows, len(larger.weights)) == (32, len(backbone.weights))


@works(MODELS, "`extend` of a model with a head of one's own on `backbone(inputs)`")
def test_a_model_around_a_backbone_is_extended():
    backbone, _ = bert()
    pooled = backbone(backbone.input)["pooled_output"]
    model = MaskedModel(backbone.input, keras.layers.Dense(2, name="head")(pooled))
    larger, new = extend(model, ["zorb"])
    assert type(larger) is type(model)
    assert [each.path for each in larger.weights] == [each.path for each in model.weights]
    x = {
        "token_ids": np.array([[2, 5, 6, 3]]),
        "segment_ids": np.zeros((1, 4), "int32"),
        "padding_mask": np.ones((1, 4), "int32"),
    }
    assert (bits(larger(x).numpy()) == bits(model(x).numpy())).all()
    x["token_ids"] = np.array([[2, new.ids[0], 6, 3]])
    assert np.isfinite(larger(x).numpy()).all()


@refused(
    MODELS,
    "`extend` of a model of `backbone.output`, where layers inside have no config",
    "Extend the backbone and put the head on after, or call the backbone as a layer.",
)
def test_a_model_of_layers_without_a_config_is_refused():
    backbone = keras_hub.models.LlamaBackbone(10, 1, 2, 8, 16, 1)
    model = keras.Model(backbone.input, keras.layers.Dense(2)(backbone.output))
    with pytest.raises(ValueError, match=r"lack a `get_config`.*By hand"):
        extend(model, ["zorb"])
