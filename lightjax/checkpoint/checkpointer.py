"""Checkpointer: saves steps of a run in one directory and keeps the ones that are wanted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lightjax import _tree
from lightjax.checkpoint.checkpoint import Checkpoint
from lightjax.checkpoint.storage import Storage


class Checkpointer:
    """Saves checkpoints in the background, and deletes one only after a newer one is complete.

    Args:
      directory: where the checkpoints go, one directory a step; made when the first one is saved.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     checkpointer = Checkpointer(directory)
      ...     checkpoint = checkpointer.save(3, {"w": jnp.ones(2)}, metrics={"loss": 0.5})
      ...     checkpointer.close()
      ...     checkpoint.restore()["w"].tolist()
      [1.0, 1.0]
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory).absolute()
        self._storage: Storage | None = None
        self._unwanted: list[Checkpoint] = []
        self._newest: Checkpoint | None = None

    def save(self, step: int, state: Any, *, metrics: Mapping[str, float], epoch: int = 0) -> Checkpoint:
        """Begins to save a state; waits only for the copy to the host, and for the save before this one.

        Args:
          step: optimizer steps done; a step already saved by this checkpointer is not saved again.
          state: pytree of arrays; may be donated as soon as this returns.
          metrics: the latest metrics.
          epoch: the epoch it is in.

        Returns:
          The checkpoint, complete after `wait`.

        Raises:
          CheckpointError: this or the previous save failed.
        """
        if self._newest is not None and self._newest.step == step:
            return self._newest
        self.wait()
        if self._storage is None:
            self._storage = Storage()
        path = self.directory / f"step_{step}"
        numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
        about = {"step": step, "epoch": epoch, "metrics": numbers, "versions": {"jax": jax.__version__}}
        self._storage.write(path, state, about)
        self._newest = Checkpoint(path, step, numbers, like=_tree.abstract(state))
        return self._newest

    def delete(self, checkpoint: Checkpoint) -> None:
        """Deletes a checkpoint, once the save that is under way is complete."""
        self._unwanted.append(checkpoint)

    def wait(self) -> None:
        """Waits until everything is on disk, and deletes what is no longer wanted.

        Raises:
          CheckpointError: the last save failed; nothing is deleted then.
        """
        if self._storage is not None:
            self._storage.wait()
        for checkpoint in self._unwanted:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        self._unwanted.clear()

    def close(self) -> None:
        """Waits, and ends the background thread; a later save begins a new one."""
        try:
            self.wait()
        finally:
            if self._storage is not None:
                self._storage.close()
                self._storage = None
