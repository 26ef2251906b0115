"""The demo's figures: how good the ways are, and where the symbols went."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

NUM_NEIGHBOURS = 5
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


def draw_bars(
    file: Path | BinaryIO,
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    chance: float,
    places: Places,
) -> None:
    """Draws a group of bars for each test beside a map of the symbols and their nearest words.

    Args:
        file: where to write the figure: a path, or a binary file for a PNG.
        accuracies: for each way to train, by what the legend calls it, and for
            each test the accuracies of its seeds, from 0 to 1.
        chance: the accuracy of a guess.
        places: the map.

    Example:

    >>> from io import BytesIO
    >>> file, accuracies = BytesIO(), {"masked": {"words": [0.5, 0.6], "symbols": [1.0, 1.0]}}
    >>> draw_bars(file, accuracies, 0.5, Places(np.eye(9, 4) + 1, list(" abcdefg*"), [8]))
    >>> file.getvalue()[1:4]
    b'PNG'
    """
    bars, save = _figure(file, places)
    tests = list(next(iter(accuracies.values())))
    width = 0.8 / len(accuracies)
    for place, (label, of_tests) in enumerate(accuracies.items()):
        values = 100 * np.array([of_tests[test] for test in tests])
        bars.bar(
            np.arange(len(tests)) + (place - (len(accuracies) - 1) / 2) * width,
            values.mean(axis=1),
            width,
            yerr=values.std(axis=1),
            color=STYLES[place % len(STYLES)][0],
            error_kw={"ecolor": "#333333", "capsize": 3},
            label=label,
        )
    bars.axhline(100 * chance, color="#333333", linestyle=":", linewidth=1, label="chance")
    bars.set_xticks(range(len(tests)), tests)
    bars.set(
        title="The same classifier, trained in different ways",
        ylabel="accuracy, %",
        ylim=(0, 105),
    )
    bars.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    bars.spines[["top", "right"]].set_visible(False)
    save()


def draw_curves(
    file: Path | BinaryIO,
    accuracies: Mapping[str, np.ndarray],
    places: Places,
) -> None:
    """Draws learning curves beside a map of the special symbols and their nearest words.

    Args:
        file: where to write the figure: a path, or a binary file for a PNG.
        accuracies: by what the legend calls them, the validation accuracies
            of ways to train, from 0 to 1, of shape `(seeds, epochs)`.
        places: the map.

    Example:

    >>> from io import BytesIO
    >>> file, places = BytesIO(), Places(np.eye(9, 4) + 1, list(" abcdefg*"), [8])
    >>> draw_curves(file, {"frozen": np.array([[0.4, 0.5]])}, places)
    >>> file.getvalue()[1:4]
    b'PNG'
    """
    curves, save = _figure(file, places)
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
    curves.legend(frameon=False, loc="lower right")
    curves.grid(alpha=0.3)
    curves.spines[["top", "right"]].set_visible(False)
    save()


def directions_of(table: np.ndarray) -> np.ndarray:
    """The rows of a table, each with a length of one, but for rows of zeros."""
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)


def nearest_rows(directions: np.ndarray, row: int, excluded: Sequence[int]) -> list[int]:
    """The `NUM_NEIGHBOURS` rows that point most nearly where a row points, nearest first.

    Args:
        directions: a table whose rows have length one, of shape `(V, D)`.
        row: the row whose neighbours are wanted.
        excluded: the rows that are no neighbours.

    Example:

    >>> directions = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]])
    >>> nearest_rows(directions, 0, excluded=[0])[:2]
    [3, 2]
    """
    cosines = directions @ directions[row]
    cosines[list(excluded)] = -np.inf
    return np.argsort(-cosines)[:NUM_NEIGHBOURS].tolist()


def spread_apart(heights: np.ndarray, gap: float) -> np.ndarray:
    """The heights moved apart, in their order, so that labels there do not overlap.

    Args:
        heights: floats of shape `(n,)`.
        gap: the least distance between two of the heights returned.

    Returns:
        Floats of shape `(n,)`, with the mean of `heights`.

    Example:

    >>> spread_apart(np.array([4.0, 4.0]), gap=2.0).tolist()
    [3.0, 5.0]
    """
    order = np.argsort(heights, kind="stable")
    gaps = gap * np.arange(len(heights))
    apart = np.maximum.accumulate(heights[order] - gaps) + gaps
    spread = np.empty_like(heights)
    spread[order] = apart - np.mean(apart - heights[order])
    return spread


def _figure(
    file: Path | BinaryIO,
    places: Places,
) -> tuple[Any, Callable[[], None]]:
    """The axes that are still empty beside a map, and what writes the figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 if places.table is None else 12, 5), layout="constrained")
    left, *right = figure.subplots(1, 1 if places.table is None else 2, squeeze=False)[0]
    if places.table is not None:
        _draw_places(right[0], places.table, places.vocabulary, places.special_ids)
    return left, lambda: figure.savefig(file, dpi=120)


def _draw_places(
    axes: Any, table: np.ndarray, vocabulary: Sequence[str], special_ids: Sequence[int]
) -> None:
    directions = directions_of(table)
    colour_of: dict[int, str] = {}
    for special, colour in zip(special_ids, SYMBOL_COLOURS, strict=False):
        for id_ in [special, *_neighbours_drawn(directions, special, special_ids)]:
            colour_of.setdefault(id_, colour)
    shown = list(colour_of)
    points = _in_plane(directions[shown])
    gap = np.ptp(points[:, 1]) / len(shown)
    heights = spread_apart(points[:, 1], gap)
    right = points[:, 0].max()
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
    axes.set(
        title="Where the symbols went from zero, and the words nearest to them",
        xlabel="directions of the vectors, in the plane that shows most of them",
        xlim=(min(points[:, 0].min(), 0.0) - 0.05, right + 0.4),
        ylim=(min(heights.min(), 0.0) - gap, max(heights.max(), 0.0) + gap),
        xticks=[],
        yticks=[],
    )
    axes.spines[:].set_visible(False)


def _neighbours_drawn(
    directions: np.ndarray, special: int, special_ids: Sequence[int]
) -> list[int]:
    count = NUM_NEIGHBOURS if len(special_ids) <= NUM_DRAWN else NUM_DRAWN
    return nearest_rows(directions, special, [0, *special_ids])[:count]


def _in_plane(directions: np.ndarray) -> np.ndarray:
    _, _, axes = np.linalg.svd(directions, full_matrices=False)
    points = directions @ axes[:2].T
    # The sign of an axis means nothing: most points should be near the labels.
    return points * np.where(points.mean(axis=0) < 0, -1, 1)
