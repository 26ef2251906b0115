"""The heart: an optimizer that trains some rows of a table and never sees the others."""
