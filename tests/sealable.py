"""A variable of a user's class, which can refuse what is done to it."""

import contextlib
from collections.abc import Iterator

import keras


class Sealable(keras.Variable):
    """A variable that refuses to be given attributes while it is sealed."""

    sealed = False

    def __setattr__(self, name, value):
        if type(self).sealed and not name.startswith("_"):
            raise PermissionError(f"{name} of a sealed variable")
        super().__setattr__(name, value)


@contextlib.contextmanager
def sealed() -> Iterator[None]:
    """A context in which each `Sealable` is sealed."""
    Sealable.sealed = True
    try:
        yield
    finally:
        Sealable.sealed = False
