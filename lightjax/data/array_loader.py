"""ArrayLoader: batches of arrays that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lightjax import _tree
from lightjax.data.share import put_everywhere
from lightjax.errors import DataError


class ArrayLoader:
    """Batches of a pytree of arrays, in an order that depends on the seed and the epoch alone.

    Every pass over the loader is one epoch, and each epoch has its own permutation, so any epoch can be entered at
    any batch without reading the ones before. The last batch is shorter where the examples do not divide. The arrays
    are not copied: leave them as they are while they are read.

    Attributes:
      arrays: the pytree of numpy arrays that is batched.
      batch_size: examples in a batch.

    Args:
      arrays: pytree of arrays (numpy, jax, torch on the CPU) that share their first axis, one row an example.
      batch_size: examples in a batch.
      shuffle: permute the examples anew in each epoch.
      seed: of the permutations.
      drop_last: leave a short last batch out.
      on_device: keep the arrays on the device and gather batches inside the compiled call, so that an epoch moves
        nothing from the host. For data that fits beside the model.

    Raises:
      DataError: there are no arrays or no examples, the arrays have different numbers of rows, or the batch size is
        not positive or, with `drop_last`, larger than the data.

    Example:
      >>> loader = ArrayLoader({"x": np.arange(5)}, batch_size=2)
      >>> len(loader), [batch["x"].tolist() for batch in loader]
      (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        arrays: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        on_device: bool = False,
    ) -> None:
        self.arrays = jax.tree.map(np.asarray, arrays)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.on_device = on_device
        self.examples = _shared_rows(self.arrays)
        if batch_size < 1 or (drop_last and batch_size > self.examples):
            raise DataError(
                f"ArrayLoader got batch_size={batch_size} for {self.examples} examples"
                f"{' with drop_last=True, which leaves no batch' if batch_size > 0 else ''}; "
                "give a batch size between 1 and the number of examples."
            )
        self._next_epoch = 0
        self._order: tuple[int, np.ndarray] | None = None
        self._device_arrays: tuple[Any, Any] | None = None

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        full, rest = divmod(self.examples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """Passes over the next epoch: the first pass is epoch 0, the second epoch 1."""
        epoch = self._next_epoch
        self._next_epoch += 1
        return self.epoch(epoch)

    def epoch(self, index: int, start: int = 0) -> Iterator[Any]:
        """Passes over a given epoch from a given batch on, in constant time wherever that is.

        Args:
          index: the epoch, counted from 0.
          start: the first batch, counted from 0.

        Yields:
          Batches, fresh numpy arrays of `[batch_size, ...]`.
        """
        order = self.order(index)
        for batch in range(start, len(self)):
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield jax.tree.map(lambda array, rows=rows: array[rows], self.arrays)

    def device_arrays(self, sharding: Any = None) -> Any:
        """Returns the arrays on the device; they are moved there once.

        Args:
          sharding: where they are to lie; the default device when None.
        """
        if self._device_arrays is None or self._device_arrays[0] != sharding:
            self._device_arrays = (sharding, put_everywhere(self.arrays, sharding))
        return self._device_arrays[1]

    def order(self, epoch: int) -> np.ndarray:
        """Returns the order of the examples in an epoch: int32, [examples]."""
        if self._order is None or self._order[0] != epoch:
            rows = np.arange(self.examples, dtype=np.int32)
            if self.shuffle:
                rows = np.random.default_rng((self.seed, epoch)).permutation(rows)
            self._order = (epoch, rows)
        return self._order[1]


def _shared_rows(arrays: Any) -> int:
    leaves = _tree.named_leaves(arrays)
    if not leaves:
        raise DataError(
            "ArrayLoader got no arrays; pass a pytree of arrays such as {'image': images, 'label': labels}."
        )
    rows = {path: leaf.shape[0] if leaf.ndim else None for path, leaf in leaves.items()}
    if len(set(rows.values())) > 1 or None in rows.values():
        listed = ", ".join(f"{path!r} {_tree.describe(leaf)}" for path, leaf in leaves.items())
        raise DataError(
            f"ArrayLoader got arrays with different numbers of rows ({listed}): an example is one row of each; "
            "give every array the same first axis."
        )
    examples = next(iter(rows.values()))
    if not examples:
        raise DataError("ArrayLoader got arrays without rows; give at least one example.")
    return examples
