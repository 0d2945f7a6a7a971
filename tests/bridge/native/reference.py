"""Runs a module in lightning.Trainer and in lightjax, from the same random numbers, and keeps what can be compared."""

from __future__ import annotations

import functools
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning.pytorch", reason="Lightning is the reference of these tests")
    from lightning.pytorch.demos import boring_classes

import lightjax_torch  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

QUIET: dict[str, Any] = {
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "logger": False,
    "accelerator": "cpu",
}

__all__ = ["QUIET", "Outcome", "boring_classes", "lightning", "quietly", "same_weights", "train", "train_in_both"]


@dataclass
class Outcome:
    """What a training left.

    Attributes:
      module: the module.
      trainer: the trainer.
      losses: of every train step, as floats.
      metrics: what the trainer knows of logged values.
    """

    module: Any
    trainer: Any
    losses: list[float | None] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    trainer_class: Any,
    make: Callable[[], Any],
    *data: Any,
    datamodule: Callable[[], Any] | None = None,
    seed: int = 7,
    **arguments: Any,
) -> Outcome:
    """Trains a module that `make` makes, and records the loss of every step."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with quietly() if trainer_class is lightning.Trainer else nullcontext():
        given = {
            name: value() if name == "callbacks" and callable(value) else value for name, value in arguments.items()
        }
        outcome = Outcome(make(), trainer_class(**QUIET, **given))
        _record(outcome)
        made = [one() if callable(one) else one for one in data]
        outcome.trainer.fit(outcome.module, *made, datamodule=None if datamodule is None else datamodule())
    outcome.metrics = {name: value.item() for name, value in outcome.trainer.callback_metrics.items()}
    return outcome


def _record(outcome: Outcome) -> None:
    """Wraps the train step; Lightning looks at its signature."""
    step = outcome.module.training_step

    @functools.wraps(step)
    def recording(*arguments: Any) -> Any:
        found = step(*arguments)
        loss = found["loss"] if isinstance(found, dict) else found
        outcome.losses.append(None if loss is None else loss.item())
        return found

    outcome.module.training_step = recording


@contextmanager
def quietly() -> Iterator[None]:
    """While entered, nobody is warned: Lightning warns of machines, loaders and loggers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train_in_both(make: Callable[[], Any], *data: Any, **arguments: Any) -> tuple[Outcome, Outcome]:
    """Returns what lightning.Trainer and lightjax make of the same module."""
    return (
        train(lightning.Trainer, make, *data, **arguments),
        train(lightjax_torch.Trainer, make, *data, **arguments),
    )


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Says whether every parameter and buffer of two modules has the same bits."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
