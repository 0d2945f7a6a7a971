"""ModelCheckpoint: decides which steps are saved and which checkpoints are kept."""

from __future__ import annotations

import math
import os
import string
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax

from lightjax.callbacks.callback import Callback, Stage
from lightjax.checkpoint import Checkpoint, Checkpoints
from lightjax.checkpoint.location import is_remote, located
from lightjax.errors import ConfigurationError
from lightjax.schedule import seconds

if TYPE_CHECKING:
    from lightjax.run import Run


class ModelCheckpoint(Callback):
    """Saves the last step and the best ones by a metric.

    Args:
      monitor: name of the metric that ranks checkpoints, such as "val/loss". With None, "val/loss" ranks them where
        evaluation reports it, and otherwise only the last one is kept.
      mode: "min" or "max". NaN is worse than any number.
      save_top_k: how many of the best to keep; 0 keeps none for its rank, -1 whatever is saved.
      every_n_epochs: save in every n-th epoch; 0 never.
      save_on_train_epoch_end: save at the end of such an epoch (True), after each of its evaluations (False), or both
        (None): an evaluation within an epoch is a candidate for the best, too.
      every_n_train_steps: save at every n-th step as well; None or 0 for never.
      train_time_interval: save after so much time as well: "DD:HH:MM:SS", seconds, a timedelta or its arguments as a
        dict. Looked at after each call, so it cuts no call short.
      keep_every_n_steps: keep a checkpoint for good whenever so many steps have passed since the last one kept so.
      keep_time_interval: keep one for good whenever so much time has passed since the last one kept so: as for
        `train_time_interval`. The time between two lives of a run counts.
      save_on_exception: save the state that an error leaves, if the error did not take it.
      filename: a template such as "{epoch}-{val/loss:.2f}": each checkpoint gets a link of this name beside `step_N`,
        for people. Fields are `epoch`, `step` and metrics; one that was not reported at this very step says "none".
      dirpath: where the checkpoints go instead of the run's directory, which gets a link to them. Where it holds those
        of another run, they go into a `version_N` in it. `gs://bucket/path` is one, too (with the package `gcsfs`): the
        run's reports are kept beside them, and resume="auto" looks there first, so that another machine can go on.
      save_last: keep the last checkpoint when the run has ended. Until then it is always kept, to resume from.
      auto_insert_metric_name: write `epoch=3-val_loss=0.25` for that, and `3-0.25` otherwise.
      verbose: say in a line what is saved and how it ranks.

    Attributes:
      best: the best checkpoint so far, or None.
      last: the newest checkpoint, or None.
    """

    def __init__(
        self,
        monitor: str | None = None,
        *,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        train_time_interval: str | float | timedelta | dict[str, int] | None = None,
        keep_every_n_steps: int | None = None,
        keep_time_interval: str | float | timedelta | dict[str, int] | None = None,
        save_on_exception: bool = True,
        dirpath: str | os.PathLike[str] | None = None,
        save_last: bool = True,
        filename: str | None = None,
        auto_insert_metric_name: bool = True,
        save_on_train_epoch_end: bool | None = None,
        verbose: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ConfigurationError(f"ModelCheckpoint got mode={mode!r}; write mode='min' or mode='max'.")
        if save_top_k < -1:
            raise ConfigurationError(
                f"ModelCheckpoint got save_top_k={save_top_k}; give a number of checkpoints, or -1 to keep all."
            )
        for name, periods in (("every_n_epochs", every_n_epochs), ("every_n_train_steps", every_n_train_steps or 0)):
            if periods < 0:
                raise ConfigurationError(
                    f"ModelCheckpoint got {name}={periods}; give a number from 1 on, or 0 for never."
                )
        if keep_every_n_steps is not None and keep_every_n_steps < 1:
            raise ConfigurationError(
                f"ModelCheckpoint got keep_every_n_steps={keep_every_n_steps}; give a number of steps from 1 on."
            )
        if filename is not None and dirpath is not None and is_remote(dirpath):
            raise ConfigurationError(
                f"ModelCheckpoint got filename={filename!r} with dirpath={str(dirpath)!r}: it makes links, which an "
                "object store does not have; `lightjax checkpoint ls` lists the metrics of each step."
            )
        self.monitor = monitor
        self.mode = mode
        self.save_top_k = save_top_k
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_train_steps or None
        self.train_time_interval_s = seconds(train_time_interval, "train_time_interval")
        self.keep_every_n_steps = keep_every_n_steps
        self.keep_time_interval_s = seconds(keep_time_interval, "keep_time_interval")
        self.save_on_exception = save_on_exception
        self.dirpath = None if dirpath is None else located(dirpath)
        self.save_last = save_last
        self.filename = filename
        self.auto_insert_metric_name = auto_insert_metric_name
        self.save_on_train_epoch_end = save_on_train_epoch_end
        self.verbose = verbose
        self._run: Run | None = None
        self._forget()

    def _forget(self) -> None:
        self._ranked: list[tuple[float, int]] = []
        self._last: int | None = None
        self._saved: dict[int, Checkpoint] = {}
        self._let_go: set[int] = set()
        self._for_good: list[int] = []
        self._saved_s = 0.0
        # By the clock on the wall, which goes on while a run is away.
        self._kept_s = 0.0
        self._began_at: int | None = None

    @property
    def best(self) -> Checkpoint | None:  # noqa: D102 (an attribute, documented with the class)
        return self._saved.get(self._ranked[0][1]) if self._ranked else None

    @property
    def last(self) -> Checkpoint | None:  # noqa: D102 (an attribute, documented with the class)
        return None if self._last is None else self._saved.get(self._last)

    @property
    def ranks_without_a_name(self) -> bool:
        """Whether several best are to be kept by a metric that nobody named."""
        return self.monitor is None and self.save_top_k > 1

    @property
    def kept_steps(self) -> set[int]:
        """The steps whose checkpoints must not be deleted."""
        last = set() if self._last is None else {self._last}
        return {step for _, step in self._ranked} | last | set(self._for_good)

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints kept; the last one stands for the best where nothing ranks them."""
        if self._run is not None:
            self._drop_lost(self._run)
        return Checkpoints(best=self.best or self.last, last=self.last)

    def setup(self, run: Run, stage: Stage) -> None:
        """Forgets the checkpoints of an earlier run."""
        if stage == "fit":
            self._forget()
            self._run = run
            if self.train_time_interval_s is not None:
                self._saved_s = run.clock.now_s()
            if self.keep_time_interval_s is not None:
                self._kept_s = run.clock.date_s()

    def on_train_start(self, run: Run) -> None:
        """Notes where the run begins."""
        self._began_at = run.step

    def on_train_batch_end(self, run: Run) -> None:
        """Saves a step between the ends of epochs."""
        # The end of an epoch saves its last step with what its evaluation finds; now there is only an older metric.
        if run.batch != run.epoch_batches or not self._saves_in(run.epoch):
            self.save(run)

    def on_validation_end(self, run: Run) -> None:
        """Saves the step of an evaluation."""
        if run.stage != "fit" or run.sanity_checking or not self._saves_in(run.epoch):
            return
        # The end of an epoch saves the step of the evaluation there.
        if self.save_on_train_epoch_end is False or (self.save_on_train_epoch_end is None and run.within_epoch):
            self.save(run)

    def on_call_end(self, run: Run) -> None:
        """Saves a step when it is time to."""
        if self.train_time_interval_s is not None and run.clock.now_s() - self._saved_s >= self.train_time_interval_s:
            self.save(run)

    def on_train_epoch_end(self, run: Run) -> None:
        """Saves the step an epoch ends with."""
        if self._saves_in(run.epoch) and self.save_on_train_epoch_end is not False:
            self.save(run)

    def on_fit_end(self, run: Run) -> None:
        """Saves the step the run ends with, or lets the last one go."""
        if self.save_last or run.stopped_by in ("interrupt", "preempted"):
            self.save(run)
        elif self._last is not None:
            last, self._last = self._last, None
            if last not in self.kept_steps:
                run.delete_checkpoint(self._saved.pop(last))

    def on_exception(self, run: Run, error: BaseException) -> None:
        """Saves the state that an error left, if there were steps and it is still there."""
        trained = self._began_at is not None and run.step > self._began_at
        if self.save_on_exception and isinstance(error, Exception) and trained and run.state_is_whole:
            self.save(run)

    def save(self, run: Run) -> None:
        """Ranks this step if its metric is new, saves it, and lets go of checkpoints that are no longer wanted."""
        score = self._score(run)
        if not run.saves:
            return
        self._drop_lost(run)
        # The ranking is part of what is saved: it has to know this step first.
        kept_before = self.kept_steps
        self._last = run.step
        if self.train_time_interval_s is not None:
            self._saved_s = run.clock.now_s()
        kept = self._for_good[-1] if self._for_good else 0
        every = 1 if self.save_top_k == -1 else self.keep_every_n_steps
        by_steps = every is not None and run.step - kept >= every
        by_time = (
            self.keep_time_interval_s is not None and run.clock.date_s() - self._kept_s >= self.keep_time_interval_s
        )
        if (by_steps or by_time) and run.step not in self._for_good:
            self._for_good.append(run.step)
            if self.keep_time_interval_s is not None:
                self._kept_s = run.clock.date_s()
        # A checkpoint between evaluations has no score of its own: it is never the best, only the last.
        if score is not None and all(step != run.step for _, step in self._ranked):
            self._ranked.append((score, run.step))
            self._ranked.sort(key=lambda ranked: ranked[0])
            if self.save_top_k != -1:
                del self._ranked[self.save_top_k :]
        leaving = kept_before - self.kept_steps
        # Those on their way out are part of it, too: a process killed before they are gone would leave them for ever.
        self._let_go = {step for step in self._let_go if run.checkpoint_at(step)} | leaving
        self._saved[run.step] = run.save_checkpoint()
        for step in leaving:
            run.delete_checkpoint(self._saved.pop(step))
        if self.verbose and jax.process_index() == 0:
            place = next((i for i, (_, step) in enumerate(self._ranked, 1) if step == run.step), None)
            rank = "not ranked" if place is None else f"number {place} by {self.monitor or 'val/loss'}"
            run.print(f"ModelCheckpoint: step {run.step} saved, {rank}")
        if self.filename is not None and jax.process_index() == 0:
            directory = self._saved[run.step].path.parent
            directory.mkdir(parents=True, exist_ok=True)
            _unlink(directory, leaving | {run.step})
            link = directory / self.name(run)
            if not link.is_symlink() and not link.exists():
                link.symlink_to(self._saved[run.step].path.name)

    def name(self, run: Run) -> str:
        """Returns what `filename` says of this step; waits for the device."""
        assert self.filename is not None
        fresh = {name: value for name, value in run.metrics.items() if run.history.reported_at[name] == run.step}
        # After its last batch and callbacks an epoch is over, and the run says which comes next.
        known = fresh | {"epoch": run.epoch if run.batch else max(0, run.epoch - 1), "step": run.step}
        text = ""
        for literal, field, spec, _ in string.Formatter().parse(self.filename):
            text += literal
            if field is not None:
                value = format(known[field], spec or "") if field in known else "none"
                text += f"{field}={value}" if self.auto_insert_metric_name else value
        return text.replace("/", "_")

    def state_dict(self) -> dict[str, Any]:
        """Returns the ranking and the last step."""
        return {
            "ranked": [list(ranked) for ranked in self._ranked],
            "last": self._last,
            "for_good": self._for_good,
            "let_go": sorted(self._let_go - self.kept_steps),
        } | ({} if self.keep_time_interval_s is None else {"kept_s": self._kept_s})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the ranking back, as far as its checkpoints are still there and whole."""
        assert self._run is not None  # its setup came first
        ranked: list[tuple[float, int]] = [(score, step) for score, step in state["ranked"]]
        steps: set[int] = {step for _, step in ranked} | ({state["last"]} - {None}) | set(state["for_good"])
        self._saved = {step: found for step in steps if (found := self._run.checkpoint_of(step)) is not None}
        self._ranked = [(score, step) for score, step in ranked if step in self._saved]
        self._kept_s = state.get("kept_s", self._kept_s)
        self._last = state["last"] if state["last"] in self._saved else None
        self._for_good = [step for step in state["for_good"] if step in self._saved]
        for step in state["let_go"]:
            if left := self._run.checkpoint_at(step):
                self._run.delete_checkpoint(left)

    def _drop_lost(self, run: Run) -> None:
        """Forgets checkpoints that could not be written."""
        for step in run.lost_steps & self._saved.keys():
            del self._saved[step]
            self._ranked = [ranked for ranked in self._ranked if ranked[1] != step]
            self._last = None if self._last == step else self._last
            self._for_good = [kept for kept in self._for_good if kept != step]

    def _saves_in(self, epoch: int) -> bool:
        return bool(self.every_n_epochs) and (epoch + 1) % self.every_n_epochs == 0

    def _score(self, run: Run) -> float | None:
        """Returns the rank of this step, smaller is better; None where the metric is not of this step."""
        monitor = self.monitor or "val/loss"
        value = run.fresh(monitor, strict=self.monitor is not None, who="ModelCheckpoint")
        if value is None:
            return None
        if math.isnan(value):
            return math.inf
        return value if self.mode == "min" else -value


def checkpoint_places(callbacks: Sequence[Callback]) -> set[Path]:
    """Returns where callbacks want the checkpoints of a run to be; at most one place can be had."""
    return {one.dirpath for one in callbacks if isinstance(one, ModelCheckpoint) and one.dirpath is not None}


def _unlink(directory: Path, steps: set[int]) -> None:
    """Removes the links to checkpoints that are deleted."""
    gone = {f"step_{step}" for step in steps}
    for path in directory.iterdir():
        if path.is_symlink() and str(path.readlink()) in gone:
            path.unlink()
