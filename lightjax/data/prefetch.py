"""Prefetch: the next stretches are made and placed while the present one runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")

# One stretch being made, one waiting, while one runs: more only holds memory.
DEPTH = 2
_END: Any = object()


class Prefetch(Generic[Item]):
    """Runs an iterator in a thread and hands its items over, a few ahead.

    An error of the iterator is raised where its item would have come, with the traceback it had. Leaving the context
    ends the thread; it is a daemon, so that one stuck in a loader does not keep the process from ending.

    Args:
      items: the iterator, used by the thread alone from here on.
      depth: items made ahead.

    Example:
      >>> with Prefetch(iter(range(3))) as items:
      ...     list(items)
      [0, 1, 2]
    """

    def __init__(self, items: Iterator[Item], depth: int = DEPTH) -> None:
        self._items = items
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lightjax-prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        self._thread.join(timeout=5.0)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item, error = self._ready.get()
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._hand_over(item, None):
                    return
            self._hand_over(_END, None)
        except BaseException as error:  # whatever it is, the consumer has to see it
            self._hand_over(_END, error)

    def _hand_over(self, item: Any, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False
