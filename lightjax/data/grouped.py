"""Grouped: consecutive batches of a source joined into the batch of one optimizer step."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.data.array_source import ArraySource
from lightjax.data.source import Source
from lightjax.data.stretch import Cursor, Gathered, Stacked, Stretch
from lightjax.errors import DataError
from lightjax.metrics import batch_size


@dataclass(frozen=True)
class Accumulation:
    """How many batches make one optimizer step, by epoch.

    Attributes:
      starts: (epoch, batches), in the order of epochs: from that epoch on; 1 before the first.

    Example:
      >>> accumulation = Accumulation.of({2: 4, 5: 8})
      >>> [accumulation.at(epoch) for epoch in (0, 2, 4, 5)], accumulation.steps(epochs=6, batches=10)
      ([1, 4, 4, 8], 31)
    """

    starts: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, batches: int | Mapping[int, int]) -> Accumulation:
        """Reads `accumulate_grad_batches`: a number, or {epoch: number}."""
        return cls(tuple(sorted(batches.items())) if isinstance(batches, Mapping) else ((0, batches),))

    def at(self, epoch: int) -> int:
        """Returns the batches of a step in an epoch."""
        return next((batches for start, batches in reversed(self.starts) if start <= epoch), 1)

    def steps(self, epochs: int, batches: int) -> int:
        """Returns the steps of the first epochs of so many batches each."""
        starts = [0, *(start for start, _ in self.starts if 0 < start < epochs), epochs]
        return sum((end - start) * -(-batches // self.at(start)) for start, end in itertools.pairwise(starts))

    @property
    def sizes(self) -> list[int]:
        """What `at` returns for some epoch, the largest last."""
        return sorted({self.at(0), *(batches for _, batches in self.starts)})

    @property
    def largest(self) -> int:
        """The most batches a step has."""
        return self.sizes[-1]


class Grouped:
    """A source whose steps take several of its batches, joined along their first axis.

    Positions and lengths of epochs stay those of the source, in batches. A group ends with the epoch: the last one may
    have fewer batches, and batches of another size in it are part of it.

    Args:
      source: the source.
      accumulation: how many batches make a step.
    """

    def __init__(self, source: Source, accumulation: Accumulation) -> None:
        self.source = source
        self.accumulation = accumulation
        self.name = source.name

    @property
    def batches(self) -> int | None:
        """Batches of the source in an epoch, None where it does not say."""
        return self.source.batches

    def first(self) -> Any:
        """Returns the first batch of the source.

        Raises:
          DataError: its leaves share no first axis to be joined along.
        """
        batch = self.source.first()
        if batch_size(batch) is None:
            leaves = ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items())
            raise DataError(
                f"accumulate_grad_batches joins batches of {self.name} along the first axis of their leaves, but these "
                f"share none: {leaves}; give every leaf one row an example."
            )
        return batch

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at batch `start` of the source's epoch."""
        cursor, size = self.source.epoch(index, start), self.accumulation.at(index)
        if size == 1:
            return cursor
        return _ArrayGroups(cursor, size) if isinstance(self.source, ArraySource) else _Groups(cursor, size)

    def resume(self, epoch: int, batch: int, place: Any, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        """Goes to a batch of an epoch of the source."""
        self.source.resume(epoch, batch, place, say, stop)

    def after_pass(self, place: Any) -> Any:
        """Returns the source's place between two passes."""
        return self.source.after_pass(place)

    def inexact(self) -> str | None:
        """Says why a resumed run would see other batches, if the source does."""
        return self.source.inexact()

    def specs(self, capacity: int) -> list[Stacked | Gathered]:
        """Returns the shapes of the stretches to come, those of later epochs included."""
        found = {}
        for size in self.accumulation.sizes:
            specs = self.source.specs(capacity) if size == 1 else self._specs(size, capacity)
            found |= {spec.signature: spec for spec in specs}
        return list(found.values())

    def _specs(self, size: int, capacity: int) -> list[Stacked | Gathered]:
        full, *shorter = self.source.specs(1)
        rows = _rows(full)
        if self.batches is None or not isinstance(self.source, ArraySource):
            return [_spec(full, size * rows, capacity)]
        groups, left = divmod(self.batches - len(shorter), size)
        rest = left * rows + sum(_rows(spec) for spec in shorter)
        specs = [_spec(full, size * rows, capacity)] if groups else []
        return [*specs, *([_spec(full, rest, 1)] if rest else [])]


class _Groups:
    """Groups taken one by one, so that each knows the loader's place after it."""

    def __init__(self, cursor: Cursor, size: int) -> None:
        self.cursor, self.size = cursor, size
        self.left: Stretch | None = None

    def take(self, most: int, capacity: int) -> Stretch | None:
        groups: list[Stretch] = []
        while len(groups) < most and (stretch := self._next()) is not None:
            if stretch.count < self.size:
                self.left = stretch
                break
            groups.append(stretch)
        if groups:
            steps = _stacked([_joined([group]) for group in groups], capacity)
            return dataclasses.replace(groups[-1], steps=steps, count=len(groups), group=self.size)
        return self._rest()

    def _next(self) -> Stretch | None:
        if self.left is not None:
            stretch, self.left = self.left, None
            return stretch
        return self.cursor.take(self.size, self.size)

    def _rest(self) -> Stretch | None:
        """Returns a group of batches of several shapes, or the last of an epoch, as one step."""
        parts, count = [], 0
        while count < self.size:
            stretch = self._next() if not parts else self.cursor.take(self.size - count, self.size - count)
            if stretch is None:
                break
            parts.append(stretch)
            count += stretch.count
        return dataclasses.replace(parts[-1], steps=_joined(parts), count=1, group=count) if parts else None


class _ArrayGroups(_Groups):
    """Groups of an `ArrayLoader`, which has no place to keep: all of a stretch at once, joined where they lie."""

    def take(self, most: int, capacity: int) -> Stretch | None:
        stretch = self.left
        if stretch is None:
            stretch = self.cursor.take(most * self.size, capacity * self.size)
            if stretch is None:
                return None
            groups, left = divmod(stretch.count, self.size)
            self.left = _tail(stretch, groups * self.size) if left else None
            if groups:
                steps = _whole(stretch.steps, self.size)
                return dataclasses.replace(stretch, steps=steps, count=groups, group=self.size)
        return self._rest()


def joined_spec(batch: Any, size: int) -> Any:
    """Returns the shapes of so many batches joined."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size * leaf.shape[0], *leaf.shape[1:]), leaf.dtype), batch)


def _rows(steps: Stacked | Gathered) -> int:
    """Returns the examples of a batch."""
    return steps.batch_size if isinstance(steps, Gathered) else jax.tree.leaves(steps.stacks)[0].shape[1]


def _spec(steps: Stacked | Gathered, rows: int, capacity: int) -> Stacked | Gathered:
    """Returns the shapes of a stretch like this one with other batches; one that gathers stays what it is."""
    if isinstance(steps, Gathered):
        return dataclasses.replace(steps, batch_size=rows, capacity=capacity)
    return Stacked(
        jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((capacity, rows, *leaf.shape[2:]), leaf.dtype),
            steps.stacks,
        )
    )


def _whole(steps: Stacked | Gathered, size: int) -> Stacked | Gathered:
    """Joins every `size` batches of a stretch; the arrays stay where they are."""
    if isinstance(steps, Gathered):
        return dataclasses.replace(steps, batch_size=steps.batch_size * size, capacity=steps.capacity // size)
    return Stacked(
        jax.tree.map(
            lambda leaf: leaf.reshape(leaf.shape[0] // size, size * leaf.shape[1], *leaf.shape[2:]), steps.stacks
        )
    )


def _tail(stretch: Stretch, start: int) -> Stretch:
    """Returns the batches of a stretch from one on."""
    steps = stretch.steps
    if isinstance(steps, Gathered):
        steps = dataclasses.replace(steps, first=np.int32(steps.first + start * steps.batch_size))
    else:
        steps = Stacked(jax.tree.map(lambda leaf: leaf[start : stretch.count], steps.stacks))
    return dataclasses.replace(stretch, steps=steps, count=stretch.count - start)


def _stacked(groups: list[Any], capacity: int) -> Stacked:
    """Stacks groups of one shape, each [1, rows, ...]."""

    def stack(*leaves: Any) -> Any:
        if isinstance(leaves[0], jax.Array):
            return jnp.concatenate([*leaves, *[leaves[-1]] * (capacity - len(leaves))])
        found = np.empty((capacity, *leaves[0].shape[1:]), leaves[0].dtype)
        np.concatenate(leaves, out=found[: len(leaves)])
        return found

    return Stacked(jax.tree.map(stack, *(group.stacks for group in groups)))


def _joined(parts: list[Stretch]) -> Stacked | Gathered:
    """Joins all batches of stretches into one."""
    first = parts[0].steps
    if isinstance(first, Gathered):
        return _spec(first, sum(part.count * _rows(part.steps) for part in parts), 1)

    def join(*leaves: Any) -> Any:
        rows = [leaf[: part.count].reshape(1, -1, *leaf.shape[2:]) for part, leaf in zip(parts, leaves, strict=True)]
        return (jnp if isinstance(rows[0], jax.Array) else np).concatenate(rows, axis=1)

    stacks = [part.steps.stacks for part in parts if isinstance(part.steps, Stacked)]
    return Stacked(jax.tree.map(join, *stacks))
