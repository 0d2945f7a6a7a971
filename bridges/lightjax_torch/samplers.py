"""Samplers: the share of a loader's examples that a process reads."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)

from lightjax.errors import ConfigurationError
from lightjax_torch.processes import Processes


def with_sampler(loader: DataLoader, sampler: Sampler) -> DataLoader:
    """Returns a loader like this one, with another sampler; this one is left alone."""
    found = copy.copy(loader)
    changed: dict[str, Any] = {"sampler": sampler, "_iterator": None}
    if loader.batch_sampler is not None:
        changed["batch_sampler"] = BatchSampler(sampler, loader.batch_size or 1, loader.drop_last)
    # DataLoader refuses assignments to its attributes, for fear of an iteration under way; a copy has none.
    found.__dict__.update(changed)
    return found


def shared(loader: Any, name: str, stage: str, processes: Processes) -> Any:
    """Returns a loader of the part of the data that belongs to this process.

    Loaders that shuffle, or read in order, are cut as Lightning cuts them: by a `DistributedSampler`, which repeats
    examples at the end until every process has as many; predictions repeat none.

    Args:
      loader: a DataLoader, or several in a dict, list or tuple.
      name: what the user calls it.
      stage: "train", "val", "test" or "predict".
      processes: that train together.

    Raises:
      ConfigurationError: it is nothing that can be cut without knowing what it means.
    """
    if isinstance(loader, dict):
        return {key: shared(one, f"{name}[{key}]", stage, processes) for key, one in loader.items()}
    if isinstance(loader, list | tuple) and loader and all(isinstance(one, DataLoader) for one in loader):
        return type(loader)(shared(one, f"{name}[{i}]", stage, processes) for i, one in enumerate(loader))
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return loader
    plain = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler._num_samples is None
    known = plain or isinstance(sampler, SequentialSampler)
    if (
        not isinstance(loader, DataLoader)
        or not known
        or isinstance(loader.dataset, IterableDataset)
        or type(loader.batch_sampler) not in (BatchSampler, type(None))
    ):
        what = type(loader).__name__ if sampler is None else f"{type(loader).__name__} with {type(sampler).__name__}"
        raise ConfigurationError(
            f"{name} is a {what}, and {processes.count} processes train together: how to give each its share of such "
            "data is not known here. Give its DataLoader a torch.utils.data.DistributedSampler, or read the share of "
            "self.trainer.global_rank out of self.trainer.world_size and say use_distributed_sampler=False."
        )
    if stage == "predict":
        return with_sampler(loader, _InTurn(loader.dataset, processes))
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    shuffle = isinstance(sampler, RandomSampler)
    cut = DistributedSampler(loader.dataset, processes.count, processes.rank, shuffle=shuffle, seed=seed)
    if processes.rank == 0:
        size = len(loader.dataset)  # pyright: ignore[reportArgumentType]
        repeated = -size % processes.count
        print(
            f"{name}: each of {processes.count} processes reads its share of {size} examples (DistributedSampler, "
            f"shuffle={shuffle}, seed={seed}{f', {repeated} repeated' if repeated else ''})"
        )
    return with_sampler(loader, cut)


class _InTurn(Sampler):
    """Every so many examples one, in order; none twice."""

    def __init__(self, dataset: Any, processes: Processes) -> None:
        self._numbers = range(processes.rank, len(dataset), processes.count)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)
