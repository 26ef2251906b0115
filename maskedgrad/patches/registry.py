"""`PatchRegistry`: many patches over one base, switched between the requests of a service."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from maskedgrad.files import FilePath
from maskedgrad.messages import shorten
from maskedgrad.patches.patch import RowPatch
from maskedgrad.patches.placement import AppliedRowPatch, check_holds_tables


class PatchRegistry:
    """Many patches over one base, by name, for a service with threads.

    One table stays in memory. A request says which patch it wants, and finds
    it applied as a whole for as long as it lasts. Requests for one patch run
    side by side; one for another patch waits until they have ended. They are
    served in the order in which they came, and with the first that waits all
    others that want the same patch: nobody waits for ever, and a busy service
    switches less often than it is asked.

    A patch that is given as a file is read when it is first used, and checked
    against the base then, as `RowPatch.applied` does: that reads the table as a
    whole, once for each patch. A switch costs what K rows cost. The patch of
    the last request stays in place: `use(None)` brings back the base.

    Args:
        model: a built model with the tables of the patches. Its lookups are to
            be made within `use`; what trains or changes the table must not run
            at the same time.
        patches: a mapping from names to patches, or to paths of their files.
        strict, allow_nonfinite, vocabulary: as for `RowPatch.applied`.

    Example:

    >>> words = keras.layers.Embedding(5, 2, name="words")
    >>> model = MaskedModel(inputs := keras.Input((3,), dtype="int32"), words(inputs))
    >>> model.compile("adam", loss="mse", trainable_rows={words: [1, 4]})
    >>> patch = RowPatch.from_model(model)
    >>> words.set_weights([words.get_weights()[0] * [[1], [0], [1], [1], [0]]])
    >>> registry = patches.PatchRegistry(model, {"city": patch})
    >>> with registry.use("city") as model:
    ...     words.get_weights()[0].all(axis=1).tolist()
    [True, True, True, True, True]
    >>> with registry.use(None) as model:
    ...     words.get_weights()[0].all(axis=1).tolist()
    [True, False, True, True, False]
    """

    def __init__(
        self,
        model: keras.Model,
        patches: Mapping[str, RowPatch | FilePath] | None = None,
        *,
        strict: bool = True,
        allow_nonfinite: bool = False,
        vocabulary: Any = None,
    ):
        check_holds_tables(model)
        if patches is not None and not isinstance(patches, Mapping):
            raise TypeError(
                "`patches` must be a mapping from names to patches, such as `{'city': patch}`. "
                f"Received: {shorten(patches)}"
            )
        self._model = model
        self._options = {
            "strict": strict,
            "allow_nonfinite": allow_nonfinite,
            "vocabulary": vocabulary,
        }
        self._entries: dict[str, _Entry] = {}
        self._turns = _Turns()
        for name, patch in (patches or {}).items():
            self.add(name, patch)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the patches."""
        return tuple(self._entries)

    def add(self, name: str, patch: RowPatch | FilePath) -> None:
        """Adds a patch. One of the same name is replaced, from the next request on.

        Args:
            name: what requests call it.
            patch: a `RowPatch`, or the path of its file, which is read when
                the patch is first used.

        Raises:
            TypeError: the name is no string, or the patch is of another type.
        """
        if not isinstance(name, str) or not isinstance(patch, (RowPatch, str, os.PathLike)):
            raise TypeError(
                "A patch must be added by a name, and be a `RowPatch` or the path of its file. "
                f"Received: name={shorten(name)}, patch={shorten(patch)}"
            )
        self._entries[name] = _Entry(patch)

    def remove(self, name: str) -> None:
        """Removes a patch. Requests that it serves go on; the next ones are refused.

        Raises:
            KeyError: there is none of the name.
        """
        if self._entries.pop(name, None) is None:
            raise KeyError(self._unknown(name))

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[keras.Model]:
        """A context in which a patch is applied to the model, and no other one.

        Args:
            name: the patch, or `None` for the base as it is.

        Returns:
            A context whose value is the model.

        Raises:
            KeyError: there is no patch of the name.
            RuntimeError: the thread is in such a context already.
            FileNotFoundError, ImportError, ValueError: the patch cannot be
                loaded, or does not fit the model. The next request tries again.
        """
        entry = None if name is None else self._entries.get(name)
        if entry is None and name is not None:
            raise KeyError(self._unknown(name))
        self._turns.check_free()
        switch = None if entry is None else self._checked(entry)
        with self._turns.turn(switch):
            yield self._model

    def _checked(self, entry: "_Entry") -> AppliedRowPatch:
        # Others who want the same patch wait here, and all other requests go on.
        with entry.lock:
            if entry.switch is None:
                patch = entry.patch
                loaded = patch if isinstance(patch, RowPatch) else RowPatch.load(patch)
                with self._turns.no_switch():  # the table is read
                    entry.switch = loaded.applied(self._model, **self._options)
            return entry.switch

    def _unknown(self, name: str) -> str:
        return (
            f"A patch must have been added to be used. Received: {name!r}, not one of {self.names}"
        )

    def __repr__(self) -> str:
        return f"PatchRegistry({list(self._entries)}, {self._turns!r})"


class _Entry:
    """A patch, and how it is applied, once that is known."""

    def __init__(self, patch: RowPatch | FilePath):
        self.patch = patch
        self.lock = threading.Lock()
        self.switch: AppliedRowPatch | None = None


class _Turns:
    """Whose turn it is: those who use the patch that is in place, and then the first who waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_place: AppliedRowPatch | None = None
        self._num_inside = 0
        self._waiting: dict[object, AppliedRowPatch | None] = {}  # in the order of their coming
        self._thread = threading.local()

    def check_free(self) -> None:
        """Raises a `RuntimeError` in a thread that has a turn, and would wait for itself."""
        if getattr(self._thread, "has_turn", False):
            raise RuntimeError(
                "A thread uses one patch at a time. Received: `use` within `use`. End the first "
                "one before, or run the other request in a thread of its own."
            )

    @contextlib.contextmanager
    def turn(self, switch: AppliedRowPatch | None) -> Iterator[None]:
        """A context in which a patch is in place."""
        ticket = object()
        with self._changed:
            self._waiting[ticket] = switch
            try:
                self._changed.wait_for(
                    lambda: ticket not in self._waiting or self._may_enter(switch)
                )
                if ticket in self._waiting:
                    self._let_in(switch)
            except BaseException:
                # It was let in before it was interrupted, if it waits no more.
                self._num_inside -= ticket not in self._waiting
                self._waiting.pop(ticket, None)
                self._changed.notify_all()  # another one is the first now
                raise
        self._thread.has_turn = True
        try:
            yield
        finally:
            self._thread.has_turn = False
            self._leave()

    @contextlib.contextmanager
    def no_switch(self) -> Iterator[None]:
        """A context in which what is in place stays in place."""
        with self._changed:
            self._num_inside += 1
        try:
            yield
        finally:
            self._leave()

    def _may_enter(self, switch: AppliedRowPatch | None) -> bool:
        first = next(iter(self._waiting.values()))
        return switch is first and (switch is self._in_place or not self._num_inside)

    def _let_in(self, switch: AppliedRowPatch | None) -> None:
        """Lets in all who wait for a patch."""
        if switch is not self._in_place:
            self._put_in_place(switch)
        tickets = [ticket for ticket, wanted in self._waiting.items() if wanted is switch]
        for ticket in tickets:
            del self._waiting[ticket]
        self._num_inside += len(tickets)
        self._changed.notify_all()

    def _put_in_place(self, switch: AppliedRowPatch | None) -> None:
        # One step after the other, since each can fail, and leaves things as they were then.
        if self._in_place is not None:
            self._in_place.__exit__()
            self._in_place = None
        if switch is not None:
            switch.__enter__()
            self._in_place = switch

    def _leave(self) -> None:
        with self._changed:
            self._num_inside -= 1
            self._changed.notify_all()

    def __repr__(self) -> str:
        with self._changed:
            return f"{self._num_inside} inside, {len(self._waiting)} waiting"
