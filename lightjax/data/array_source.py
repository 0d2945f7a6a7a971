"""ArraySource: an ArrayLoader read in stretches, from the host or on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lightjax.data.array_loader import ArrayLoader
from lightjax.data.share import ALL, Share, put_everywhere
from lightjax.data.stretch import Cursor, Gathered, Stacked, Stretch, canonical, stacked_spec


class ArraySource:
    """Stretches of an `ArrayLoader`: gathered on the host in one indexing, or on the device inside the call.

    Args:
      loader: the loader.
      name: what the user calls it.
      limit: batches of an epoch at most.
      share: what of it this process reads.
    """

    def __init__(self, loader: ArrayLoader, name: str, limit: int | None = None, share: Share = ALL) -> None:
        self.loader = loader
        self.share = share
        self.name = name
        self.batches = min(len(loader), limit if limit is not None else len(loader))
        # What jax would do with wide dtypes is done once here instead of at every transfer.
        self.arrays = (
            loader.device_arrays(share.everywhere) if loader.on_device else jax.tree.map(canonical, loader.arrays)
        )

        # Epoch and batch say where it is; this says in what.
        self._identity = {name: str(getattr(loader, name)) for name in ("examples", "batch_size", "shuffle", "seed")}
        self.place = {"mark": {"array_loader": self._identity}, "read": 0}

    def first(self) -> Any:
        """Returns the first batch of epoch 0."""
        return jax.tree.map(canonical, next(self.loader.epoch(0)))

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at batch `start` of an epoch, in constant time."""
        return _ArrayCursor(self, self.loader.order(index), start)

    def resume(self, epoch: int, batch: int, place: Any, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Says what makes the batches others than those of the run so far; any batch is entered in constant time."""
        before = ((place or {}).get("mark") or {}).get("array_loader", {})
        changed = [name for name, now in self._identity.items() if before.get(name, now) != now]
        if changed:
            changes = ", ".join(f"{name}={before[name]}, now {self._identity[name]}" for name in changed)
            say(
                f"note: {self.name} is another ArrayLoader than before ({changes}): the run goes on with batch {batch} "
                f"of epoch {epoch} of this one, and its batches are not those of an uninterrupted run"
            )

    def after_pass(self, place: Any) -> Any:
        """Returns what a run that goes on has to find again."""
        return self.place

    def inexact(self) -> None:
        """Returns None: the order depends on seed and epoch alone."""

    def specs(self, capacity: int) -> list[Stacked | Gathered]:
        """Returns the shapes of the stretches to come: full batches, and the shorter last one if there is one."""
        full, rest = divmod(self.loader.examples, self.loader.batch_size)
        sizes = [(self.loader.batch_size, capacity)] if full else []
        if rest and self.batches > full:
            sizes.append((rest, 1))
        return [self._spec(size, room) for size, room in sizes]

    def _spec(self, size: int, capacity: int) -> Stacked | Gathered:
        def shaped(array: Any, *leading: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*leading, *array.shape[1:]), array.dtype)

        if not self.loader.on_device:
            return stacked_spec(jax.tree.map(lambda array: shaped(array, size), self.arrays), capacity)
        arrays = jax.tree.map(lambda array: shaped(array, array.shape[0]), self.arrays)
        order, first = jax.ShapeDtypeStruct((self.loader.examples,), np.int32), jax.ShapeDtypeStruct((), np.int32)
        return Gathered(arrays, order, first, size, capacity)


class _ArrayCursor:
    def __init__(self, source: ArraySource, order: np.ndarray, start: int) -> None:
        self.source, self.order, self.next = source, order, start
        self.device_order = put_everywhere(order, source.share.everywhere) if source.loader.on_device else None

    def take(self, most: int, capacity: int) -> Stretch | None:
        loader = self.source.loader
        left = self.source.batches - self.next
        if left <= 0:
            return None
        size = loader.batch_size
        full = min(left, loader.examples // size - self.next)
        first = self.next * size
        count, capacity, size = (min(most, full), capacity, size) if full > 0 else (1, 1, loader.examples % size)
        self.next += count
        if loader.on_device:
            gathered = Gathered(self.source.arrays, self.device_order, np.int32(first), size, capacity)
            return Stretch(gathered, count, place=self.source.place)
        mine = self.source.share.rows(size)
        rows = self.order[first : first + count * size]
        parts = size // (mine.stop - mine.start)
        if parts > 1:
            rows = rows.reshape(count, size)[:, mine].reshape(-1)
        stacked = Stacked(self._gather(rows, first, count, size // parts, capacity, whole=parts == 1))
        return Stretch(stacked, count, parts, place=self.source.place)

    def _gather(self, rows: np.ndarray, first: int, count: int, size: int, capacity: int, *, whole: bool) -> Any:
        if whole and not self.source.loader.shuffle and count == capacity:
            # Nothing to gather: the stack is a view of the arrays.
            return jax.tree.map(
                lambda array: array[first : first + count * size].reshape(count, size, *array.shape[1:]),
                self.source.arrays,
            )

        def gather(array: np.ndarray) -> np.ndarray:
            stack = np.empty((capacity, size, *array.shape[1:]), array.dtype)
            np.take(array, rows, axis=0, out=stack[:count].reshape(count * size, *array.shape[1:]), mode="clip")
            return stack

        return jax.tree.map(gather, self.source.arrays)
