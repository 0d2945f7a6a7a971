"""Run: a training under way, as callbacks see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.callbacks.callback import Stage, call, naming
from lightjax.checkpoint.checkpoint import Checkpoint
from lightjax.clock import Clock
from lightjax.data.module import state_of
from lightjax.errors import ConfigurationError, MetricError, StepError
from lightjax.history import History, Report
from lightjax.profiler.profiler import Profiler
from lightjax.progress.output import Output

if TYPE_CHECKING:
    from lightjax.checkpoint import Checkpointer
    from lightjax.data.stretch import Stretch
    from lightjax.engine.engine import Engine
    from lightjax.loggers import LoggerCollection
    from lightjax.trainer import Trainer


# A run that ended for one of these reasons goes on when it is resumed; one that a callback ended stays ended.
GOES_ON_AFTER = (None, "interrupt", "preempted", "max_time")


class Run:
    """What is going on: the state, where it is, what was reported, and ways to step in.

    Attributes:
      trainer: the trainer.
      callbacks: its callbacks, and the task's own hooks.
      stage: "fit", "validate", "test" or "predict".
      step: optimizer steps done.
      epoch: the epoch, counted from 0.
      batch: batches of this epoch done.
      total_batch: batches of all epochs done.
      place: where the training data is, as JSON; None where epoch and batch say it all.
      epoch_ended: whether the epoch's training and evaluation are over.
      within_epoch: whether the evaluation under way is one within an epoch.
      totals: packed metrics since the last window and since the epoch began, on the device.
      history: the rows reported so far.
      logger: where metrics go.
      profiler: notes where the time goes; `with run.profiler.profile("name")` names an action of a callback's.
      clock: the time by which the run ends, evaluates or saves.
      directory: the run's directory; None for a run without files.
      sanity_checking: whether an evaluation only tries a few batches before training.
      loader: name of the loader that is evaluated; "" where there is only one.
      eval_batch: batches of this loader done.
      meant: names that were given without their stage, with it.
      estimated_steps: optimizer steps of a whole run, None where nobody knows.
      batch_spec: shapes of a training batch.
      epoch_batches: batches of this epoch, None where unknown.
      datamodule: the data module; None for loaders.
      print: writes a line for people, beside the progress bar.
    """

    def __init__(
        self,
        trainer: Trainer,
        engine: Engine,
        state: Any,
        history: History,
        logger: LoggerCollection,
        checkpointer: Checkpointer | None,
        directory: Path | None,
        stage: Stage = "fit",
    ) -> None:
        self.trainer = trainer
        # A callback that monitors a metric sees what the task's own hooks logged.
        given = [engine.stand_in(one) for one in trainer.callbacks]
        monitoring = [one for one in given if hasattr(one, "monitor")]
        self.callbacks = [*(one for one in given if one not in monitoring), *engine.callbacks, *monitoring]
        self.stage = stage
        self.history = history
        self.logger = logger
        self.directory = directory
        self.step = int(getattr(state, "step", 0))
        self.epoch = 0
        self.batch = 0
        self.total_batch = 0
        self.place: Any = None
        self.epoch_ended = False
        self.within_epoch = False
        self.totals: Any = None
        self.sanity_checking = False
        self.loader = ""
        self.eval_batch = 0
        self.estimated_steps: int | None = None
        self.meant: Mapping[str, str] = {}
        self.batch_spec: Any = None
        self.epoch_batches: int | None = None
        self.datamodule: Any = None
        self.print: Callable[[str], None] = Output().write_line
        self.validates = False
        self.profiler = Profiler()
        self.clock = Clock()
        self.validated_at: int | None = None
        self.epochs_reported = 0
        self._engine = engine
        self._state = state
        self._checkpointer = checkpointer
        self._stop_reason: str | None = None
        self._stops_at_once = False

    @property
    def state(self) -> Any:
        """The state after `step` steps; its buffers are reused by the next step: copy what is to be kept."""
        return self._state

    @state.setter
    def state(self, state: Any) -> None:
        """Replaces the state; the new one is copied to the device.

        Raises:
          StepError: its tree, a shape or a dtype differs.
        """
        if change := _tree.difference(self._state, state):
            raise StepError(
                f"run.state was assigned a state that differs: {change}. The compiled step runs on states of one "
                "shape; assign one with the same tree, shapes and dtypes, such as run.state.replace(...)."
            )
        self._state = self._engine.adopt_state(state)

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The newest value of every metric, by name; waits for the device."""
        self.history.settle()
        return self.history.latest

    def advance(self, state: Any, stretch: Stretch) -> None:
        """Moves on by a stretch of steps (called by the loop)."""
        self._state = state
        self.place = stretch.place
        self.step += stretch.count
        self.batch += stretch.count * stretch.group
        self.total_batch += stretch.count * stretch.group

    def next_epoch(self) -> None:
        """Moves on to the beginning of the next epoch (called by the loop)."""
        self.epoch, self.batch, self.epoch_ended = self.epoch + 1, 0, False

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Reports numbers of one's own for this step: Python numbers or scalar arrays.

        It does not wait for numbers on the device: they are read one look late.

        Raises:
          MetricError: a value is no number, or a name no text.
        """
        for name, value in metrics.items():
            if not isinstance(name, str):
                raise MetricError(f"run.log got the name {name!r}; a name is text: write {str(name)!r}.")
            value = value if isinstance(value, jax.Array) else np.asarray(value)
            real = value.dtype == bool or any(jnp.issubdtype(value.dtype, one) for one in (jnp.floating, jnp.integer))
            if value.ndim or not real:
                raise MetricError(f"run.log got {name!r} = {value!r}, which is no number; log scalars, one by one.")
        # The next step may take the buffers of what is part of the state.
        kept = {name: jnp.copy(value) if isinstance(value, jax.Array) else value for name, value in metrics.items()}
        step, epoch = self.step, self.epoch

        def read() -> Iterator[Report]:
            yield Report(step, epoch, {name: float(value) for name, value in jax.device_get(kept).items()})

        self.history.promise(step, read)

    @property
    def stopped_by(self) -> str | None:
        """Why the run is to end now, or None."""
        least_epochs, least_steps = self.trainer.min_epochs or 0, self.trainer.min_steps or 0
        enough = self.epoch + self.epoch_ended >= least_epochs and self.step >= least_steps
        return self._stop_reason if enough or self._stops_at_once else None

    def stop(self, reason: str, *, at_once: bool = False) -> None:
        """Ends the run after this look; `result.stopped_by` keeps the first reason given.

        Args:
          reason: a sentence or a short word.
          at_once: end it even before `min_epochs` and `min_steps` are reached; otherwise it ends when they are.
        """
        self._stop_reason = self._stop_reason or reason
        self._stops_at_once = self._stops_at_once or at_once

    def fresh(self, name: str, *, strict: bool, who: str) -> float | None:
        """Returns a metric reported at this very step; waits for the device.

        Args:
          name: of the metric.
          strict: raise when it should have been reported by now and never was.
          who: asks, for the message.

        Returns:
          The value, or None where the newest one is of an earlier step.

        Raises:
          MetricError: the metric was never reported; lists the names there are.
        """
        metrics = self.metrics
        name = name if name in metrics else self.meant.get(name, name)
        if name in metrics:
            return metrics[name] if self.history.reported_at[name] == self.step else None
        due = self.validated_at is not None or not self.validates if name.startswith("val/") else True
        if strict and due and self.epochs_reported:
            raise MetricError(
                f"{who} monitors {name!r}, which nobody reports; reported are: {', '.join(sorted(metrics)) or 'none'}. "
                "Monitor one of these, or return it from the step."
            )
        return None

    def flops_per_step(self) -> float | None:
        """Counts the floating-point operations of a train step on one batch; None where nobody can tell.

        Traces the step; compiles and runs nothing.
        """
        return self._engine.flops_per_step(self._state, self.batch_spec)

    @property
    def state_is_whole(self) -> bool:
        """Whether the state is there: an error inside of a compiled call takes the state that was donated to it."""
        return not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in jax.tree.leaves(self._state))

    @property
    def saves(self) -> bool:
        """Whether the run has checkpoints."""
        return self._checkpointer is not None

    def save_checkpoint(self, to: Checkpointer | None = None) -> Checkpoint:
        """Begins to save this step; waits only for the copy to the host.

        Args:
          to: saves it; the run's own checkpointer when None.

        Raises:
          ConfigurationError: the run has no checkpoints (`saves` is False).
        """
        with self.profiler.profile("checkpoint"):
            return self._save_checkpoint(to)

    def _save_checkpoint(self, to: Checkpointer | None) -> Checkpoint:
        to = to or self._checkpointer
        if to is None:
            raise ConfigurationError(
                "run.save_checkpoint was called in a run without checkpoints; write Trainer(enable_checkpointing=True)."
            )
        call(self.callbacks, "on_save_checkpoint", self)
        metrics = self.metrics
        window, epoch = self.totals
        return to.save(
            self.step,
            self._engine.state_to_save(self._state),
            metrics=metrics,
            items={"totals": {"window": window, "epoch": epoch}},
            about={
                "position": {
                    "epoch": self.epoch + self.epoch_ended,
                    "batch": 0 if self.epoch_ended else self.batch,
                    "total_batch": self.total_batch,
                    "place": self.place,
                    "validated_at": self.validated_at,
                    "epochs_reported": self.epochs_reported,
                    "reports": self.history.reports,
                    "stopped_by": self._stop_reason,
                },
                "reported": self._engine.metric_names("train"),
                "engine": self._engine.notes(),
                "callbacks": [[type(one).__name__, one.state_dict()] for one in self.callbacks],
                "datamodule": state_of(self.datamodule),
                "arguments": self.trainer.described,
            },
        )

    def resume(self, checkpoint: Checkpoint, about: Mapping[str, Any], reports: Path | None) -> bool:
        """Takes back where a run was; its state has been restored already.

        Args:
          checkpoint: of that run, or of another one that this one branches off.
          about: what is kept beside it.
          reports: the file with what was reported before; None where there is none.

        Returns:
          Whether all that was reported before is known.
        """
        if self._checkpointer is not None:
            self._checkpointer.go_on_from(self._as_saved(checkpoint))
        self._engine.restore_notes(about["engine"])
        position = about["position"]
        self.step = checkpoint.step
        self.epoch, self.batch, self.place = position["epoch"], position["batch"], position["place"]
        self.total_batch = position["total_batch"]
        self.validated_at = position["validated_at"]
        self.epochs_reported = position["epochs_reported"]
        if position["stopped_by"] not in GOES_ON_AFTER:
            self._stop_reason = position["stopped_by"]
        if reports is not None:
            self.history.restore(position["reports"], reports)
        if about["reported"] == self._engine.metric_names("train"):
            window, epoch = self._engine.train_totals()
            totals = checkpoint.restore_item("totals", {"window": window, "epoch": epoch})
            self.totals = (totals["window"], totals["epoch"])
        return self.history.reports == position["reports"]

    def restore_callbacks(self, about: Mapping[str, Any]) -> None:
        """Gives callbacks back what they kept: to each the next state of its class."""
        kept: dict[str, list[Any]] = {}
        for name, state in about["callbacks"]:
            kept.setdefault(name, []).append(state)
        call(self.callbacks, "on_load_checkpoint", self)
        for callback in self.callbacks:
            if states := kept.get(type(callback).__name__):
                with naming(callback, "load_state_dict", self):
                    callback.load_state_dict(states.pop(0))

    def checkpoint_of(self, step: int | None) -> Checkpoint | None:
        """Returns the checkpoint of a step of this run; None where there is none that is whole."""
        found = None if self._checkpointer is None or step is None else self._checkpointer.open(step)
        return None if found is None else self._as_saved(found)

    def _as_saved(self, checkpoint: Checkpoint) -> Checkpoint:
        return dataclasses.replace(checkpoint, like=_tree.abstract(self._state, placed=True))

    def checkpoint_at(self, step: int) -> Checkpoint | None:
        """Returns what there is of a step of this run on disk, whole or not; None where there is nothing."""
        if self._checkpointer is None or not (path := self._checkpointer.path(step)).exists():
            return None
        return Checkpoint(path, step, {})

    @property
    def lost_steps(self) -> set[int]:
        """The steps whose checkpoints could not be written."""
        return set() if self._checkpointer is None else self._checkpointer.lost

    def write_checkpoints(self) -> None:
        """Begins to write checkpoints that wait for their turn, if that has come."""
        if self._checkpointer is not None and self._checkpointer.busy:
            with self.profiler.profile("checkpoint"):
                self._checkpointer.write_due()

    def delete_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Deletes a checkpoint once a newer one is complete, unless a callback still keeps it."""
        kept = any(checkpoint.step in getattr(callback, "kept_steps", ()) for callback in self.callbacks)
        if self._checkpointer is not None and not kept:
            self._checkpointer.delete(checkpoint)
