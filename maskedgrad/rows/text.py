"""Rows as text: ascending ids and half-open runs of them, such as `"2,7,10:20"`, or a slice."""

import operator

import numpy as np

from maskedgrad.messages import shorten

MAX_NUM_IDS = np.iinfo(np.int32).max  # a row's place among them is an int32


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
        raise invalid_text(text) from error
    is_ascending = (starts < stops).all() and (stops[:-1] <= starts[1:]).all()
    if not is_ascending or (starts < 0).any() or (stops - starts).sum() > MAX_NUM_IDS:
        raise invalid_text(text)
    return starts, stops


def ids_of_runs(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The ids in runs, ascending: the inverse of `ids_to_text`, after `runs_from_text`."""
    lengths = stops - starts
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + offsets


def slice_to_text(rows: slice) -> str:
    """A slice as text: `"-3::"`."""
    parts = (rows.start, rows.stop, rows.step)
    return ":".join("" if part is None else str(operator.index(part)) for part in parts)


def slice_from_text(text: str) -> slice:
    """The inverse of `slice_to_text`."""
    try:
        return slice(*(int(n) if n else None for n in text.split(":")))
    except ValueError as error:
        raise invalid_text(text) from error


def range_to_text(rows: range) -> str:
    """A range as text: as ids where they are one run, else `"range(0, 10, 2)"`."""
    if rows and rows.step == 1 and len(rows) <= MAX_NUM_IDS:
        return f"{rows.start}:{rows.stop}" if len(rows) > 1 else str(rows.start)
    return repr(rows)


def range_from_text(text: str) -> range:
    """The inverse of `range_to_text`, for `"range(0, 10, 2)"`."""
    try:
        return range(*(int(n) for n in text.removeprefix("range(").removesuffix(")").split(",")))
    except (TypeError, ValueError) as error:
        raise invalid_text(text) from error


def invalid_text(text: str) -> ValueError:
    """The error that says what the text of rows must be."""
    return ValueError(
        "The text of rows must be ascending ids and runs of them, such as '2,7,10:20', at most "
        f"{MAX_NUM_IDS} in all, or one slice such as '-3::'. Received: {shorten(text)}"
    )
