"""IterableSource: anything that can be iterated over, read in stretches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree, distributed
from lightjax.data import passes
from lightjax.data.passes import Pass
from lightjax.data.share import ALL, Share
from lightjax.data.stretch import Cursor, Gathered, Stacked, Stretch, canonical, stacked_spec
from lightjax.errors import CheckpointError, DataError


class IterableSource:
    """Stretches of anything that can be iterated over, once an epoch.

    The first batch is read early, to create the state; the pass it came from goes on as epoch 0.
    """

    def __init__(
        self,
        open_pass: Callable[[], Any],
        name: str,
        limit: int | None = None,
        length: int | None = None,
        share: Share = ALL,
    ) -> None:
        self.name = name
        self.share = share
        self._open_pass = open_pass
        self._limit = limit
        known = [number for number in (limit, length) if number is not None]
        self.batches = min(known) if length is not None else None
        self._loader: Any = None
        self._pending: Pass | None = None
        self._spec: Any = None
        self._first: Any = None
        self.shapes: tuple[Any, ...] = ()

    def first(self) -> Any:
        """Returns the first batch of the next pass, which goes on from there."""
        found = self._pass(0)
        batch = found.next()
        if batch is None:
            raise DataError(f"{self.name} is empty: it gave no batch; pass a loader with at least one batch.")
        found.hold(batch)
        self._pending = found
        batch = self.host_batch(batch, 0, 0)
        return batch if self.share.parts == 1 else self._agreed(batch)

    def epoch(self, index: int, start: int = 0) -> Cursor:
        """Returns a cursor at the beginning of a new pass, or where `resume` left the pass of this epoch."""
        found = self._pass(index)
        self._pending = None
        return _IterableCursor(self, found, index, start, self._limit)

    def resume(
        self, epoch: int, batch: int, place: Any, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Goes to a batch of an epoch: at once where the loader can, else by reading again."""
        if epoch == batch == 0:
            return
        begun_s, read, first = time.monotonic(), 0, self._pass(0)
        if passes.has_order_of_chance(self._loader):
            if batch:
                raise CheckpointError(
                    f"The checkpoint is at batch {batch} of epoch {epoch}, but nobody can say which batches those "
                    f"were: {self.name} {_BY_CHANCE} Train on from its state in a new epoch: "
                    "fit(..., state=lj.restore(path, like))."
                )
            self._pending = None
        elif place is not None or first.place() is not None:
            if not passes.are_alike(place, first.place()):
                raise CheckpointError(
                    f"The checkpoint was saved while {self.name} was another kind of loader, whose place this one "
                    "cannot find; pass the loader that the run began with, or begin a new run with its state: "
                    "fit(..., state=lj.restore(path, like))."
                )
            self._pending = self._pass_at(epoch, batch, place)
        elif (found := passes.begin_later(self._loader, epoch, batch)) is not None:
            self._pending = found
        else:
            for index in range(epoch + 1):
                found, left = self._pass(index), batch if index == epoch else self._limit
                self._pending = found if index == epoch else None
                while left != 0 and not stop() and found.next() is not None:
                    left, read = None if left is None else left - 1, read + 1
            say(
                f"{self.name} was read again up to batch {batch} of epoch {epoch}: {read} batches in "
                f"{time.monotonic() - begun_s:.1f} s; lj.ArrayLoader, grain and loaders with state_dict() and "
                "load_state_dict() go there at once"
            )

    def after_pass(self, place: Any) -> Any:
        """Returns the place between two passes, given the last one within the pass before."""
        mark = passes.mark_of_generators(self._loader)
        return place if mark is None else {"mark": mark, "read": 0, "over": True}

    def inexact(self) -> str | None:
        """Says why a resumed run would see other batches than the uninterrupted one; None where it sees the same."""
        return f"{self.name} {_BY_CHANCE}" if passes.has_order_of_chance(self._loader) else None

    def specs(self, capacity: int) -> list[Stacked | Gathered]:
        """Returns the shapes of the stretches to come, as far as the first batch tells them."""
        return [stacked_spec(jax.tree.map(self._whole, self._first), capacity)]

    def host_batch(self, batch: Any, epoch: int, number: int) -> Any:
        """Turns a batch into arrays and checks that it is like the first one."""
        where = f"batch {number} of epoch {epoch}"
        arrays = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _as_array(leaf, _tree.leaf_path(path), self.name, where), batch
        )
        spec = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), arrays)
        if self._spec is None:
            self._spec, self._first, self.shapes = spec, _tree.abstract(arrays), _shapes(arrays)
        elif spec != self._spec and not self._lacks_members(spec):
            raise DataError(
                f"{self.name} gave {where} in another shape than its first batch: "
                f"{_tree.difference(self._first, arrays)}; a compiled step takes batches of one shape, of which only "
                "the number of examples may differ: pad or crop to one shape."
            )
        return arrays

    def _lacks_members(self, spec: Any) -> bool:
        """Says whether a batch differs from the first only in loaders that have ended, as a `CombinedLoader` may."""
        if getattr(self._loader, "mode", None) != "max_size":
            return False
        first = _tree.named_leaves(self._spec)
        return all(first.get(path) == leaf for path, leaf in _tree.named_leaves(spec).items())

    def _agreed(self, batch: Any) -> Any:
        """Compares the data of all processes, and makes one batch of all that is the same for each.

        Each process reads a loader of its own, and a program that some of them run without the others never ends.
        """
        rows = [leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim]
        sizes = distributed.gathered([-1 if self.batches is None else self.batches, *rows])
        if self.batches is None or (sizes != sizes[0]).any():
            listed = "; ".join(
                f"process {process}: {'?' if one[0] < 0 else one[0]} batches of {one[1]} rows"
                for process, one in enumerate(sizes)
            )
            raise DataError(
                f"{self.name} gives every process its own part of each batch, so that all need as many batches of as "
                f"many rows, and a length: {listed}. Give loaders with len() and of one size (drop_last=True), or an "
                "lj.ArrayLoader of all the data, which cuts every batch by itself."
            )
        first = distributed.of_main(batch)
        return jax.tree.map(lambda leaf: np.concatenate([leaf] * self.share.parts) if leaf.ndim else leaf, first)

    def _whole(self, leaf: Any) -> Any:
        """Returns the shape of a leaf over all processes."""
        rows = [size * self.share.parts for size in leaf.shape[:1]]
        return jax.ShapeDtypeStruct((*rows, *leaf.shape[1:]), leaf.dtype)

    def _pass(self, index: int) -> Pass:
        """Returns the pass that was begun already, or begins one."""
        return self._pending or passes.begin(self._open(), index)

    def _pass_at(self, epoch: int, batch: int, place: Any) -> Pass | None:
        """Returns the pass of an epoch at a batch, by its place; None for an epoch that is still to begin."""
        if place.get("over"):
            passes.set_generators(self._loader, place["mark"])
            return None
        found = passes.begin_at(self._open(), epoch if batch else epoch - 1, place["mark"])
        for _ in range(place["read"]):
            if found.next() is None:
                raise CheckpointError(
                    f"{self.name} ended before batch {batch} of epoch {epoch}, where the checkpoint is; pass the data "
                    "that the run began with."
                )
        if batch:
            return found
        if self._limit is None:
            found.next()  # the pass before has to end as it did
        return None

    def _open(self) -> Any:
        opened = self._open_pass()
        if not (isinstance(opened, Iterable) or hasattr(opened, "__getitem__")):
            raise DataError(
                f"{self.name} is a function that returned {a_or_an(type(opened).__name__)}, which is no iterable; it "
                "has to return or yield batches."
            )
        self._loader = opened
        return opened


_BY_CHANCE = (
    "shuffles by torch's global random numbers. Give it a generator of its own and its order can be found again: "
    "DataLoader(..., shuffle=True, generator=torch.Generator().manual_seed(0))."
)


class _IterableCursor:
    def __init__(self, source: IterableSource, batches: Pass, epoch: int, start: int, limit: int | None) -> None:
        self.source, self.batches, self.epoch = source, batches, epoch
        self.number, self.limit = start, limit

    def take(self, most: int, capacity: int) -> Stretch | None:
        self.batches.note()
        batch = self._next()
        if batch is None:
            return None
        shapes = _shapes(batch)
        if shapes != self.source.shapes:
            capacity = most = 1
        stack = _Stack(batch, capacity)
        while stack.count < most:
            batch = self._next()
            if batch is None:
                break
            if _shapes(batch) != shapes:
                self.batches.hold(batch)
                self.number -= 1
                break
            stack.add(batch)
        return stack.stretch(self.batches.place(), self.source.share.parts)

    def _next(self) -> Any:
        if self.number == self.limit:
            return None
        try:
            batch = self.batches.next()
        except Exception as error:
            error.add_note(f"{self.source.name} raised this instead of batch {self.number} of epoch {self.epoch}.")
            raise
        if batch is None:
            self._check_end()
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
        if self.source.share.parts > 1 and _shapes(batch) != self.source.shapes:
            raise DataError(
                f"{self.source.name} gave batch {self.number} of epoch {self.epoch} with another number of rows than "
                "its first one, which the other processes cannot know; give batches of one size (drop_last=True), or "
                "an lj.ArrayLoader of all the data, which cuts every batch by itself."
            )
        self.number += 1
        return batch

    def _check_end(self) -> None:
        wanted = self.source.batches
        if self.source.share.parts > 1 and wanted is not None and self.number < wanted:
            raise DataError(
                f"{self.source.name} ended after {self.number} of the {wanted} batches of epoch {self.epoch} that its "
                "length says, and the other processes wait for the rest; let len() be what it gives."
            )


def _shapes(batch: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(batch)
    return structure, *(leaf.shape for leaf in leaves)


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

    def stretch(self, place: Any, parts: int) -> Stretch:
        stacks = [
            jnp.stack([*column, *[column[-1]] * (self.capacity - self.count)]) if isinstance(column, list) else column
            for column in self.columns
        ]
        return Stretch(Stacked(jax.tree.unflatten(self.structure, stacks)), self.count, parts, place=place)


def _as_array(leaf: Any, path: str, name: str, where: str) -> Any:
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf) if hasattr(leaf, "__array__") or isinstance(leaf, bool | int | float) else None
    if array is None and dataclasses.is_dataclass(leaf):
        kind = type(leaf).__name__
        raise DataError(
            f"{name} gave {where} with the dataclass {kind}{f' at {path!r}' if path else ''}, into which JAX does not "
            f"look; register it: put @jax.tree_util.register_dataclass above {kind}, or make it a NamedTuple."
        )
    if array is None or array.dtype.kind in "OUSMm":
        raise DataError(
            f"{name} gave {where} with {a_or_an(type(leaf).__name__)} at {path!r}, which is no array of numbers; "
            "leave it out of the batch or encode it as numbers."
        )
    return canonical(array)


def a_or_an(noun: str) -> str:
    """Puts the article before a noun."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"
