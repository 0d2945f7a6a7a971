"""LambdaCallback: hooks given as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightjax.callbacks.callback import Callback
from lightjax.errors import ConfigurationError


class LambdaCallback(Callback):
    """A callback made of functions, for what is too short for a class.

    Args:
      every_n_steps: how often the train batch hooks are called.
      **hooks: functions by the name of their hook; each gets what the hook gets.

    Raises:
      ConfigurationError: there is no such hook.

    Example:
      >>> import lightjax as lj
      >>> callback = lj.LambdaCallback(on_train_epoch_end=lambda run: print(run.epoch, run.metrics["train/loss"]))
    """

    def __init__(self, *, every_n_steps: int | None = 1, **hooks: Callable[..., Any]) -> None:
        known = [name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown")]
        if odd := [name for name in hooks if name not in known]:
            raise ConfigurationError(f"LambdaCallback got {', '.join(odd)}; the hooks are {', '.join(known)}.")
        self.every_n_steps = every_n_steps
        for name, function in hooks.items():
            setattr(self, name, function)
