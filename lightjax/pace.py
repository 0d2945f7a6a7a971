"""Pace: how many steps run in one compiled call, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import jax

from lightjax import _tree, distributed
from lightjax.callbacks.callback import Callback
from lightjax.data.stretch import STACK_BYTES

# On the CPU a call allocates its temporary memory anew: a GPT step of 108 ms takes 77 ms in calls of 4.
CPU_STEPS = 8
CPU_SAVED_SHARE = 0.2
# A longer call would keep Ctrl-C, time limits and the progress bar waiting.
LONGEST_CALL_S = 1.0
# A call of 5 ms hides the 0.1 to 0.2 ms of host work that starting it takes.
CALL_S = 5e-3
# Host work that a fused step saves, on the CPU and on accelerators: on an H200 a call of one step of an MLP takes
# 0.54 ms, a step in calls of 16 takes 0.13 ms.
SAVED_S = 1.5e-4
ACCELERATOR_SAVED_S = 4e-4
WARM_UP_STEPS = 2
# At least; ten times as many while steps are so short that something else easily disturbs them.
MEASURED_STEPS = 5
# Starting a call is part of the time of a single step, and of a short one's nearly all: a linear model's steps take
# 0.25 ms one by one, 50 us in calls of 32 and 17 us in calls of 256. So much of it is taken for work at least.
LEAST_WORK = 0.1
# What is added for that stays small: an MLP gains nothing from stacks of 2 MB, and holds 100 MB more.
ADDED_BYTES = 2**20
LONGEST = 256


class Pace:
    """Chooses `steps_per_call`.

    With "auto", the first steps of the run are timed one by one; they are ordinary steps, since how steps are cut never
    changes a number. Then as many are fused as make a call long enough to hide its start (on the CPU also as many as
    save allocations), unless that cannot be, or the run is too short to win back another compilation.

    Args:
      wanted: "auto", or a number that is kept.
      loops: whether the step can run in a loop.
      callbacks: whose looks bound a call.
      batch: shapes of a batch.
      epoch_steps: steps of an epoch, None where unknown.
      total_steps: steps of the run, None where unknown.
      on_cpu: whether steps run on the CPU.

    Steps that cannot loop are calls of their own. Their batches are moved to the device several at a time, which hides
    the start of the calls as well; one program serves however many.

    Attributes:
      steps: steps of a stretch at most.
      capacity: room for steps in a stretch.
      reason: why, in words.
      measuring: whether steps are still being timed.
    """

    def __init__(
        self,
        wanted: int | Literal["auto"],
        *,
        loops: bool,
        callbacks: Sequence[Callback],
        batch: Any,
        epoch_steps: int | None,
        total_steps: int | None,
        on_cpu: bool,
    ) -> None:
        self._loops = loops
        self._on_cpu = on_cpu
        self._automatic = wanted == "auto"
        self._total_steps = total_steps
        self._times_s: list[float] = []
        self._waits_s: list[float] = []
        self.measuring = False
        self.steps = self.capacity = 1
        closest = min((callback for callback in callbacks if callback.steps_between_looks()), key=_period, default=None)
        batch_bytes = max(1, _tree.size_in_bytes(batch))
        self._room = max(1, ADDED_BYTES // batch_bytes)
        self._bounds = [
            (LONGEST, "longer calls gain nothing"),
            (max(1, STACK_BYTES // batch_bytes), f"a batch has {batch_bytes / 1e6:.3g} MB"),
        ]
        if epoch_steps is not None:
            self._bounds.append((epoch_steps, f"an epoch has {epoch_steps} steps"))
        if closest is not None:
            self._bounds.append((_period(closest), f"{type(closest).__name__} looks every {_period(closest)} steps"))
        if closest is not None and _period(closest) == 1:
            self.reason = f"{type(closest).__name__} looks at every step"
        elif not loops:
            self.reason = "convolutions run faster outside of a loop on the CPU"
            self.capacity = min(CPU_STEPS if wanted == "auto" else wanted, *(most for most, _ in self._bounds))
            self.measuring = self.capacity > 1
        elif not isinstance(wanted, int) and not distributed.is_alone():
            self.reason = "several processes would each measure another time; give a number to fuse steps"
        elif isinstance(wanted, int):
            self.steps = self.capacity = min(wanted, epoch_steps or wanted)
            self.reason = "as asked for"
        else:
            self.reason = "measuring"
            self.measuring = True

    def __str__(self) -> str:
        """Returns the choice with its reason, for people."""
        steps, choice = self.steps if self._loops else 1, "auto: " if self._automatic else ""
        return f"steps_per_call={steps} ({choice}{self.reason})"

    def observe(self, begun_s: float, output: Any, steps_done: int, compile_s: float) -> bool:
        """Times a call of one step, waiting for it; chooses after enough of them.

        Args:
          begun_s: `time.perf_counter()` before the call.
          output: something it returned.
          steps_done: steps of the run done.
          compile_s: what compiling the step took.

        Returns:
          Whether it has chosen now.
        """
        started_s = time.perf_counter()
        jax.block_until_ready(output)
        ended_s = time.perf_counter()
        self._times_s.append(ended_s - begun_s)
        self._waits_s.append(ended_s - started_s)
        measured = self._times_s[WARM_UP_STEPS:]
        step_s = min(measured, default=0.0)
        if len(measured) < MEASURED_STEPS * (1 if step_s >= CALL_S else 10):
            return False
        self.measuring = False
        if not self._loops:
            self.steps = max(1, min(self.capacity, _longest(step_s)))
            self.reason += f"; batches are moved {self.steps} at a time"
            return True
        left = None if self._total_steps is None else max(0, self._total_steps - steps_done)
        took = f"{step_s * 1e3:.3g} ms a step"
        dispatch_bound = step_s < CALL_S
        work_s = max(min(self._waits_s[WARM_UP_STEPS:]), LEAST_WORK * step_s)
        needed = 1
        if dispatch_bound:
            added = min(_power_of_two(CALL_S / work_s), 1 << self._room.bit_length() - 1)
            needed = max(_power_of_two(CALL_S / step_s), added)
        saved_s = min(SAVED_S if self._on_cpu else ACCELERATOR_SAVED_S, step_s) if dispatch_bound else 0.0
        why = "dispatch-bound" if dispatch_bound else "dispatch is hidden"
        if self._on_cpu and needed < CPU_STEPS:
            needed = min(CPU_STEPS, _longest(step_s))
            saved_s = max(saved_s, CPU_SAVED_SHARE * step_s)
            why = "longer calls allocate less often"
        steps, bound = min([(needed, ""), *self._bounds], key=lambda bound: bound[0])
        if steps <= 1:
            self.reason = f"{took}, {bound or why}"
        elif left is not None and left * saved_s < compile_s:
            self.reason = f"{took}, but {left} more steps are too few to win back a compilation of {compile_s:.2g} s"
        else:
            self.steps = self.capacity = steps
            self.reason = f"{took}, {why}{f'; {bound}' if bound else ''}"
        return True


def _longest(step_s: float) -> int:
    """Returns how many steps keep nobody waiting, 0 where one already does."""
    return _power_of_two(LONGEST_CALL_S / step_s) // 2


def _power_of_two(least: float) -> int:
    """Returns the smallest power of two that is not below a number, 1 at least."""
    return 1 << max(0, math.ceil(least) - 1).bit_length()


def _period(callback: Callback) -> int:
    return callback.steps_between_looks() or 0
