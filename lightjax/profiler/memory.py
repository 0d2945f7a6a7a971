"""MemoryProfiler: what lies in the devices' memory."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightjax.profiler.profiler import Profiler
from lightjax.summary import format_bytes


class MemoryProfiler(Profiler):
    """Looks at the devices' memory at one step, and writes a profile of it.

    The largest groups of arrays that live are printed, and what each device says of itself: its peak, and its limit
    (CPUs say nothing). `memory.prof` in the run's directory has every allocation with the Python lines that made it,
    for `pprof`; of a torch task the tensors that Python holds are listed, and no file is written.

    Args:
      step: the first step at which to look; what compiling the first one needs is gone by then.
      groups: shown of the arrays, of equal shape and type each.
    """

    def __init__(self, step: int = 10, groups: int = 10) -> None:
        super().__init__()
        self.step = step
        self.groups = groups
        self._directory: Path | None = None
        self._text = ""

    def start(self, directory: Path | None) -> None:
        """Begins a run; see `Profiler.start`."""
        super().start(directory)
        self._directory, self._text = directory, ""

    def call(self, step: int, count: int, before: Any) -> AbstractContextManager[Any]:
        """Looks before the call, if it is time."""
        if step >= self.step and not self._text:
            self._look(step)
        return super().call(step, count, before)

    def finish(self) -> None:
        """Ends the run; a run that was too short is looked at here."""
        if self._running and not self._text:
            self._look(self._steps)
        super().finish()

    def report(self) -> str:
        """Returns what was found."""
        return self._text

    def _look(self, step: int) -> None:
        sizes: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for held in self.tracer.held():
            sizes[held.kind] += held.bytes
            counts[held.kind] += 1
        lines = [f"Memory at step {step}: {format_bytes(sum(sizes.values()))} in {sum(counts.values()):,} arrays"]
        for name, size in sizes.most_common(self.groups):
            lines.append(f"  {format_bytes(size):>8}  {counts[name]:>4} of {name}")
        for device, stats in self.tracer.devices():
            used = "  ".join(
                f"{title} {format_bytes(stats[key])}"
                for title, key in (("now", "bytes_in_use"), ("peak", "peak_bytes_in_use"), ("limit", "bytes_limit"))
                if key in stats
            )
            lines.append(f"  {device}: {used}")
        if self._directory is not None and self.tracer.save_memory(file := self._directory / "memory.prof"):
            lines.append(f"  every allocation, for pprof: {file}")
        self._text = "\n".join(lines)
