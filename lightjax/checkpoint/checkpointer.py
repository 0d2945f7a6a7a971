"""Checkpointer: saves steps of a run in one directory and keeps the ones that are wanted."""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree, distributed
from lightjax.checkpoint.checkpoint import Checkpoint
from lightjax.checkpoint.checksums import damage
from lightjax.checkpoint.location import located, remove
from lightjax.checkpoint.storage import Storage, one_replica, remove_unfinished
from lightjax.errors import CheckpointError

# A save takes orbax 30 to 75 ms of host time however small the state is, more than a whole epoch of a small model.
WRITE_EVERY_S = 2.0
# States up to this size may wait in memory for their turn.
HELD_BYTES = 64 * 2**20
# Asking whether a write has failed takes 5 us.
LOOK_EVERY_S = 0.1


class _Held(NamedTuple):
    checkpoint: Checkpoint
    items: dict[str, Any]
    about: dict[str, Any]
    owned: bool


class Checkpointer:
    """Saves checkpoints in the background, and deletes one only after a newer one is complete.

    Writes begin at most every 2 s. A small state saved sooner is copied on the device and written at its turn, or never
    if it is deleted before: saving after every short epoch costs next to nothing, and a process that is killed loses
    the last 2 s at most.

    Args:
      directory: where the checkpoints go, one directory a step; made when the first one is written. `gs://bucket/path`
        is one, too.
      before_write: called before a checkpoint is written, to bring to disk what it relies on.
      on_error: what a write that failed comes to: "raise" its error at the next call, or "warn" and go on without it.

    Attributes:
      lost: the steps whose writes failed.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     checkpointer = Checkpointer(directory)
      ...     checkpoint = checkpointer.save(3, {"w": jnp.ones(2)}, metrics={"loss": 0.5})
      ...     checkpointer.close()
      ...     checkpoint.restore()["w"].tolist()
      [1.0, 1.0]
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        before_write: Callable[[], None] = lambda: None,
        on_error: Literal["raise", "warn"] = "raise",
    ) -> None:
        self._before_write = before_write
        self._on_error = on_error
        self.lost: set[int] = set()
        self.directory = located(directory)
        self._storage: Storage | None = None
        self._newest: Checkpoint | None = None
        self._held: dict[int, _Held] = {}
        self._unwanted: list[Checkpoint] = []
        self._writing: int | None = None
        self._complete: set[int] = set()
        self._written_s = self._looked_s = float("-inf")

    def save(
        self,
        step: int,
        state: Any,
        *,
        metrics: Mapping[str, float],
        items: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> Checkpoint:
        """Begins to save a state; waits for the write before this one, unless this one waits for its turn.

        One process copies the state where it is, without waiting for that, and does all else in the background. Where
        a device has no room for a copy beside the most it ever had in use, and where several processes write together,
        it waits for the copy to the host.

        Args:
          step: optimizer steps done; a step already saved by this checkpointer is not saved again.
          state: pytree of arrays and numbers; may be donated, or changed in place, as soon as this returns.
          metrics: the latest metrics.
          items: further pytrees of arrays by name; left alone until they are written.
          about: further JSON to keep.

        Returns:
          The checkpoint, on disk after `wait`.

        Raises:
          CheckpointError: this or an earlier write failed, and `on_error` is "raise".
        """
        if self._newest is not None and self._newest.step == step:
            return self._newest
        state = _own_host_arrays(state)
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        described = {"step": step, "metrics": numbers, "versions": versions()} | dict(about or {})
        self._newest = saved = Checkpoint(self.path(step), step, numbers, like=_tree.abstract(state, placed=True))
        # Processes write together, and clocks differ: what waits on one has to wait on all.
        alone = distributed.is_alone()
        waits = alone and not self._due() and _tree.size_in_bytes(state) <= HELD_BYTES
        if not waits:
            self._settle()  # before there is one more copy
        owned = waits or (alone and _has_room(state))
        items = dict(items or {}) | {"state": _own_device_arrays(state, compiled=waits) if owned else state}
        held = _Held(self._newest, items, described, owned)
        if waits:
            self._held[step] = held
        else:
            self._write(held)
        return saved

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Takes a checkpoint of this directory for the newest: it is not written again before there is a newer one."""
        if checkpoint.path.parent == self.directory:
            self._newest = checkpoint
            self._complete.add(checkpoint.step)
            remove_unfinished(self.directory)

    def path(self, step: int) -> Path:
        """Returns the directory of a step, whether there is one or not."""
        return self.directory / f"step_{step}"

    def open(self, step: int) -> Checkpoint | None:
        """Returns the checkpoint of a step that is on disk; None where there is none with all its files."""
        path = self.path(step)
        # Whoever restores it reads every byte; here many of them are looked at.
        if not path.is_dir() or damage(path, hashed=False) is not None:
            return None
        return Checkpoint.open(path)

    @property
    def busy(self) -> bool:
        """Whether something is being written or waits for its turn."""
        return self._writing is not None or bool(self._held)

    def write_due(self) -> None:
        """Begins to write what waits for its turn, if that has come; otherwise costs a microsecond.

        Raises:
          CheckpointError: this or an earlier write failed, and `on_error` is "raise".
        """
        # Several processes find out together, when they wait: each would end at another step.
        if self._writing is not None and distributed.is_alone():
            self._look(self._writing)
        if self._held and self._due():
            self._write_held()

    def delete(self, checkpoint: Checkpoint) -> None:
        """Deletes a checkpoint, once everything newer that is being written is complete."""
        if self._held.pop(checkpoint.step, None) is None:
            self._unwanted.append(checkpoint)

    def wait(self) -> None:
        """Waits until everything is on disk, and deletes what is no longer wanted.

        Raises:
          CheckpointError: a write failed, and `on_error` is "raise".
        """
        self._write_held()
        self._settle()

    def close(self) -> None:
        """Waits, and ends the background thread; a later save begins a new one."""
        try:
            self.wait()
        finally:
            if self._storage is not None:
                self._storage.close()
                self._storage = None

    def _look(self, step: int) -> None:
        """Asks now and then whether the write of a step has failed."""
        now_s = time.monotonic()
        if self._storage is None or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        try:
            self._storage.check()
        except CheckpointError as error:
            self._writing = None
            self._lose(step, error)

    def _due(self) -> bool:
        return time.monotonic() - self._written_s >= WRITE_EVERY_S

    def _write_held(self) -> None:
        for step in list(self._held):
            self._write(self._held.pop(step))

    def _write(self, held: _Held) -> None:
        self._settle()
        if self._storage is None:
            self._storage = Storage()
        step = held.checkpoint.step
        try:
            self._before_write()
            self._storage.write(held.checkpoint.path, held.items, held.about, owned=held.owned)
        except (CheckpointError, OSError) as error:
            self._lose(step, error)
        else:
            self._writing = step
        self._written_s = time.monotonic()

    def _settle(self) -> None:
        """Waits for the write that is under way; deletes only what is not the last that is complete."""
        step, self._writing = self._writing, None
        if self._storage is not None and step is not None:
            try:
                self._storage.wait()
            except CheckpointError as error:
                self._lose(step, error)
            else:
                self._complete.add(step)
        unwanted = {checkpoint.step for checkpoint in self._unwanted}
        if self._complete - unwanted:
            for checkpoint in self._unwanted:
                if distributed.is_main():
                    remove(checkpoint.path)
            self._complete -= unwanted
            self._unwanted.clear()

    def _lose(self, step: int, error: Exception) -> None:
        """Notes a step that could not be written, and raises or warns."""
        self.lost.add(step)
        if self._newest is not None and self._newest.step == step:
            self._newest = None
        if self._on_error == "warn":
            warnings.warn(f"{error} The run goes on without it, as on_save_error='warn' says.", stacklevel=2)
            return
        if isinstance(error, CheckpointError):
            raise error
        raise CheckpointError(f"The checkpoint of step {step} could not be written: {error}") from error


def versions() -> dict[str, str]:
    """Returns the versions that decide bits."""
    return {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__}


def _own_host_arrays(state: Any) -> Any:
    """Copies what is on the host: it is written in the background, and its owner may change it."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else np.array(leaf), state)


def _own_device_arrays(state: Any, *, compiled: bool) -> Any:
    """Begins to copy what is on devices, there, and does not wait for it.

    Args:
      state: pytree.
      compiled: copy in one compiled call, for what is saved again and again: 15 arrays take 0.5 ms, where one by one
        they take 1.5. A call for 1000 arrays would take 0.5 s to compile.
    """
    leaves, structure = jax.tree.flatten(state if compiled else one_replica(state))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}
    if compiled:
        copies = _copy(arrays)
    else:
        copies = jax.device_put(arrays, {i: leaf.sharding for i, leaf in arrays.items()}, may_alias=False)
    return jax.tree.unflatten(structure, [copies.get(i, leaf) for i, leaf in enumerate(leaves)])


@jax.jit
def _copy(arrays: Any) -> Any:
    return jax.tree.map(jnp.copy, arrays)


def _has_room(state: Any) -> bool:
    """Says whether a copy of a state fits beside the most that was ever in use on its devices."""
    in_memory = {device: memory for device in jax.local_devices() if (memory := device.memory_stats()) is not None}
    if not in_memory:
        return True  # the CPU: the copy is the one that every save makes on the host
    needed = dict.fromkeys(in_memory, 0)
    for leaf in jax.tree.leaves(one_replica(state)):
        if isinstance(leaf, jax.Array):
            size = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for device in needed.keys() & leaf.sharding.addressable_devices:
                needed[device] += size
    return all(
        memory.get("bytes_limit", 0) - memory.get("peak_bytes_in_use", 0) > needed[device]
        for device, memory in in_memory.items()
    )
