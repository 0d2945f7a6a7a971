"""FitResult: what a training leaves behind."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightjax.checkpoint import Checkpoints
from lightjax.profiler.times import Times

State = TypeVar("State")


@dataclass(frozen=True)
class FitResult(Generic[State]):
    """The outcome of `Trainer.fit`.

    Attributes:
      state: the state after the last step, on the device.
      metrics: the newest value of every metric, Python floats by name.
      history: one row a step at which something was reported, `{"step", "epoch", name: value...}`.
      checkpoint: `.best` and `.last`, each None in a run without checkpoints.
      stopped_by: why the run ended: "max_epochs", "max_steps", "early_stopping: ...", "interrupt", "preempted".
      directory: where the run's files are; None for a run without files.
      times: where the time went.
    """

    state: State
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    checkpoint: Checkpoints
    stopped_by: str
    directory: Path | None
    times: Times

    @property
    def exit_code(self) -> int:
        """What a program should end with, `sys.exit(result.exit_code)`, so that its scheduler knows whether it is done.

        75 (`EX_TEMPFAIL`, "try again later") after a preemption, 130 after Ctrl-C, 0 otherwise.
        """
        return {"preempted": 75, "interrupt": 130}.get(self.stopped_by, 0)

    def plot(self, path: str | os.PathLike[str] | None = None, names: Sequence[str] | None = None) -> Any:
        """Draws what was reported: a chart for each quantity, of all stages.

        Args:
          path: a file to write: `.html` for a page that needs nothing else, or `.png`, `.svg`, `.pdf`.
          names: quantities ("loss") or metrics ("val/loss") to show; all when None.

        Returns:
          The path; without one, a matplotlib `Figure` (notebooks show it).

        Raises:
          ConfigurationError: there is nothing to draw, or the file has another ending.
          ModuleNotFoundError: matplotlib, which pages do not need, is not installed.
        """
        from lightjax.report.record import Life, Record, series_of
        from lightjax.report.writing import write

        name = "run" if self.directory is None else self.directory.name
        life = Life(self.stopped_by, self.history[-1]["step"] if self.history else 0, self.times)
        record = Record(name, series_of(self.history), lives=[life])
        return write([record], path, names)
