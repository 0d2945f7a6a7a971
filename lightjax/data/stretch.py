"""Stretch: consecutive batches of one shape, stacked for one compiled call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import numpy as np


@dataclass(frozen=True)
class Stretch:
    """Batches that run in one call of the compiled program.

    Attributes:
      batches: a pytree of arrays [capacity, batch, ...], of which the first `count` along the first axis are batches
        and the rest is undefined.
      count: batches in the stretch.
      capacity: batches the program is compiled for.
    """

    batches: Any
    count: int
    capacity: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the stacks: what tells one compiled program from another."""
        return tuple(leaf.shape for leaf in jax.tree.leaves(self.batches))


class Cursor(Protocol):
    """A place in an epoch, moving forward."""

    def take(self, most: int, capacity: int) -> Stretch | None:
        """Returns the next batches of one shape, stacked; None at the end of the epoch.

        Args:
          most: batches wanted at most; at least 1.
          capacity: size of the stack the program is compiled for. A batch shorter than the others comes alone, in a
            stack of 1.

        Raises:
          DataError: a batch holds something that is no array, or differs from the first batch in more than its size.
        """
        ...


def canonical(array: np.ndarray) -> np.ndarray:
    """Gives a host array the dtype it would have on the device: float32 for float64 unless x64 is on."""
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
