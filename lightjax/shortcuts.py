"""Shortcuts: one argument of a trainer that stands for many."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightjax.callbacks import EarlyStopping, ModelCheckpoint

if TYPE_CHECKING:
    from lightjax.trainer import Trainer


def rehearse(trainer: Trainer, batches: int) -> None:
    """Sets a trainer to run a few batches of every stage once and to write no files (`fast_dev_run`)."""
    trainer.max_epochs, trainer.max_steps, trainer.max_time_s = 1, None, None
    trainer.min_epochs = trainer.min_steps = None
    trainer.limits = dict.fromkeys(trainer.limits, batches)
    trainer.overfit_batches = 0
    trainer.check_val_every_n_epoch, trainer.val_check_interval = 1, None
    trainer.num_sanity_val_steps = 0
    trainer.log_every_n_steps = 1
    trainer.resume = None
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, EarlyStopping | ModelCheckpoint)]
    _without_files(trainer)


def strip(trainer: Trainer) -> None:
    """Turns off whatever costs time beside the steps (`barebones`)."""
    trainer.enable_progress_bar = trainer.enable_model_summary = False
    trainer.num_sanity_val_steps = 0
    _without_files(trainer)


def _without_files(trainer: Trainer) -> None:
    trainer.loggers = []
    trainer.enable_checkpointing = False
    trainer.compilation_cache = False
