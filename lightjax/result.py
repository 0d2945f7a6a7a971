"""FitResult: what a training leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lightjax.checkpoint import Checkpoints

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
    """

    state: State
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    checkpoint: Checkpoints
    stopped_by: str
    directory: Path | None

    @property
    def exit_code(self) -> int:
        """What a program should end with, `sys.exit(result.exit_code)`, so that its scheduler knows whether it is done.

        75 (`EX_TEMPFAIL`, "try again later") after a preemption, 130 after Ctrl-C, 0 otherwise.
        """
        return {"preempted": 75, "interrupt": 130}.get(self.stopped_by, 0)
