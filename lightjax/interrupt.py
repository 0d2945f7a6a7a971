"""Interrupt: a signal ends a run between two calls, never inside one."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

import jax

# What a scheduler sends before it takes the machine away: SLURM sends SIGTERM, or SIGUSR1 where --signal asks for it.
REASONS = {signal.SIGINT: "interrupt", signal.SIGTERM: "preempted"}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    REASONS[signal.SIGUSR1] = "preempted"


class Interrupt:
    """While entered, the first Ctrl-C, SIGTERM or SIGUSR1 is remembered, and the second raises `KeyboardInterrupt`.

    Of several processes, none may stop alone: the others would wait for it. There SIGTERM stays with jax, whose service
    agrees on one `poll` at which all of them stop, and the other signals are passed on to it.

    Outside of the main thread, where Python allows no signal handlers, it does nothing.

    Attributes:
      reason: "interrupt" or "preempted" once a signal has come, else None.
      steps_run: whether there is something to finish; before, a person's first Ctrl-C ends the program as ever, while a
        scheduler's signal is remembered.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.steps_run = False
        self._together = jax.process_count() > 1
        self._polls = 0
        self._passed_on = False
        self._previous: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Says whether a signal has come."""
        return self.reason is not None

    def poll(self) -> bool:
        """Says whether a signal has come; of several processes, each has to ask equally often."""
        if self._together and self.reason is None:
            from jax.experimental import multihost_utils

            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.reason = "preempted"
        return self.requested()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in REASONS if not (self._together and number == signal.SIGTERM)]
            self._previous = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested() or self._passed_on or (number == signal.SIGINT and not self.steps_run):
            raise KeyboardInterrupt
        if self._together:
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.reason = REASONS[signal.Signals(number)]
