"""Rows as text: ascending ids and half-open runs of them, such as `"2,7,10:20"`."""

import numpy as np

from maskedgrad.messages import shorten

MAX_NUM_IDS = np.iinfo(np.int32).max  # of those that fit in `Rows.positions`


def ids_to_text(ids: np.ndarray) -> str:
    """Ascending ids as text: single ids and half-open runs, `"2,7,10:20"`."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    starts = ids[np.concatenate([[0], breaks])] if len(ids) else ids
    stops = ids[np.concatenate([breaks - 1, [-1]])] + 1 if len(ids) else ids
    return ",".join(
        str(start) if stop - start == 1 else f"{start}:{stop}"
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    )


def runs_from_text(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where each run of ids in a text starts and stops, ascending."""
    try:
        runs = [part.partition(":") for part in text.split(",")] if text else []
        starts = np.array([int(start) for start, _, _ in runs], dtype=np.int64)
        stops = np.array(
            [int(stop) if colon else int(start) + 1 for start, colon, stop in runs], dtype=np.int64
        )
    except (ValueError, OverflowError) as error:
        raise not_rows(text) from error
    is_ascending = (starts < stops).all() and (stops[:-1] <= starts[1:]).all()
    if not is_ascending or (starts < 0).any() or (stops - starts).sum() > MAX_NUM_IDS:
        raise not_rows(text)
    return starts, stops


def ids_of_runs(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The inverse of `ids_to_text`, of what `runs_from_text` returns."""
    lengths = stops - starts
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + offsets


def slice_from_text(text: str) -> slice:
    """A slice of text such as `"-3::"`."""
    try:
        return slice(*(int(n) if n else None for n in text.split(":")))
    except ValueError as error:
        raise not_rows(text) from error


def not_rows(text: str) -> ValueError:
    """The error for a text that is none of rows."""
    return ValueError(
        "The text of rows must be ascending ids and runs of them, such as '2,7,10:20', at most "
        f"{MAX_NUM_IDS} in all, or one slice such as '-3::'. Received: {shorten(text)}"
    )
