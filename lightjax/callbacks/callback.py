"""Callback: the hooks of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from lightjax.run import Run

Stage = Literal["fit", "validate", "test", "predict"]


class Callback:
    """Overrides the hooks it needs; each gets the `run` first. docs/callbacks.md has them in the order they run.

    A hook may read `run.state` (valid until the next step: copy what is to be kept), assign it, `run.log({...})` and
    `run.stop(reason)`. Reading `run.metrics` waits for the device; a hook that reads nothing costs nothing.

    Attributes:
      every_n_steps: how often `on_train_batch_start` and `on_train_batch_end` are called. The loop runs compiled in
        between, so 1 makes every step a call of its own; None never calls them.

    Example:
      >>> import lightjax as lj
      >>> class StopAt(lj.Callback):
      ...     every_n_steps = 100
      ...     def on_train_batch_end(self, run):
      ...         if run.metrics["train/loss"] < 0.1:
      ...             run.stop("the loss is low enough")
    """

    every_n_steps: int | None = 1
    # Whether its extension of the state sees what those of the others did.
    outermost: ClassVar[bool] = False

    def extend_state(self, state: Any) -> Any:
        """Returns the state with what the callback keeps in it; pure, traced together with the task's `init`."""
        return state

    def evaluated_state(self, state: Any) -> Any:
        """Returns the state that evaluation and prediction see; pure, traced together with the task's steps."""
        return state

    def setup(self, run: Run, stage: Stage) -> None:
        """Before everything else of a fit, validate, test or predict; the state exists."""

    def teardown(self, run: Run, stage: Stage) -> None:
        """After everything else, also after an error."""

    def on_fit_start(self, run: Run) -> None:
        """Before the first evaluation and the first step; a resumed run is where it was."""

    def on_fit_end(self, run: Run) -> None:
        """After `on_train_end`."""

    def on_sanity_check_start(self, run: Run) -> None:
        """Before the few validation batches that are tried before training."""

    def on_sanity_check_end(self, run: Run) -> None:
        """After them."""

    def on_train_start(self, run: Run) -> None:
        """Before the first epoch."""

    def on_train_end(self, run: Run) -> None:
        """After the last epoch."""

    def on_train_epoch_start(self, run: Run) -> None:
        """Before the first batch of an epoch."""

    def on_train_batch_start(self, run: Run) -> None:
        """Before the step that follows a multiple of `every_n_steps`."""

    def on_train_batch_end(self, run: Run) -> None:
        """After every step that is a multiple of `every_n_steps`."""

    def on_call_end(self, run: Run) -> None:
        """After every call of the compiled step, however many steps it ran: for looks by the clock."""

    def on_train_epoch_end(self, run: Run) -> None:
        """After an epoch and its evaluation."""

    def on_validation_start(self, run: Run) -> None:
        """Before an evaluation on the validation data."""

    def on_validation_epoch_start(self, run: Run) -> None:
        """After `on_validation_start`."""

    def on_validation_batch_start(self, run: Run) -> None:
        """Before each validation batch; overriding it makes every batch a call of its own."""

    def on_validation_batch_end(self, run: Run) -> None:
        """After each validation batch; overriding it makes every batch a call of its own."""

    def on_validation_epoch_end(self, run: Run) -> None:
        """After the last batch of an evaluation; its metrics are in `run.metrics`."""

    def on_validation_end(self, run: Run) -> None:
        """After an evaluation on the validation data; its metrics are in `run.metrics`."""

    def on_test_start(self, run: Run) -> None:
        """Before a test."""

    def on_test_epoch_start(self, run: Run) -> None:
        """After `on_test_start`."""

    def on_test_batch_start(self, run: Run) -> None:
        """Before each test batch; overriding it makes every batch a call of its own."""

    def on_test_batch_end(self, run: Run) -> None:
        """After each test batch; overriding it makes every batch a call of its own."""

    def on_test_epoch_end(self, run: Run) -> None:
        """After the last batch of a test; its metrics are in `run.metrics`."""

    def on_test_end(self, run: Run) -> None:
        """After a test; its metrics are in `run.metrics`."""

    def on_predict_start(self, run: Run) -> None:
        """Before a prediction."""

    def on_predict_epoch_start(self, run: Run) -> None:
        """After `on_predict_start`."""

    def on_predict_batch_start(self, run: Run) -> None:
        """Before the predict step of a batch."""

    def on_predict_batch_end(self, run: Run, outputs: Any) -> None:
        """After the outputs of a batch came to the host, numpy arrays, while the next one is computed."""

    def on_predict_epoch_end(self, run: Run) -> None:
        """After the last batch of a prediction."""

    def on_predict_end(self, run: Run) -> None:
        """After a prediction."""

    def on_save_checkpoint(self, run: Run) -> None:
        """Before a checkpoint is saved."""

    def on_load_checkpoint(self, run: Run) -> None:
        """After a resumed run took back where it was, before `load_state_dict`."""

    def on_exception(self, run: Run, error: BaseException) -> None:
        """When an error ends the run."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint has to keep, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` returned."""

    def overrides(self, *hooks: str) -> bool:
        """Says whether any of these hooks is overridden, by the class or by this object."""
        return any(getattr(getattr(self, hook), "__func__", None) is not getattr(Callback, hook) for hook in hooks)

    def steps_between_looks(self) -> int | None:
        """Returns how many steps pass between two calls of the train batch hooks; None if there are none."""
        return self.every_n_steps if self.overrides("on_train_batch_start", "on_train_batch_end") else None


def call(callbacks: Sequence[Callback], hook: str, run: Run, *arguments: Any) -> None:
    """Calls a hook of every callback; an error names the callback and the hook."""
    for callback in callbacks:
        with naming(callback, hook, run):
            getattr(callback, hook)(run, *arguments)


@contextmanager
def naming(callback: Callback, hook: str, run: Run) -> Iterator[None]:
    """Names the callback and the hook in an error that it raises, and counts its time as the callback's."""
    try:
        with run.profiler.profile(f"callback {type(callback).__name__}"):
            yield
    except Exception as error:
        note = f"This happened in {type(callback).__name__}.{hook}, at step {run.step} of epoch {run.epoch}."
        # A hook that saves calls the hooks of saving: the innermost is the one that raised.
        if not any(known.startswith("This happened in ") for known in getattr(error, "__notes__", ())):
            error.add_note(note)
        raise


def call_to_the_end(callbacks: Sequence[Callback], run: Run, error: BaseException) -> None:
    """Calls `on_exception` and `teardown` of every callback; what they raise is noted with the error."""
    for hook, argument in (("on_exception", error), ("teardown", run.stage)):
        for callback in callbacks:
            try:
                getattr(callback, hook)(run, argument)
            except Exception as another:
                error.add_note(f"Then {type(callback).__name__}.{hook} failed: {another!r}")


def looking(callbacks: Sequence[Callback], step: int) -> list[Callback]:
    """Picks the callbacks that look at a step."""
    return [one for one in callbacks if (period := one.steps_between_looks()) is not None and step % period == 0]
