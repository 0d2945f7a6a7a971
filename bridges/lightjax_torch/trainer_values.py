"""What a ported module may read of its trainer: numbers that stay the same for a whole training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from lightjax.errors import ConfigurationError
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.source_lines import current_line


def _unlimited(value: Any) -> Any:
    """Lightning's word for no limit."""
    return -1 if value is None else value


_VALUES: dict[str, Callable[[Any], Any]] = {
    "max_epochs": lambda trainer: _unlimited(trainer.max_epochs),
    "max_steps": lambda trainer: _unlimited(trainer.max_steps),
    "min_epochs": lambda trainer: trainer.min_epochs,
    "min_steps": lambda trainer: trainer.min_steps,
    "estimated_stepping_batches": lambda trainer: _or_infinite(trainer.estimated_steps),
    "num_training_batches": lambda trainer: _or_infinite(trainer.epoch_batches),
    "accumulate_grad_batches": lambda trainer: trainer.accumulate_grad_batches,
    "log_every_n_steps": lambda trainer: trainer.log_every_n_steps,
    "check_val_every_n_epoch": lambda trainer: trainer.check_val_every_n_epoch,
    "val_check_interval": lambda trainer: trainer.val_check_interval,
    "overfit_batches": lambda trainer: trainer.overfit_batches,
    "fast_dev_run": lambda trainer: bool(trainer.fast_dev_run),
    "gradient_clip_val": lambda trainer: trainer.policy.get("gradient_clip_val"),
    "gradient_clip_algorithm": lambda trainer: trainer.policy.get("gradient_clip_algorithm"),
}


def _or_infinite(value: Any) -> Any:
    return float("inf") if value is None else value


class NoTrainerError(CaptureError):
    """Something of the trainer was read, and there is none: the task is used by itself."""


class TrainerValues:
    """Reads the trainer that runs a task, if one does."""

    def __init__(self) -> None:
        self._trainer: Any = lambda: None

    def attach(self, trainer: Any) -> None:
        """Reads this trainer from now on."""
        self._trainer = weakref.ref(trainer)

    def read(self, name: str) -> Any:
        """Returns a number of the trainer's.

        Raises:
          CaptureError: it is none that stays the same, or there is no trainer.
        """
        if name not in _VALUES:
            raise CaptureError(
                f"{current_line()}: trainer.{name} is read, which is Python outside of the compiled step: it would be "
                f"read once, while the step is captured, and never again. A ported module may read "
                f"{', '.join(sorted(_VALUES))}, current_epoch, global_step and is_last_batch; read others in a "
                f"callback, or {WAY_OUT}."
            )
        trainer = self._trainer()
        if trainer is None:
            raise NoTrainerError(
                f"{current_line()}: trainer.{name} is read, and this task has no trainer; pass it to lj.Trainer.fit, "
                "or let the module take the number as an argument."
            )
        try:
            return _VALUES[name](trainer)
        except ConfigurationError as error:
            raise NoTrainerError(
                f"{current_line()}: trainer.{name} is read before a training began: {error}"
            ) from error

    def still(self, known: Mapping[str, Any]) -> bool:
        """Says whether numbers that were read before are still those of the trainer."""
        try:
            return all(self.read(name) == value for name, value in known.items())
        except NoTrainerError:
            return False
