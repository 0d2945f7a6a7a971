"""CombinedLoader: batches of several loaders at once, or one loader after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from lightjax.data.workers import iterate
from lightjax.errors import DataError

Mode = Literal["min_size", "max_size", "max_size_cycle", "sequential"]
MODES = ("min_size", "max_size", "max_size_cycle", "sequential")


class CombinedLoader:
    """Several loaders for one training.

    A batch has the shape of `loaders`, with a batch of each in its place; in mode "sequential" it is a batch of one of
    them.

    Args:
      loaders: a dict, list or tuple of loaders: anything that can be iterated over, or generator functions.
      mode: "min_size" ends with the shortest; "max_size" with the longest, and gives None for those that have ended;
        "max_size_cycle" begins those anew; "sequential" goes through one after the other.

    Attributes:
      members: the loaders.

    Raises:
      DataError: there are no loaders, or the mode is unknown.

    Example:
      >>> import lightjax as lj, numpy as np
      >>> short, long = (lj.ArrayLoader(np.arange(rows), 1) for rows in (2, 3))
      >>> combined = lj.CombinedLoader({"a": short, "b": long}, "max_size_cycle")
      >>> [(int(batch["a"][0]), int(batch["b"][0])) for batch in combined]
      [(0, 0), (1, 1), (0, 2)]
      >>> len(combined), len(lj.CombinedLoader([short, long], "sequential"))
      (3, 5)
    """

    def __init__(self, loaders: Mapping[str, Any] | Sequence[Any], mode: Mode = "min_size") -> None:
        if mode not in MODES:
            raise DataError(f"CombinedLoader got mode={mode!r}; write one of {', '.join(MODES)}.")
        self.members, self._structure = jax.tree.flatten(loaders, is_leaf=lambda one: one is not loaders)
        if not self.members:
            raise DataError('CombinedLoader got no loaders; pass some, such as {"a": first, "b": second}.')
        self.mode: Mode = mode
        self._epoch = 0

    def __len__(self) -> int:
        """Returns the number of batches in an epoch.

        Raises:
          TypeError: a loader that decides it has no length.
        """
        lengths = [_length(member) for member in self.members]
        known = [length for length in lengths if length is not None]
        if len(known) < len(lengths):
            raise TypeError("a loader of this CombinedLoader has no length")
        return {"min_size": min, "sequential": sum}.get(self.mode, max)(known)

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next pass is."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """Passes over the next epoch."""
        epoch = self._epoch
        self._epoch += 1
        return self.epoch(epoch)

    @property
    def can_seek(self) -> bool:
        """Whether a pass can begin at any batch of any epoch at once, as those of `ArrayLoader` can."""
        return self.mode != "sequential" and all(hasattr(member, "epoch") for member in self.members)

    def epoch(self, index: int, start: int = 0) -> Iterator[Any]:
        """Passes over a given epoch from a given batch on; what cannot go there at once is read up to it.

        Args:
          index: the epoch, counted from 0.
          start: the first batch, counted from 0.
        """
        if self.mode == "sequential":
            batches = itertools.chain.from_iterable(_pass(member, index, 0) for member in self.members)
            return itertools.islice(batches, start, None)
        if self.can_seek:
            return self._side_by_side(index, start)
        return itertools.islice(self._side_by_side(index, 0), start, None)

    def _side_by_side(self, index: int, start: int) -> Iterator[Any]:
        passes = [_Passes(member, index, start, begins_anew=self.mode == "max_size_cycle") for member in self.members]
        while True:
            batches = []
            for one in passes:
                batches.append(one.next())
                if self.mode == "min_size" and one.ended:
                    return
            if all(one.ended for one in passes):
                return
            yield jax.tree.unflatten(self._structure, batches)


class _Passes:
    """Passes over one loader in an epoch: one, or one after the other.

    Attributes:
      ended: whether the first has ended.
    """

    def __init__(self, loader: Any, epoch: int, start: int, *, begins_anew: bool) -> None:
        self._loader, self._epoch, self._begins_anew = loader, epoch, begins_anew
        self._round, first = divmod(start, len(loader)) if begins_anew and start else (0, start)
        self.ended = self._round > 0
        self._batches = self._open(first)

    def next(self) -> Any:
        """Returns the next batch; None after the end of a loader that is not begun anew."""
        batch = next(self._batches, None)
        if batch is None:
            self.ended = True
            if self._begins_anew:
                self._round += 1
                self._batches = self._open(0)
                batch = next(self._batches, None)
                if batch is None:
                    raise DataError(
                        f"A {type(self._loader).__name__} of a CombinedLoader gave no batch when it was begun anew; an "
                        "iterator can be passed over only once: pass a list, a loader, or a generator function."
                    )
        return batch

    def _open(self, start: int) -> Iterator[Any]:
        # Far from the epochs of a run: every pass has an order of its own.
        return _pass(self._loader, self._epoch + self._round * 2**20, start)


def _pass(loader: Any, epoch: int, start: int) -> Iterator[Any]:
    if hasattr(loader, "epoch"):
        return loader.epoch(epoch, start)
    if callable(tell := getattr(loader, "set_epoch", None)):
        tell(epoch)
    opened: Any = loader if hasattr(loader, "__iter__") else loader()
    return itertools.islice(iterate(opened), start, None)


def _length(loader: Any) -> int | None:
    return len(loader) if hasattr(loader, "__len__") else None
