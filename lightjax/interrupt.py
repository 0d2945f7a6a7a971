"""Interrupt: a signal ends a run between two calls, never inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

# What a scheduler sends before it takes the machine away: SLURM sends SIGTERM, or SIGUSR1 where --signal asks for it.
REASONS = {signal.SIGINT: "interrupt", signal.SIGTERM: "preempted"}
if hasattr(signal, "SIGUSR1"):  # not on Windows
    REASONS[signal.SIGUSR1] = "preempted"


class Interrupt:
    """While entered, the first Ctrl-C, SIGTERM or SIGUSR1 is remembered, and the second raises `KeyboardInterrupt`.

    Outside of the main thread, where Python allows no signal handlers, it does nothing.

    Attributes:
      reason: "interrupt" or "preempted" once a signal has come, else None.
      steps_run: whether there is something to finish; before, a person's first Ctrl-C ends the program as ever, while a
        scheduler's signal is remembered.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.steps_run = False
        self._previous: dict[signal.Signals, Any] = {}

    def requested(self) -> bool:
        """Says whether a signal has come."""
        return self.reason is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in REASONS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested() or (number == signal.SIGINT and not self.steps_run):
            raise KeyboardInterrupt
        self.reason = REASONS[signal.Signals(number)]
