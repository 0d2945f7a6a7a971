"""IterableSource: anything that can be iterated over, read in stretches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.data.stretch import Cursor, Gathered, Stacked, Stretch, canonical, stacked_spec
from lightjax.errors import DataError


class IterableSource:
    """Stretches of anything that can be iterated over, once an epoch.

    The first batch is read early, to create the state; the pass it came from goes on as epoch 0.
    """

    def __init__(
        self, open_pass: Callable[[], Any], name: str, limit: int | None = None, length: int | None = None
    ) -> None:
        self.name = name
        self._open_pass = open_pass
        self._limit = limit
        known = [number for number in (limit, length) if number is not None]
        self.batches = min(known) if length is not None else None
        self._pending: Iterator[Any] | None = None
        self._spec: Any = None
        self._first: Any = None
        self.shapes: tuple[tuple[int, ...], ...] = ()

    def first(self) -> Any:
        """Returns the first batch of the next pass, which goes on from there."""
        batches = self._pass()
        batch = next(batches, None)
        if batch is None:
            raise DataError(f"{self.name} is empty: it gave no batch; pass a loader with at least one batch.")
        self._pending = itertools.chain([batch], batches)
        return self.host_batch(batch, 0, 0)

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at batch `start` of a new pass; the batches before are read and left out."""
        batches = self._pass()
        self._pending = None
        limited = itertools.islice(batches, start, self._limit)
        return _IterableCursor(self, limited, index, start)

    def specs(self, capacity: int) -> list[Stacked | Gathered]:
        """Returns the shapes of the stretches to come, as far as the first batch tells them."""
        return [stacked_spec(self._first, capacity)]

    def host_batch(self, batch: Any, epoch: int, number: int) -> Any:
        """Turns a batch into arrays and checks that it is like the first one."""
        where = f"batch {number} of epoch {epoch}"
        arrays = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _as_array(leaf, _tree.leaf_path(path), self.name, where), batch
        )
        spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), arrays)
        if self._spec is None:
            self._spec, self._first, self.shapes = spec, _tree.abstract(arrays), _shapes(arrays)
        elif spec != self._spec:
            raise DataError(
                f"{self.name} gave {where} in another shape than its first batch: "
                f"{_tree.difference(self._first, arrays)}; a compiled step takes batches of one shape, of which only "
                "the number of examples may differ: pad or crop to one shape."
            )
        return arrays

    def _pass(self) -> Iterator[Any]:
        if self._pending is not None:
            return self._pending
        opened = self._open_pass()
        if not (isinstance(opened, Iterable) or hasattr(opened, "__getitem__")):
            raise DataError(
                f"{self.name} is a function that returned {a_or_an(type(opened).__name__)}, which is no iterable; it "
                "has to return or yield batches."
            )
        return iter(opened)


class _IterableCursor:
    def __init__(self, source: IterableSource, batches: Iterator[Any], epoch: int, start: int) -> None:
        self.source, self.batches, self.epoch = source, batches, epoch
        self.number = start
        self.ahead: Any = None

    def take(self, most: int, capacity: int) -> Stretch | None:
        batch = self._next()
        if batch is None:
            return None
        shapes = _shapes(batch)
        if shapes != self.source.shapes:
            return _Stack(batch, 1).stretch()
        stack = _Stack(batch, capacity)
        while stack.count < most:
            batch = self._next()
            if batch is None:
                break
            if _shapes(batch) != shapes:
                self.ahead = batch
                break
            stack.add(batch)
        return stack.stretch()

    def _next(self) -> Any:
        if self.ahead is not None:
            batch, self.ahead = self.ahead, None
            return batch
        try:
            batch = next(self.batches, None)
        except Exception as error:
            error.add_note(f"{self.source.name} raised this instead of batch {self.number} of epoch {self.epoch}.")
            raise
        if batch is None:
            if self.number == 0 and self.epoch == 0:
                raise DataError(
                    f"{self.source.name} is empty: it gave no batch; pass a loader with at least one batch."
                )
            if self.number == 0:
                raise DataError(
                    f"{self.source.name} is exhausted: it gave no batch in epoch {self.epoch}; an iterator can be "
                    "passed over only once: pass a list, a loader, or a function that returns a new iterator each time."
                )
            return None
        batch = self.source.host_batch(batch, self.epoch, self.number)
        self.number += 1
        return batch


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


class _Stack:
    """Batches copied into rows as they come: a loader may fill the same buffer again for its next batch."""

    def __init__(self, first: Any, capacity: int) -> None:
        leaves, self.structure = jax.tree.flatten(first)
        self.capacity = capacity
        self.count = 0
        self.columns = [
            [] if isinstance(leaf, jax.Array) else np.empty((capacity, *leaf.shape), leaf.dtype) for leaf in leaves
        ]
        self.add(first)

    def add(self, batch: Any) -> None:
        for column, leaf in zip(self.columns, jax.tree.leaves(batch), strict=True):
            if isinstance(column, list):
                column.append(leaf)
            else:
                column[self.count] = leaf
        self.count += 1

    def stretch(self) -> Stretch:
        stacks = [
            jnp.stack([*column, *[column[-1]] * (self.capacity - self.count)]) if isinstance(column, list) else column
            for column in self.columns
        ]
        return Stretch(Stacked(jax.tree.unflatten(self.structure, stacks)), self.count)


def _as_array(leaf: Any, path: str, name: str, where: str) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf) if hasattr(leaf, "__array__") or isinstance(leaf, bool | int | float) else None
    if array is None or array.dtype.kind in "OUSMm":
        raise DataError(
            f"{name} gave {where} with {a_or_an(type(leaf).__name__)} at {path!r}, which is no array of numbers; "
            "leave it out of the batch or encode it as numbers."
        )
    return canonical(array)


def a_or_an(noun: str) -> str:
    """Puts the article before a noun."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
