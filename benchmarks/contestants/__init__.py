"""Who takes part: one module for each way to train, each with `train(setup, gate)` that returns the last loss.

Every module is imported in a process of its own; nothing here imports a framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import MODELS, Model


class NotAvailable(Exception):
    """A contestant cannot take part here; the message says why."""


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Attributes:
      title: what the table calls it.
      module: the module in this package.
      options: what the module's `train` reads.
      needs: packages that have to be installed.
      by_default: whether it takes part where nobody is named.
    """

    title: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ("jax", "optax")
    by_default: bool = True


@dataclass(frozen=True)
class Setup:
    """What a contestant is to train.

    Attributes:
      model_name: a key of `MODELS`.
      steps: steps of an epoch.
      epochs: epochs to train.
      directory: where files may be written.
      options: of the contestant.
    """

    model_name: str
    steps: int
    epochs: int
    directory: Path
    options: Mapping[str, Any]

    @property
    def model(self) -> Model:
        """The model."""
        return MODELS[self.model_name]


_LIGHTNING = ("torch", "lightning")
CONTESTANTS = {
    "handwritten": Contestant("hand-written jax.jit loop", "handwritten"),
    "lightjax-off": Contestant("lightjax, everything off", "lightjax_trainer", {"features": False}),
    "lightjax": Contestant("lightjax, defaults", "lightjax_trainer", {"features": True}),
    "lightjax-device": Contestant(
        "lightjax, defaults, data on the device", "lightjax_trainer", {"features": True, "on_device": True}
    ),
    "lightjax-10": Contestant(
        "lightjax, defaults, 10 scalars a step", "lightjax_trainer", {"features": True, "scalars": 10}
    ),
    "lightjax-simple": Contestant(
        'lightjax, defaults, profiler="simple"',
        "lightjax_trainer",
        {"features": True, "profiler": "simple"},
        by_default=False,
    ),
    "lightjax-unprofiled": Contestant(
        "lightjax, defaults, nothing is timed",
        "lightjax_trainer",
        {"features": True, "profiler": "none"},
        by_default=False,
    ),
    "lightjax-everything": Contestant(
        "lightjax, everything on",
        "lightjax_trainer",
        {"features": True, "profiler": "simple", "loggers": ["tensorboard", "csv", "jsonl"]},
        by_default=False,
    ),
    "lightjax-hung": Contestant(
        "lightjax, defaults, and a logger that hangs",
        "lightjax_trainer",
        {"features": True, "loggers": ["csv", "tensorboard", "hung"]},
        by_default=False,
    ),
    "lightjax-failing": Contestant(
        "lightjax, defaults, and a logger that fails",
        "lightjax_trainer",
        {"features": True, "loggers": ["csv", "tensorboard", "failing"]},
        by_default=False,
    ),
    "lightning-off": Contestant(
        "Lightning, everything off", "lightning_trainer", {"features": False, "scalars": 0}, _LIGHTNING
    ),
    "lightning": Contestant("Lightning, defaults", "lightning_trainer", {"features": True}, _LIGHTNING),
    "lightning-10": Contestant(
        "Lightning, defaults, 10 scalars a step", "lightning_trainer", {"features": True, "scalars": 10}, _LIGHTNING
    ),
    "ignite": Contestant("Ignite engine, no handlers", "ignite_engine", {}, ("torch", "ignite")),
    "keras-1": Contestant("Keras on JAX", "keras_fit", {"steps_per_execution": 1}, ("keras", "jax")),
    "keras-32": Contestant(
        "Keras on JAX, steps_per_execution=32", "keras_fit", {"steps_per_execution": 32}, ("keras", "jax")
    ),
    "torch": Contestant("raw torch loop", "torch_loop", {}, ("torch",)),
}
