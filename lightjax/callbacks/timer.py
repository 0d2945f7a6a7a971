"""Timer: ends a run when its time is up, over all of its interruptions."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightjax.callbacks.callback import Callback, Stage
from lightjax.schedule import seconds

if TYPE_CHECKING:
    from lightjax.clock import Clock
    from lightjax.run import Run


class Timer(Callback):
    """Counts the time a training takes, what it took before it was resumed included, and ends it after a while.

    `Trainer(max_time=...)` counts the time of one process.

    Args:
      duration: "DD:HH:MM:SS", seconds, a timedelta or its arguments as a dict; None only counts.
      every_n_steps: how often it looks at the clock; None looks at the ends of epochs only.

    Example:
      >>> import lightjax as lj
      >>> lj.Timer("00:12:00:00").remaining_s
      43200.0
    """

    def __init__(
        self, duration: str | float | timedelta | dict[str, int] | None = None, *, every_n_steps: int | None = 50
    ) -> None:
        self.duration_s = seconds(duration, "Timer's duration")
        self.every_n_steps = every_n_steps
        self._before_s = 0.0
        self._begun_s: float | None = None
        self._clock: Clock | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds of training so far."""
        if self._clock is None or self._begun_s is None:
            return self._before_s
        return self._before_s + self._clock.now_s() - self._begun_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds that are left; None without a duration."""
        return None if self.duration_s is None else max(0.0, self.duration_s - self.elapsed_s)

    def setup(self, run: Run, stage: Stage) -> None:
        """Begins anew."""
        if stage == "fit":
            self._before_s, self._begun_s = 0.0, None

    def on_train_start(self, run: Run) -> None:
        """Starts the clock."""
        self._clock, self._begun_s = run.clock, run.clock.now_s()

    def on_train_batch_end(self, run: Run) -> None:
        """Looks at the clock."""
        self._look(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Looks at the clock."""
        self._look(run)

    def on_train_end(self, run: Run) -> None:
        """Stops the clock."""
        self._before_s, self._begun_s = self.elapsed_s, None

    def state_dict(self) -> dict[str, Any]:
        """Returns the time so far."""
        return {"elapsed_s": self.elapsed_s}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the time so far."""
        self._before_s = state["elapsed_s"]

    def _look(self, run: Run) -> None:
        if self.remaining_s == 0.0:
            run.stop(f"timer: {self.elapsed_s:.0f} s of training")
