"""Strategy: which devices a trainer runs on, and how it spreads over them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax

from lightjax.engine.in_flight import CALLS_IN_FLIGHT
from lightjax.engine.layout import Layout, OneDevice
from lightjax.engine.mesh import Meshed, make_mesh
from lightjax.engine.replicas import Replicas
from lightjax.errors import ConfigurationError
from lightjax.sharding import DATA_AXIS, Sharded

Strategy = Literal["auto", "jit", "fsdp", "pmap"] | Sharded
Devices = int | Literal["auto"] | Sequence[Any]
MeshLike = Mapping[str, int] | jax.sharding.Mesh
NAMES = ("auto", "jit", "fsdp", "pmap")


def conflicts_in(strategy: Any, devices: Any, mesh: Any) -> list[str]:
    """Lists what contradicts what, as far as one can see without starting a device."""
    conflicts = []
    if not (isinstance(strategy, Sharded) or strategy in NAMES):
        conflicts.append(f"strategy={strategy!r}: write one of {', '.join(map(repr, NAMES))}, or lj.Sharded(...)")
    if isinstance(strategy, Sharded) and mesh is not None:
        conflicts.append("mesh and lj.Sharded(mesh=...) both arrange the devices: give one of them")
    if strategy == "pmap" and mesh is not None:
        conflicts.append("strategy='pmap' has one axis, all devices: leave mesh out")
    if isinstance(mesh, jax.sharding.Mesh) and devices != "auto":
        conflicts.append("mesh is made of devices already: leave devices out")
    counted = isinstance(devices, int) and not isinstance(devices, bool) and (devices > 0 or devices == -1)
    listed = isinstance(devices, list | tuple) and len(devices) > 0
    if not (devices == "auto" or counted or listed):
        conflicts.append(
            f"devices={devices!r}: write 'auto' or -1 for all, how many, or a list of indices or of jax.devices()"
        )
    return conflicts


def layout_of(strategy: Strategy, devices: Devices, mesh: MeshLike | None) -> Layout:
    """Arranges the devices.

    One device is one device: "auto" and "jit" on it cost nothing.

    Raises:
      ConfigurationError: there are fewer devices than asked for, or they cannot be arranged like this.
    """
    threads = _threads_for_simulated_devices()
    if isinstance(strategy, Sharded):
        mesh = strategy.mesh
    found = list(mesh.devices.flat) if isinstance(mesh, jax.sharding.Mesh) else chosen_devices(devices)
    if len(found) == 1 and strategy in ("auto", "jit"):
        return OneDevice(found[0])
    sharded = strategy if isinstance(strategy, Sharded) else Sharded(fsdp=strategy == "fsdp")
    layout = Replicas if strategy == "pmap" else Meshed
    arranged, fault = make_mesh({DATA_AXIS: -1} if mesh is None else mesh, found)
    if arranged is None:
        raise ConfigurationError(f"Trainer cannot arrange its devices: {fault}.")
    simulated = found[0].platform == "cpu" and len(found) > 1
    return layout(arranged, sharded, 0 if simulated and threads < 2 * len(found) else CALLS_IN_FLIGHT)


def chosen_devices(devices: Devices) -> list[Any]:
    """Returns the devices that are meant: all by default, or jax's default device where one is set.

    Raises:
      ConfigurationError: there are not as many.
    """
    default = getattr(jax.config, "jax_default_device", None)
    there = jax.devices(default if isinstance(default, str) else None)
    if devices == "auto" and isinstance(default, jax.Device):
        return [default]
    if devices == "auto" or devices == -1:
        return there
    if isinstance(devices, int):
        if devices > len(there):
            raise ConfigurationError(
                f"devices={devices} were asked for, and there are {len(there)}: {_listed(there)}. Give a smaller "
                "number, or start more (on the CPU: JAX_NUM_CPU_DEVICES before jax starts)."
            )
        return there[:devices]
    missing = [one for one in devices if isinstance(one, int) and not 0 <= one < len(there)]
    if missing:
        raise ConfigurationError(f"devices={list(devices)}: there is no device {missing[0]}: {_listed(there)}.")
    return [there[one] if isinstance(one, int) else one for one in devices]


def _threads_for_simulated_devices() -> int:
    """Gives the simulated devices of the CPU threads enough, if jax has not started; returns how many are sure.

    Simulated devices wait for each other in one pool of threads: with fewer than two a device, about 64 steps in flight
    lock up for good (docs/decisions.md). Where the pool may have started without them, every call is waited for.
    """
    sure = int(os.environ.get("PJRT_NPROC", 0))
    simulated = getattr(jax.config, "jax_num_cpu_devices", -1)
    if simulated > 1:
        os.environ.setdefault("PJRT_NPROC", str(max(16, 4 * simulated)))
    return sure


def _listed(devices: Sequence[Any]) -> str:
    return ", ".join(map(str, devices[:8])) + (", ..." if len(devices) > 8 else "")
