"""Replicas: a layout where every device runs the step by itself, over its part of the batch, with a named axis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lightjax import _tree
from lightjax.engine.mesh import Meshed
from lightjax.errors import ConfigurationError, StepError
from lightjax.metrics import batch_size
from lightjax.sharding import DATA_AXIS
from lightjax.train_states import map_train_states, train_states


@dataclass(frozen=True)
class Replicas(Meshed):
    """The state whole on every device, as with `jax.pmap`, which is `jit` over `shard_map`; so is this.

    Gradients are averaged by `lj.grad` and batch statistics by `apply_gradients`, told by the state's policy; metrics
    are merged. A batch that n devices do not divide is cut into as many parts as do divide it, d, and every part is
    worked on by n / d devices alike: the axis then has size d, and nothing is padded or counted twice.
    """

    def mapped(self, step: Callable[..., Any], *, rows: bool = False) -> Callable[..., Any]:
        """Runs a step on every device.

        Args:
          step: `(state, batch)` to `(state, metrics)` or to metrics; to rows for `rows`.
          rows: whether it returns one row an example, to be joined, instead of metrics, to be merged.
        """

        def run(state: Any, batch: Any) -> Any:
            if not train_states(state):
                raise ConfigurationError(
                    f"strategy='pmap' was asked for, whose axis travels in the state's policy, but the state "
                    f"({type(state).__name__}) holds no lj.TrainState; return lj.TrainState.create(...) from init, "
                    "alone or within a pytree, or use strategy='jit', which takes any state."
                )
            examples = batch_size(batch)
            if examples is None:
                raise StepError(
                    "strategy='pmap' cuts batches along the first axis of their leaves, but these share none: "
                    + ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in _tree.named_leaves(batch).items())
                    + "; give every leaf one row an example, or use strategy='jit'."
                )
            count = self.mesh.devices.size
            parts = math.gcd(examples, count)
            mesh = jax.sharding.Mesh(self.mesh.devices.reshape(parts, count // parts), (DATA_AXIS, "copies"))
            cut = jax.tree.map(lambda leaf: PartitionSpec(DATA_AXIS) if np.ndim(leaf) else PartitionSpec(), batch)

            def local(state: Any, batch: Any) -> Any:
                returned = step(_with_axis(state, DATA_AXIS, parts), batch)
                if rows:
                    return returned
                if isinstance(returned, tuple):
                    new_state, metrics = returned
                    return _like(new_state, state), _merged(metrics)
                return _merged(returned)

            given = PartitionSpec(DATA_AXIS) if rows else PartitionSpec()
            return jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), cut), out_specs=given, check_vma=False)(
                state, batch
            )

        return run

    def held(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """The step: where everything lies is said already."""
        return step

    def scope(self) -> AbstractContextManager[Any]:
        """No context: nothing is split automatically."""
        return nullcontext()


def _with_axis(state: Any, axis: str, parts: int) -> Any:
    """Tells every `TrainState` that it is one of several."""

    def told(one: Any) -> Any:
        size = one.policy.microbatch_size
        size = None if size is None else max(1, size // parts)
        return one.replace(policy=dataclasses.replace(one.policy, replica_axis=axis, microbatch_size=size))

    return map_train_states(told, state)


def _like(state: Any, before: Any) -> Any:
    """Gives a state the structure it had, the policies in it included."""
    return jax.tree.unflatten(jax.tree.structure(before), jax.tree.leaves(state))


def _merged(metrics: Any) -> Any:
    """Merges each metric over the replicas, in their order."""

    def merge(metric: Any) -> Any:
        every = jax.tree.map(lambda leaf: lax.all_gather(leaf, DATA_AXIS), metric)
        first, rest = jax.tree.map(lambda leaf: leaf[0], every), jax.tree.map(lambda leaf: leaf[1:], every)
        return lax.scan(lambda before, one: (before.merge(one), None), first, rest)[0]

    return {name: merge(metric) for name, metric in metrics.items()}
