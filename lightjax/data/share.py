"""Share: which rows of every batch this process reads, and where data that stays on the devices lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Share:
    """The part of the data that belongs to this process.

    Attributes:
      everywhere: the sharding of what lies whole on every device; None for jax's default device.
      part: which part of the rows of a batch this process reads, counted from 0.
      parts: into how many parts the rows of a batch are cut.
    """

    everywhere: Any = None
    part: int = 0
    parts: int = 1

    def rows(self, size: int) -> slice:
        """Returns the rows of a batch of this size that this process reads: all, where they cannot be cut evenly."""
        if size % self.parts:
            return slice(0, size)
        length = size // self.parts
        return slice(self.part * length, (self.part + 1) * length)


def put_everywhere(tree: Any, sharding: Any) -> Any:
    """Puts arrays that every process has whole where all devices see them; does not wait.

    Args:
      tree: pytree of host arrays, the same in every process.
      sharding: one for all, that lays them whole on every device; None for the default device.
    """
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return put_whole(tree, jax.tree.map(lambda _: sharding, tree))


def put_whole(tree: Any, shardings: Any) -> Any:
    """Puts arrays that every process has whole where they are to lie; does not wait.

    Args:
      tree: pytree of arrays, the same in every process; one that spans processes already may lie anywhere.
      shardings: of its leaves, a tree like it.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    def put(leaf: Any, sharding: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.jit(lambda leaf: leaf, out_shardings=sharding)(leaf)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        # It is asked for, as by device_put, and no slip for the transfer guard of the loop.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


# A process alone reads everything.
ALL = Share()
