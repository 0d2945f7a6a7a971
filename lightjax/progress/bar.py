"""The display for terminals and notebooks: a bar, drawn by rich."""

import atexit
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

from lightjax.progress.clock import StepClock, format_rate, format_seconds
from lightjax.progress.layout import bar_line, count, fits, join, wrap
from lightjax.progress.output import Output, is_terminal
from lightjax.progress.position import RunPosition, format_metrics

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["RichProgress"]


@dataclass
class _Evaluation:
    stage: str
    batches: int | None
    batches_done: int = 0


class RichProgress:
    """A bar within the epoch, with step rate, time to the end of the run and metrics; see `Progress`.

    Drawing is done by the caller's thread, at most ten times a second: a draw costs about 0.5 ms. While the
    bar is there, what the program prints goes above it.

    Args:
      file: a terminal. None means standard output, or the notebook.
      interval_s: least seconds between two draws.
      now: a clock in seconds.

    Example:
      >>> import io
      >>> terminal = io.StringIO()
      >>> progress = RichProgress(terminal)
      >>> progress.start(step=0, max_steps=None, max_epochs=10)
      >>> progress.start_epoch(2, steps=69)
      >>> progress.update(161, 23, {"train/loss": 0.25})
      >>> progress.close()
      >>> "Epoch 3/10" in terminal.getvalue() and "train/loss 0.25" in terminal.getvalue()
      True
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        interval_s: float = 0.1,
        now: Callable[[], float] = time.monotonic,
    ):
        self._file = file
        self._interval_s = interval_s
        self._now = now
        self._live: Live | None = None
        self._reset(RunPosition())

    def _reset(self, position: RunPosition) -> None:
        self._position = position
        self._clock = StepClock(self._now)
        self._start_time = self._now()
        self._metrics: dict[str, float] = {}
        self._evaluation: _Evaluation | None = None
        self._stage = ""
        self._running = False
        self._closing = False
        self._stacked = False  # whether metrics have a line of their own: once they needed it, they keep it
        self._next_draw = 0.0

    def start(self, *, step: int, max_steps: int | None, max_epochs: int | None) -> None:
        """Begins a run; see `Progress.start`."""
        self.close()
        self._reset(RunPosition(step, max_steps, max_epochs))
        self._running = True
        self._open()

    def start_epoch(self, epoch: int, steps: int | None) -> None:
        """Begins an epoch; see `Progress.start_epoch`."""
        self._position.start_epoch(epoch, steps)
        if self._clock.mark() is None:
            self._draw()  # the first step may compile for minutes
        elif self.due():
            self._draw_and_wait()

    def due(self) -> bool:
        """Whether `update` would draw."""
        return self._now() >= self._next_draw

    def update(self, step: int, step_in_epoch: int, metrics: Mapping[str, float]) -> None:
        """Notes where the run is; draws if the last draw is long enough ago."""
        position = self._position
        position.step = step
        position.step_in_epoch = step_in_epoch
        if self._now() < self._next_draw:
            return
        self._clock.tick(step)
        self._metrics.update(metrics)
        self._draw_and_wait()

    def excluded(self) -> AbstractContextManager[None]:
        """A context whose time is no training time."""
        return self._clock.excluded()

    def start_evaluation(self, stage: str, batches: int | None) -> None:
        """Shows a second bar, until `end_evaluation`."""
        self._clock.start_evaluation()
        self._evaluation, self._stage = _Evaluation(stage, batches), stage
        self._open()
        if self.due():
            self._draw_and_wait()

    def update_evaluation(self, batches_done: int) -> None:
        """Moves the second bar."""
        if self._evaluation is not None:
            self._evaluation.batches_done = batches_done
            if self._now() >= self._next_draw:
                self._draw_and_wait()

    def end_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Takes the second bar away; outside a run, writes the results."""
        self._clock.end_evaluation()
        self._evaluation = None
        self._metrics.update(metrics)
        if not self._running and metrics:
            self.close()
            self.print("  ".join([self._stage, *format_metrics(metrics)]))

    def end_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of the epoch."""
        self._position.end_epoch(step)
        self._metrics.update(metrics)
        if self.due():
            self._draw_and_wait()

    def print(self, text: str) -> None:
        """Writes text above the bar."""
        if self._live is None:
            Output(self._file).write_line(text)
        else:
            self._live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the bar as it is at the end, and gives the terminal back."""
        live, self._live = self._live, None
        if live is not None:
            self._clock.end_evaluation()
            self._evaluation = None
            mark = self._clock.mark()
            if mark is not None and self._position.step > mark[1]:
                self._clock.tick(self._position.step)
            self._closing = True
            atexit.unregister(self.close)
            if live.console.is_jupyter:
                live.refresh()
            live.stop()  # draws once more in terminals
        self._running = False

    def _open(self) -> None:
        if self._live is not None:
            return
        from rich.console import Console
        from rich.live import Live

        console = Console()
        if not console.is_jupyter:
            # rich ends the process when the pipe breaks; Output swallows that before rich sees it.
            console = Console(file=cast(TextIO, Output(self._file)), force_terminal=True)
        # Without a thread of rich's: it would take the interpreter from the loop ten times a second.
        self._live = Live(
            console=console,
            auto_refresh=False,
            get_renderable=lambda: self._render(console),
            # What goes to the bar's own terminal must pass through rich; what goes elsewhere must not.
            redirect_stdout=self._file is None or self._file is sys.stdout,
            redirect_stderr=console.is_jupyter or is_terminal(sys.stderr),
        )
        self._live.start()
        atexit.register(self.close)  # a program that dies without closing must not leave the cursor hidden

    def _draw_and_wait(self) -> None:
        self._draw()
        self._next_draw = self._now() + self._interval_s

    def _draw(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _render(self, console: "Console") -> "RenderableType":
        from rich.console import Group

        lines: list[Any] = []
        if self._position.epoch is not None:
            lines += self._epoch_lines(console.width)
        if self._evaluation is not None:
            lines.append(self._evaluation_line(self._evaluation, console.width))
        return Group(*lines)

    def _epoch_lines(self, width: int) -> Iterator[Any]:
        position, clock = self._position, self._clock
        done, total, unit = position.step_in_epoch, position.steps_in_epoch, ""
        if total is None and position.max_steps is not None:
            done, total, unit = position.step, position.max_steps, "step "
        remaining_s = clock.remaining_s(position.remaining_steps())
        if self._closing:
            time_text = f"in {format_seconds(self._now() - self._start_time)}"
        else:
            time_text = "" if remaining_s is None else f"eta {format_seconds(remaining_s)}"
        metrics = format_metrics(self._metrics)
        head = f"Epoch {position.epoch_text()} "
        tail = join([f" {unit}{count(done, total)}", format_rate(clock.rate()), time_text])
        line = join([tail, *metrics])
        self._stacked = self._stacked or not fits(head, line, width)
        yield bar_line(head, done, total, tail if self._stacked else line, width, self._now())
        if self._stacked:
            yield from wrap(metrics, width)

    def _evaluation_line(self, evaluation: _Evaluation, width: int) -> Any:
        done, total = evaluation.batches_done, evaluation.batches
        tail = f" {count(done, total)} batches"
        return bar_line(f"  {evaluation.stage} ", done, total, tail, width, self._now())
