"""The data of a stage: what the user passed, or what the data module makes, as sources."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from lightjax.data.array_loader import ArrayLoader
from lightjax.data.grouped import Accumulation, Grouped
from lightjax.data.module import loader_of, set_up
from lightjax.data.share import ALL, Share
from lightjax.data.source import Source, as_source
from lightjax.errors import ConfigurationError, DataError

Limit = int | float | None
Loaders = dict[str, Source]


@dataclass
class FitData:
    """What a training reads.

    Attributes:
      train: the training data.
      val: the validation data by loader; one without a name has the name "". Empty for none.
      make: makes both anew from the data module; None where they stay.
      every_n_epochs: how often they are made anew.
      datamodule: the data module; None for loaders.
    """

    train: Source
    val: Loaders
    make: Callable[[], tuple[Source, Loaders]] | None = None
    every_n_epochs: int = 0
    datamodule: Any = None

    def renew(self, epoch: int) -> bool:
        """Makes the loaders anew if it is time; says whether it did."""
        if self.make is None or epoch % self.every_n_epochs:
            return False
        self.train, self.val = self.make()
        return True


def fit_data(
    train_data: Any,
    val_data: Any,
    datamodule: Any,
    limits: Mapping[str, Limit],
    *,
    overfit_batches: int | float = 0,
    reload_every_n_epochs: int = 0,
    accumulation: Accumulation | None = None,
    kept: Any = None,
    share: Share = ALL,
) -> FitData:
    """Returns the training data and the validation data.

    Args:
      train_data: what the user passed.
      val_data: what the user passed: a loader, or a dict of them by name.
      datamodule: makes both instead.
      limits: batches of an epoch at most, "train" and "val".
      overfit_batches: keep so many batches of the training data, the same in every epoch; 0 for all.
      reload_every_n_epochs: how often the data module makes its loaders anew; 0 for never.
      accumulation: how many batches of the training data make a step; one when None.
      kept: what the data module's `state_dict` returned in the run that is resumed; None without one.
      share: what of the data this process reads.

    Raises:
      ConfigurationError: loaders and a data module were given, or no training data.
      DataError: what was passed is no loader.
    """
    if datamodule is not None:
        if train_data is not None or val_data is not None:
            raise ConfigurationError("fit got both loaders and a datamodule; pass one or the other.")
        set_up(datamodule, "fit", kept)
    elif reload_every_n_epochs:
        raise ConfigurationError(
            f"reload_dataloaders_every_n_epochs={reload_every_n_epochs} was asked for, but fit got loaders, which "
            "nobody can make anew; pass a datamodule."
        )

    def make() -> tuple[Source, Loaders]:
        train, val = train_data, val_data
        if datamodule is not None:
            train = loader_of(datamodule, "train_dataloader")
            val = loader_of(datamodule, "val_dataloader", optional=True)
        if train is None:
            raise ConfigurationError("fit got no training data; pass train_data or datamodule.")
        if overfit_batches:
            source = as_source(*_without_shuffling(train, overfit_batches, "train_data"), share)
        else:
            source = as_source(train, "train_data", limits["train"], share)
        if accumulation is not None and accumulation.largest > 1:
            source = Grouped(source, accumulation)
        return source, loaders_of(val, "val_data", limits["val"], share)

    again = make if reload_every_n_epochs else None
    return FitData(*make(), make=again, every_n_epochs=reload_every_n_epochs, datamodule=datamodule)


def stage_data(
    stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limit: Limit, share: Share = ALL
) -> Loaders:
    """Returns the data of an evaluation or prediction by loader.

    Raises:
      ConfigurationError: there is none.
      DataError: it is no loader.
    """
    if datamodule is not None:
        if data is not None:
            raise ConfigurationError(f"Both {stage} data and a datamodule were given; pass one or the other.")
        set_up(datamodule, "validate" if stage == "val" else stage)
        data = loader_of(datamodule, f"{stage}_dataloader")
    if data is None:
        raise ConfigurationError(f"No {stage} data was given; pass data or datamodule.")
    if limit == 0:
        raise ConfigurationError(f"limit_{stage}_batches=0 leaves nothing of the {stage} data to run on; leave it out.")
    return loaders_of(data, f"{stage} data", limit, share)


def loaders_of(data: Any, name: str, limit: Limit, share: Share = ALL) -> Loaders:
    """Returns sources of one loader, named "", or of a dict of loaders by their names; {} for None or a limit of 0.

    A list of loaders has their numbers for names; a list of batches is a loader.
    """
    if data is None or limit == 0:
        return {}
    if isinstance(data, list | tuple) and len(data) > 1 and all(map(_is_loader, data)):
        data = {str(number): loader for number, loader in enumerate(data)}
    if not isinstance(data, dict) or any(hasattr(loader, "__array__") for loader in data.values()):
        return {"": as_source(data, name, limit, share)}
    return {str(key): as_source(loader, f"{name}[{key!r}]", limit, share) for key, loader in data.items()}


def _is_loader(one: Any) -> bool:
    """Says whether something is iterable and no batch: neither an array nor a tree of some."""
    is_batch = (
        isinstance(one, str | bytes | Mapping) or hasattr(one, "__array__") or not jax.tree_util.all_leaves([one])
    )
    return hasattr(one, "__iter__") and not is_batch


def _without_shuffling(data: Any, batches: int | float, name: str) -> tuple[Any, str, Limit]:
    """Returns data that gives the same few batches in every epoch."""
    if isinstance(data, ArrayLoader):
        same = ArrayLoader(data.arrays, data.batch_size, drop_last=data.drop_last, on_device=data.on_device)
        return same, name, batches
    if isinstance(batches, float):
        if not hasattr(data, "__len__"):
            raise DataError(
                f"overfit_batches={batches} was asked for, but {name} has no length to take a fraction of; give a "
                "number of batches."
            )
        batches = max(1, int(len(data) * batches))
    as_source(data, name)  # says what is wrong with what is no loader
    opened: Any = data() if callable(data) and not hasattr(data, "__iter__") else data
    # Copies: a loader may fill the same buffer again for its next batch.
    return [jax.tree.map(np.array, batch) for batch in itertools.islice(iter(opened), batches)], name, None
