"""The figure of a report: how far rows moved, and where to."""

from collections.abc import Sequence
from typing import Any

# Okabe and Ito: colours that colour-blind readers can tell apart.
MOVED, UNSEEN = "#0072B2", "#D55E00"


def draw_moves(
    axes: Any,
    labels: Sequence[str],
    distances: Sequence[float],
    are_unseen: Sequence[bool],
    ways: Sequence[str],
) -> Any:
    """Draws a bar for each row, as long as it moved far, with its neighbours beside it.

    Args:
        axes: axes of matplotlib; new ones if `None`.
        labels: how each row is called.
        distances: how far each moved.
        are_unseen: whether the data never holds it.
        ways: what is written beside the bar of each.

    Returns:
        The axes.

    Raises:
        ImportError: the extra `plot` is not installed.
    """
    if axes is None:
        axes = _new_axes(len(labels))
    places = range(len(labels))
    colours = [UNSEEN if is_unseen else MOVED for is_unseen in are_unseen]
    axes.barh(places, distances, color=colours, height=0.6)
    notes = [
        "never in the data" if is_unseen and not way else way
        for is_unseen, way in zip(are_unseen, ways, strict=True)
    ]
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
    axes.margins(x=0.6 if any(notes) else 0.05)
    axes.set_xlim(left=0)
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
