"""Cadence: when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from lightjax.callbacks.callback import Callback


@dataclass(frozen=True)
class Cadence:
    """The places where the loop has to stop and let somebody look.

    Attributes:
      periods: every multiple of each, in optimizer steps, is looked at.
      last: the last step of the run, or None.
      least: the step before which no callback can end the run; 0 for none.
      batch_period: every multiple of it, in batches, is looked at; or None.

    Example:
      >>> cadence = Cadence(periods=(10, 4), last=21)
      >>> [cadence.steps_to_next_look(step, step, most=5) for step in (0, 4, 8, 10, 20, 21)]
      [4, 4, 2, 2, 1, 0]
    """

    periods: tuple[int, ...] = ()
    last: int | None = None
    batch_period: int | None = None
    least: int = 0

    @classmethod
    def of(cls, callbacks: Sequence[Callback], last: int | None, batch_period: int | None, least: int = 0) -> Self:
        """Gathers what callbacks declare."""
        periods = {callback.steps_between_looks() for callback in callbacks} - {None}
        return cls(tuple(sorted(period for period in periods if period)), last, batch_period, least)

    def steps_to_next_look(self, step: int, batch: int, most: int, group: int = 1) -> int:
        """Returns how many steps to run: up to the next look, `most` at most, 0 at the end.

        Args:
          step: optimizer steps done.
          batch: batches done, of this epoch or of all.
          most: steps to run at most.
          group: batches that a step takes; a look within a group waits for its end.
        """
        looks = [most, *(period - step % period for period in self.periods)]
        if self.last is not None:
            looks.append(max(0, self.last - step))
        if step < self.least:
            looks.append(self.least - step)
        if self.batch_period is not None:
            looks.append(-(-(self.batch_period - batch % self.batch_period) // group))
        return min(looks)
