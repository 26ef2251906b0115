"""The figure of a report: how far rows moved, and where to."""

from collections.abc import Iterable, Sequence
from typing import Any

# Okabe and Ito: colours that colour-blind readers can tell apart.
MOVED, UNMOVED = "#0072B2", "#D55E00"


def draw_moves(
    axes: Any,
    labels: Sequence[str],
    distances: Sequence[float],
    have_moved: Sequence[bool],
    notes: Iterable[str],
) -> Any:
    """Draws a bar for each row, as long as it moved far, with its neighbours beside it.

    Args:
        axes: axes of matplotlib; new ones if `None`.
        labels: how each row is called.
        distances: how far each moved.
        have_moved: whether it moved at all, which another colour shows.
        notes: what is written beside the bar of each.

    Returns:
        The axes.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    if axes is None:
        axes = _new_axes(len(labels))
    places = range(len(labels))
    colours = [MOVED if has_moved else UNMOVED for has_moved in have_moved]
    axes.barh(places, distances, color=colours, height=0.6)
    for place, distance, note, colour in zip(places, distances, notes, colours, strict=True):
        axes.annotate(
            note,
            (distance, place),
            (4, 0),
            textcoords="offset points",
            color=colour,
            verticalalignment="center",
            parse_math=False,
        )
    axes.set_yticks(places, labels, parse_math=False)
    axes.invert_yaxis()
    # Room for the notes, which stand right of the bars.
    axes.set_xlim(0, 2.2 * max([*distances, 1e-9]))
    axes.set_xlabel("distance from where the row began")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _new_axes(num_bars: int) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            'A report is drawn by matplotlib. Install it: pip install "maskedgrad[plot]"'
        ) from error
    _, axes = pyplot.subplots(figsize=(8, 1.2 + 0.35 * num_bars), layout="constrained")
    return axes
