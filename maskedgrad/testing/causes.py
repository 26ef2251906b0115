"""Why frozen rows have changed, as far as it can be told from before and after."""

import numpy as np

NOT_FINITE = "a gradient that is not finite, multiplied by a mask: infinity times zero is NaN"
DECAY = "weight decay"
CONSTRAINT = "a constraint of the variable, which an optimizer applies to all of its rows"
MOMENTUM = "stale momentum, of steps in which these rows trained, or a gradient that is not masked"
ASSIGNMENT = "an assignment, or an optimizer that overwrites rows, as Ftrl does"


def likely_cause(
    before: np.ndarray,
    after: np.ndarray,
    changed: np.ndarray,
    constrained: np.ndarray | None = None,
) -> str:
    """Returns what most likely changed rows that were frozen.

    Args:
        before: float64 of shape `(F, n)`, the frozen rows as they were.
        after: the same as they are.
        changed: booleans of shape `(F,)`, true for at least one row.
        constrained: what the constraint of the variable makes of `before`, if
            there is one.

    Returns:
        The cause, in words.

    Example:

    >>> rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    >>> likely_cause(rows, 0.9 * rows, np.array([True, True]))
    'weight decay: all of them were multiplied by 0.9'
    """
    finite = np.isfinite(before).all(axis=1)
    old, new = before[changed & finite], after[changed & finite]
    if not np.isfinite(new).all():
        return NOT_FINITE
    if constrained is not None and _explains(constrained[changed & finite], old, new):
        return CONSTRAINT
    factor = np.vdot(old, new) / max(np.vdot(old, old), np.finfo(float).tiny)
    can_decay = finite & before.any(axis=1)
    if changed[can_decay].all() and 0 < factor < 1 and _explains(factor * old, old, new):
        return f"{DECAY}: all of them were multiplied by {factor:.6g}"
    if _explains(_with_one_norm(old, new), old, new) or _explains(np.maximum(old, 0), old, new):
        return CONSTRAINT
    # A step moves a row by little. A row that is assigned is nothing like the one before it.
    if len(old) and (np.abs(new - old).max(axis=1) < 0.5 * np.abs(old).max(axis=1)).all():
        return MOMENTUM
    return ASSIGNMENT


def _explains(predicted: np.ndarray, old: np.ndarray, new: np.ndarray) -> bool:
    """Returns whether `predicted` is within a tenth of the change from `old` to `new`."""
    change = np.linalg.norm(new - old)
    return bool(change and np.linalg.norm(new - predicted) <= 0.1 * change)


def _with_one_norm(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Returns the old rows, scaled to the median norm of the new rows.

    A constraint such as `UnitNorm` makes these from those.
    """
    norms = np.linalg.norm(old, axis=1, keepdims=True)
    bound = np.median(np.linalg.norm(new, axis=1)) if len(new) else 0.0
    return old * bound / np.where(norms > 0, norms, 1) if bound else old
