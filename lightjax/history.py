"""History: every number a run reports, in the order of its steps, read from the device late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol


class Report(NamedTuple):
    """Numbers that belong to one step."""

    step: int
    epoch: int
    values: Mapping[str, Any]


class Sink(Protocol):
    """Where reports go besides the history: the loggers."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        ...


class History:
    """Keeps reports as rows and passes them on.

    Numbers on the device are promised with `promise` and read when the next ones are promised, when by then they have
    long been computed, or at once by `settle`.

    Attributes:
      rows: one dict a step, `{"step", "epoch", name: value...}`.
      latest: the newest value of each name.
      reported_at: the step at which each name was reported last.

    Args:
      sink: gets the scalars of every report.
    """

    def __init__(self, sink: Sink) -> None:
        self.rows: list[dict[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self.reported_at: dict[str, int] = {}
        self._sink = sink
        self._promised: deque[Callable[[], Iterable[Report]]] = deque()

    def promise(self, read: Callable[[], Iterable[Report]]) -> None:
        """Takes a function that reads reports from the device, to be called one promise later."""
        self.settle()
        self._promised.append(read)

    def settle(self) -> None:
        """Reads everything promised; waits for the device."""
        while self._promised:
            for report in self._promised.popleft()():
                self._add(report)

    def add(self, report: Report) -> None:
        """Adds numbers that are on the host, after everything promised before."""
        self.settle()
        self._add(report)

    def _add(self, report: Report) -> None:
        step, epoch, values = report
        if not (self.rows and self.rows[-1]["step"] == step and self.rows[-1]["epoch"] == epoch):
            self.rows.append({"step": step, "epoch": epoch})
        self.rows[-1].update(values)
        self.latest.update(values)
        self.reported_at.update(dict.fromkeys(values, step))
        scalars = {name: value for name, value in values.items() if isinstance(value, float)}
        self._sink.log_metrics(step, {"epoch": epoch} | scalars)
