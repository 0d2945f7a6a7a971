"""Packing: a pytree of small arrays as one vector a dtype.

A compiled call pays for every array it returns; metrics are dozens of scalars, and travel as one or two vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Packing:
    """How the leaves of a tree lie in its vectors.

    Attributes:
      structure: the tree.
      leaves: shape and dtype of each leaf.

    Example:
      >>> packing = Packing.of({"loss": jnp.float32(0.5), "count": jnp.int32(3)})
      >>> vectors = packing.pack({"loss": jnp.float32(0.5), "count": jnp.int32(3)})
      >>> vectors["float32"], vectors["int32"]
      (Array([0.5], dtype=float32), Array([3], dtype=int32))
      >>> packing.unpack(vectors)["count"].item()
      3
    """

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @classmethod
    def of(cls, tree: Any) -> Packing:
        """Makes the packing of trees of this structure (arrays or their shapes)."""
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves))

    @property
    def lengths(self) -> dict[str, int]:
        """The length of the vector of each dtype."""
        lengths: dict[str, int] = {}
        for leaf in self.leaves:
            lengths[str(leaf.dtype)] = lengths.get(str(leaf.dtype), 0) + math.prod(leaf.shape)
        return lengths

    def zeros(self, *leading: int) -> dict[str, jax.Array]:
        """Returns vectors of zeros, with further axes in front."""
        return {dtype: jnp.zeros((*leading, length), dtype) for dtype, length in self.lengths.items()}

    def pack(self, tree: Any) -> dict[str, jax.Array]:
        """Lays the leaves of a tree end to end, by dtype."""
        parts: dict[str, list[jax.Array]] = {}
        for leaf, spec in zip(jax.tree.leaves(tree), self.leaves, strict=True):
            parts.setdefault(str(spec.dtype), []).append(jnp.reshape(leaf, (-1,)).astype(spec.dtype))
        return {dtype: jnp.concatenate(leaves) for dtype, leaves in parts.items()}

    def unpack(self, vectors: dict[str, jax.Array] | dict[str, np.ndarray]) -> Any:
        """Makes the tree again; leaves are views of the vectors, on the host or on the device as they are."""
        starts = dict.fromkeys(vectors, 0)
        leaves = []
        for spec in self.leaves:
            dtype, size = str(spec.dtype), math.prod(spec.shape)
            start = starts[dtype]
            leaves.append(
                vectors[dtype][start] if not spec.shape else vectors[dtype][start : start + size].reshape(spec.shape)
            )
            starts[dtype] = start + size
        return jax.tree.unflatten(self.structure, leaves)
