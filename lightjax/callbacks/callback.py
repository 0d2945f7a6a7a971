"""Callback: the hooks of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightjax.run import Run


class Callback:
    """Overrides the hooks it needs; each gets the `run` first.

    A hook may read `run.state` (valid until the next step: copy what is to be kept), assign it, `run.log({...})` and
    `run.stop(reason)`. Reading `run.metrics` waits for the device; a hook that reads nothing costs nothing.

    Attributes:
      every_n_steps: how often `on_train_batch_end` is called. The loop runs compiled up to the next call, so 1 makes
        every step a call of its own; None never calls it.

    Example:
      >>> import lightjax as lj
      >>> class StopAt(lj.Callback):
      ...     every_n_steps = 100
      ...     def on_train_batch_end(self, run):
      ...         if run.metrics["train/loss"] < 0.1:
      ...             run.stop("the loss is low enough")
    """

    every_n_steps: int | None = 1

    def on_fit_start(self, run: Run) -> None:
        """Before the first step; the state exists."""

    def on_fit_end(self, run: Run) -> None:
        """After the last step and the last evaluation."""

    def on_train_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch."""

    def on_train_batch_end(self, run: Run) -> None:
        """After every step that is a multiple of `every_n_steps`."""

    def on_train_epoch_end(self, run: Run) -> None:
        """After an epoch and its evaluation."""

    def on_validation_start(self, run: Run) -> None:
        """Before an evaluation on the validation data."""

    def on_validation_end(self, run: Run) -> None:
        """After an evaluation on the validation data; its metrics are in `run.metrics`."""

    def on_save_checkpoint(self, run: Run) -> None:
        """Before a checkpoint is saved."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """When an error ends the run."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""

    def steps_between_looks(self) -> int | None:
        """Returns how many steps pass between two calls of `on_train_batch_end`; None if it is never called."""
        overridden = type(self).on_train_batch_end is not Callback.on_train_batch_end
        return self.every_n_steps if overridden else None
