"""Storage: a state and its description as one directory, written and read by orbax.

The only file that names orbax. A checkpoint holds arrays and JSON, never pickles, with a checksum of every file, and
appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from lightjax import _tree, distributed
from lightjax.checkpoint.checksums import FILE, damage, write_checksums
from lightjax.checkpoint.location import is_remote, remove
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
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._complete),
        )

    def write(self, path: Path, items: dict[str, Any], about: dict[str, Any], *, owned: bool = False) -> None:
        """Begins to write; waits for the write before this one, and for the copy to the host of what is not owned.

        Args:
          path: the directory to appear, absolute.
          items: pytrees of arrays by name; one of them is "state".
          about: JSON to keep beside them.
          owned: nobody donates or changes the items, and this process writes alone: all is done in the background.

        Raises:
          CheckpointError: this or the previous write failed.
        """
        self.wait()
        self._path = path
        try:
            _check_writable(path.parent)
            if owned:
                self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="lightjax-checkpoint")
                self._writing = self._thread.submit(self._write_to_the_end, path, items, about)
            else:
                self._begin(path, items, about)
        except Exception as error:
            self._failed(error)

    def _begin(self, path: Path, items: dict[str, Any], about: dict[str, Any]) -> None:
        args = self._ocp.args
        trees = {
            name: args.PyTreeSave(nested) for name, tree in items.items() if (nested := _nested(one_replica(tree)))
        }
        described = args.JsonSave(about | {"leaves": _kinds(items["state"])})
        self._checkpointer.save(path, args=args.Composite(**trees, about=described), force=True)

    def _write_to_the_end(self, path: Path, items: dict[str, Any], about: dict[str, Any]) -> None:
        self._begin(path, items, about)
        self._checkpointer.wait_until_finished()

    def wait(self) -> None:
        """Waits until what was begun is on disk.

        Raises:
          CheckpointError: the write failed.
        """
        writing, self._writing = self._writing, None
        try:
            if writing is not None:
                writing.result()
            self._checkpointer.wait_until_finished()
            # Orbax does not miss a directory that somebody took away under it.
            if self._path is not None and not (self._path / FILE).is_file():
                raise FileNotFoundError("its directory is gone")
        except Exception as error:
            self._failed(error)
        finally:
            self._path = None

    def check(self) -> None:
        """Raises what a write in the background has failed with; waits for nothing.

        Raises:
          CheckpointError: the write failed.
        """
        try:
            if self._writing is None:
                self._checkpointer.check_for_errors()
            elif self._writing.done():
                self._writing.result()
        except Exception as error:
            self._failed(error)

    def close(self) -> None:
        """Waits, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            if self._thread is not None:
                self._thread.shutdown()

    def _failed(self, error: Exception) -> NoReturn:
        path, self._path, self._writing = self._path, None, None
        if path is not None:
            remove_unfinished(path.parent)
        raise CheckpointError(f"The checkpoint {path} could not be written: {error}") from error

    def read(self, path: Path, item: str, like: Any, *, cast: bool = False) -> Any:
        """Reads an item back, after checking that it is as it was written.

        Args:
          path: the directory of the checkpoint.
          item: its name.
          like: a tree of the same structure: arrays, or shapes with shardings.
          cast: let leaves of one floating dtype become leaves of another.

        Returns:
          The tree, with the structure, dtypes and placement of `like`; numpy arrays where `like` has them.

        Raises:
          CheckpointError: the checkpoint is incomplete or damaged (the file is named), or it does not fit; every leaf
            that differs is listed.
        """
        if item == "state":
            check_fit(path, read_about(path)["leaves"], _kinds(like), cast=cast)
        self._check(path)
        shapes = _nested(jax.tree.map(_wanted, like))
        leaves = _tree.named_leaves(self._read(path, item, shapes) if shapes else {})
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                _like(leaf, leaves[_tree.leaf_path(path) if path else _ROOT])
                if np.size(leaf)
                else jax.numpy.zeros(leaf.shape, leaf.dtype)
            ),
            like,
        )

    def read_leaves(self, path: Path, item: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Reads some leaves of an item, after checking that it is as it was written.

        Args:
          path: the directory of the checkpoint.
          item: its name.
          wanted: an array, or a shape with sharding, by the name of the leaf; dtypes may differ.

        Raises:
          CheckpointError: the checkpoint is incomplete or damaged (the file is named).
        """
        self._check(path)
        handler = self._ocp.PyTreeCheckpointHandler()
        stored = handler.metadata(path / item).tree  # pyright: ignore[reportArgumentType]

        def pick(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
            picked = {}
            for key, child in node.items():
                if isinstance(child, dict):
                    if below := pick(child, f"{prefix}{key}/"):
                        picked[key] = below
                elif prefix + key in wanted:
                    picked[key] = _wanted(wanted[prefix + key])
            return picked

        found = _tree.named_leaves(self._read(path, item, pick(stored)))
        return {name: _like(leaf, found[name]) if leaf.size else leaf for name, leaf in wanted.items()}

    def _check(self, path: Path) -> None:
        if fault := damage(path):
            raise CheckpointError(
                f"The checkpoint {path} is damaged: {fault}. Restore another one: `lightjax checkpoint ls` shows which "
                "are whole."
            )

    def _read(self, path: Path, item: str, shapes: dict[str, Any]) -> Any:
        args = self._ocp.args
        restore_args = self._ocp.checkpoint_utils.construct_restore_args(shapes)
        tree = args.PyTreeRestore(shapes, restore_args=restore_args, partial_restore=True)
        return self._checkpointer.restore(path, args=args.Composite(**{item: tree}))[item]

    def _complete(self) -> None:
        """Called by orbax in its thread once everything is written, before the directory gets its name."""
        assert self._path is not None
        if not distributed.is_main():
            return
        if is_remote(self._path):
            # Nothing is renamed there: the checksums are what makes it complete.
            write_checksums(self._path)
            return
        unnamed = self._path.parent.glob(f"{self._path.name}.orbax-checkpoint-tmp*")
        write_checksums(max(unnamed, key=lambda path: path.stat().st_mtime))


def one_replica(tree: Any) -> Any:
    """Takes one device's copy of what lies whole on every device of this process alone; copies nothing.

    Orbax would cut such an array into a part for each device, with a compiled slice each: an MLP's first save on 8
    simulated devices took 40 compilations. Several processes do share the writing that way.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or len(leaf.sharding.device_set) == 1:
            return leaf
        return leaf.addressable_data(0) if leaf.is_fully_replicated and leaf.is_fully_addressable else leaf

    return jax.tree.map(one, tree)


def remove_unfinished(directory: Path) -> None:
    """Removes what writes that failed or were killed have left: it holds nothing anybody could use, and fills disks."""
    for path in directory.glob("*.orbax-checkpoint-tmp*"):
        remove(path)


def _check_writable(directory: Path) -> None:
    """Raises where nothing can be made in a directory: orbax's threads would wait for theirs for minutes."""
    if is_remote(directory):
        return
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".writable.orbax-checkpoint-tmp"):
        pass


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


def check_fit(path: Path, saved: dict[str, str], wanted: dict[str, str], *, cast: bool = False) -> None:
    """Compares the leaves of a checkpoint with those of the state it is to become.

    Raises:
      CheckpointError: they differ, in more than the floating dtype where `cast` is True; lists every leaf.
    """
    differences = []
    castable = 0
    for name in {**wanted, **saved}:
        if name not in saved:
            differences.append(f"  {name}: missing in the checkpoint, the state has {wanted[name]}")
        elif name not in wanted:
            differences.append(f"  {name}: {saved[name]} in the checkpoint, not in the state")
        elif saved[name] != wanted[name]:
            if _shape_of_floats(saved[name]) == _shape_of_floats(wanted[name]) is not None:
                castable += 1
                if cast:
                    continue
            differences.append(f"  {name}: {saved[name]} in the checkpoint, {wanted[name]} in the state")
    if differences:
        raise CheckpointError(
            f"The checkpoint {path} does not fit the state it is restored into:\n"
            + "\n".join(differences)
            + "\n"
            + (
                "Only floating dtypes differ: lj.restore(path, like, cast=True) converts them."
                if castable == len(differences)
                else "A checkpoint fits the task that wrote it; restore it with the same model and optimizer, or take "
                "its parameters alone: lj.load_params(path, into=state)."
            )
        )


_ROOT = "value"


def _kinds(tree: Any) -> dict[str, str]:
    return {
        name: _tree.describe(leaf if hasattr(leaf, "dtype") else np.asarray(leaf))
        for name, leaf in _tree.named_leaves(tree).items()
    }


def _nested(tree: Any) -> dict[str, Any]:
    """Makes a tree of nested dicts with the names of the leaves, which other programs can read.

    Leaves without elements are left out: orbax refuses them, and their shape says all.

    Raises:
      CheckpointError: two leaves would have one name.
    """
    root: dict[str, Any] = {}
    # Orbax joins the keys by dots, we by slashes.
    named: dict[tuple[str, str], str] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not np.size(leaf):
            continue
        *parents, last = keys = [_tree.leaf_path((key,)) for key in path] or [_ROOT]
        place = jax.tree_util.keystr(path)
        for joined in ("/", "/".join(keys)), (".", ".".join(keys)):
            if (other := named.setdefault(joined, place)) != place:
                raise CheckpointError(
                    f"the leaves {other} and {place} would both be called {joined[1]!r} on disk: rename one of them"
                )
        node = root
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf if hasattr(leaf, "sharding") or isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)
    return root


def _wanted(leaf: Any) -> Any:
    """Says as what a leaf is to be read: on the device, unless numpy has it, or jax would make it narrower."""
    if not hasattr(leaf, "dtype") or isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended) and (
        jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype
    ):
        return np.empty(leaf.shape, leaf.dtype)
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _like(leaf: Any, value: Any) -> Any:
    """Makes a Python number of what was one."""
    return value if hasattr(leaf, "dtype") else type(leaf)(value)


def _shape_of_floats(kind: str) -> str | None:
    """Returns "3,2]" of "float32[3,2]"; None where the dtype is no floating one."""
    dtype, bracket, shape = kind.partition("[")
    return shape if bracket and "float" in dtype else None
