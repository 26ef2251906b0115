"""The heart: an optimizer that trains some rows of a table and never sees the others."""

from maskedgrad.masking.optimizer import MaskedOptimizer

__all__ = ["MaskedOptimizer"]
