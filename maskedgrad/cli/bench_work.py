"""What every case of the benchmark does and measures, whatever library does it.

It needs NumPy and nothing else: a process that holds both TensorFlow and
PyTorch may not live.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHARE_OF_TRAINABLE_TOKENS = 0.1
DISTINCT_BATCHES = 16
UNTIMED_STEPS = 5
FEWEST, MOST = 5, 500  # measured steps
MEASURED_SECONDS = 2.0
REFUSED = 3  # the exit status of a process that was given a wrong value by the user


class Case(NamedTuple):
    """One way of training, and the work that it does."""

    way: str
    rows: int
    width: int
    batch: int
    length: int
    trainable: int
    optimizer: str
    model: str
    jit: bool
    steps_per_execution: int


class Measurement(NamedTuple):
    """What one process measured. Times in seconds; `None` where a thing cannot be measured."""

    step: float
    predict_before: float | None
    predict_after: float | None
    evaluate_before: float | None
    evaluate_after: float | None
    peak_bytes: int | None
    state_bytes: int
    replica_bytes: int
    changed_rows: int


def work(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The pretrained matrix, and the tokens of some batches; row 0 stands for padding.

    Returns:
        float32 of shape `(rows, width)`, and int32 of shape
        `(batches * batch, length)`.
    """
    generator = np.random.default_rng(0)
    matrix = generator.random((case.rows, case.width), dtype=np.float32)
    shape = (DISTINCT_BATCHES * case.batch, case.length)
    ordinary = generator.integers(1, case.rows, shape)
    trains = generator.choice(trainable_ids(case), shape)
    is_trainable = generator.random(shape) < SHARE_OF_TRAINABLE_TOKENS
    return matrix, np.where(is_trainable, trains, ordinary).astype("int32")


def trainable_ids(case: Case) -> np.ndarray:
    """The ids of the trainable rows: the last of the table."""
    return np.arange(case.rows - case.trainable, case.rows)


def changed_rows(before: np.ndarray, after: np.ndarray, case: Case) -> int:
    """How many of the frozen rows differ between two tables, in any bit."""
    frozen = case.rows - case.trainable
    before, after = (np.asarray(table[:frozen]).view("uint32") for table in (before, after))
    return int((before != after).any(axis=1).sum())


def median_time(times: Callable[[int], list[float]]) -> float:
    """The median time of a step in seconds, over as many steps as fit into the time.

    Args:
        times: makes so many steps and gives the seconds that each took.
    """
    first = np.median(times(UNTIMED_STEPS)[-2:])
    return float(np.median(times(int(np.clip(MEASURED_SECONDS / first, FEWEST, MOST)))))


class PeakMemory:
    """The most memory that this process took since `start`, above what it held when made.

    Known where the kernel lets a process reset its own peak, as Linux does.
    """

    STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, allowance: int = 0):
        """Makes the start; `allowance` bytes more are not counted."""
        self._base = (self._read("VmRSS") or 0) + allowance

    def start(self) -> None:
        """Forgets the peak of what came before."""
        if self.RESET.exists():
            self.RESET.write_text("5", encoding="ascii")

    def peak(self) -> int | None:
        """The peak in bytes, or `None` where it is not known."""
        highest = self._read("VmHWM")
        return None if highest is None else max(0, highest - self._base)

    def _read(self, field: str) -> int | None:
        if not self.RESET.exists():
            return None
        lines = self.STATUS.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
