"""Storage: a state and its description as one directory, written and read by orbax.

The only file that names orbax. A checkpoint holds arrays and JSON, never pickles, with a checksum of every file, and
appears under its name only when it is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lightjax import _tree
from lightjax.checkpoint.checksums import damage, write_checksums
from lightjax.errors import CheckpointError


class Storage:
    """Writes checkpoints in the background, one at a time.

    The directory of a checkpoint has an orbax pytree of nested dicts for each item, named like the leaves (`state`, and
    what else there is), `about`, a JSON file with what describes it, among it the shape and dtype of every leaf of the
    state, and `checksums.json`.
    """

    def __init__(self) -> None:
        # Orbax takes longer to import than all the rest together: it is imported when something is saved.
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._path: Path | None = None
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._complete),
        )

    def write(self, path: Path, items: dict[str, Any], about: dict[str, Any]) -> None:
        """Begins to write; waits for the copy to the host and for the write before this one.

        Args:
          path: the directory to appear, absolute.
          items: pytrees of arrays by name; one of them is "state".
          about: JSON to keep beside them.

        Raises:
          CheckpointError: this or the previous write failed.
        """
        about = about | {"leaves": _kinds(items["state"])}
        args = self._ocp.args
        trees = {name: args.PyTreeSave(nested) for name, tree in items.items() if (nested := _nested(tree))}
        self.wait()
        self._path = path
        try:
            self._checkpointer.save(path, args=args.Composite(**trees, about=args.JsonSave(about)), force=True)
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
            raise CheckpointError(f"The checkpoint {self._path} could not be written: {error}") from error

    def close(self) -> None:
        """Waits, and ends the background thread."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def read(self, path: Path, item: str, like: Any) -> Any:
        """Reads an item back, after checking that it is as it was written.

        Args:
          path: the directory of the checkpoint.
          item: its name.
          like: a tree of the same structure: arrays, or shapes with shardings.

        Returns:
          The tree, with the structure and placement of `like`.

        Raises:
          CheckpointError: the checkpoint is incomplete or damaged (the file is named), or it does not fit; every leaf
            that differs is listed.
        """
        if item == "state":
            check_fit(path, read_about(path)["leaves"], _kinds(like))
        if fault := damage(path):
            raise CheckpointError(
                f"The checkpoint {path} is damaged: {fault}. Restore another one: `lightjax checkpoint ls` shows which "
                "are whole."
            )
        shapes = _nested(jax.tree.map(_with_sharding, like))
        restored: Any = {}
        if shapes:
            args = self._ocp.args
            restore_args = self._ocp.checkpoint_utils.construct_restore_args(shapes)
            wanted = args.Composite(**{item: args.PyTreeRestore(shapes, restore_args=restore_args)})
            restored = self._checkpointer.restore(path, args=wanted)[item]
        leaves = _tree.named_leaves(restored)
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                leaves[_tree.leaf_path(path) or _ROOT] if leaf.size else jax.numpy.zeros(leaf.shape, leaf.dtype)
            ),
            like,
        )

    def _complete(self) -> None:
        """Called by orbax in its thread once everything is written, before the directory gets its name."""
        assert self._path is not None
        unnamed = self._path.parent.glob(f"{self._path.name}.orbax-checkpoint-tmp*")
        write_checksums(max(unnamed, key=lambda path: path.stat().st_mtime))


def read_about(path: Path) -> dict[str, Any]:
    """Reads what describes a checkpoint.

    Raises:
      CheckpointError: the directory is no checkpoint.
    """
    try:
        return json.loads((path / "about" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no complete checkpoint: {error}; give the directory of one step, such as "
            "lightjax_logs/version_0/checkpoints/step_100."
        ) from error


def check_fit(path: Path, saved: dict[str, str], wanted: dict[str, str]) -> None:
    """Compares the leaves of a checkpoint with those of the state it is to become.

    Raises:
      CheckpointError: they differ; lists every leaf.
    """
    differences = []
    for name in {**wanted, **saved}:
        if name not in saved:
            differences.append(f"  {name}: missing in the checkpoint, the state has {wanted[name]}")
        elif name not in wanted:
            differences.append(f"  {name}: {saved[name]} in the checkpoint, not in the state")
        elif saved[name] != wanted[name]:
            differences.append(f"  {name}: {saved[name]} in the checkpoint, {wanted[name]} in the state")
    if differences:
        raise CheckpointError(
            f"The checkpoint {path} does not fit the state it is restored into:\n" + "\n".join(differences) + "\n"
            "A checkpoint fits the task that wrote it; restore it with the same model and optimizer."
        )


_ROOT = "value"


def _kinds(tree: Any) -> dict[str, str]:
    return {name: _tree.describe(leaf) for name, leaf in _tree.named_leaves(tree).items()}


def _nested(tree: Any) -> dict[str, Any]:
    """Makes a tree of nested dicts with the names of the leaves, which other programs can read.

    Leaves without elements are left out: orbax refuses them, and their shape says all.
    """
    root: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not leaf.size:
            continue
        *parents, last = [_tree.leaf_path((key,)) for key in path] or [_ROOT]
        node = root
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
    return root


def _with_sharding(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
