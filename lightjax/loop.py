"""The loop: epochs of stretches of compiled steps, until somebody needs to look.

Invariants:
  1. A number never depends on how steps were cut into calls: every step runs through the same compiled body, and
     metrics are merged in the order of steps.
  2. Nothing waits for the device between looks: reports are promised to the history, which reads them one look late.
     At most `CALLS_IN_FLIGHT` calls are unfinished.
  3. `run.state` is the state after exactly `run.step` steps whenever a callback is called.
  4. A callback sees metrics of this very step as fresh, and everything reported before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from lightjax.cadence import Cadence
from lightjax.callbacks.callback import Callback
from lightjax.data.feed import stretches
from lightjax.data.prefetch import Prefetch
from lightjax.data.source import Source
from lightjax.data.stretch import Cursor, Stretch
from lightjax.engine.engine import Engine
from lightjax.engine.in_flight import bound
from lightjax.evaluation import evaluate
from lightjax.interrupt import Interrupt
from lightjax.metrics import numbers
from lightjax.pace import Pace
from lightjax.progress import Progress
from lightjax.reports import totals_report, window_reports
from lightjax.run import Run
from lightjax.schedule import Schedule


class Loop:
    """One training.

    Args:
      run: what callbacks see, moved on by the loop.
      engine: runs the steps.
      train_data: read once an epoch.
      val_data: evaluated as the schedule says; None for none.
      schedule: limits and intervals.
      pace: how many steps run in one call.
      callbacks: who looks.
      progress: shows people where it is.
      interrupt: entered; says whether a signal asks for the end.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        train_data: Source,
        val_data: Source | None,
        schedule: Schedule,
        pace: Pace,
        callbacks: Sequence[Callback],
        progress: Progress,
        interrupt: Interrupt,
    ) -> None:
        self.run = run
        self.engine = engine
        self.train_data = train_data
        self.val_data = val_data
        self.schedule = schedule
        self.pace = pace
        self.callbacks = callbacks
        self.progress = progress
        self.interrupt = interrupt
        batch_period = None if val_data is None else schedule.val_check_batches
        self.cadence = Cadence.of(callbacks, schedule.max_steps, batch_period)
        self.rows: Any = None
        self.in_flight: deque[Any] = deque()

    def fit(self, resumed: Mapping[str, Any] | None = None) -> str:
        """Trains until a limit is reached or somebody stops the run.

        on_fit_start
        for each epoch:
            on_train_epoch_start
            for each stretch: run it, report its metrics, on_train_batch_end for whoever looks at this step
            report the epoch's metrics
            on_validation_start, evaluate, on_validation_end
            on_train_epoch_end
        on_fit_end

        Args:
          resumed: what is kept beside the checkpoint that the run goes on from; None for a new run.

        Returns:
          Why it ended.
        """
        run, schedule, progress = self.run, self.schedule, self.progress
        progress.start(step=run.step, max_steps=schedule.max_steps, max_epochs=schedule.max_epochs)
        self.engine.compile_ahead("train", self.train_data.specs(self.pace.capacity))
        if self.val_data is not None:
            self.engine.compile_ahead("eval", self.val_data.specs(self.engine.eval_capacity(self.val_data)))
        if not self.pace.measuring:
            progress.print(str(self.pace))
        limit = schedule.end(run)
        if self.interrupt.reason is not None:
            run.stop(self.interrupt.reason)
        call(self.callbacks, "on_fit_start", run)
        if resumed is not None:
            run.restore_callbacks(resumed)
        self.interrupt.steps_run = True
        while run.stopped_by is None and limit is None:
            progress.start_epoch(run.epoch, self.train_data.batches)
            call(self.callbacks, "on_train_epoch_start", run)
            if run.batch:
                self._validate_within_epoch()
            complete = self._train_epoch(self.train_data.epoch(run.epoch, run.batch))
            if self.val_data is not None and run.validated_at != run.step and schedule.validates_in(run.epoch):
                self._validate(self.val_data)
            if self.interrupt.requested():
                run.stop(self.interrupt.reason or "interrupt")
                break
            run.epoch_ended = complete
            if complete:
                run.place = self.train_data.after_pass(run.place)
            call(self.callbacks, "on_train_epoch_end", run)
            progress.end_epoch(run.epoch, run.step, shown(run.metrics, epoch=True))
            if complete:
                run.next_epoch()
            limit = schedule.end(run)
        call(self.callbacks, "on_fit_end", run)
        run.history.settle()
        return run.stopped_by or limit or "interrupt"

    def _train_epoch(self, cursor: Cursor) -> bool:
        """Runs the stretches of an epoch, one by one while they are timed, then made ahead in a thread.

        Returns:
          Whether the epoch is complete; one that is cut short goes on when the run is resumed.
        """
        feed = self._stretches(cursor)
        while self.pace.measuring and self.run.stopped_by is None and (stretch := next(feed, None)) is not None:
            begun_s = time.perf_counter()
            self._train(stretch)
            # What else is being compiled takes the processor from the steps: their times would mean nothing.
            if not self.engine.compiling() and self.pace.observe(
                begun_s, self.rows, self.run.step, self.engine.compile_s
            ):
                self.progress.print(str(self.pace))
                self.engine.compile_ahead("train", self.train_data.specs(self.pace.capacity))
        if not self.pace.measuring and self.run.stopped_by is None:
            with Prefetch(self._stretches(cursor), stop=self.interrupt.requested) as ahead:
                for stretch in ahead:
                    self._train(stretch)
                    if self.run.stopped_by is not None:
                        break
        # An epoch that a signal cut short goes on in another process, and reports its means there.
        if self.run.batch and not self.interrupt.requested():
            self._promise_epoch()
        if self.train_data.batches is not None:
            return self.run.batch >= self.train_data.batches
        return self.run.stopped_by is None and self.schedule.end(self.run) != "max_steps"

    def _stretches(self, cursor: Cursor) -> Iterator[Stretch]:
        """Cuts the rest of the epoch at the looks."""
        step, batch, most = self.run.step, self.run.batch, self.pace.steps
        return stretches(
            cursor,
            lambda stretch, taken: self.engine.place_stretch("train", stretch, step + taken, batch + taken),
            lambda taken: self.cadence.steps_to_next_look(step + taken, batch + taken, most),
            self.pace.capacity,
        )

    def _train(self, stretch: Stretch) -> None:
        """Runs a stretch, promises its reports, and lets whoever looks at this step look."""
        run, schedule = self.run, self.schedule
        if not self.engine.is_ready("train", stretch):
            with self.progress.excluded():
                self.engine.program("train", stretch)
        with jax.transfer_guard("disallow"):
            state, run.totals, self.rows = self.engine.train(run.state, run.totals, stretch)
        steps = range(run.step + 1, run.step + stretch.count + 1)
        run.advance(state, stretch.count, stretch.place)
        if windows := window_reports(self.engine, self.rows, steps, run.epoch, schedule.log_every_n_steps):
            run.history.promise(windows)
        bound(self.in_flight, (self.rows, stretch.count - 1))
        if self.progress.due():
            self.progress.update(run.step, run.batch, shown(run.history.latest) | self._glance())
        call([one for one in self.callbacks if looks(one, run.step)], "on_train_batch_end", run)
        self._validate_within_epoch()
        run.write_checkpoints()
        if schedule.out_of_time():
            run.stop("max_time")
        if self.interrupt.reason is not None:
            run.stop(self.interrupt.reason)

    def _validate_within_epoch(self) -> None:
        """Evaluates where `val_check_interval` asks for it, unless that was done."""
        run, period = self.run, self.cadence.batch_period
        due = period and run.batch % period == 0 and self.schedule.validates_in(run.epoch)
        if due and self.val_data is not None and run.validated_at != run.step:
            self._validate(self.val_data)

    def _glance(self) -> dict[str, Any]:
        """Returns the metrics of the newest call that is finished, without waiting: {} where none is."""
        for rows, last in reversed(self.in_flight):
            if all(vectors.is_ready() for vectors in rows.values()):
                newest = {dtype: vectors[last] for dtype, vectors in jax.device_get(rows).items()}
                return numbers(self.engine.compute("train", newest), "train/")
        return {}

    def _validate(self, data: Source) -> None:
        """Evaluates the present state and promises the result."""
        run = self.run
        call(self.callbacks, "on_validation_start", run)
        found = evaluate(run.state, self.engine, data, run.epoch, "val", self.progress, self.interrupt.requested)
        self.progress.end_evaluation({})
        if found is None:
            return
        run.history.promise(totals_report(self.engine, "eval", found, run.step, run.epoch, prefix="val/"))
        run.validated_at = run.step
        call(self.callbacks, "on_validation_end", run)

    def _promise_epoch(self) -> None:
        """Promises the last window of an epoch and the means of the whole epoch."""
        run, (window, epoch) = self.run, self.run.totals
        place = (run.step, run.epoch)
        if run.step % self.schedule.log_every_n_steps:
            run.history.promise(totals_report(self.engine, "train", window, *place, prefix="train/"))
        run.history.promise(totals_report(self.engine, "train", epoch, *place, prefix="train/", suffix="_epoch"))
        run.epochs_reported += 1


def call(callbacks: Sequence[Callback], hook: str, run: Run, *arguments: Any) -> None:
    """Calls a hook of every callback; an error names the callback and the hook."""
    for callback in callbacks:
        try:
            getattr(callback, hook)(run, *arguments)
        except Exception as error:
            error.add_note(
                f"This happened in {type(callback).__name__}.{hook}, at step {run.step} of epoch {run.epoch}."
            )
            raise


def looks(callback: Callback, step: int) -> bool:
    """Says whether a callback looks at a step."""
    period = callback.steps_between_looks()
    return period is not None and step % period == 0


def shown(metrics: Mapping[str, Any], *, epoch: bool = False) -> dict[str, Any]:
    """Picks what a person wants to see: the newest window, or the means of the epoch under the same names."""
    return {
        name: metrics.get(f"{name}_epoch", value) if epoch else value
        for name, value in metrics.items()
        if not name.endswith("_epoch")
    }
