"""Sources: what a user passes as data, read epoch by epoch in stretches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any, Protocol

from lightjax.data.array_loader import ArrayLoader
from lightjax.data.array_source import ArraySource
from lightjax.data.iterable_source import IterableSource, a_or_an
from lightjax.data.share import ALL, Share
from lightjax.data.stretch import Cursor, Gathered, Stacked
from lightjax.errors import DataError


class Source(Protocol):
    """Data that can be passed over once an epoch."""

    name: str

    @property
    def batches(self) -> int | None:
        """Batches in an epoch, None where the loader does not say."""
        ...

    def first(self) -> Any:
        """Returns the first batch of epoch 0 as host arrays, without consuming it."""
        ...

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at batch `start` of an epoch; where that is not its beginning, after `resume`."""
        ...

    def resume(self, epoch: int, batch: int, place: Any, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Goes to a batch of an epoch, where `epoch` will go on.

        Args:
          epoch: the epoch, counted from 0.
          batch: batches of it that were trained on.
          place: of the last stretch trained on (`Stretch.place`), or what `after_pass` made of it.
          say: prints a line.
          stop: asked between batches that are read again; True leaves the rest.

        Raises:
          CheckpointError: the loader cannot go there.
        """
        ...

    def after_pass(self, place: Any) -> Any:
        """Returns the place between two passes, given the last one within the pass before."""
        ...

    def inexact(self) -> str | None:
        """Says why a resumed run would see other batches than the uninterrupted one; None where it sees the same."""
        ...

    def specs(self, capacity: int) -> list[Stacked | Gathered]:
        """Returns the shapes of the stretches to come, as far as they are known once `first` was called."""
        ...


def as_source(data: Any, name: str, limit: int | float | None = None, share: Share = ALL) -> Source:
    """Makes a source of what the user passed.

    Args:
      data: an `ArrayLoader`, any iterable of batches, or a function that returns an iterable (a generator function).
      name: what the user calls it, for messages: "train_data".
      limit: batches of an epoch to use at most: a number, or a fraction of the loader's length.
      share: what of it this process reads.

    Raises:
      DataError: `data` is none of these, or a fraction is asked of a loader without length.
    """
    if isinstance(data, ArrayLoader):
        return ArraySource(data, name, _limit(limit, len(data), name), share)
    if not isinstance(data, Iterable) and callable(data):
        return IterableSource(data, name, _limit(limit, None, name), share=share)
    if isinstance(data, dict | str | bytes) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise DataError(
            f"{name} is {a_or_an(type(data).__name__)}, which is no loader: it gives no batches to iterate over; pass "
            "lj.ArrayLoader(arrays, batch_size=...), a DataLoader, a list of batches, or a generator function."
        )
    if isinstance(data, list | tuple) and data and all(map(_is_loader, data)):
        raise DataError(
            f"{name} is a {type(data).__name__} of {len(data)} loaders, which does not say what they are for; name "
            'them for evaluation, {"clean": first, "noisy": second}, and combine them for training, '
            'lj.CombinedLoader({"a": first, "b": second}).'
        )
    length = _length(data)
    return IterableSource(lambda: data, name, _limit(limit, length, name), length, share)


def _length(data: Any) -> int | None:
    """Returns the batches a loader says it has; torch's DataLoader over an iterable dataset refuses to say."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:
        return None


def _is_loader(data: Any) -> bool:
    """Says whether an element of a list is a loader, and not a batch: a batch is a pytree of arrays."""
    if isinstance(data, dict | str | bytes | list | tuple) or hasattr(data, "__array__"):
        return False
    return isinstance(data, Iterable) or callable(data)


def _limit(limit: int | float | None, length: int | None, name: str) -> int | None:
    if limit is None or (isinstance(limit, float) and limit == 1.0):
        return None
    if isinstance(limit, int):
        return limit
    if length is None:
        raise DataError(
            f"{limit} of {name} was asked for, but the loader has no length to take a fraction of; "
            "give a number of batches."
        )
    return max(1, int(length * limit))
