"""Partition: which leaves of a state are split over which axes of a mesh, chosen leaf by leaf, checked as a whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from lightjax import _tree
from lightjax.errors import ConfigurationError
from lightjax.sharding import DATA_AXIS, Sharded

# Leaves of fewer elements stay whole under fsdp: gathering them costs a round of messages and saves 4 kB.
FSDP_SMALLEST = 1024


def partition(shapes: Any, mesh: Any, strategy: Sharded) -> Any:
    """Chooses the sharding of every leaf of a state.

    Args:
      shapes: the state, or its shapes; boxes with flax's partitioning metadata may stand for leaves.
      mesh: the devices.
      strategy: rules, metadata's logical axes, and whether the rest is split as well.

    Returns:
      A tree like `shapes` with a `NamedSharding` for each leaf.

    Raises:
      ConfigurationError: an axis is unknown, a rule matches nothing, a dimension does not divide; all are listed.
    """
    conflicts: list[str] = []
    used: set[int] = set()

    def choose(path: str, leaf: Any, named: PartitionSpec | None) -> NamedSharding:
        spec = named
        for number, (pattern, wanted) in enumerate(strategy.rules):
            if leaf.ndim >= len(wanted) and re.search(pattern, path):
                spec, _ = wanted, used.add(number)
                break
        spec = PartitionSpec() if spec is None else spec
        found = [f"leaf {path!r} {_tree.describe(leaf)}: {fault}" for fault in _faults(leaf.shape, spec, mesh.shape)]
        conflicts.extend(found)
        if found:
            return NamedSharding(mesh, PartitionSpec())
        if strategy.fsdp:
            spec = _split_further(leaf, spec, mesh.shape)
        return NamedSharding(mesh, spec)

    def choose_box(path: tuple[Any, ...], box: Any) -> Any:
        where = _tree.leaf_path(path)
        if not is_box(box):
            return choose(where, box, None)
        named, unknown = _named_axes(box, mesh.shape, strategy.logical_axes)
        if unknown:
            conflicts.append(
                f"leaf {where!r} names the logical axes {', '.join(map(repr, unknown))}, which are neither axes of the "
                "mesh nor in logical_axes: give lj.Sharded(logical_axes=[(name, mesh_axis), ...])"
            )
        return jax.tree.map(lambda leaf: choose(where, leaf, named), box)

    chosen = jax.tree_util.tree_map_with_path(choose_box, shapes, is_leaf=is_box)
    for number, (pattern, spec) in enumerate(strategy.rules):
        if number not in used:
            conflicts.append(_unmatched(pattern, spec, strategy.rules[:number], shapes))
    if conflicts:
        raise ConfigurationError(
            f"The state cannot be laid out on the mesh {dict(mesh.shape)}:\n"
            + "\n".join(f"  {one}" for one in conflicts)
        )
    return chosen


def is_box(value: Any) -> bool:
    """Says whether a node of a tree is a leaf in a box with partitioning metadata, as flax makes them."""
    return hasattr(value, "get_partition_spec") and hasattr(value, "unbox")


def _faults(shape: tuple[int, ...], spec: PartitionSpec, axes: Mapping[str, int]) -> Iterator[str]:
    names = [name for entry in spec for name in _names(entry)]
    for name in dict.fromkeys(names):
        if name not in axes:
            yield f"{spec} names the axis {name!r}, which the mesh does not have: it has {', '.join(axes)}"
        elif names.count(name) > 1:
            yield f"{spec} splits two dimensions over the axis {name!r}"
    if len(spec) > len(shape):
        yield f"{spec} speaks of {len(spec)} dimensions, the leaf has {len(shape)}"
    for dimension, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        parts = math.prod(axes.get(name, 1) for name in _names(entry))
        if size % parts:
            yield f"dimension {dimension} of size {size} does not divide by {parts} ({entry!r} in {spec})"


def _split_further(leaf: Any, spec: PartitionSpec, axes: Mapping[str, int]) -> PartitionSpec:
    """Splits a leaf over the data axis along its longest dimension that is whole and divides, if there is one."""
    parts = axes[DATA_AXIS]
    entries = [*spec, *[None] * (leaf.ndim - len(spec))]
    if leaf.size < FSDP_SMALLEST or any(DATA_AXIS in _names(entry) for entry in entries):
        return spec
    whole = [i for i, entry in enumerate(entries) if entry is None and leaf.shape[i] % parts == 0]
    if not whole:
        return spec
    entries[max(whole, key=lambda i: leaf.shape[i])] = DATA_AXIS
    return PartitionSpec(*entries)


def _named_axes(
    box: Any, axes: Mapping[str, int], logical_axes: Sequence[tuple[str, Any]]
) -> tuple[PartitionSpec, list[str]]:
    """Reads the metadata of a box, each name once: a mesh axis, or a logical one with a mesh axis still free."""
    meanings = [*logical_axes, *(getattr(box, "rules", None) or ())]
    entries, unknown, taken = [], [], set[str]()
    for entry in box.get_partition_spec():
        meant: Any = None
        for name in _names(entry):
            candidates = [name] if name in axes else [axis for logical, axis in meanings if logical == name]
            if not candidates:
                unknown.append(name)
            meant = next((axis for axis in candidates if not taken.intersection(_names(axis))), None)
            taken.update(_names(meant))
        entries.append(entry if isinstance(entry, tuple) and all(name in axes for name in entry) else meant)
    return PartitionSpec(*entries), unknown


def _unmatched(pattern: str, spec: PartitionSpec, before: Sequence[tuple[str, PartitionSpec]], shapes: Any) -> str:
    leaves = _tree.named_leaves(shapes)
    near = [path for path in leaves if re.search(pattern, path)]
    if not near:
        listed = ", ".join(list(leaves)[:8])
        return f"the rule {pattern!r} matches no leaf; there are: {listed}{', ...' if len(leaves) > 8 else ''}"
    path = near[0]
    earlier = next((one for one, wanted in before if leaves[path].ndim >= len(wanted) and re.search(one, path)), None)
    why = f"the earlier rule {earlier!r} takes" if earlier else f"{spec} speaks of {len(spec)} dimensions of"
    return f"the rule {pattern!r} applies to no leaf: {why} {path!r} {_tree.describe(leaves[path])}"


def _names(entry: Any) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
