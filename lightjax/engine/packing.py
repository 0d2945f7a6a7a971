"""Packing: the metrics of a step as one vector a dtype.

A compiled call pays for every array it returns, and a compiled loop for every small operation: dozens of scalars that
are merged one by one cost more than the step of a small model. Metrics of one kind lie side by side and are merged in
one go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax.errors import MetricError
from lightjax.metrics import Level, Metric

Vectors = dict[str, jax.Array]


@dataclass(frozen=True)
class Kind:
    """Metrics of one class with leaves of the same shapes.

    Attributes:
      structure: the tree of each metric.
      leaves: shape and dtype of each leaf; the dtype by its name, which is dear to make.
      names: of the metrics.
    """

    structure: Any
    leaves: tuple[tuple[tuple[int, ...], str], ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Packing:
    """How the metrics of a step lie in its vectors.

    Attributes:
      kinds: the metrics, by kind.
      names: of the metrics, in the order they were reported.

    Example:
      >>> import lightjax as lj
      >>> metrics = {"loss": lj.Mean(jnp.float32(0.5)), "top": lj.Max(jnp.int32(3)), "mae": lj.Mean(jnp.float32(2))}
      >>> packing = Packing.of(metrics)
      >>> vectors = packing.pack(metrics)
      >>> {dtype: vectors[dtype].shape for dtype in sorted(vectors)}
      {'float32': (8,), 'int32': (1,)}
      >>> merged = packing.merge(vectors, vectors)
      >>> packing.compute({dtype: np.asarray(vector) for dtype, vector in merged.items()})
      {'loss': 0.5, 'top': 3.0, 'mae': 2.0}
    """

    kinds: tuple[Kind, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, metrics: Mapping[str, Metric]) -> Packing:
        """Makes the packing of metrics with these names and leaves (arrays or their shapes)."""
        kinds: dict[Any, list[str]] = {}
        for name, metric in metrics.items():
            leaves, structure = jax.tree.flatten(metric)
            shapes = tuple((tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves)
            kinds.setdefault((structure, shapes), []).append(name)
        return cls(
            tuple(Kind(structure, shapes, tuple(names)) for (structure, shapes), names in kinds.items()),
            tuple(metrics),
        )

    @property
    def lengths(self) -> dict[str, int]:
        """The length of the vector of each dtype."""
        lengths: dict[str, int] = {}
        for kind in self.kinds:
            for shape, dtype in kind.leaves:
                lengths[dtype] = lengths.get(dtype, 0) + len(kind.names) * math.prod(shape)
        return lengths

    def zeros(self, *leading: int) -> Vectors:
        """Returns vectors of zeros, with further axes in front."""
        return {dtype: jnp.zeros((*leading, length), dtype) for dtype, length in self.lengths.items()}

    def pack(self, metrics: Mapping[str, Metric]) -> Vectors:
        """Lays the leaves of metrics side by side.

        Raises:
          MetricError: these are not the metrics it was made for.
        """
        if metrics.keys() != set(self.names):
            raise MetricError(
                f"A step reported the metrics {', '.join(metrics)} for one batch and {', '.join(self.names)} for "
                "another; report the same for every batch: lj.Mean(0.0, weights=0.0) counts for nothing."
            )
        leaves = {name: jax.tree.leaves(metrics[name]) for name in self.names}
        return self._join(
            [
                [jnp.stack(column) for column in zip(*(leaves[name] for name in kind.names), strict=True)]
                for kind in self.kinds
            ]
        )

    def merge(self, first: Vectors, second: Vectors) -> Vectors:
        """Merges packed metrics with later ones."""
        merged = []
        for kind, old, new in zip(self.kinds, self._split(first), self._split(second), strict=True):
            both = [jax.tree.unflatten(kind.structure, stacks) for stacks in (old, new)]
            merged.append(jax.tree.leaves(jax.vmap(lambda one, other: one.merge(other))(*both)))
        return self._join(merged)

    def compute(self, vectors: Mapping[str, np.ndarray], level: Level | None = None) -> dict[str, Any]:
        """Computes packed metrics on the host, those of a kind in one go where their class allows it.

        Args:
          vectors: the metrics.
          level: what they were merged over; metrics of another level are left out.

        Returns:
          What each metric computes, by name; floats where many were computed at once.
        """
        values = {}
        for kind, stacks in zip(self.kinds, self._split(vectors), strict=True):
            stacked = jax.tree.unflatten(kind.structure, stacks)
            if level is not None and getattr(stacked, "level", None) not in (None, level):
                continue
            if getattr(stacked, "elementwise", False) and not any(shape for shape, _ in kind.leaves):
                values |= zip(kind.names, np.asarray(stacked.compute(), np.float64).tolist(), strict=True)
            else:
                for row, name in enumerate(kind.names):
                    values[name] = jax.tree.unflatten(kind.structure, [stack[row] for stack in stacks]).compute()
        return {name: values[name] for name in self.names if name in values}

    def _join(self, kinds: list[list[jax.Array]]) -> Vectors:
        parts: dict[str, list[jax.Array]] = {}
        for kind, stacks in zip(self.kinds, kinds, strict=True):
            for (_, dtype), stack in zip(kind.leaves, stacks, strict=True):
                parts.setdefault(dtype, []).append(jnp.ravel(stack).astype(dtype))
        return {dtype: jnp.concatenate(stacks) for dtype, stacks in parts.items()}

    def _split(self, vectors: Mapping[str, Any]) -> list[list[Any]]:
        """Cuts vectors into one stack for each leaf of each kind, [names, ...]."""
        starts = dict.fromkeys(vectors, 0)
        kinds = []
        for kind in self.kinds:
            stacks = []
            for leaf_shape, dtype in kind.leaves:
                shape = (len(kind.names), *leaf_shape)
                end = starts[dtype] + math.prod(shape)
                stacks.append(vectors[dtype][starts[dtype] : end].reshape(shape))
                starts[dtype] = end
            kinds.append(stacks)
        return kinds
