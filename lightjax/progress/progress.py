"""What a display of a run is, and the choice of one."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Protocol, TextIO

from lightjax.progress.bar import RichProgress
from lightjax.progress.output import is_terminal
from lightjax.progress.plain import NoProgress, PlainProgress

__all__ = ["Progress", "make_progress"]


class Progress(Protocol):
    """Shows a person how far a run is. The loop tells it what happens; it decides what to draw and when.

    Steps are counted over the whole run, epochs from 0 (and shown from 1). Totals may be None where nobody
    knows them. No method raises when the output is closed: training goes on without a display.
    """

    def start(self, *, step: int, max_steps: int | None, max_epochs: int | None) -> None:
        """Begins the display of a run.

        Args:
          step: the optimizer steps already done; above 0 after a resume.
          max_steps: the number of steps at which the run ends.
          max_epochs: the number of epochs at which the run ends.
        """
        ...

    def start_epoch(self, epoch: int, steps: int | None) -> None:
        """Begins an epoch.

        Args:
          epoch: its number, from 0.
          steps: how many steps it has in all, those before a resume included.
        """
        ...

    def due(self) -> bool:
        """Whether `update` would draw now; when not, its metrics are not looked at and may be empty."""
        ...

    def update(self, step: int, step_in_epoch: int, metrics: Mapping[str, float]) -> None:
        """Tells where the run is, after every compiled call. Costs under 2 us when nothing is due.

        Args:
          step: steps done in the run.
          step_in_epoch: steps done in this epoch.
          metrics: the latest values by name, as numbers on the host.
        """
        ...

    def excluded(self) -> AbstractContextManager[None]:
        """A context whose time is no training time: compiling, evaluating, saving. May be nested."""
        ...

    def start_evaluation(self, stage: str, batches: int | None) -> None:
        """Begins an evaluation; until `end_evaluation` no time counts as training time.

        Args:
          stage: what people call it, such as "val" or "test".
          batches: how many batches it has.
        """
        ...

    def update_evaluation(self, batches_done: int) -> None:
        """Tells how far the evaluation is. As cheap as `update`."""
        ...

    def end_evaluation(self, metrics: Mapping[str, float]) -> None:
        """Ends the evaluation, with its results."""
        ...

    def end_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Ends an epoch, after its evaluation.

        Args:
          epoch: its number, from 0.
          step: steps done in the run.
          metrics: the epoch's metrics; those of `end_evaluation` need not be repeated.
        """
        ...

    def print(self, text: str) -> None:
        """Writes text on lines of its own, above a bar if there is one. Works before and after a run too."""
        ...

    def close(self) -> None:
        """Ends the display and gives the terminal back. May be called twice, and without `start`."""
        ...


def make_progress(enabled: bool, file: TextIO | None = None) -> Progress:
    """Chooses the display for an output.

    Args:
      enabled: False for none at all.
      file: where to show it. None means standard output.

    Returns:
      A `RichProgress` for a terminal that can draw and for notebooks, else a `PlainProgress`; a
      `NoProgress` if not enabled.

    Example:
      >>> import io
      >>> type(make_progress(True, file=io.StringIO())).__name__
      'PlainProgress'
      >>> type(make_progress(False)).__name__
      'NoProgress'
    """
    if not enabled:
        return NoProgress(file, silent=True)
    terminal = is_terminal(sys.stdout if file is None else file)
    if terminal and os.environ.get("TERM") not in ("dumb", "unknown"):
        return RichProgress(file)
    if file is None and _is_notebook():
        return RichProgress()
    return PlainProgress(file)


def _is_notebook() -> bool:
    """Whether this is a Jupyter kernel in which rich can draw (it needs ipywidgets to replace a line)."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None
