"""Data modules: one object that makes the loaders of every stage."""

from __future__ import annotations

import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from lightjax.errors import ConfigurationError

Stage = Literal["fit", "validate", "test", "predict"]


class DataModule:
    """The data of a program in one place: subclass it, or give any object those of its methods that a stage needs.

    A loader is whatever `fit` takes, for evaluation and prediction also a dict of several by name.

    Attributes:
      trainer: the trainer that uses it last; `trainer.current_epoch` tells loaders that are made anew the epoch.

    Example:
      >>> import lightjax as lj, numpy as np
      >>> class Squares(lj.DataModule):
      ...     def setup(self, stage):
      ...         self.x = np.arange(8, dtype=np.float32)
      ...     def train_dataloader(self):
      ...         return lj.ArrayLoader({"x": self.x, "y": self.x**2}, batch_size=4, shuffle=True)
    """

    trainer: Any = None

    def prepare_data(self) -> None:
        """Downloads or converts: once on every machine, whatever processes there are; sets nothing on the object."""

    def setup(self, stage: str) -> None:
        """Loads and splits, in every process, for "fit", "validate", "test" or "predict"."""

    def train_dataloader(self) -> Any:
        """Returns the loader for training."""

    def val_dataloader(self) -> Any:
        """Returns the loader for validation, also in `fit`; None for none."""

    def test_dataloader(self) -> Any:
        """Returns the loader for a test."""

    def predict_dataloader(self) -> Any:
        """Returns the loader for a prediction."""

    def teardown(self, stage: str) -> None:
        """Lets go of what `setup` made, also after an error."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned, after `setup` and before the loaders are made."""


def loader_of(datamodule: Any, method: str, *, optional: bool = False) -> Any:
    """Calls a method that makes a loader; None where it is optional and missing or returns None.

    Raises:
      ConfigurationError: the method is missing and needed.
    """
    function = getattr(datamodule, method, None)
    loader = function() if function is not None else None
    if loader is None and not optional:
        raise ConfigurationError(
            f"The data module {type(datamodule).__name__} has no {method}() that returns a loader, which this needs; "
            f"define {method}(self)."
        )
    return loader


def set_up(datamodule: Any, stage: Stage, kept: Any = None) -> None:
    """Runs `prepare_data`, once on every machine, and `setup(stage)`, where the data module has them.

    Args:
      datamodule: the data module.
      stage: what it is set up for.
      kept: what its `state_dict` returned in the run that is resumed; None without one.
    """
    if prepare := getattr(datamodule, "prepare_data", None):
        _once_on_every_machine(prepare)
    if setup := getattr(datamodule, "setup", None):
        setup(stage)
    if kept and (load := getattr(datamodule, "load_state_dict", None)):
        load(kept)


def state_of(datamodule: Any) -> Any:
    """Returns what a checkpoint keeps of a data module; None where it has nothing to say."""
    return datamodule.state_dict() if hasattr(datamodule, "state_dict") else None


@contextmanager
def in_use(datamodule: Any, trainer: Any, stage: Stage) -> Iterator[None]:
    """Tells a data module its trainer, and runs `teardown(stage)` in the end, where it has them; None is taken, too."""
    if hasattr(datamodule, "trainer"):
        datamodule.trainer = trainer
    try:
        yield
    finally:
        if teardown := getattr(datamodule, "teardown", None):
            teardown(stage)


def _once_on_every_machine(function: Callable[[], None]) -> None:
    if jax.process_count() == 1:
        return function()
    machines = multihost_utils.process_allgather(np.uint32(zlib.crc32(socket.gethostname().encode())))
    if list(machines).index(machines[jax.process_index()]) == jax.process_index():
        function()
    multihost_utils.sync_global_devices("lightjax: prepare_data")
