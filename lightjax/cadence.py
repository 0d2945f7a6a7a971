"""Cadence: when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from lightjax.callbacks.callback import Callback


@dataclass(frozen=True)
class Cadence:
    """The steps at which the loop has to stop and let somebody look.

    Attributes:
      periods: lengths; every multiple of each is looked at.
      last: the last step of the run, or None.

    Example:
      >>> cadence = Cadence(periods=(10, 4), last=21)
      >>> [cadence.steps_to_next_look(step, most=5) for step in (0, 4, 8, 10, 20, 21)]
      [4, 4, 2, 2, 1, 0]
    """

    periods: tuple[int, ...] = ()
    last: int | None = None

    @classmethod
    def of(cls, callbacks: Sequence[Callback], last: int | None) -> Self:
        """Gathers what callbacks declare."""
        periods = {callback.steps_between_looks() for callback in callbacks} - {None}
        return cls(tuple(sorted(period for period in periods if period)), last)

    def steps_to_next_look(self, step: int, most: int) -> int:
        """Returns how many steps to run from `step` on: up to the next look, `most` at most, 0 at the end."""
        looks = [period - step % period for period in self.periods]
        if self.last is not None:
            looks.append(max(0, self.last - step))
        return min([*looks, most])
