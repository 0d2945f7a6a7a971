"""Schedule: how long a training runs, and when it is evaluated."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from lightjax.data.grouped import Accumulation
from lightjax.errors import ConfigurationError

if TYPE_CHECKING:
    from lightjax.run import Run


@dataclass(frozen=True)
class Schedule:
    """Limits and intervals of a training, in plain numbers.

    Attributes:
      max_epochs: epochs to run; None for no limit.
      max_steps: optimizer steps in all, those a given state has already done included; None for no limit.
      max_time_s: seconds to run; None for no limit.
      log_every_n_steps: steps that are merged into one report.
      check_val_every_n_epoch: epochs between evaluations; None counts `val_check_batches` through all epochs.
      val_check_interval: batches between evaluations, or a fraction of an epoch; None for the ends of epochs only.
      val_check_s: seconds between evaluations, instead.
      val_check_batches: `val_check_interval` in batches.
      accumulation: how many batches make a step.
    """

    max_epochs: int | None
    max_steps: int | None
    max_time_s: float | None
    log_every_n_steps: int
    check_val_every_n_epoch: int | None
    val_check_interval: int | float | None = None
    val_check_s: float | None = None
    val_check_batches: int | None = None
    accumulation: Accumulation = field(default_factory=Accumulation)

    def for_epochs_of(self, batches: int | None) -> Schedule:
        """Returns the schedule with its intervals counted in batches.

        Args:
          batches: of an epoch, None where unknown.

        Raises:
          ConfigurationError: `val_check_interval` does not go with these epochs.
        """
        across_epochs = self.check_val_every_n_epoch is None
        interval = batches_between(self.val_check_interval, batches, across_epochs=across_epochs)
        return dataclasses.replace(self, val_check_batches=interval)

    def end(self, run: Run) -> str | None:
        """Says which limit a run has reached between two epochs."""
        if self.max_steps is not None and run.step >= self.max_steps:
            return "max_steps"
        if self.max_epochs is not None and run.epoch >= self.max_epochs:
            return "max_epochs"
        return None

    def out_of_time(self, run: Run) -> bool:
        """Says whether the time is up."""
        return self.max_time_s is not None and run.clock.now_s() >= self.max_time_s

    def total_steps(self, step: int, epoch_batches: int | None) -> int | None:
        """Returns the step a run that is at `step` will end at, None where nobody knows."""
        totals = [] if self.max_steps is None else [self.max_steps]
        if self.max_epochs is not None and epoch_batches is not None:
            totals.append(step + self.accumulation.steps(self.max_epochs, epoch_batches))
        return min(totals, default=None)

    def validates_in(self, epoch: int) -> bool:
        """Says whether an epoch has evaluations."""
        return self.check_val_every_n_epoch is None or (epoch + 1) % self.check_val_every_n_epoch == 0

    def validates_within(self, run: Run, validated_s: float) -> bool:
        """Says whether an evaluation is due at this batch.

        Args:
          run: where the run is.
          validated_s: `run.clock.now_s()` of the evaluation before, or of the start.
        """
        if not self.validates_in(run.epoch):
            return False
        if self.val_check_s is not None:
            return run.clock.now_s() - validated_s >= self.val_check_s
        # A step that takes several batches ends at the multiple, or is the first to end after it.
        group = self.accumulation.at(run.epoch)
        return self.val_check_batches is not None and self.batches_done(run) % self.val_check_batches < group

    def validates_after(self, run: Run) -> bool:
        """Says whether an evaluation is due after the last batch of an epoch.

        One that goes by the clock, or through all epochs, has its place there only at the end of the run.
        """
        if self.val_check_s is None and self.check_val_every_n_epoch is not None:
            return self.validates_in(run.epoch)
        return run.stopped_by is not None or self.end(run) is not None or self.max_epochs == run.epoch + 1

    def batches_done(self, run: Run) -> int:
        """Returns the batches that `val_check_batches` counts."""
        return run.total_batch if self.check_val_every_n_epoch is None else run.batch


def seconds(time_limit: str | float | timedelta | dict[str, int] | None, name: str = "max_time") -> float | None:
    """Reads a time limit.

    Args:
      time_limit: "DD:HH:MM:SS", a timedelta, its keyword arguments as a dict, or seconds.
      name: what the user calls it.

    Raises:
      ConfigurationError: it is none of these, or negative.

    Example:
      >>> seconds("00:01:30:00"), seconds({"minutes": 2}), seconds(1.5)
      (5400.0, 120.0, 1.5)
    """
    if time_limit is None:
        return None
    try:
        if isinstance(time_limit, str):
            days, hours, minutes, rest = (int(part) for part in time_limit.split(":"))
            time_limit = timedelta(days=days, hours=hours, minutes=minutes, seconds=rest)
        elif isinstance(time_limit, dict):
            time_limit = timedelta(**time_limit)
        found = time_limit.total_seconds() if isinstance(time_limit, timedelta) else float(time_limit)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{name}={time_limit!r} is no time: write 'DD:HH:MM:SS', seconds, or a datetime.timedelta."
        ) from error
    if found < 0:
        raise ConfigurationError(f"{name}={time_limit!r} is negative; write a time from 0 on.")
    return found


def batches_between(
    interval: int | float | None, epoch_batches: int | None, *, across_epochs: bool = False
) -> int | None:
    """Reads `val_check_interval`: batches, or a fraction of an epoch.

    Args:
      interval: what the user wrote.
      epoch_batches: batches of an epoch, None where unknown.
      across_epochs: whether batches are counted through all epochs.

    Returns:
      Batches between evaluations; None for the ends of epochs only.

    Raises:
      ConfigurationError: a fraction of an epoch of unknown length, or more batches than an epoch has.
    """
    if interval is None or (isinstance(interval, float) and interval == 1.0):
        return None
    if isinstance(interval, float):
        if epoch_batches is None:
            raise ConfigurationError(
                f"val_check_interval={interval} is a fraction of an epoch, but train_data has no length; "
                "give a number of batches."
            )
        return max(1, int(epoch_batches * interval))
    if epoch_batches is not None and interval > epoch_batches and not across_epochs:
        raise ConfigurationError(
            f"val_check_interval={interval} is more than the {epoch_batches} batches of an epoch, so nothing would "
            "ever be evaluated; give a smaller one, or check_val_every_n_epoch=None to count through all epochs."
        )
    return interval
