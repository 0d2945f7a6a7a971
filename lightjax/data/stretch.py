"""Stretch: consecutive batches of one shape, ready for one compiled call."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Stacked batches beyond this cost more memory than running them in one call is worth.
STACK_BYTES = 64 * 2**20


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stacked:
    """Batches stacked along a new first axis.

    Attributes:
      stacks: a pytree of arrays [capacity, batch, ...]; rows beyond the stretch are undefined.
    """

    stacks: Any

    @property
    def capacity(self) -> int:
        """The number of batches there is room for."""
        return jax.tree.leaves(self.stacks)[0].shape[0]

    @property
    def signature(self) -> Hashable:
        """What tells the program of this stretch from that of another."""
        leaves, structure = jax.tree.flatten(self.stacks)
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    def batch(self, i: Any) -> Any:
        """Returns batch `i`, inside compiled code."""
        return jax.tree.map(lambda stack: lax.dynamic_index_in_dim(stack, i, keepdims=False), self.stacks)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Gathered:
    """Batches that are gathered from arrays on the device, inside the compiled call.

    Attributes:
      arrays: a pytree of arrays [examples, ...] on the device.
      order: int32 [examples], the order of the epoch, on the device.
      first: int32 scalar, the place in the order where the stretch begins.
      batch_size: examples in a batch.
      capacity: steps the program has room for.
    """

    arrays: Any
    order: Any
    first: Any
    batch_size: int = field(metadata={"static": True})
    capacity: int = field(metadata={"static": True})

    @property
    def signature(self) -> Hashable:
        """What tells the program of this stretch from that of another."""
        return (self.batch_size, self.capacity)

    def batch(self, i: Any) -> Any:
        """Returns batch `i`, inside compiled code."""
        rows = lax.dynamic_slice_in_dim(self.order, self.first + i * self.batch_size, self.batch_size)
        return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), self.arrays)


@dataclass(frozen=True)
class Stretch:
    """What runs in one call of a compiled program.

    Attributes:
      steps: gives the batch of each step.
      count: steps to run, at most `steps.capacity`.
      parts: into how many parts the rows of its batches are cut, one of which this process has; 1 where it has all.
      control: int32 array for the program, on the device: the count, and what was done before; None until it is placed.
      place: where the loader is after these batches, as JSON; None where epoch and batch say it all.
      group: batches of the loader that each step takes.
    """

    steps: Stacked | Gathered
    count: int
    parts: int = 1
    control: Any = None
    place: Any = None
    group: int = 1


class Cursor(Protocol):
    """A place in an epoch, moving forward."""

    def take(self, most: int, capacity: int) -> Stretch | None:
        """Returns the next batches of one shape; None at the end of the epoch.

        Args:
          most: batches wanted at most; at least 1.
          capacity: room of the program that is to run them. A batch shorter than the others comes alone, with room
            for 1.

        Raises:
          DataError: a batch holds something that is no array, or differs from the first batch in more than its size.
        """
        ...


def stacked_spec(batch: Any, capacity: int) -> Stacked:
    """Returns the shapes of a stack of batches."""
    return Stacked(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((capacity, *leaf.shape), leaf.dtype), batch))


def canonical(array: np.ndarray) -> np.ndarray:
    """Gives a host array the dtype it would have on the device: float32 for float64 unless x64 is on."""
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
