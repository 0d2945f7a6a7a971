"""Background: a logger that is written from a thread, so that it can neither stop nor slow a training."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightjax.loggers.logger import RICH_METHODS, Logger

# Some seconds of reports. What does not fit is dropped: training never waits for a logger.
WAITING = 1000
# ClearML takes 11 s to close a run that is offline, on a machine with nothing else to do.
FINISH_S = 60.0


class Background:
    """Hands what is logged to another logger, from a thread of its own.

    A logger that raises is warned about once and goes on with the next call; one that is too slow loses what does not
    fit into the queue; one that hangs is left alone at the end. What was lost is counted and said at the end.

    The trainer puts every logger into one of these that does not say it is quick and local, `in_background = False`.

    Args:
      logger: any logger; it is called from the thread alone.
      waiting: calls that may wait.
      finish_s: seconds that `finish` waits for the logger at most.

    Attributes:
      dropped: calls that found the queue full.
      failed: calls that raised.

    Example:
      >>> class Broken:
      ...     def log_metrics(self, step, metrics): raise OSError("no network")
      ...     def log_hyperparams(self, params): pass
      ...     def finish(self): pass
      >>> logger = Background(Broken())
      >>> with warnings.catch_warnings(record=True) as caught:
      ...     warnings.simplefilter("always")
      ...     logger.log_metrics(1, {"loss": 0.5})
      ...     logger.finish()
      >>> logger.failed, "no network" in str(caught[0].message)
      (1, True)
    """

    def __init__(self, logger: Logger, waiting: int = WAITING, finish_s: float = FINISH_S) -> None:
        self.logger = logger
        self.finish_s = finish_s
        self.dropped = 0
        self.failed = 0
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(waiting)
        self._thread: threading.Thread | None = None
        self._ending = False
        self._error: Exception | None = None
        self._warned = False

    def start(self, run_dir: Path) -> None:
        """Passes it on; what can be checked at once (a missing package) is checked here.

        Raises:
          ModuleNotFoundError: the logger's client is not installed.
        """
        self.failed = self.dropped = 0
        self._error, self._warned = None, False
        check = getattr(self.logger, "check", None)
        if check is not None:
            check()
        if hasattr(self.logger, "start"):
            self._hand_over("start", run_dir)

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands metrics over; costs a few microseconds."""
        self._hand_over("log_metrics", step, dict(metrics))

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Hands hyperparameters over."""
        self._hand_over("log_hyperparams", dict(params))

    def __getattr__(self, name: str) -> Any:
        """Gives the rich methods that the logger has, handed over likewise."""
        if name not in (*RICH_METHODS, "resume") or not hasattr(self.logger, name):
            raise AttributeError(f"{type(self.logger).__name__} has no {name}")
        return lambda *arguments: self._hand_over(name, *arguments)

    def finish(self) -> None:
        """Waits until everything is logged, 60 s at most, and says what was lost."""
        if self._thread is None:
            return
        deadline_s = time.monotonic() + self.finish_s
        done = self._put("finish", wait_s=self.finish_s) and self.drained(deadline_s - time.monotonic())
        left = self._queue.unfinished_tasks
        # A thread that hangs ends once its logger has answered and the queue is empty.
        self._ending = True
        self._put("")  # wakes a thread that waits; where the queue is full, none does
        if done:
            self._thread.join()
            self._thread = None
        self._warn_of_error()
        lost = [
            f"{self.failed} calls failed" if self.failed > 1 else "",
            f"{self.dropped} calls were dropped, since it was too slow" if self.dropped else "",
            "" if done else f"it did not answer for {self.finish_s:.3g} s and was left with {left} calls",
        ]
        if any(lost):
            name = type(self.logger).__name__
            warnings.warn(f"{name} lost some of what was logged: {'; '.join(filter(None, lost))}.", stacklevel=2)

    def drained(self, timeout_s: float) -> bool:
        """Waits until the logger has taken everything; says whether it did in time."""
        with self._queue.all_tasks_done:
            return self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, max(0.0, timeout_s))

    def _hand_over(self, method: str, *arguments: Any) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._ending = False
            self._thread = threading.Thread(target=self._work, name="lightjax-logger", daemon=True)
            self._thread.start()
        self._warn_of_error()
        if not self._put(method, *arguments):
            self.dropped += 1

    def _put(self, method: str, *arguments: Any, wait_s: float = 0.0) -> bool:
        try:
            self._queue.put((method, arguments), block=wait_s > 0, timeout=wait_s)
        except queue.Full:
            return False
        return True

    def _warn_of_error(self) -> None:
        if self._error is not None and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self.logger).__name__} failed, and training goes on without what it was told: "
                f"{type(self._error).__name__}: {self._error}",
                stacklevel=4,
            )

    def _work(self) -> None:
        while not (self._ending and self._queue.empty()):
            method, arguments = self._queue.get()
            try:
                if not method:
                    continue
                getattr(self.logger, method)(*arguments)
            except Exception as error:
                self.failed += 1
                self._error = self._error or error
            finally:
                self._queue.task_done()


def in_background(logger: Logger) -> Logger:
    """Puts a logger into the background, unless it says that it is quick and local."""
    return logger if not getattr(logger, "in_background", True) else Background(logger)
