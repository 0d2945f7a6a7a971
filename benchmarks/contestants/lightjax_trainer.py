"""lightjax, by its public names."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import optax
from gate import Gate
from models import LEARNING_RATE, Model, cross_entropy

import lightjax as lj
from contestants import NotAvailable, Setup
from contestants.handwritten import val_loss
from lightjax.profiler import Profiler


def make_task(model: Model, scalars: int = 1) -> lj.Task:
    """Writes the model down as pure functions; reports the loss and further scalars."""

    def init(key: jax.Array, batch: Any) -> lj.TrainState:
        return lj.TrainState.create(params=model.initial(), optimizer=optax.adam(LEARNING_RATE), key=key)

    def loss_fn(state: lj.TrainState, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        loss = cross_entropy(model.logits(state.params, batch["inputs"]), batch["labels"])
        return loss, {"loss": loss, **{f"scalar_{i}": loss * i for i in range(1, scalars)}}

    return lj.Task.from_loss(init, loss_fn)


def make_loader(data: Any, batch: int, **options: Any) -> lj.ArrayLoader:
    """Returns batches in order."""
    return lj.ArrayLoader({"inputs": data[0], "labels": data[1]}, batch, **options)


class AtGate(lj.Callback):
    """Stops at the gate; looks at no step, so that nothing keeps the loop from running compiled."""

    every_n_steps = None

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_epoch_start(self, run: lj.Run) -> None:
        self.gate.epoch_starts(lambda: jax.block_until_ready(run.state))


class Unprofiled(Profiler):
    """Times nothing; every other training times its actions, whether they are printed or not."""

    def profile(self, action: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def each(self, action: str, items: Iterable[Any]) -> Iterator[Any]:
        return iter(items)

    def call(self, step: int, count: int, before: Any) -> AbstractContextManager[Any]:
        return nullcontext()


class Hung:
    """A logger that answers to nothing until the training is over."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def log_metrics(self, step: int, metrics: Any) -> None:
        self.over.wait()

    def log_hyperparams(self, params: Any) -> None:
        pass

    def finish(self) -> None:
        pass


class Failing(Hung):
    """A logger that raises."""

    def log_metrics(self, step: int, metrics: Any) -> None:
        raise ConnectionError("the server is gone")


class LetGo(lj.Callback):
    """Lets the hung logger go when training is over."""

    every_n_steps = None

    def __init__(self, logger: Hung) -> None:
        self.logger = logger

    def on_fit_end(self, run: lj.Run) -> None:
        self.logger.over.set()


def train(setup: Setup, gate: Gate) -> float:
    """Trains; returns the last loss."""
    model, options = setup.model, setup.options
    arguments: dict[str, Any] = {"max_epochs": setup.epochs, "default_root_dir": setup.directory}
    if "steps_per_call" in options:
        arguments["steps_per_call"] = options["steps_per_call"]
    callbacks: list[lj.Callback] = [AtGate(gate)]
    if options["features"]:
        callbacks.append(lj.EarlyStopping("val/loss", patience=1_000_000))
    else:
        arguments |= {"logger": False, "enable_checkpointing": False}
        arguments |= {"enable_progress_bar": False, "enable_model_summary": False}
    if "profiler" in options:
        arguments["profiler"] = Unprofiled() if options["profiler"] == "none" else options["profiler"]
    if "loggers" in options:
        ill = {"hung": Hung(), "failing": Failing()}
        arguments["logger"] = [ill.get(name, name) for name in options["loggers"]]
        callbacks.append(LetGo(ill["hung"]))
    loading: dict[str, Any] = {}
    if options.get("on_device"):
        if "on_device" not in inspect.signature(lj.ArrayLoader).parameters:
            raise NotAvailable("this lightjax has no ArrayLoader(on_device=)")
        loading["on_device"] = True
    data, val = model.data(setup.steps)
    result = lj.Trainer(callbacks=callbacks, **arguments).fit(
        make_task(model, options.get("scalars", 1)),
        make_loader(data, model.batch, **loading),
        make_loader(val, model.batch, **loading) if options["features"] else None,
    )
    return val_loss(model, result.state.params, val)
