"""The demo's figures: how good the ways are, and where the symbols went."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskedgrad.cli.task import nearest_words

NUM_DRAWN = 3  # neighbours of each symbol, so that labels have room

# Colours that colour-blind readers can tell apart (Okabe and Ito), and a marker
# and its size. The curves of the last two all but coincide: a large one and a
# small one.
STYLES = [
    ("#777777", "v", 6),
    ("#D55E00", "s", 6),
    ("#E69F00", "D", 6),
    ("#56B4E9", "^", 10),
    ("#0072B2", "o", 4),
    ("#009E73", "P", 6),
    ("#CC79A7", "*", 8),
]
SYMBOL_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"]


class Places(NamedTuple):
    """What a map shows: special symbols and the words that are nearest to them.

    - `table`: a trained table, float32 of shape `(V, D)`, or `None` for no map.
      Row 0 stands for padding.
    - `vocabulary`: the V words, in the order of the table.
    - `special_ids`: the ids of up to five special symbols.
    """

    table: np.ndarray | None
    vocabulary: Sequence[str]
    special_ids: Sequence[int]


def bars_and_map(
    accuracies: Mapping[str, Mapping[str, Sequence[float]]], chance: float, places: Places
) -> Any:
    """A group of bars for each test, beside a map of the symbols and their nearest words.

    Args:
        accuracies: for each way to train, by what the legend calls it, and for
            each test the accuracies of its seeds, from 0 to 1.
        chance: the accuracy of a guess.
        places: the map.

    Returns:
        A figure of matplotlib's.

    Example:

    >>> accuracies = {"masked": {"words": [0.5, 0.6], "symbols": [1.0, 1.0]}}
    >>> figure = bars_and_map(accuracies, 0.5, Places(np.eye(9, 4) + 1, list(" abcdefg*"), [8]))
    >>> sorted(axes.get_title() for axes in figure.axes)[0]
    'The same classifier, trained in different ways'
    """
    figure, left = _figure(places)
    bars = left.add_subplot()
    tests = list(next(iter(accuracies.values())))
    width = 0.8 / len(accuracies)
    drawn = []
    for place, (label, of_tests) in enumerate(accuracies.items()):
        values = 100 * np.array([of_tests[test] for test in tests])
        drawn.append(
            bars.bar(
                np.arange(len(tests)) + (place - (len(accuracies) - 1) / 2) * width,
                values.mean(axis=1),
                width,
                yerr=values.std(axis=1),
                color=STYLES[place % len(STYLES)][0],
                error_kw={"ecolor": "#333333", "capsize": 3},
                label=label,
            )
        )
    guess = bars.axhline(100 * chance, color="#333333", linestyle=":", linewidth=1, label="chance")
    bars.set_xticks(range(len(tests)), tests)
    bars.set(
        title="The same classifier, trained in different ways",
        ylabel="accuracy, %",
        ylim=(0, 105),
    )
    bars.spines[["top", "right"]].set_visible(False)
    _add_legend(left, [*drawn, guess], num_columns=3)
    return figure


def curves_and_map(accuracies: Mapping[str, np.ndarray], places: Places) -> Any:
    """Learning curves beside a map of the special symbols and their nearest words.

    Args:
        accuracies: by what the legend calls them, the validation accuracies
            of ways to train, from 0 to 1, of shape `(seeds, epochs)`.
        places: the map.

    Returns:
        A figure of matplotlib's.

    Example:

    >>> figure = curves_and_map({"frozen": np.array([[0.4, 0.5]])}, Places(None, [], []))
    >>> [axes.get_title() for axes in figure.axes]
    ['The same classifier, trained in different ways']
    """
    figure, left = _figure(places)
    curves = left.add_subplot()
    for (label, runs), (colour, marker, size) in zip(accuracies.items(), STYLES, strict=False):
        epochs = np.arange(1, runs.shape[1] + 1)
        means = 100 * runs.mean(axis=0)
        curves.plot(epochs, means, color=colour, marker=marker, markersize=size, label=label)
    curves.set(
        title="The same classifier, trained in different ways",
        xlabel="epoch",
        ylabel="validation accuracy, %",
    )
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.grid(alpha=0.3)
    curves.spines[["top", "right"]].set_visible(False)
    _add_legend(left, curves.lines, num_columns=1)
    return figure


def _figure(places: Places) -> tuple[Any, Any]:
    """A figure with the map, if there is one, and the part of it that is still empty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 if places.table is None else 12, 5.5), layout="constrained")
    left, *right = figure.subfigures(1, 1 if places.table is None else 2, squeeze=False)[0]
    if places.table is not None:
        _draw_places(right[0].add_subplot(), places.table, places.vocabulary, places.special_ids)
    return figure, left


def _add_legend(part: Any, drawn: Sequence[Any], num_columns: int) -> None:
    # Below everything else of that part, where it covers no curve and no label.
    part.legend(handles=drawn, frameon=False, loc="outside lower center", ncols=num_columns)


def _draw_places(
    axes: Any, table: np.ndarray, vocabulary: Sequence[str], special_ids: Sequence[int]
) -> None:
    colour_of: dict[int, str] = {}
    for near, special, colour in zip(
        nearest_words(table, vocabulary, special_ids), special_ids, SYMBOL_COLOURS, strict=False
    ):
        count = len(near) if len(special_ids) <= NUM_DRAWN else NUM_DRAWN
        for id_ in [special, *(each.id for each in near[:count])]:
            colour_of.setdefault(id_, colour)
    shown = list(colour_of)
    points = _in_plane(_directions(table[shown]))
    right, lowest, highest = points[:, 0].max(), points[:, 1].min(), points[:, 1].max()
    # In the order of their points and equally far apart, so that no label lies on another.
    heights = np.empty(len(shown))
    heights[np.argsort(points[:, 1], kind="stable")] = np.linspace(lowest, highest, len(shown))
    for id_, point, height in zip(shown, points, heights, strict=True):
        is_special, colour = id_ in special_ids, colour_of[id_]
        if is_special:
            axes.annotate("", point, (0, 0), arrowprops={"arrowstyle": "->", "color": colour})
        axes.plot(*point, "D" if is_special else ".", color=colour)
        axes.annotate(
            vocabulary[id_],
            point,
            (right + 0.1, height),
            color=colour,
            weight="bold" if is_special else "normal",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.25, "relpos": (0, 0.5)},
        )
    margin = (highest - lowest) / len(shown)
    axes.set(
        title="Where the symbols went from zero, and their nearest words",
        xlabel="directions of the vectors, in the plane that shows most of them",
        xlim=(min(points[:, 0].min(), 0.0) - 0.05, right + 0.1),
        ylim=(min(lowest, 0.0) - margin, max(highest, 0.0) + margin),
        xticks=[],
        yticks=[],
    )
    axes.spines[:].set_visible(False)


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows with a length of one, but for those of zeros."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _in_plane(directions: np.ndarray) -> np.ndarray:
    _, _, axes = np.linalg.svd(directions, full_matrices=False)
    points = directions @ axes[:2].T
    # The sign of an axis means nothing: most points should be near the labels.
    return points * np.where(points.mean(axis=0) < 0, -1, 1)
