"""OnExceptionCheckpoint: saves what an error leaves, in a run that saves nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lightjax.callbacks.callback import Callback
from lightjax.checkpoint import Checkpointer

if TYPE_CHECKING:
    from lightjax.run import Run


class OnExceptionCheckpoint(Callback):
    """Saves the state when an error ends the run, if the error did not take it.

    `ModelCheckpoint` does this as well; this one needs no other checkpoints. `fit(..., resume=directory)` goes on from
    it.

    Args:
      directory: where the checkpoint goes, as `step_N`.
    """

    every_n_steps = None

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = directory

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Saves the state, and waits until it is on disk."""
        if run.stage != "fit" or not isinstance(error, Exception) or not run.state_is_whole:
            return
        checkpointer = Checkpointer(self.directory)
        try:
            run.save_checkpoint(checkpointer)
        finally:
            checkpointer.close()
