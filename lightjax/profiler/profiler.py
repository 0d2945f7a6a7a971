"""Profiler: notes where a run spends its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from lightjax.profiler.times import Action, Times
from lightjax.profiler.tracer import JaxTracer, Tracer

Item = TypeVar("Item")


class Profiler:
    """Notes how long each action of a run takes, on the host's clock; nothing waits for the device because of it.

    Every training has one: what it costs is about 3 us a call. This one prints nothing; the others are subclasses that
    print, or look closer. Actions may be nested; the time of the inner one does not count for the outer one. Other
    threads may note actions of their own, which run beside those of the loop.

    Since the loop lets only a few calls wait for the devices, the time it waits for the oldest of them is the time in
    which the devices are the slowest part.

    Attributes:
      tracer: of the library that runs the steps; set by the trainer before `start`.

    Example:
      >>> profiler = Profiler()
      >>> profiler.start(None)
      >>> with profiler.profile("outer"):
      ...     with profiler.profile("inner"):
      ...         pass
      >>> sorted(action.name for action in profiler.times().actions)
      ['inner', 'outer', 'rest']
    """

    def __init__(self) -> None:
        self.tracer: Tracer = JaxTracer()
        self._begin()

    def _begin(self) -> None:
        self._begun_s = self._ended_s = time.perf_counter()
        self._running = False
        self._accounts: list[_Account] = []
        self._local = threading.local()
        self._own = self._account()
        self._steps = self._calls = self._idle_calls = 0

    def start(self, directory: Path | None) -> None:
        """Begins a run, on the thread of its loop.

        Args:
          directory: of the run; None for a run without files.
        """
        self._begin()
        self._running = True

    def profile(self, action: str) -> AbstractContextManager[Any]:
        """Returns a context whose time is that of an action; callbacks may name actions of their own."""
        account = getattr(self._local, "account", None) or self._account()
        return account.notes.get(action) or account.add(action)

    def each(self, action: str, items: Iterable[Item]) -> Iterator[Item]:
        """Passes items on, noting how long each takes to come."""
        iterator, done = iter(items), object()
        while True:
            with self.profile(action):
                item = next(iterator, done)
            if item is done:
                return
            yield item  # pyright: ignore[reportReturnType]

    def call(self, step: int, count: int, before: Any) -> AbstractContextManager[Any]:
        """Returns a context for the start of a compiled call of train steps.

        Args:
          step: steps done before.
          count: steps of the call.
          before: what the call before returned, on the devices; None for the first.
        """
        self._calls += 1
        self._steps += count
        synchronous = self.tracer.synchronous
        if before is not None and (synchronous or self.tracer.finished(before)):
            self._idle_calls += 1
        return self.profile("device" if synchronous else "dispatch")

    def finish(self) -> None:
        """Ends the run; may be called twice."""
        if self._running:
            self._ended_s = time.perf_counter()
            self._running = False

    def times(self) -> Times:
        """Returns where the time went so far."""
        seconds = (time.perf_counter() if self._running else self._ended_s) - self._begun_s
        own = [note.action() for note in list(self._own.notes.values())]
        rest = max(0.0, seconds - sum(one.seconds for one in own))
        beside: dict[str, Action] = {}
        for account in self._accounts:
            if account is not self._own:
                for one in [note.action() for note in list(account.notes.values())]:
                    known = beside.get(one.name, Action(one.name, 0.0, 0))
                    beside[one.name] = Action(one.name, known.seconds + one.seconds, known.calls + one.calls)
        return Times(
            seconds, (*own, Action("rest", rest, 0)), tuple(beside.values()), self._steps, self._calls, self._idle_calls
        )

    def report(self) -> str:
        """Returns what is to be printed at the end; "" for nothing."""
        return ""

    def _account(self) -> _Account:
        self._local.account = account = _Account()
        self._accounts.append(account)
        return account


class _Account:
    """The actions of one thread."""

    def __init__(self) -> None:
        self.notes: dict[str, _Note] = {}
        self.stack: list[_Note] = []
        self.mark_s = 0.0

    def add(self, name: str) -> _Note:
        note = self.notes[name] = _Note(name, self)
        return note


class _Note:
    """The time of one action in one thread; entered again and again, also inside of itself."""

    __slots__ = ("_account", "_calls", "_name", "_now", "_seconds")

    def __init__(self, name: str, account: _Account, now: Callable[[], float] = time.perf_counter) -> None:
        self._name = name
        self._account = account
        self._seconds = 0.0
        self._calls = 0
        self._now = now

    def __enter__(self) -> None:
        account, now_s = self._account, self._now()
        if account.stack:
            account.stack[-1]._seconds += now_s - account.mark_s
        account.stack.append(self)
        account.mark_s = now_s
        self._calls += 1

    def __exit__(self, *_: object) -> None:
        account, now_s = self._account, self._now()
        account.stack.pop()
        self._seconds += now_s - account.mark_s
        account.mark_s = now_s

    def action(self) -> Action:
        return Action(self._name, self._seconds, self._calls)
