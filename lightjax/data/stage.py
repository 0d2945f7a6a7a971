"""The data of a stage: what the user passed, or what the data module makes, as sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightjax.data.module import loader_of, set_up
from lightjax.data.source import Source, as_source
from lightjax.errors import ConfigurationError

Limits = Mapping[str, int | float | None]


def fit_data(train_data: Any, val_data: Any, datamodule: Any, limits: Limits) -> tuple[Source, Source | None]:
    """Returns the training data and, where there is any, the validation data.

    Raises:
      ConfigurationError: loaders and a data module were given, or no training data.
    """
    if datamodule is not None:
        if train_data is not None or val_data is not None:
            raise ConfigurationError("fit got both loaders and a datamodule; pass one or the other.")
        set_up(datamodule, "fit")
        train_data = loader_of(datamodule, "train_dataloader")
        val_data = loader_of(datamodule, "val_dataloader", optional=True)
    if train_data is None:
        raise ConfigurationError("fit got no training data; pass train_data or datamodule.")
    train = as_source(train_data, "train_data", limits["train"])
    return train, None if val_data is None else as_source(val_data, "val_data", limits["val"])


def stage_data(stage: Literal["val", "test", "predict"], data: Any, datamodule: Any, limits: Limits) -> Source:
    """Returns the data of an evaluation or prediction.

    Raises:
      ConfigurationError: there is none.
    """
    if datamodule is not None:
        set_up(datamodule, "validate" if stage == "val" else stage)
        data = loader_of(datamodule, f"{stage}_dataloader")
    if data is None:
        raise ConfigurationError(f"No {stage} data was given; pass data or datamodule.")
    return as_source(data, f"{stage} data", limits[stage])
