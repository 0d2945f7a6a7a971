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

from lightjax.cadence import Cadence
from lightjax.callbacks.callback import Callback, call, looking
from lightjax.data.feed import stretches
from lightjax.data.prefetch import read_ahead
from lightjax.data.stage import FitData
from lightjax.data.stretch import Cursor, Stretch
from lightjax.engine.engine import Engine
from lightjax.evaluation import Evaluation, trace
from lightjax.gauges import Gauges
from lightjax.interrupt import Interrupt
from lightjax.metrics import batch_size
from lightjax.pace import Pace
from lightjax.preflight import preflight
from lightjax.progress import Progress
from lightjax.reports import named, totals_report, window_reports
from lightjax.run import Run
from lightjax.schedule import Schedule


class Loop:
    """One training.

    Args:
      run: what callbacks see, moved on by the loop.
      engine: runs the steps.
      data: what to train on, once an epoch, and what to evaluate on, as the schedule says.
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
        data: FitData,
        schedule: Schedule,
        pace: Pace,
        callbacks: Sequence[Callback],
        progress: Progress,
        interrupt: Interrupt,
    ) -> None:
        self.run = run
        self.engine = engine
        self.data = data
        self.schedule = schedule
        self.pace = pace
        self.callbacks = callbacks
        self.progress = progress
        self.interrupt = interrupt
        self.validated_s = 0.0
        self._at_batch_start = [one for one in callbacks if one.overrides("on_train_batch_start")]
        self._at_batch_end = [one for one in callbacks if one.overrides("on_train_batch_end")]
        self._at_call_end = [one for one in callbacks if one.overrides("on_call_end")]
        self._prepare()
        self.gauges = Gauges(batch_size(run.batch_spec))
        self.announces = run.trainer.enable_model_summary
        self.graph_logged = False
        self.rows: Any = None
        self.in_flight: deque[Any] = deque()

    def fit(self, resumed: Mapping[str, Any] | None = None) -> str:
        """Trains until a limit is reached or somebody stops the run.

        on_fit_start
        on_sanity_check_start, try a few validation batches, on_sanity_check_end
        on_train_start
        for each epoch:
            on_train_epoch_start
            for each stretch: run it, report its metrics, on_train_batch_end for whoever looks at this step
            report the epoch's metrics
            on_validation_start, evaluate, on_validation_end
            on_train_epoch_end
        on_train_end
        on_fit_end

        Args:
          resumed: what is kept beside the checkpoint that the run goes on from; None for a new run.

        Returns:
          Why it ended.
        """
        run, schedule, progress = self.run, self.schedule, self.progress
        if run.trainer.enable_progress_bar:
            run.print = progress.print
        progress.start(step=run.step, max_steps=schedule.max_steps, max_epochs=schedule.max_epochs)
        with run.profiler.profile("compilation"):
            self.engine.compile_ahead("train", self.data.train.specs(self.pace.capacity))
            self.evaluation.compile_ahead()
        if not self.pace.measuring:
            progress.print(str(self.pace))
        limit = schedule.end(run)
        if self.interrupt.reason is not None:
            run.stop(self.interrupt.reason, at_once=True)
        call(self.callbacks, "setup", run, "fit")
        if resumed is not None:
            run.restore_callbacks(resumed)
        call(self.callbacks, "on_fit_start", run)
        if resumed is None:
            self._sanity_check()
        self.interrupt.steps_run = True
        call(self.callbacks, "on_train_start", run)
        first = run.epoch
        while run.stopped_by is None and limit is None:
            if run.epoch != first and self.data.renew(run.epoch):
                self.schedule = schedule = schedule.for_epochs_of(self.data.train.batches)
                self._prepare()
            run.epoch_batches = self.data.train.batches
            progress.start_epoch(run.epoch, run.epoch_batches)
            call(self.callbacks, "on_train_epoch_start", run)
            if run.batch:
                self._validate_within_epoch()
            complete = self._train_epoch(self.data.train.epoch(run.epoch, run.batch))
            if run.validated_at != run.step and schedule.validates_after(run):
                self._validate()
            if self.interrupt.requested():
                run.stop(self.interrupt.reason or "interrupt", at_once=True)
                break
            run.epoch_ended = complete
            if complete:
                run.place = self.data.train.after_pass(run.place)
            call(self.callbacks, "on_train_epoch_end", run)
            progress.end_epoch(run.epoch, run.step, shown(run.metrics, epoch=True))
            if complete:
                run.next_epoch()
            limit = schedule.end(run)
        call(self.callbacks, "on_train_end", run)
        call(self.callbacks, "on_fit_end", run)
        run.history.settle()
        return run.stopped_by or limit or "interrupt"

    def _train_epoch(self, cursor: Cursor) -> bool:
        """Runs the stretches of an epoch, one by one while they are timed, then made ahead in a thread.

        Returns:
          Whether the epoch is complete; one that is cut short goes on when the run is resumed.
        """
        feed, chosen = self._stretches(cursor), False
        # Until the program for the chosen pace is there, the one that was timed goes on.
        while self.run.stopped_by is None and (self.pace.measuring or (chosen and self.engine.compiling())):
            if (stretch := next(feed, None)) is None:
                break
            begun_s = time.perf_counter()
            self._train(stretch)
            # What else is being compiled takes the processor from the steps: their times would mean nothing.
            if chosen or self.engine.compiling():
                continue
            with self.run.profiler.profile("device"):
                chosen = self.pace.observe(begun_s, self.rows, self.run.step, self.engine.compile_s)
            if chosen:
                self.progress.print(str(self.pace))
                with self.run.profiler.profile("compilation"):
                    self.engine.compile_ahead("train", self.data.train.specs(self.pace.capacity))
        if not self.pace.measuring and self.run.stopped_by is None:
            feed = self._stretches(cursor)
            with read_ahead(feed, self.engine.reads_ahead, self.interrupt.requested) as ahead:
                # What nobody reads ahead is noted where it is read.
                for stretch in self.run.profiler.each("data", ahead) if self.engine.reads_ahead else ahead:
                    self._train(stretch)
                    if self.run.stopped_by is not None:
                        break
        # An epoch that a signal cut short goes on in another process, and reports its means there.
        if self.run.batch and not self.interrupt.requested():
            self._promise_epoch()
        if self.data.train.batches is not None:
            return self.run.batch >= self.data.train.batches
        return self.run.stopped_by is None and self.schedule.end(self.run) != "max_steps"

    def _stretches(self, cursor: Cursor) -> Iterator[Stretch]:
        """Cuts the rest of the epoch at the looks."""
        step, batch, most = self.run.step, self.run.batch, self.pace.steps
        counted, group = self.schedule.batches_done(self.run), self.schedule.accumulation.at(self.run.epoch)
        profiler = self.run.profiler

        def place(stretch: Stretch, taken: int) -> Stretch:
            if not self.engine.reads_ahead:
                return self.engine.place_stretch("train", stretch, step + taken, batch + taken * group)
            with profiler.profile("moving"):
                return self.engine.place_stretch("train", stretch, step + taken, batch + taken * group)

        def length(taken: int) -> int:
            return self.cadence.steps_to_next_look(step + taken, counted + taken * group, most, group)

        return profiler.each("reading", stretches(cursor, place, length, self.pace.capacity))

    def _train(self, stretch: Stretch) -> None:
        """Runs a stretch, promises its reports, and lets whoever looks at this step look."""
        run, schedule, profiler = self.run, self.schedule, self.run.profiler
        call(looking(self._at_batch_start, run.step), "on_train_batch_start", run)
        if not self.engine.is_ready("train", stretch):
            with self.progress.excluded(), self.gauges.clock.excluded(), profiler.profile("compilation"):
                self.engine.program("train", stretch)
        if self.announces:
            self.announces = False
            run.print(preflight(run, self.engine, self.data, schedule, self.pace, stretch))
        with profiler.call(run.step, stretch.count, self.rows):
            state, run.totals, self.rows = self.engine.train(run.state, run.totals, stretch)
        if not self.graph_logged:  # while the device runs the first call
            self._log_graph(stretch)
        steps = range(run.step + 1, run.step + stretch.count + 1)
        run.advance(state, stretch)
        if windows := window_reports(self.engine, self.rows, steps, run.epoch, schedule.log_every_n_steps):
            group = schedule.accumulation.at(run.epoch)
            # The state of a task with an engine of its own may be dear to look into.
            seen = None if self.engine.own_names else run.state
            run.history.promise(run.step, self.gauges.beside(windows, run.step, group, seen, self.engine.gauges))
        self.in_flight.append((self.rows, stretch.count - 1))
        if len(self.in_flight) > self.engine.calls_in_flight:
            with profiler.profile("device"):
                self.engine.wait(self.in_flight.popleft()[0])
        if self.progress.due():
            with profiler.profile("display"):
                self.progress.update(run.step, run.batch, shown(run.history.latest) | self._glance())
        call(looking(self._at_batch_end, run.step), "on_train_batch_end", run)
        self._validate_within_epoch()
        call(self._at_call_end, "on_call_end", run)
        run.write_checkpoints()
        run.clock.tick()
        if schedule.out_of_time(run):
            run.stop("max_time")
        if self.interrupt.poll():
            run.stop(self.interrupt.reason or "interrupt", at_once=True)

    def _log_graph(self, stretch: Stretch) -> None:
        """Offers the compiled steps to the loggers, as text."""
        self.graph_logged = True
        as_text = getattr(self.engine.program("train", stretch), "as_text", None)  # of what jax compiled
        if as_text is not None:
            with self.run.profiler.profile("logging"):
                self.run.logger.log_graph(self.run.step, "train_step", as_text)

    def _prepare(self) -> None:
        """Prepares for the data there is now."""
        run, schedule = self.run, self.schedule
        self.evaluation = Evaluation(
            "val", self.engine, self.data.val, self.callbacks, self.progress, self.interrupt.requested
        )
        trace(self.engine, run.state, self.data.val)
        run.validates = bool(self.data.val)
        batch_period = schedule.val_check_batches if run.validates else None
        self.cadence = Cadence.of(self.callbacks, schedule.max_steps, batch_period, run.trainer.min_steps or 0)

    def _sanity_check(self) -> None:
        """Tries a few validation batches, and waits for them: what fails, fails before training."""
        run, batches = self.run, self.run.trainer.num_sanity_val_steps
        if not batches or not run.validates:
            return
        run.sanity_checking = True
        call(self.callbacks, "on_sanity_check_start", run)
        self.evaluation.run(run, None if batches == -1 else batches, reports=False)
        call(self.callbacks, "on_sanity_check_end", run)
        run.sanity_checking = False

    def _validate_within_epoch(self) -> None:
        """Evaluates where `val_check_interval` asks for it, unless that was done."""
        run = self.run
        if run.validated_at != run.step and self.schedule.validates_within(run, self.validated_s):
            run.within_epoch = run.batch != run.epoch_batches
            self._validate()
            run.within_epoch = False

    def _glance(self) -> dict[str, Any]:
        """Returns the metrics of the newest call that is finished, without waiting: {} where none is."""
        for rows, last in reversed(self.in_flight):
            if self.engine.finished(rows):
                return named(self.engine, self.engine.compute("train", self.engine.row(rows, last), "step"), "train/")
        return {}

    def _validate(self) -> None:
        """Evaluates the present state and promises the result."""
        if self.run.validates:
            with self.gauges.clock.excluded(), self.run.profiler.profile("evaluation"):
                self.evaluation.run(self.run)
        if self.schedule.val_check_s is not None:
            self.validated_s = self.run.clock.now_s()

    def _promise_epoch(self) -> None:
        """Promises the last window of an epoch and the means of the whole epoch."""
        run, (window, epoch) = self.run, self.run.totals
        place = (run.step, run.epoch)
        if run.step % self.schedule.log_every_n_steps:
            run.history.promise(run.step, totals_report(self.engine, "train", window, *place, prefix="train/"))
        run.history.promise(
            run.step, totals_report(self.engine, "train", epoch, *place, prefix="train/", suffix="_epoch")
        )
        run.epochs_reported += 1


def shown(metrics: Mapping[str, Any], *, epoch: bool = False) -> dict[str, Any]:
    """Picks what a person wants to see: the newest window, or the means of the epoch under the same names."""
    values = {name: value for name, value in metrics.items() if not name.endswith("_epoch")}
    of_epoch = {name.removesuffix("_epoch"): value for name, value in metrics.items() if name.endswith("_epoch")}
    return values | of_epoch if epoch else values
