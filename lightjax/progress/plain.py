"""Displays without a terminal: a line an epoch, or nothing."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TextIO

from lightjax.progress.clock import StepClock, format_rate, format_seconds
from lightjax.progress.output import Output
from lightjax.progress.position import RunPosition, format_metrics

__all__ = ["NoProgress", "PlainProgress"]


class PlainProgress:
    """One line at the end of each epoch, and at most one each 30 s within a long one; see `Progress`.

    Args:
      file: where to write. None means standard output.
      interval_s: seconds between the lines within an epoch.
      now: a clock in seconds.

    Example:
      >>> progress = PlainProgress()
      >>> progress.start(step=0, max_steps=None, max_epochs=2)
      >>> progress.start_epoch(0, steps=69)
      >>> progress.update(69, 69, {})
      >>> progress.end_epoch(0, 69, {"train/loss": 0.25})
      epoch 1/2  step 69  train/loss 0.25
      >>> progress.close()
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        interval_s: float = 30.0,
        now: Callable[[], float] = time.monotonic,
    ):
        self._file = file
        self._interval_s = interval_s
        self._now = now
        self._running = False
        self._reset(RunPosition())

    def _reset(self, position: RunPosition) -> None:
        self._output = Output(self._file)
        self._position = position
        self._clock = StepClock(self._now)
        self._epoch_mark: tuple[float, int] | None = None  # where the rate of the epoch is measured from
        self._metrics: dict[str, float] = {}  # those of this epoch: a line must not show those of another
        self._stage = ""
        self._next_line = 0.0

    def start(self, *, step: int, max_steps: int | None, max_epochs: int | None) -> None:
        """Begins a run; see `Progress.start`."""
        self._reset(RunPosition(step, max_steps, max_epochs))
        self._running = True

    def start_epoch(self, epoch: int, steps: int | None) -> None:
        """Begins an epoch; see `Progress.start_epoch`."""
        self._position.start_epoch(epoch, steps)
        self._metrics = {}
        self._epoch_mark = self._clock.mark()

    def due(self) -> bool:
        """Whether `update` would do more than note the position."""
        return self._now() >= self._next_line

    def update(self, step: int, step_in_epoch: int, metrics: Mapping[str, float]) -> None:
        """Notes where the run is; writes a line if the last one is 30 s ago."""
        position = self._position
        position.step = step
        position.step_in_epoch = step_in_epoch
        if self._now() < self._next_line:
            return
        first = self._clock.mark() is None
        self._clock.tick(step)
        self._metrics.update(metrics)
        if first:
            self._epoch_mark = self._clock.mark()
            self._next_line = self._now() + self._interval_s
        else:
            total = "" if position.steps_in_epoch is None else f"/{position.steps_in_epoch}"
            self._write_line(f" ({step_in_epoch}{total})")

    def excluded(self) -> AbstractContextManager[None]:
        """A context whose time is no training time."""
        return self._clock.excluded()

    def start_evaluation(self, stage: str, batches: int | None) -> None:
        """Stops the clock of the steps."""
        self._stage = stage
        self._clock.start_evaluation()

    def update_evaluation(self, batches_done: int) -> None:
        """Nothing: an evaluation has no lines of its own."""

    def end_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Keeps the results for the line of the epoch; outside a run, writes them."""
        self._clock.end_evaluation()
        self._metrics.update(metrics)
        if not self._running and metrics:
            self._output.write_line("  ".join([self._stage, *format_metrics(metrics)]))

    def end_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the line of the epoch."""
        self._position.end_epoch(step)
        others = {name: value for name, value in self._metrics.items() if name not in metrics}
        self._metrics = {**metrics, **others}
        mark = self._clock.mark()
        if mark is not None and step > mark[1]:
            self._clock.tick(step)
        self._write_line()

    def print(self, text: str) -> None:
        """Writes text on a line of its own."""
        self._output.write_line(text)

    def close(self) -> None:
        """Ends the run."""
        self._clock.end_evaluation()
        self._running = False

    def _write_line(self, place: str = "") -> None:
        position, clock = self._position, self._clock
        remaining_s = clock.remaining_s(position.remaining_steps())
        pieces = [
            f"epoch {position.epoch_text()}{place}",
            f"step {position.step}",
            format_rate(clock.rate(since=self._epoch_mark)),
            *format_metrics(self._metrics),
            f"eta {format_seconds(remaining_s)}" if remaining_s else "",
        ]
        self._output.write_line("  ".join(piece for piece in pieces if piece))
        self._next_line = self._now() + self._interval_s


class NoProgress:
    """Shows nothing; see `Progress`. Only `print` still writes, unless it is silent.

    Args:
      file: where `print` writes. None means standard output.
      silent: whether `print` is silent too, as on all processes but the first.

    Example:
      >>> progress = NoProgress()
      >>> progress.update(1, 1, {"train/loss": 0.25})
      >>> progress.print("done")
      done
    """

    def __init__(self, file: TextIO | None = None, *, silent: bool = False):
        self._file = file
        self._silent = silent

    def start(self, *, step: int, max_steps: int | None, max_epochs: int | None) -> None:
        """Nothing."""

    def start_epoch(self, epoch: int, steps: int | None) -> None:
        """Nothing."""

    def due(self) -> bool:
        """Never."""
        return False

    def update(self, step: int, step_in_epoch: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def excluded(self) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()

    def start_evaluation(self, stage: str, batches: int | None) -> None:
        """Nothing."""

    def update_evaluation(self, batches_done: int) -> None:
        """Nothing."""

    def end_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def end_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""

    def print(self, text: str) -> None:
        """Writes text on a line of its own, unless silent."""
        if not self._silent:
            Output(self._file).write_line(text)

    def close(self) -> None:
        """Nothing."""
