"""Data modules: one object that makes the loaders of every stage."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from lightjax.errors import ConfigurationError

Stage = Literal["fit", "validate", "test", "predict"]


class DataModule(Protocol):
    """An object with Lightning's method names, of which those a stage needs must exist."""

    def prepare_data(self) -> None:
        """Downloads or converts, once."""

    def setup(self, stage: str) -> None:
        """Loads and splits, for "fit", "validate", "test" or "predict"."""


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


def set_up(datamodule: Any, stage: Stage) -> None:
    """Runs `prepare_data` and `setup(stage)` where the data module has them."""
    if prepare := getattr(datamodule, "prepare_data", None):
        prepare()
    if setup := getattr(datamodule, "setup", None):
        setup(stage)
