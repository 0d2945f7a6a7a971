"""Prefetch: the next stretches are made and placed while the present one runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Self, TypeVar

import jax
import numpy as np

Item = TypeVar("Item")

# One stretch being made, one waiting, while one runs: more only holds memory.
DEPTH = 2
POLL_S = 0.1
LONGEST_JOIN_S = 5.0
_END: Any = object()


def read_ahead(
    items: Iterator[Item], ahead: bool, stop: Callable[[], bool] = lambda: False
) -> AbstractContextManager[Iterable[Item]]:
    """Returns a context whose value is an iterator, made ahead in a thread or as it is.

    Args:
      items: the iterator.
      ahead: whether a thread runs it.
      stop: ends the iteration of a thread, see `Prefetch`.
    """
    return Prefetch(items, stop=stop) if ahead else nullcontext(items)


class Prefetch(Generic[Item]):
    """Runs an iterator in a thread and hands its items over, a few ahead.

    An error of the iterator is raised where its item would have come, with the traceback it had. Leaving the context
    ends the thread; it is a daemon, so that one stuck in a loader does not keep the process from ending.

    Args:
      items: the iterator, used by the thread alone from here on.
      depth: items made ahead.
      stop: asked while waiting for an item; True ends the iteration, however long the item takes.

    Example:
      >>> with Prefetch(iter(range(3))) as items:
      ...     list(items)
      [0, 1, 2]
    """

    def __init__(self, items: Iterator[Item], depth: int = DEPTH, stop: Callable[[], bool] = lambda: False) -> None:
        self._items = items
        self._stop = stop
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        # `with jax.enable_x64(True):` holds for the thread it was written in: floats would arrive in 32 bits.
        self._x64 = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        self._thread = threading.Thread(target=self._work, name="lightjax-prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        # A thread that waits for a loader nobody wants any more is left to die with the process.
        self._thread.join(timeout=0.0 if self._stop() else LONGEST_JOIN_S)

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        while True:
            try:
                item, error = self._ready.get(timeout=POLL_S)
                break
            except queue.Empty:
                if self._stop():
                    raise StopIteration from None
        if error is not None:
            raise error
        if item is _END:
            raise StopIteration
        return item

    def _work(self) -> None:
        try:
            with jax.enable_x64(self._x64):
                for item in self._items:
                    if not self._hand_over(item, None):
                        return
            self._hand_over(_END, None)
        except BaseException as error:  # whatever it is, the consumer has to see it
            self._hand_over(_END, error)

    def _hand_over(self, item: Any, error: BaseException | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put((item, error), timeout=POLL_S)
            except queue.Full:
                continue
            return True
        return False
