"""SimpleProfiler: the time of each action, and a verdict."""

from __future__ import annotations

from lightjax.profiler.profiler import Profiler
from lightjax.profiler.verdict import verdict


class SimpleProfiler(Profiler):
    """Prints at the end how long each action took, and in words what the run waits for and what helps.

    `Trainer(profiler="simple")`.

    Example:
      >>> profiler = SimpleProfiler()
      >>> profiler.start(None)
      >>> with profiler.profile("data"):
      ...     pass
      >>> profiler.finish()
      >>> "waiting for data" in profiler.report()
      True
    """

    def report(self) -> str:
        """Returns the table and the verdict."""
        times = self.times()
        return f"{times.table()}\n{verdict(times, self.tracer.advice).text}"
