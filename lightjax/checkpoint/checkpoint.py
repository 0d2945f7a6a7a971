"""Checkpoint: a state on disk, and what is known about it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from lightjax.checkpoint.checksums import damage
from lightjax.checkpoint.location import located
from lightjax.checkpoint.storage import Storage, read_about
from lightjax.errors import CheckpointError


@dataclass(frozen=True)
class Checkpoint(os.PathLike[str]):
    """One saved step.

    Attributes:
      path: its directory.
      step: optimizer steps done when it was saved.
      metrics: the latest value of every metric at that moment.
      like: a state of the structure that was saved, without values, that says where its leaves lay; None for a
        checkpoint opened by its path.
    """

    path: Path
    step: int
    metrics: dict[str, float]
    like: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Opens a checkpoint by its directory.

        Raises:
          CheckpointError: the directory is no complete checkpoint.
        """
        place = located(path)
        about = read_about(place)
        if "step" not in about or "metrics" not in about:
            raise CheckpointError(f"{path} is no checkpoint of lightjax: its description names no step and no metrics.")
        return cls(place, about["step"], about["metrics"])

    def damage(self) -> str | None:
        """Says what is wrong with it, naming the file; None for a checkpoint that is whole. Reads every byte."""
        return damage(self.path)

    def restore(self, like: Any = None, *, cast: bool = False) -> Any:
        """Reads the state; waits for the disk.

        Args:
          like: a state of the same structure (arrays or shapes), which also says where the leaves go. Needed only for
            a checkpoint opened by its path. Without it leaves go where they lay, and those that were spread over
            several processes to the first device of this one: one process can read alone what many have written.
          cast: let leaves of one floating dtype become leaves of another, such as float32 in bfloat16.

        Raises:
          CheckpointError: no structure is known, the checkpoint is damaged (the file is named), or it does not fit;
            every leaf that differs is listed.
        """
        like = jax.tree.map(_within_process, self.like) if like is None else like
        if like is None:
            raise CheckpointError(
                f"The checkpoint {self.path} was opened by its path, which does not tell the structure of its state; "
                "pass a state of the same structure: checkpoint.restore(like=state)."
            )
        return restore(self.path, like, cast=cast)

    def restore_item(self, item: str, like: Any) -> Any:
        """Reads another item than the state.

        Raises:
          CheckpointError: as for `restore`.
        """
        storage = Storage()
        try:
            return storage.read(self.path, item, like)
        finally:
            storage.close()

    def about(self) -> dict[str, Any]:
        """Reads what is kept beside the arrays: position, callbacks' state, versions, arguments."""
        return read_about(self.path)

    def __fspath__(self) -> str:
        """Returns the directory."""
        return str(self.path)


def _within_process(leaf: Any) -> Any:
    """Leaves out where a leaf lay that was spread over several processes."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or sharding.is_fully_addressable:
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type)


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints a run left.

    Attributes:
      best: the best by the monitored metric; the last one where nothing was monitored; None without checkpoints.
      last: the newest; None without checkpoints.
    """

    best: Checkpoint | None = None
    last: Checkpoint | None = None


def restore(path: str | os.PathLike[str], like: Any, *, cast: bool = False) -> Any:
    """Restores a checkpoint into the structure of a state.

    Args:
      path: the directory of a checkpoint.
      like: a state of the same structure: arrays, or shapes; with shardings, for another mesh than the one it was saved
        from. Leaves that are numpy arrays in `like` come back as numpy arrays.
      cast: let leaves of one floating dtype become leaves of another, such as float32 in bfloat16.

    Returns:
      The saved state.

    Raises:
      CheckpointError: there is no checkpoint at `path`, it is damaged (the file is named), or it does not fit; every
        leaf that differs is listed.
    """
    storage = Storage()
    try:
        return storage.read(located(path), "state", like, cast=cast)
    finally:
        storage.close()
