"""The demo's figure: learning curves, and where the special symbols went."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

NUM_NEIGHBOURS = 5

# Colours that colour-blind readers can tell apart (Okabe and Ito), and a marker
# and its size. The curves of the last two all but coincide: a large one and a
# small one.
CURVE_STYLES = [
    ("#777777", "v", 6),
    ("#D55E00", "s", 6),
    ("#E69F00", "D", 6),
    ("#56B4E9", "^", 10),
    ("#0072B2", "o", 4),
]
SYMBOL_COLOURS = ["#0072B2", "#D55E00", "#009E73"]


def draw(
    file: Path | BinaryIO,
    accuracies: Mapping[str, np.ndarray],
    table: np.ndarray,
    vocabulary: Sequence[str],
    special_ids: Sequence[int],
) -> None:
    """Draws learning curves beside a map of the special symbols and their nearest words.

    Args:
        file: where to write the figure: a path, or a binary file for a PNG.
        accuracies: by what the legend calls them, the validation accuracies
            of up to five ways to train, from 0 to 1, of shape `(seeds, epochs)`.
        table: a trained table, float32 of shape `(V, D)`. Row 0 stands for
            padding.
        vocabulary: the V words, in the order of the table.
        special_ids: the ids of up to three special symbols.

    Example:

    >>> from io import BytesIO
    >>> file, table = BytesIO(), np.eye(9, 4) + 1
    >>> draw(file, {"frozen": np.array([[0.4, 0.5]])}, table, list(" abcdefg*"), [8])
    >>> file.getvalue()[1:4]
    b'PNG'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, places = figure.subplots(1, 2)
    _draw_curves(curves, accuracies)
    _draw_places(places, table, vocabulary, special_ids)
    figure.savefig(file, dpi=120)


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


def _draw_curves(axes: Any, accuracies: Mapping[str, np.ndarray]) -> None:
    for (label, runs), (colour, marker, size) in zip(
        accuracies.items(), CURVE_STYLES, strict=False
    ):
        epochs = np.arange(1, runs.shape[1] + 1)
        means = 100 * runs.mean(axis=0)
        axes.plot(epochs, means, color=colour, marker=marker, markersize=size, label=label)
    axes.set(
        title="The same classifier, trained in different ways",
        xlabel="epoch",
        ylabel="validation accuracy, %",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="lower right")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_places(
    axes: Any, table: np.ndarray, vocabulary: Sequence[str], special_ids: Sequence[int]
) -> None:
    directions = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    colour_of: dict[int, str] = {}
    for special, colour in zip(special_ids, SYMBOL_COLOURS, strict=False):
        for id_ in [special, *nearest_rows(directions, special, [0, *special_ids])]:
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


def _in_plane(directions: np.ndarray) -> np.ndarray:
    _, _, axes = np.linalg.svd(directions, full_matrices=False)
    points = directions @ axes[:2].T
    # The sign of an axis means nothing: most points should be near the labels.
    return points * np.where(points.mean(axis=0) < 0, -1, 1)
