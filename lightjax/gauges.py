"""Gauges: the learning rate, how fast a training runs and how much memory it takes, for the loggers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from lightjax.errors import ConfigurationError
from lightjax.history import Report
from lightjax.learning_rate import named_learning_rates
from lightjax.progress.clock import StepClock
from lightjax.train_states import train_states

# Looking takes 10 to 30 us; where every step is reported, that is too much for each.
LEAST_S = 0.5
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Gauges:
    """Measures `steps_per_s`, `examples_per_s`, memory and `learning_rate` beside the reports of training.

    Twice a second at most. The learning rate is that of any optax schedule or injected hyperparameter, read late.

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
        self._rates: Callable[[Any], dict[str, jax.Array]] | None = None

    def beside(
        self,
        read: Callable[[], Iterable[Report]],
        step: int,
        batches: int,
        state: Any,
        own: Callable[[], Mapping[str, Any]] = dict,
    ) -> Callable[[], Iterator[Report]] | Callable[[], Iterable[Report]]:
        """Measures now, and puts the numbers beside the last of the reports that will be read.

        Args:
          read: reads reports.
          step: steps done.
          batches: in a step.
          state: after this step.
          own: what the engine measures itself.
        """
        now_s, mark = time.perf_counter(), self.clock.mark()
        first = mark is None
        if not first and now_s - self._looked_s < LEAST_S and self._looked_s > 0:
            return read
        self.clock.tick(step)
        if first:
            with self.clock.excluded():
                self._learning_rates(state)  # compiled now, while all is
            return read
        self._looked_s = now_s
        values = self._memory(state)
        if rate := self.clock.rate(since=mark):
            values["steps_per_s"] = rate
            if self.examples is not None:
                values["examples_per_s"] = rate * batches * self.examples

        rates, measured = self._learning_rates(state), own()

        def read_with_gauges() -> Iterator[Report]:
            *before, last = read()
            yield from before
            found = {name: float(rate) for name, rate in {**jax.device_get(rates), **measured}.items()}
            yield last._replace(gauges=values | found)

        return read_with_gauges

    def _learning_rates(self, state: Any) -> dict[str, jax.Array]:
        if self._rates is None:
            self._rates = jax.jit(named_learning_rates)
            try:
                jax.eval_shape(named_learning_rates, state)
            except ConfigurationError:
                self._rates = lambda state: {}  # nobody can tell; LearningRateMonitor says why
        return self._rates(state) if train_states(state) else {}

    def _memory(self, state: Any) -> dict[str, float]:
        values = {}
        leaves = [leaf for leaf in jax.tree.leaves(state)[:1] if isinstance(leaf, jax.Array)]
        device = next((one for leaf in leaves for one in leaf.sharding.addressable_devices), None)
        if device is not None and (stats := device.memory_stats()) and "bytes_in_use" in stats:
            values["device_memory_bytes"] = float(stats["bytes_in_use"])
        try:
            with open("/proc/self/statm") as file:
                values["host_memory_bytes"] = float(int(file.read().split()[1]) * PAGE_BYTES)
        except OSError:
            pass  # no Linux: the number is left out
        return values
