"""Gauges: how fast a training runs and how much memory it takes, for the loggers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from lightjax.history import Report
from lightjax.progress.clock import StepClock

# Looking takes 10 to 30 us; where every step is reported, that is too much for each.
LEAST_S = 0.5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Gauges:
    """Measures `steps_per_s`, `examples_per_s` and memory beside the reports of training, twice a second at most.

    Speed is that of the steps between two looks; compiling and evaluating do not count. Memory is what the first device
    says of itself (`device_memory_bytes`; CPUs say nothing) and what the process holds (`host_memory_bytes`). Nothing
    waits for the device. The loggers get these numbers; results and checkpoints do not, since no two runs have the
    same.

    Args:
      examples: in a batch, None where nobody knows.
    """

    def __init__(self, examples: int | None) -> None:
        self.examples = examples
        self.clock = StepClock(time.perf_counter)
        self._looked_s = float("-inf")

    def beside(
        self, read: Callable[[], Iterable[Report]], step: int, batches: int, rows: Mapping[str, jax.Array]
    ) -> Callable[[], Iterator[Report]] | Callable[[], Iterable[Report]]:
        """Measures now, and puts the numbers beside the last of the reports that will be read.

        Args:
          read: reads reports.
          step: steps done.
          batches: in a step.
          rows: something on the devices.
        """
        now_s, mark = time.perf_counter(), self.clock.mark()
        first = mark is None
        if not first and now_s - self._looked_s < LEAST_S and self._looked_s > 0:
            return read
        self.clock.tick(step)
        if first:
            return read
        self._looked_s = now_s
        values = self._memory(rows)
        if rate := self.clock.rate(since=mark):
            values["steps_per_s"] = rate
            if self.examples is not None:
                values["examples_per_s"] = rate * batches * self.examples

        def read_with_gauges() -> Iterator[Report]:
            *before, last = read()
            yield from before
            yield last._replace(gauges=values)

        return read_with_gauges

    def _memory(self, rows: Mapping[str, Any]) -> dict[str, float]:
        values = {}
        device = next((one for leaf in rows.values() for one in leaf.sharding.addressable_devices), None)
        if device is not None and (stats := device.memory_stats()) and "bytes_in_use" in stats:
            values["device_memory_bytes"] = float(stats["bytes_in_use"])
        try:
            with open("/proc/self/statm") as file:
                values["host_memory_bytes"] = float(int(file.read().split()[1]) * PAGE_BYTES)
        except OSError:
            pass  # no Linux: the number is left out
        return values
