"""History: every number a run reports, in the order of its steps, read from the device late."""

from __future__ import annotations

import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np

from lightjax.profiler.profiler import Profiler

HISTORY_FILE = "history.jsonl"


class Report(NamedTuple):
    """Numbers that belong to one step.

    Attributes:
      step: the step.
      epoch: its epoch.
      values: metrics by name.
      gauges: what the machine says beside them: for the sink alone.
    """

    step: int
    epoch: int
    values: Mapping[str, Any]
    gauges: Mapping[str, float] = MappingProxyType({})


class Sink(Protocol):
    """Where reports go besides the history: the loggers."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        ...


class History:
    """Keeps reports as rows and passes them on.

    Numbers on the device are promised with `promise` and read when those of a later step are promised, when they have
    long been computed, or at once by `settle`.

    Attributes:
      rows: one dict a step, `{"step", "epoch", name: value...}`.
      latest: the newest value of each name.
      reported_at: the step at which each name was reported last.
      reports: how many reports there were.
      file: where they are kept.

    Args:
      sink: gets the scalars of every report.
      file: keeps the reports for a run that is resumed, one line of JSON each; None for nowhere.
      profiler: notes how long reading and passing on take.
      of_training: whether reports belong to epochs; the sink is not told one that an evaluation alone does not know.
    """

    def __init__(
        self, sink: Sink, file: Path | None = None, profiler: Profiler | None = None, *, of_training: bool = True
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.latest: dict[str, Any] = {}
        self.reported_at: dict[str, int] = {}
        self.reports = 0
        self.file = file
        self._sink = sink
        self._profiler = profiler or Profiler()
        self._of_training = of_training
        self._unwritten: list[Report] = []
        self._promised: deque[tuple[int, Callable[[], Iterable[Report]]]] = deque()

    def promise(self, step: int, read: Callable[[], Iterable[Report]]) -> None:
        """Takes a function that reads reports from the device, to be called when a later step promises."""
        while self._promised and self._promised[0][0] < step:
            self._read()
        self._promised.append((step, read))

    def settle(self) -> None:
        """Reads everything promised; waits for the device."""
        while self._promised:
            self._read()

    def write(self) -> None:
        """Brings the reports so far to the file."""
        if self.file is not None and self._unwritten:
            lines = [
                json.dumps([step, epoch, {name: np.asarray(value).tolist() for name, value in values.items()}])
                for step, epoch, values, _ in self._unwritten
            ]
            with open(self.file, "ab", buffering=0) as file:
                whole = file.tell()
                try:
                    file.write(("\n".join(lines) + "\n").encode())
                except OSError:
                    file.truncate(whole)  # half a line would spoil what is written after it
                    raise
        self._unwritten.clear()

    def restore(self, reports: int, file: Path | None = None) -> None:
        """Takes the first `reports` reports back from the file and forgets those after them; nothing is passed on.

        Args:
          reports: how many.
          file: of another run, which is left as it is: its reports become those of this one.
        """
        source = file or self.file
        if source is None or not source.exists():
            return
        with source.open("rb") as lines:
            kept = list(itertools.islice(lines, reports))
        for line in kept:
            step, epoch, values = json.loads(line)
            arrays = {name: np.asarray(value) if isinstance(value, list) else value for name, value in values.items()}
            self._keep(Report(step, epoch, arrays))
            if source != self.file:
                self._unwritten.append(Report(step, epoch, arrays))
        if source == self.file:
            os.truncate(source, sum(map(len, kept)))

    def _read(self) -> None:
        with self._profiler.profile("device"):
            reports = list(self._promised.popleft()[1]())
        for report in reports:
            self._add(report)

    def _add(self, report: Report) -> None:
        self._keep(report)
        self._unwritten.append(report)
        scalars = {name: value for name, value in report.values.items() if isinstance(value, float)}
        epoch = {"epoch": report.epoch} if self._of_training else {}
        with self._profiler.profile("logging"):
            self._sink.log_metrics(report.step, {**epoch, **scalars, **report.gauges})

    def _keep(self, report: Report) -> None:
        step, epoch, values, _ = report
        self.reports += 1
        if not (self.rows and self.rows[-1]["step"] == step and self.rows[-1]["epoch"] == epoch):
            self.rows.append({"step": step, "epoch": epoch})
        self.rows[-1].update(values)
        self.latest.update(values)
        self.reported_at.update(dict.fromkeys(values, step))
