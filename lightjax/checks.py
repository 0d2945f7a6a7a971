"""Checks of what a trainer is asked for, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from lightjax.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightjax.callbacks.model_checkpoint import checkpoint_places
from lightjax.errors import ConfigurationError, MetricError
from lightjax.loggers.choice import logger_conflict
from lightjax.policy import Policy
from lightjax.profiler.choice import profiler_conflict
from lightjax.schedule import seconds
from lightjax.strategy import conflicts_in

if TYPE_CHECKING:
    from lightjax.trainer import Trainer


def check_arguments(trainer: Trainer) -> None:
    """Checks a trainer's arguments, all at once.

    Raises:
      ConfigurationError: lists every conflict.
    """
    conflicts = [
        *_below(trainer, 0, "max_epochs", "max_steps", "min_epochs", "min_steps", "reload_dataloaders_every_n_epochs"),
        *_below(trainer, 1, "log_every_n_steps", "check_val_every_n_epoch"),
        *_below(trainer, -1, "num_sanity_val_steps"),
        *_interval(trainer),
        *([] if trainer.steps_per_call == "auto" else _below(trainer, 1, "steps_per_call")),
    ]
    conflicts += _policy_conflicts(trainer)
    for stage, limit in trainer.limits.items():
        # No validation is a wish, no training a mistake.
        if not (stage == "val" and limit == 0):
            conflicts += _amount(f"limit_{stage}_batches", limit)
    if trainer.overfit_batches:
        conflicts += _amount("overfit_batches", trainer.overfit_batches)
        if trainer.limits["train"] is not None:
            conflicts.append("overfit_batches and limit_train_batches both say how much is trained on: give one")
    for least, most in (("min_epochs", "max_epochs"), ("min_steps", "max_steps")):
        low, high = getattr(trainer, least), getattr(trainer, most)
        if isinstance(low, int) and isinstance(high, int) and low > high:
            conflicts.append(f"{least}={low} is more than {most}={high}: the run ends before")
    if trainer.barebones:
        conflicts += _beside_barebones(trainer)
    for callback in trainer.callbacks:
        if not isinstance(callback, Callback):
            conflicts.append(f"callbacks holds {callback!r}, which is no lj.Callback: subclass it")
        elif callback.every_n_steps is not None and not _whole(callback.every_n_steps, 1):
            conflicts.append(
                f"{type(callback).__name__} has every_n_steps={callback.every_n_steps!r}: give a whole number from 1 "
                "on, or None for never"
            )
    schedulers = [one for one in trainer.callbacks if isinstance(one, GradientAccumulationScheduler)]
    if len(schedulers) > 1 or (schedulers and trainer.hyperparameters["accumulate_grad_batches"] != 1):
        conflicts.append(
            "accumulate_grad_batches is said twice, by a GradientAccumulationScheduler and by another one or the "
            "argument: leave one of them out"
        )
    if conflict := profiler_conflict(trainer.profiler):
        conflicts.append(conflict)
    for logger in trainer.loggers:
        if conflict := logger_conflict(logger):
            conflicts.append(conflict)
    if not trainer.enable_checkpointing and any(isinstance(one, ModelCheckpoint) for one in trainer.callbacks):
        conflicts.append("enable_checkpointing=False, but callbacks holds a ModelCheckpoint: leave one of them out")
    if len(places := checkpoint_places(trainer.callbacks)) > 1:
        conflicts.append(
            f"ModelCheckpoints have different dirpaths ({', '.join(sorted(map(str, places)))}), but the checkpoints of "
            "a run lie in one place, each once, whoever keeps it: give one"
        )
    if trainer.on_save_error not in ("raise", "warn"):
        conflicts.append(f"on_save_error={trainer.on_save_error!r}: write 'raise' or 'warn'")
    conflicts += conflicts_in(trainer.strategy, trainer.devices, trainer.mesh)
    if conflicts:
        raise ConfigurationError(
            "Trainer cannot do what it was asked for:\n" + "\n".join(f"  {one}" for one in conflicts)
        )


def check_monitored(
    callbacks: Sequence[Callback], train_metrics: Sequence[str], val_metrics: Sequence[str]
) -> dict[str, str]:
    """Finds monitored names that nobody will report, before anything runs.

    A callback of the user's may report names of its own; then it is found when the name is missed.

    Args:
      callbacks: who monitors.
      train_metrics: names that the train step reports.
      val_metrics: names that evaluation reports, prefixed.

    Returns:
      What a name without its stage means: "val_loss", as callbacks written for LightningModules have it, is
      "val/val_loss" where evaluation reports that, and otherwise "train/val_loss".

    Raises:
      MetricError: a name is reported by nobody, or several best are to be kept by no name; lists the names there are.
    """
    others = any(not type(one).__module__.startswith("lightjax.") for one in callbacks)
    train = [f"train/{name}" for name in train_metrics]
    names = [*train, *(f"{name}_epoch" for name in train), *val_metrics]
    meant = {}
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.ranks_without_a_name and "val/loss" not in names:
            raise MetricError(
                f"ModelCheckpoint(save_top_k={callback.save_top_k}) is to keep the best by val/loss, for want of a "
                f"monitor, which nobody reports; reported are: {', '.join(names) or 'none'}. Give one of these as "
                "monitor."
            )
        monitor = getattr(callback, "monitor", None)
        if not monitor or any(monitor == name or monitor.startswith(f"{name}/") for name in names):
            continue
        if found := next((name for name in (f"val/{monitor}", f"train/{monitor}") if name in names), None):
            meant[monitor] = found
        elif not others:
            raise MetricError(
                f"{type(callback).__name__} monitors {monitor!r}, which nobody reports; reported are: "
                f"{', '.join(names) or 'none'}. Monitor one of these, or return it from the step."
            )
    return meant


def _amount(name: str, amount: int | float | None) -> list[str]:
    if amount is None or (isinstance(amount, float) and 0 < amount <= 1):
        return []
    if isinstance(amount, int) and not isinstance(amount, bool) and amount >= 1:
        return []
    return [f"{name}={amount!r}: give a number of batches from 1 on, or a fraction above 0.0 and up to 1.0"]


def _interval(trainer: Trainer) -> list[str]:
    interval = trainer.val_check_interval
    if isinstance(interval, str | timedelta | dict):
        try:
            seconds(interval, "val_check_interval")
        except ConfigurationError as error:
            return [str(error)]
        return []
    conflicts = _amount("val_check_interval", interval)
    if trainer.check_val_every_n_epoch is None and (interval is None or isinstance(interval, float)):
        conflicts.append(
            f"check_val_every_n_epoch=None counts batches through all epochs, which val_check_interval={interval} does "
            "not give: write a number of batches, or a time"
        )
    return conflicts


def _beside_barebones(trainer: Trainer) -> list[str]:
    asked = {
        "logger": not isinstance(trainer.logger, bool | None),
        "callbacks": any(isinstance(one, ModelCheckpoint) for one in trainer.callbacks),
        "num_sanity_val_steps": bool(trainer.num_sanity_val_steps),
        "fast_dev_run": bool(trainer.fast_dev_run),
    }
    return [
        f"barebones=True leaves out what {name} asks for: leave one of them out"
        for name, given in asked.items()
        if given
    ]


def _policy_conflicts(trainer: Trainer) -> list[str]:
    conflicts = _below(trainer, 1, "microbatches")
    accumulated = trainer.accumulate_grad_batches
    if isinstance(accumulated, Mapping):
        fine = all(_whole(epoch, 0) and _whole(batches, 1) for epoch, batches in accumulated.items())
        if not (fine and accumulated):
            conflicts.append(
                f"accumulate_grad_batches={accumulated!r}: give {{epoch: batches}}, epochs from 0 and batches from 1 on"
            )
    else:
        conflicts += _below(trainer, 1, "accumulate_grad_batches")
    try:
        Policy(**trainer.policy)
    except ConfigurationError as error:
        conflicts += str(error).splitlines()
    return conflicts


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _below(trainer: Trainer, least: int, *names: str) -> list[str]:
    conflicts = []
    for name in names:
        value = getattr(trainer, name)
        if value is not None and not _whole(value, least):
            conflicts.append(f"{name}={value!r}: give a whole number from {least} on")
    return conflicts
