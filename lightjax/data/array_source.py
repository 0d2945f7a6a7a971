"""ArraySource: an ArrayLoader read in stretches."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lightjax.data.array_loader import ArrayLoader
from lightjax.data.stretch import Cursor, Stretch, canonical


class ArraySource:
    """Stretches of an `ArrayLoader`, gathered in one go: no batch is ever made alone and stacked."""

    def __init__(self, loader: ArrayLoader, name: str, limit: int | None = None) -> None:
        self.loader = loader
        self.name = name
        self.batches = min(len(loader), limit if limit is not None else len(loader))
        # What jax would do with wide dtypes is done once here instead of at every transfer.
        self.arrays = jax.tree.map(canonical, loader.arrays)

    def first(self) -> Any:
        """Returns the first batch of epoch 0."""
        return jax.tree.map(canonical, next(self.loader.epoch(0)))

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at batch `start` of an epoch, in constant time."""
        return _ArrayCursor(self, self.loader.order(index), start)


class _ArrayCursor:
    def __init__(self, source: ArraySource, order: np.ndarray, start: int) -> None:
        self.source, self.order, self.next = source, order, start

    def take(self, most: int, capacity: int) -> Stretch | None:
        size = self.source.loader.batch_size
        left = self.source.batches - self.next
        if left <= 0:
            return None
        full = min(left, len(self.order) // size - self.next)
        count, capacity, rows = (min(most, full), capacity, size) if full > 0 else (1, 1, len(self.order) % size)
        wanted = self.order[self.next * size : self.next * size + count * rows]

        def gather(array: np.ndarray) -> np.ndarray:
            stack = np.empty((capacity, rows, *array.shape[1:]), array.dtype)
            np.take(array, wanted, axis=0, out=stack[:count].reshape(count * rows, *array.shape[1:]), mode="clip")
            return stack

        self.next += count
        return Stretch(jax.tree.map(gather, self.source.arrays), count, capacity)
