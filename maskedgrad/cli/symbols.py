"""A constructed task: sentences about a few topics, each with a symbol that no vector knows.

The sentences are frames, into which words of a topic are put. The classifier is
trained on some words of each topic and on its symbol, in some frames, and tried
in other frames: on words of the topics that it was never trained on, and on the
symbols.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from maskedgrad.cli.task import Examples, Task, encode

# Ten words a topic, which occur at least ten times in Python's prose, the commonest first. Five are
# trained on, and the others never.
OF_PYTHON = {
    "time": "time date year seconds day month week timestamp timezone weekday",
    "network": "server address socket request response protocol port connection host client",
    "file": "file path directory filename archive link suffix filesystem disk symlink",
    "number": "number integer zero decimal float precision exponent digit fraction rational",
    "window": "widget window frame button dialog menu canvas screen mouse cursor",
}
EVERYDAY = {
    "city": "london paris berlin madrid tokyo chicago boston vienna rome moscow",
    "animal": "dog cat horse cow sheep pig rabbit goat mouse wolf",
    "instrument": "piano guitar violin flute trumpet drums cello organ saxophone harp",
    "food": "bread cheese rice soup cake butter fruit meat sugar salad",
}
NUM_TRAINED = 5  # words a topic
# Without a noun of their own, so that it is the word that tells the topic.
FRAMES = ["this is the {}", "there is no {}", "we need a {}", "it has a {}"]
TEST_FRAMES = ["that was the {}", "here is another {}", "you want a {}", "they have no {}"]
UNSEEN, SYMBOLS = "unseen words", "symbols"


def make_task(
    topics: Mapping[str, str], vocabulary: Sequence[str], matrix: np.ndarray, source: str
) -> Task:
    """Sentences about the topics whose words have vectors, and a symbol for each topic.

    Args:
        topics: for each topic its words, the commonest first, with spaces between them.
        vocabulary: words, in the order of their rows. The first stands for padding.
        matrix: their vectors, float32 of shape `(V, D)`.
        source: what the vectors are, in words.

    Raises:
        ValueError: fewer than two topics have `NUM_TRAINED` words and one more.

    Example:

    >>> topics = {"fruit": "a b c d e f", "tree": "g h i j k l", "rare": "y z"}
    >>> words = ["", *"abcdefghijkl", "this", "is", "the"]
    >>> task = make_task(topics, words, np.ones((16, 2), "float32"), "letters")
    >>> task.classes, task.symbols, len(task.training.ids)
    (['fruit', 'tree'], ['<fruit>', '<tree>'], 48)
    >>> {name: len(examples.ids) for name, examples in task.tests.items()}
    {'unseen words': 8, 'symbols': 8}
    """
    known = _known_words(topics, set(vocabulary))
    if len(known) < 2:
        raise ValueError(
            f"The demo needs vectors of at least {NUM_TRAINED + 1} words each of two topics, such "
            f"as {', '.join(next(iter(topics.values())).split())}. Received: {source}, which "
            f"{'has' if known else 'have'} those of {', '.join(known) or 'no topic'}."
        )
    symbols = [f"<{topic}>" for topic in known]
    trained = [
        [*words[:NUM_TRAINED], symbol]
        for words, symbol in zip(known.values(), symbols, strict=True)
    ]
    words = [*vocabulary, *symbols]
    # As similarities of words are measured: the length of a vector tells how common its word is.
    unit = matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-12)
    return Task(
        description=_description(known, source, words, matrix.shape[1]),
        classes=list(known),
        vocabulary=words,
        num_symbols=len(symbols),
        matrix=np.pad(unit, [(0, len(symbols)), (0, 0)]),
        hidden_units=None,
        training=_sentences(FRAMES, trained, words),
        tests={
            UNSEEN: _sentences(TEST_FRAMES, [w[NUM_TRAINED:] for w in known.values()], words),
            SYMBOLS: _sentences(TEST_FRAMES, [[symbol] for symbol in symbols], words),
        },
    )


def words_of(topics: Mapping[str, str]) -> set[str]:
    """The words that a task of these topics is made of, but for the symbols."""
    return {word for text in [*topics.values(), *FRAMES, *TEST_FRAMES] for word in text.split()}


def _known_words(topics: Mapping[str, str], vocabulary: Collection[str]) -> dict[str, list[str]]:
    known = {
        topic: [word for word in words.split() if word in vocabulary]
        for topic, words in topics.items()
    }
    return {topic: words for topic, words in known.items() if len(words) > NUM_TRAINED}


def _sentences(
    frames: Sequence[str], words_of_class: Sequence[Sequence[str]], vocabulary: Sequence[str]
) -> Examples:
    """Each word of each class in each frame."""
    labelled = [
        (frame.format(word).split(), label)
        for label, words in enumerate(words_of_class)
        for word in words
        for frame in frames
    ]
    sentences, classes = zip(*labelled, strict=True)
    return encode(sentences, classes, vocabulary)


def _description(
    known: Mapping[str, Sequence[str]], source: str, vocabulary: Sequence[str], width: int
) -> str:
    num_unseen = sum(len(words) - NUM_TRAINED for words in known.values())
    sentence = FRAMES[0].format(next(iter(known.values()))[0])
    return (
        f"A constructed task: sentences such as {sentence!r} are told apart by their topic: "
        f"{', '.join(known)}. Training sees {NUM_TRAINED} words of each topic and a new symbol for "
        f"it, which starts from zero, in {len(FRAMES)} sentences each. Then come "
        f"{len(TEST_FRAMES)} other sentences, with {num_unseen} words of the topics that training "
        f"never saw, and with the symbols. The table has {len(vocabulary):,} rows of unit length "
        f"and width {width}: {source}."
    )
