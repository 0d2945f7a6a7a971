"""Meshed: a layout over many devices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from lightjax import _tree
from lightjax.data.share import Share, put_everywhere, put_whole
from lightjax.data.stretch import Stacked
from lightjax.engine.in_flight import CALLS_IN_FLIGHT
from lightjax.engine.partition import partition
from lightjax.engine.program import Steps
from lightjax.errors import ConfigurationError
from lightjax.sharding import DATA_AXIS, Sharded, shard_batch


@dataclass(frozen=True)
class Meshed:
    """States as a strategy says, batches split over the axis "data", on a mesh of devices.

    A batch that does not divide is placed whole, and split unevenly inside the program: no example is dropped, padded
    or counted twice.

    Attributes:
      mesh: the devices; every axis is automatic (`AxisType.Auto`).
      strategy: says which leaves are split.
      calls_in_flight: how many calls may be unfinished.
    """

    mesh: jax.sharding.Mesh
    strategy: Sharded
    calls_in_flight: int = CALLS_IN_FLIGHT

    @property
    def device(self) -> Any:
        """The first device of this process."""
        devices = list(self.mesh.devices.flat)
        return next((one for one in devices if one.process_index == jax.process_index()), devices[0])

    @property
    def platform(self) -> str:
        """The kind of device."""
        return self.device.platform

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """Every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state(self, shapes: Any) -> Any:
        """Chooses for every leaf.

        Raises:
          ConfigurationError: the strategy does not fit the state.
        """
        return partition(shapes, self.mesh, self.strategy)

    def steps(self, steps: Steps) -> Any:
        """The rows of batches over the axis "data"; arrays that batches are gathered from lie on every device."""
        return self._rows(steps, 1) if isinstance(steps, Stacked) else self.replicated

    def batch(self, batch: Any) -> Any:
        """The rows over the axis "data"."""
        return self._rows(batch, 0)

    def mapped(self, step: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
        """The step: XLA splits what it computes."""
        return step

    def held(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Holds the batch to the axis "data", and the state to where it lay: XLA is free to move both in a loop."""

        def held_step(state: Any, batch: Any) -> Any:
            returned = step(state, shard_batch(batch))
            if not isinstance(returned, tuple):
                return returned
            new_state, metrics = returned
            return jax.lax.with_sharding_constraint(new_state, self.state(_tree.abstract(state))), metrics

        return held_step

    def put(self, steps: Steps, control: Any, parts: int) -> tuple[Steps, Any]:
        """One transfer to all devices of this process."""
        if self.replicated.is_fully_addressable:
            return jax.device_put((steps, control), (self.steps(steps), self.replicated))
        if isinstance(steps, Stacked):
            steps = jax.tree.map(lambda leaf: self._joined(leaf, 1, parts), steps)
        else:
            steps = dataclasses.replace(steps, first=put_everywhere(steps.first, self.replicated))
        return steps, put_everywhere(control, self.replicated)

    def put_batch(self, batch: Any) -> Any:
        """The rows over the axis "data", of a batch that every process has whole."""
        return put_whole(batch, self.batch(batch))

    def put_state(self, state: Any) -> Any:
        """Each leaf as the strategy says; every process has it whole, or its part of one that is split already."""
        return put_whole(state, self.state(_tree.abstract(state)))

    def scope(self) -> AbstractContextManager[Any]:
        """The mesh, for `lj.shard_batch`."""
        return jax.set_mesh(self.mesh)

    @property
    def share(self) -> Share:
        """The rows that lie on the devices of this process; all, where others hold them as well.

        Raises:
          ConfigurationError: the processes' rows overlap without being the same.
        """
        names = list(self.mesh.axis_names)
        by_row = np.moveaxis(self.mesh.devices, names.index(DATA_AXIS), 0).reshape(self.mesh.shape[DATA_AXIS], -1)
        rows: dict[int, set[int]] = {}
        for row, devices in enumerate(by_row):
            for device in devices:
                rows.setdefault(device.process_index, set()).add(row)
        distinct = sorted({tuple(sorted(one)) for one in rows.values()})
        if sum(map(len, distinct)) != len(by_row):
            raise ConfigurationError(
                f"The mesh {dict(self.mesh.shape)} gives processes rows of the batch that overlap in part; make the "
                f"axis {DATA_AXIS!r} the first, and the others divide the devices of a process, or the other way round."
            )
        mine = tuple(sorted(rows.get(jax.process_index(), distinct[0])))
        return Share(self.replicated, distinct.index(mine), len(distinct))

    def _joined(self, leaf: Any, axis: int, parts: int) -> jax.Array:
        """Makes one array of the parts that processes have of it along an axis."""
        if leaf.ndim <= axis or parts == 1:
            return put_whole(leaf, self._cut(leaf, axis))
        shape = (*leaf.shape[:axis], leaf.shape[axis] * parts, *leaf.shape[axis + 1 :])
        split = self._cut(jax.ShapeDtypeStruct(shape, leaf.dtype), axis)
        return jax.make_array_from_process_local_data(split, leaf, shape)

    def _rows(self, tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda leaf: self._cut(leaf, axis), tree)

    def _cut(self, leaf: Any, axis: int) -> jax.sharding.Sharding:
        """Chooses how an array is cut along an axis: over all devices, else over the processes, else not at all."""
        if leaf.ndim <= axis:
            return self.replicated
        before = [None] * axis
        if leaf.shape[axis] % self.mesh.shape[DATA_AXIS] == 0:
            return NamedSharding(self.mesh, PartitionSpec(*before, DATA_AXIS))
        parts = 1 if self.replicated.is_fully_addressable else self.share.parts
        if parts == 1 or leaf.shape[axis] % parts:
            return self.replicated
        # The devices do not divide it, the processes do: each device holds what its process has.
        by_process = np.moveaxis(self.mesh.devices, list(self.mesh.axis_names).index(DATA_AXIS), 0).reshape(parts, -1)
        return NamedSharding(jax.sharding.Mesh(by_process, ("process", "local")), PartitionSpec(*before, "process"))


def make_mesh(wanted: Any, devices: list[Any]) -> tuple[jax.sharding.Mesh | None, str | None]:
    """Arranges devices as a mesh with automatic axes.

    Returns:
      The mesh, or what is wrong with the one that is wanted.
    """
    if isinstance(wanted, jax.sharding.Mesh):
        if DATA_AXIS not in wanted.axis_names:
            return None, _no_data_axis(wanted.axis_names)
        return jax.sharding.Mesh(wanted.devices, wanted.axis_names), None
    sizes = dict(wanted)
    text = f"mesh={sizes} for {len(devices)} devices"
    if DATA_AXIS not in sizes:
        return None, _no_data_axis(sizes)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1 or any(not isinstance(size, int) or (size < 1 and size != -1) for size in sizes.values()):
        return None, f"{text}: sizes are positive, and one at most is -1 for all devices that are left"
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        return (
            None,
            f"{text}: {' x '.join(map(str, sizes.values()))} are not {len(devices)}; write sizes that multiply up",
        )
    names, shape = tuple(sizes), tuple(sizes.values())
    types = (jax.sharding.AxisType.Auto,) * len(sizes)
    try:
        return jax.make_mesh(shape, names, types, devices=devices), None
    except NotImplementedError:
        # A TPU pod of 8 x 8 x 16 chips has no side of 4: an axis of 4 is a part of one.
        found = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(found, names, axis_types=types), None


def _no_data_axis(names: Any) -> str:
    listed = ", ".join(names)
    return f"the mesh has the axes {listed} and none named {DATA_AXIS!r}, over which batches are split: name one so"
