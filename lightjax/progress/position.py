"""Where a run is, and the pieces of a line that says so."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["RunPosition", "format_metrics"]

_NOT_METRICS = ("epoch", "step")  # loggers get them among the metrics; a display shows them anyway


@dataclass
class RunPosition:
    """How far a run is, and how far it goes.

    Attributes:
      step: steps done in the run.
      max_steps: the steps it ends at; None if unlimited or unknown, as for all totals here.
      max_epochs: the epochs it ends at.
      epoch: the number of the current epoch, from 0; None before the first.
      step_in_epoch: steps done in the current epoch.
      steps_in_epoch: how many the current epoch has.

    Example:
      >>> position = RunPosition(step=0, max_steps=None, max_epochs=10)
      >>> position.start_epoch(2, steps=69)
      >>> position.step_in_epoch = 60
      >>> position.epoch_text(), position.remaining_steps()
      ('3/10', 492)
    """

    step: int = 0
    max_steps: int | None = None
    max_epochs: int | None = None
    epoch: int | None = None
    step_in_epoch: int = 0
    steps_in_epoch: int | None = None
    _typical_steps_in_epoch: int | None = None

    def start_epoch(self, epoch: int, steps: int | None) -> None:
        """Moves to the beginning of an epoch."""
        if steps is not None:
            self._typical_steps_in_epoch = steps
        self.epoch, self.steps_in_epoch, self.step_in_epoch = epoch, steps, 0

    def end_epoch(self, step: int) -> None:
        """Moves to the end of an epoch, `step` steps into the run."""
        self.step_in_epoch += step - self.step
        self.step = step
        if self.step_in_epoch > 0:  # a loader without length: the next epoch will be like this one
            self._typical_steps_in_epoch = self.step_in_epoch

    def remaining_steps(self) -> int | None:
        """How many steps the run still takes; None if there is no telling."""
        limits: list[int] = []
        if self.max_steps is not None:
            limits.append(self.max_steps - self.step)
        steps = self._typical_steps_in_epoch
        if self.max_epochs is not None and self.epoch is not None and steps is not None:
            epochs_after = self.max_epochs - self.epoch - 1
            limits.append(max(steps - self.step_in_epoch, 0) + epochs_after * steps)
        return max(min(limits), 0) if limits else None

    def epoch_text(self) -> str:
        """The epoch as people count, such as `3/10`, or `3` without an end."""
        number = 1 if self.epoch is None else self.epoch + 1
        return f"{number}" if self.max_epochs is None else f"{number}/{self.max_epochs}"


def format_metrics(metrics: Mapping[str, float]) -> list[str]:
    """Writes metrics compactly, those that are one number.

    Example:
      >>> format_metrics({"epoch": 3, "train/loss": 0.123456, "val/accuracy": 1.0, "val/confusion": np.eye(2)})
      ['train/loss 0.1235', 'val/accuracy 1']
    """
    return [
        f"{name} {float(value):.4g}"
        for name, value in metrics.items()
        if name not in _NOT_METRICS and np.ndim(value) == 0
    ]
