"""JaxProfiler: a trace of some steps, and what is heaviest in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightjax.profiler.simple import SimpleProfiler


class JaxProfiler(SimpleProfiler):
    """Traces a window of steps, and prints its ten heaviest operations and where the devices idled.

    The trace of `jax.profiler` lies in `plugins/profile` of the run's directory: TensorBoard and XProf show it, and
    Perfetto (ui.perfetto.dev) opens its `.trace.json.gz`. That of a torch task is one of `torch.profiler`. The loop's
    actions stand in it under their names. Before the window opens and when it closes, the loop waits for the device
    once.

    Args:
      first_step: the window opens at the first call from this step on. Before that, programs are compiled and
        `steps_per_call` is chosen.
      steps: it closes after at least so many.
      operations: how many of the heaviest are shown.
    """

    def __init__(self, first_step: int = 100, steps: int = 20, operations: int = 10) -> None:
        super().__init__()
        self.first_step = first_step
        self.window = steps
        self.operations = operations
        self._directory: Path | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._opened_at: int | None = None
        self._tracing = False
        self._text = ""

    def start(self, directory: Path | None) -> None:
        """Begins a run; see `Profiler.start`."""
        super().start(directory)
        self._directory, self._opened_at, self._tracing, self._text = directory, None, False, ""

    def profile(self, action: str) -> AbstractContextManager[Any]:
        """Returns a context that stands in the trace, too."""
        times = super().profile(action)
        return _both(times, self.tracer.annotated(action)) if self._tracing else times

    def call(self, step: int, count: int, before: Any) -> AbstractContextManager[Any]:
        """Opens or closes the window before the call, if it is time; the call is marked as a step of the trace."""
        if self._tracing and self._opened_at is not None and step >= self._opened_at + self.window:
            self._close(step, before)
        elif self._opened_at is None and step >= self.first_step:
            self._open(step, before)
        times = super().call(step, count, before)
        return _both(times, self.tracer.step(step)) if self._tracing else times

    def finish(self) -> None:
        """Ends the run, and the window where it is still open."""
        if self._tracing:
            self._close(self._steps, None)
        elif self._running and self._opened_at is None:
            self._text = (
                f"No trace: the run ended before step {self.first_step}, where it was to begin; "
                "write profiler=lightjax.profiler.JaxProfiler(first_step=0)."
            )
        super().finish()

    def report(self) -> str:
        """Returns the table, and what the trace says."""
        return f"{super().report()}\n\n{self._text}"

    def _open(self, step: int, before: Any) -> None:
        with self.profile("profiler"):
            self.tracer.wait(before)
            if self._directory is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="lightjax_trace_")
            self.tracer.start(self._folder())
        self._opened_at, self._tracing = step, True

    def _close(self, step: int, before: Any) -> None:
        self._tracing = False
        with self.profile("profiler"):
            self.tracer.wait(before)
            place, text = self.tracer.stop(self._folder(), self.operations)
            where = f"trace: {place}" if self._temporary is None else "the run has no directory: not kept"
            self._text = f"Trace of steps {self._opened_at} to {step} ({where})\n{text}"
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None

    def _folder(self) -> Path:
        return self._directory or Path(self._temporary.name if self._temporary else ".")


@contextmanager
def _both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
