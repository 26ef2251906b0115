"""Rows as text: ascending ids and half-open runs of them, such as `"2,7,10:20"`, or a slice."""

import operator
from typing import NamedTuple

import numpy as np

from maskedgrad.messages import shorten

MAX_NUM_IDS = np.iinfo(np.int32).max  # a row's place among them is an int32


class Runs(NamedTuple):
    """Ascending ids as half-open runs, which may be of more ids than fit into memory.

    `starts` and `stops` are int64 arrays of one length.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def num_ids(self) -> int:
        """How many ids there are."""
        return int((self.stops - self.starts).sum())

    @property
    def end(self) -> int:
        """One more than the last id."""
        return int(self.stops[-1]) if len(self.stops) else 0

    def ids(self) -> np.ndarray:
        """The ids: int64 of shape `(num_ids,)`."""
        lengths = self.stops - self.starts
        ids = np.repeat(self.starts - (np.cumsum(lengths) - lengths), lengths)
        ids += np.arange(len(ids))
        return ids

    def text(self) -> str:
        """The runs as text: `"2,7,10:20"`."""
        return ",".join(
            str(start) if stop - start == 1 else f"{start}:{stop}"
            for start, stop in zip(self.starts.tolist(), self.stops.tolist(), strict=True)
        )


def runs_of(ids: np.ndarray) -> Runs:
    """The runs of ascending ids."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    if not len(ids):
        return Runs(ids, ids)
    return Runs(ids[np.concatenate([[0], breaks])], ids[np.concatenate([breaks - 1, [-1]])] + 1)


def runs_from_text(text: str) -> Runs:
    """The inverse of `Runs.text`. Runs that touch become one."""
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
    goes_on = stops[:-1] == starts[1:]
    return Runs(
        np.delete(starts, np.flatnonzero(goes_on) + 1), np.delete(stops, np.flatnonzero(goes_on))
    )


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
