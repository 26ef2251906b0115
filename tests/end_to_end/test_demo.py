"""The demo, run as users run it, at a small size."""

import json
import string
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gensim")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from maskedgrad.cli import demo, figure, main, prose, recipes

pytestmark = pytest.mark.processes


WORDS = st.text(string.ascii_lowercase, min_size=2, max_size=8)
LEAKING = ["table trainable", "two-layer recipe", "gradient times mask"]
PROSE = {
    f"package {package}": [
        ("the", "value", "<name>", f"package{package}", str(sentence))
        for sentence in range(prose.TRAINING_SIZE + prose.VALIDATION_SIZE)
    ]
    for package in range(prose.NUM_CLASSES)
}


@given(WORDS, WORDS, st.sampled_from(["{}_{}", "_{}{}", "{}.{}", "{}{}()", "{}3{}"]))
def test_what_only_code_spells_is_a_name(first, second, form):
    assert prose.word_or_symbol(form.format(first, second)) == prose.NAME


@given(WORDS, WORDS)
def test_a_capital_inside_makes_a_name(first, second):
    assert prose.word_or_symbol(first + second.capitalize()) == prose.NAME


@given(
    st.integers(min_value=0).map(str)
    | st.integers(min_value=0).map(hex)
    | st.floats(min_value=0, max_value=1e300).map(repr)
)
def test_how_python_writes_a_number_is_a_number(text):
    assert prose.word_or_symbol(text) == prose.NUMBER


@given(WORDS)
def test_a_word_is_itself_however_it_is_capitalized(word):
    for spelling in (word, word.capitalize(), word.upper()):
        assert prose.word_or_symbol(spelling) == word


@given(st.lists(WORDS, min_size=prose.SHORTEST, max_size=prose.LONGEST))
def test_a_sentence_keeps_its_words(words):
    assert list(prose.sentences_in(" ".join(words) + ".")) == [tuple(words)]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(0.01, 0.2))
def test_labels_keep_their_order_and_their_distance(heights, gap):
    heights = np.array(heights)
    spread = figure.spread_apart(heights, gap)
    in_order = spread[np.argsort(heights, kind="stable")]
    assert (np.diff(in_order) >= gap - 1e-9).all()
    assert spread.mean() == pytest.approx(heights.mean(), abs=1e-9)


def test_the_same_prose_gives_the_same_vectors():
    sentences = [("return", "the", "value", "of", "the", "<name>")] * 5
    first, second = (prose.train_vectors(sentences) for _ in range(2))
    assert first.index_to_key == second.index_to_key
    assert (first.vectors.view("uint32") == second.vectors.view("uint32")).all()
    assert "<name>" not in first


def test_no_sentence_is_both_trained_on_and_validated(tmp_path):
    rows = {word: [1.0] for sentences in PROSE.values() for words in sentences for word in words}
    task = prose.make_task(PROSE, _write_vectors(tmp_path / "vectors.txt", rows, header=True))
    training, validation = ({*map(tuple, ids)} for ids in (task.training.ids, task.validation.ids))
    assert len(training) == prose.NUM_CLASSES * prose.TRAINING_SIZE
    assert len(validation) == prose.NUM_CLASSES * prose.VALIDATION_SIZE
    assert training.isdisjoint(validation)


def test_symbols_start_from_zero_even_where_the_file_holds_them(tmp_path):
    rows = {word: [1.0, 2.0] for word in ["the", "value", *prose.SPECIAL]}
    task = prose.make_task(PROSE, _write_vectors(tmp_path / "vectors.txt", rows, header=True))
    assert task.vocabulary == [prose.PADDING, "the", "value", *prose.SPECIAL]
    assert task.matrix.tolist() == [[0, 0], [1, 2], [1, 2], [0, 0], [0, 0], [0, 0]]


def test_the_two_layer_recipe_is_of_the_last_rows():
    with pytest.raises(ValueError, match=r"which has 4\. Received: trainable_ids=\[0, 3\]"):
        recipes.two_layers(np.zeros((4, 2)), [0, 3], keras.layers.Flatten(), "adam")


@pytest.fixture
def vectors(tmp_path):
    random = np.random.default_rng(0)
    words = ["the", "of", "to", "and", "in", "is", "a", "for", "be", "this", "that", "return"]
    rows = {word: random.normal(size=8) for word in words}
    return _write_vectors(tmp_path / "vectors.txt", rows, header=True)


def test_without_json_the_figure_is_all_that_is_written(vectors, tmp_path):
    image = tmp_path / "figure.png"
    paths = ["--vectors", str(vectors), "--figure", str(image)]
    assert main(["demo", *paths, "--seeds", "1", "--epochs", "1"]) == 0
    assert set(tmp_path.iterdir()) == {vectors, image}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_only_maskedgrad_trains_symbols_and_leaves_every_other_row_its_bits(
    workers, vectors, tmp_path, capfd
):
    image, numbers = tmp_path / "figure.png", tmp_path / "numbers.json"

    paths = ["--vectors", str(vectors), "--figure", str(image), "--json", str(numbers)]
    status = main(["demo", *paths, "--seeds", "1", "--epochs", "1", "--workers", workers])

    assert status == 0
    assert image.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    ways = json.loads(numbers.read_text(encoding="utf-8"))
    assert list(ways) == demo.WAYS
    printed = " ".join(capfd.readouterr().out.split())
    assert all(way in printed for way in demo.WAYS)
    assert printed.count("The figure is in") == 1
    assert "They do with: table frozen, maskedgrad." in printed
    assert f"Some change with: {', '.join(LEAKING)}." in printed
    assert not any(ways["table frozen"]["symbol_distances"].values())
    for way in [*LEAKING, "maskedgrad"]:
        assert all(ways[way]["symbol_distances"][symbol] > 0 for symbol in prose.SPECIAL)
    for way in ["table frozen", "maskedgrad"]:
        assert ways[way]["frozen_rows_changed"] == 0
        assert ways[way]["largest_change"] == 0
    for way in LEAKING:
        assert ways[way]["frozen_rows_changed"] > 0
        assert ways[way]["largest_change"] > 0


@pytest.mark.parametrize(
    "arguments",
    [["--vectors", "no/such/file"], ["--figure", "no/such/directory/demo.png"], ["--seeds", "0"]],
)
def test_a_bad_option_is_refused_before_anything_runs(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *arguments])
    assert exit_.value.code == 2
    assert "Received: " in capsys.readouterr().err


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    options = ["vectors", "figure", "json", "seeds", "epochs", "workers"]
    assert all(f"--{option} " in printed for option in options)
    assert " ".join(printed.split()).count("(default: ") == len(options)


def test_what_makes_a_worker_fail_is_shown(tmp_path, capfd):
    path = _write_vectors(tmp_path / "vectors.txt", {"gâteau": [1.0]}, header=True)
    assert main(["demo", "--vectors", str(path), "--workers", "2"]) == 1
    # Twice in a traceback, and one of each worker.
    assert capfd.readouterr().err.count("none of the words") == 4


@pytest.mark.parametrize("library", ["gensim", "matplotlib", "rich"])
def test_a_missing_extra_is_named_before_anything_runs(library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # Python's way to say that there is none
    with pytest.raises(SystemExit) as exit_:
        main(["demo"])
    printed = capsys.readouterr()
    assert exit_.value.code == 1
    assert printed.out == ""
    assert library in printed.err
    assert "maskedgrad[demo]" in printed.err
    assert "Traceback" not in printed.err


def test_a_python_without_its_manual_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match=r"manual.*Received: "):
        prose.read_prose(tmp_path)


def test_a_python_without_its_sources_is_refused(tmp_path):
    (tmp_path / "email.py").write_text('"""This docstring is the only one there is."""')
    found = prose.read_prose(tmp_path)
    assert set(found) == {"pydoc_data", "email"}
    with pytest.raises(ValueError, match=r"Received: 1 of them.*with its sources"):
        prose.make_task(found, None)


def test_vectors_of_other_words_are_refused(tmp_path):
    path = _write_vectors(tmp_path / "vectors.txt", {"gâteau": [1.0]}, header=True)
    with pytest.raises(ValueError, match=r"vectors\.txt.*none of the words"):
        prose.make_task(PROSE, path)


def _write_vectors(path, rows, header):
    lines = [" ".join([word, *(repr(float(number)) for number in rows[word])]) for word in rows]
    if header:
        lines.insert(0, f"{len(rows)} {len(next(iter(rows.values())))}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
