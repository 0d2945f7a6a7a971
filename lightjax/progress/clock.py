"""How fast a run goes and when it will end."""

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

__all__ = ["StepClock", "format_rate", "format_seconds"]

_WINDOW_S = 15.0  # the rate is that of the last seconds, so that it follows a change


class StepClock:
    """Measures steps per second of training time, and estimates the time a run still needs.

    Training time runs from the first `tick` (the first step compiles) and stands still inside `excluded()`
    and during evaluations. Evaluations come again, so the estimate counts them at the share of the time
    they have had; compiling and saving inside them is left out.

    Args:
      now: a clock in seconds.

    Example:
      >>> seconds = iter([0.0, 1.0, 2.0, 12.0, 13.0])
      >>> clock = StepClock(now=lambda: next(seconds))
      >>> clock.tick(step=10)  # the first step: took who knows how long to compile
      >>> with clock.excluded():  # from 1 s to 2 s
      ...     pass
      >>> clock.tick(step=32)
      >>> clock.rate()  # 22 steps in 11 s
      2.0
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now = now
        self._begin: float | None = None  # when training time began
        self._begin_step = 0
        self._samples: deque[tuple[float, int]] = deque()  # training time and step, the newest last
        self._pauses = 0  # how many exclusions are open
        self._pause_begin = 0.0
        self._paused = 0.0  # seconds excluded, evaluations too
        self._evaluation: _Evaluation | None = None
        self._evaluated = 0.0  # seconds of evaluation since the first step

    def excluded(self) -> "_Excluded":
        """A context whose time is not training time."""
        return _Excluded(self)

    def tick(self, step: int) -> None:
        """Notes that `step` steps are done now."""
        now = self.now()
        if self._begin is None:
            self._begin, self._begin_step, self._paused, self._pause_begin = now, step, 0.0, now
        time_s = self._training_time(now)
        self._samples.append((time_s, step))
        while len(self._samples) > 2 and self._samples[1][0] < time_s - _WINDOW_S:
            self._samples.popleft()

    def mark(self) -> tuple[float, int] | None:
        """The last tick, to measure from; None before the first."""
        return self._samples[-1] if self._samples else None

    def rate(self, since: tuple[float, int] | None = None) -> float | None:
        """Steps per second of training time, from a `mark` or else over the last 15 s; None if unknown."""
        if not self._samples:
            return None
        first, last = since or self._samples[0], self._samples[-1]
        time_s, steps = last[0] - first[0], last[1] - first[1]
        return steps / time_s if steps > 0 and time_s > 0 else None

    def remaining_s(self, steps: int | None) -> float | None:
        """Seconds that `steps` more steps will take, evaluations included; None if unknown."""
        rate = self.rate()
        if steps is None or rate is None:
            return None
        done = self._samples[-1][1] - self._begin_step
        return max(steps, 0) * (1 / rate + self._evaluated / done)

    def start_evaluation(self) -> None:
        """Stops training time until `end_evaluation`."""
        self.end_evaluation()
        self._pause()
        self._evaluation = _Evaluation(begin=self.now(), depth=self._pauses)

    def end_evaluation(self) -> None:
        """Lets training time run again; nothing happens without an evaluation."""
        evaluation, self._evaluation = self._evaluation, None
        if evaluation is not None:
            if self._begin is not None:  # not the one that runs before training, to see whether it works
                self._evaluated += self.now() - evaluation.begin - evaluation.excluded
            self._resume()

    def _pause(self) -> None:
        now = self.now()
        if self._pauses == 0:
            self._pause_begin = now
        if self._evaluation is not None and self._pauses == self._evaluation.depth:
            self._evaluation.pause_begin = now
        self._pauses += 1

    def _resume(self) -> None:
        now = self.now()
        self._pauses -= 1
        if self._pauses == 0:
            self._paused += now - self._pause_begin
        if self._evaluation is not None and self._pauses == self._evaluation.depth:
            self._evaluation.excluded += now - self._evaluation.pause_begin

    def _training_time(self, now: float) -> float:
        assert self._begin is not None
        end = now if self._pauses == 0 else self._pause_begin
        return max(end - self._begin - self._paused, 0.0)


class _Evaluation:
    """An evaluation that runs: since when, and how long it was interrupted by exclusions of its own."""

    def __init__(self, begin: float, depth: int):
        self.begin = begin
        self.depth = depth  # exclusions open, its own included
        self.pause_begin = 0.0
        self.excluded = 0.0


class _Excluded:
    """The context of `StepClock.excluded`."""

    def __init__(self, clock: StepClock):
        self._clock = clock

    def __enter__(self) -> None:
        self._clock._pause()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._clock._resume()


def format_rate(rate: float | None) -> str:
    """Writes a rate the way it reads best.

    Example:
      >>> format_rate(1520.4), format_rate(3.14159), format_rate(0.05), format_rate(None)
      ('1520 steps/s', '3.14 steps/s', '20 s/step', '')
    """
    if rate is None:
        return ""
    if rate >= 100:
        return f"{rate:.0f} steps/s"
    return f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.4g} s/step"


def format_seconds(seconds: float) -> str:
    """Writes a duration as hours, minutes and seconds, rounded up.

    Example:
      >>> format_seconds(11.2), format_seconds(90061)
      ('0:00:12', '25:01:01')
    """
    minutes, second = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
