"""Storage: a state and its description as one directory, written and read by orbax.

The only file that names orbax. A checkpoint holds arrays and JSON, never pickles, and appears under its name only when
it is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lightjax import _tree
from lightjax.errors import CheckpointError


class Storage:
    """Writes checkpoints in the background, one at a time.

    The directory of a checkpoint has two items: `state`, an orbax pytree of nested dicts named like the leaves, and
    `about`, a JSON file with what describes it, among it the shape and dtype of every leaf.
    """

    def __init__(self) -> None:
        # Orbax takes longer to import than all the rest together: it is imported when something is saved.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())

    def write(self, path: Path, state: Any, about: dict[str, Any]) -> None:
        """Begins to write; waits for the copy to the host and for the write before this one.

        Args:
          path: the directory to appear, absolute.
          state: pytree of arrays.
          about: JSON to keep beside it.

        Raises:
          CheckpointError: this or the previous write failed.
        """
        leaves = _tree.named_leaves(state)
        about = about | {"leaves": {name: _tree.describe(leaf) for name, leaf in leaves.items()}}
        args = self._ocp.args
        try:
            self._checkpointer.save(
                path, args=args.Composite(state=args.PyTreeSave(_nested(state)), about=args.JsonSave(about)), force=True
            )
        except Exception as error:
            raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error

    def wait(self) -> None:
        """Waits until what was begun is on disk.

        Raises:
          CheckpointError: the write failed.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"A checkpoint could not be written: {error}") from error

    def close(self) -> None:
        """Waits, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def read(self, path: Path, like: Any) -> Any:
        """Reads a state back.

        Args:
          path: the directory of the checkpoint.
          like: a state of the same structure: arrays, or shapes with shardings.

        Returns:
          The state, with the structure and placement of `like`.

        Raises:
          CheckpointError: there is no checkpoint, or it does not fit; every leaf that differs is listed.
        """
        saved = read_about(path)["leaves"]
        wanted = {name: _tree.describe(leaf) for name, leaf in _tree.named_leaves(like).items()}
        differences = [
            *(
                f"  {name}: missing in the checkpoint, the state has {kind}"
                for name, kind in wanted.items()
                if name not in saved
            ),
            *(
                f"  {name}: {kind} in the checkpoint, not in the state"
                for name, kind in saved.items()
                if name not in wanted
            ),
            *(
                f"  {name}: {saved[name]} in the checkpoint, {kind} in the state"
                for name, kind in wanted.items()
                if name in saved and saved[name] != kind
            ),
        ]
        if differences:
            raise CheckpointError(
                f"The checkpoint {path} does not fit the state it is restored into:\n" + "\n".join(differences) + "\n"
                "A checkpoint fits the task that wrote it; restore it with the same model and optimizer."
            )
        args = self._ocp.args
        shapes = _nested(jax.tree.map(_with_sharding, like))
        restored = self._checkpointer.restore(
            path,
            args=args.Composite(
                state=args.PyTreeRestore(shapes, restore_args=self._ocp.checkpoint_utils.construct_restore_args(shapes))
            ),
        ).state
        leaves = _tree.named_leaves(restored)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaves[_tree.leaf_path(path)] if leaf.size else jax.numpy.zeros(leaf.shape, leaf.dtype),
            like,
        )


def read_about(path: Path) -> dict[str, Any]:
    """Reads what describes a checkpoint.

    Raises:
      CheckpointError: the directory is no complete checkpoint.
    """
    try:
        return json.loads((path / "about" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no complete checkpoint: {error}; give the directory of one step, such as "
            "lightjax_logs/version_0/checkpoints/step_100."
        ) from error


def _nested(state: Any) -> dict[str, Any]:
    """Makes a tree of nested dicts with the names of the leaves, which other programs can read.

    Leaves without elements are left out: orbax refuses them, and their shape says all.
    """
    root: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not leaf.size:
            continue
        *parents, last = [_tree.leaf_path((key,)) for key in path] or ["state"]
        node = root
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
    return root


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
