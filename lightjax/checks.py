"""Checks of what a trainer is asked for, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightjax.callbacks import Callback, ModelCheckpoint
from lightjax.engine.engine import Engine
from lightjax.errors import ConfigurationError, MetricError
from lightjax.loggers import Logger

if TYPE_CHECKING:
    from lightjax.trainer import Trainer


def check_arguments(trainer: Trainer) -> None:
    """Checks a trainer's arguments, all at once.

    Raises:
      ConfigurationError: lists every conflict.
    """
    conflicts = [
        *_below(trainer, 0, "max_epochs", "max_steps"),
        *_below(trainer, 1, "log_every_n_steps", "check_val_every_n_epoch"),
        *([] if trainer.steps_per_call == "auto" else _below(trainer, 1, "steps_per_call")),
    ]
    amounts = {f"limit_{stage}_batches": limit for stage, limit in trainer.limits.items()}
    for name, amount in (amounts | {"val_check_interval": trainer.val_check_interval}).items():
        if amount is None or (isinstance(amount, float) and 0 < amount <= 1):
            continue
        if isinstance(amount, float) or amount < 1:
            conflicts.append(
                f"{name}={amount}: give a number of batches from 1 on, or a fraction above 0.0 and up to 1.0"
            )
    for callback in trainer.callbacks:
        if not isinstance(callback, Callback):
            conflicts.append(f"callbacks holds {callback!r}, which is no lj.Callback: subclass it")
    for logger in trainer.loggers:
        if not isinstance(logger, Logger):
            conflicts.append(
                f"logger holds {logger!r}, which is no logger: it needs log_metrics, log_hyperparams and finish"
            )
    if not trainer.enable_checkpointing and any(isinstance(one, ModelCheckpoint) for one in trainer.callbacks):
        conflicts.append("enable_checkpointing=False, but callbacks holds a ModelCheckpoint: leave one of them out")
    if conflicts:
        raise ConfigurationError(
            "Trainer cannot do what it was asked for:\n" + "\n".join(f"  {one}" for one in conflicts)
        )


def check_monitored(callbacks: Sequence[Callback], engine: Engine, *, validates: bool) -> None:
    """Finds monitored names that nobody will report, before anything runs.

    A callback of the user's may report names of its own; then it is found when the name is missed.

    Raises:
      MetricError: a name is reported by nobody; lists the names there are.
    """
    if any(not type(one).__module__.startswith("lightjax.") for one in callbacks):
        return
    train = [f"train/{name}" for name in engine.metric_names("train")]
    names = [*train, *(f"{name}_epoch" for name in train)]
    names += [f"val/{name}" for name in engine.metric_names("eval")] if validates else []
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor and not any(monitor == name or monitor.startswith(f"{name}/") for name in names):
            raise MetricError(
                f"{type(callback).__name__} monitors {monitor!r}, which nobody reports; reported are: "
                f"{', '.join(names) or 'none'}. Monitor one of these, or return it from the step."
            )


def _below(trainer: Trainer, least: int, *names: str) -> list[str]:
    conflicts = []
    for name in names:
        value = getattr(trainer, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            conflicts.append(f"{name}={value!r}: give a whole number from {least} on")
    return conflicts
