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

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lightjax.cadence import Cadence
from lightjax.callbacks.callback import Callback
from lightjax.data.source import Source
from lightjax.engine.jit import JitEngine
from lightjax.interrupt import Interrupt
from lightjax.progress import Progress
from lightjax.reports import totals_report, window_reports
from lightjax.run import Run

# Enough that the device never idles between calls, few enough that memory and the time to react stay small.
CALLS_IN_FLIGHT = 4


@dataclass(frozen=True)
class Schedule:
    """How long a training runs, and how it is cut.

    Attributes:
      max_epochs: epochs to run; None for no limit.
      max_steps: optimizer steps in all, those a given state has already done included; None for no limit.
      steps_per_call: steps of one compiled call at most.
      check_val_every_n_epoch: epochs between evaluations.
      log_every_n_steps: steps that are merged into one report.
    """

    max_epochs: int | None
    max_steps: int | None
    steps_per_call: int
    check_val_every_n_epoch: int
    log_every_n_steps: int

    def end(self, run: Run) -> str | None:
        """Says which limit a run has reached."""
        if self.max_steps is not None and run.step >= self.max_steps:
            return "max_steps"
        if self.max_epochs is not None and run.epoch >= self.max_epochs:
            return "max_epochs"
        return None


def fit(
    run: Run,
    engine: JitEngine,
    train_data: Source,
    val_data: Source | None,
    schedule: Schedule,
    callbacks: Sequence[Callback],
    progress: Progress,
) -> str:
    """Trains until a limit is reached or somebody stops the run.

    on_fit_start
    for each epoch:
        on_train_epoch_start
        for each stretch: run it, report its metrics, on_train_batch_end for whoever looks at this step
        report the epoch's metrics
        on_validation_start, evaluate, on_validation_end
        on_train_epoch_end
    on_fit_end

    Returns:
      Why it ended.
    """
    cadence = Cadence.of(callbacks, schedule.max_steps)
    most = engine.capacity("train", schedule.steps_per_call)
    totals = engine.train_totals()
    in_flight: deque[Any] = deque()
    limit = schedule.end(run)
    progress.start(step=run.step, max_steps=schedule.max_steps, max_epochs=schedule.max_epochs)
    with Interrupt() as interrupt:
        call(callbacks, "on_fit_start", run)
        while run.stopped_by is None and limit is None:
            # An epoch begins.
            run.batch = 0
            rows, last = None, range(0)
            cursor = train_data.epoch(run.epoch)
            progress.start_epoch(run.epoch, train_data.batches)
            call(callbacks, "on_train_epoch_start", run)

            # Stretches, each up to the next look.
            while run.stopped_by is None and (length := cadence.steps_to_next_look(run.step, most)):
                if (stretch := cursor.take(length, most)) is None:
                    break
                with jax.transfer_guard("disallow"):
                    state, totals, rows = engine.train(run.state, totals, stretch, run.step, run.batch)
                last = range(run.step + 1, run.step + stretch.count + 1)
                run.advance(state, stretch.count)
                if windows := window_reports(engine, rows, last, run.epoch, schedule.log_every_n_steps):
                    run.history.promise(windows)
                bound(in_flight, rows)
                if progress.due():
                    progress.update(run.step, run.batch, shown(run.history.latest))
                call([one for one in callbacks if looks(one, run.step)], "on_train_batch_end", run)
                if interrupt.requested:
                    run.stop("interrupt")

            # The epoch ends: its last window, its means, evaluation, and whoever looks at epochs.
            if run.batch:
                _promise_epoch(run, engine, rows, last, totals[1], schedule.log_every_n_steps)
            if interrupt.requested:
                break
            if val_data is not None and (run.epoch + 1) % schedule.check_val_every_n_epoch == 0:
                call(callbacks, "on_validation_start", run)
                found = evaluate(run.state, engine, val_data, run.epoch, "val", most, progress)
                progress.end_evaluation({})
                run.history.promise(totals_report(engine, "eval", found, run.step, run.epoch, prefix="val/"))
                run.validated_at = run.step
                call(callbacks, "on_validation_end", run)
            call(callbacks, "on_train_epoch_end", run)
            progress.end_epoch(run.epoch, run.step, shown(run.metrics, epoch=True))
            run.epoch += 1
            limit = schedule.end(run)
        call(callbacks, "on_fit_end", run)
        run.history.settle()
    return run.stopped_by or limit or "interrupt"


def evaluate(state: Any, engine: JitEngine, data: Source, epoch: int, stage: str, most: int, progress: Progress) -> Any:
    """Evaluates a state on one pass over the data.

    Returns:
      The packed metrics of all batches, on the device; does not wait for them. The caller ends the display.
    """
    capacity = engine.capacity("eval", most)
    totals, done = engine.eval_totals(), 0
    in_flight: deque[Any] = deque()
    cursor = data.epoch(epoch)
    progress.start_evaluation(stage, data.batches)
    while (stretch := cursor.take(capacity, capacity)) is not None:
        with jax.transfer_guard("disallow"):
            totals = engine.evaluate(state, totals, stretch, done)
        done += stretch.count
        bound(in_flight, totals)
        progress.update_evaluation(done)
    return totals


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


def bound(in_flight: deque[Any], newest: Any) -> None:
    """Waits until few calls are unfinished: queues cost memory, and simulated devices lock up in long ones."""
    in_flight.append(newest)
    if len(in_flight) > CALLS_IN_FLIGHT:
        jax.block_until_ready(in_flight.popleft())


def _promise_epoch(run: Run, engine: JitEngine, rows: Any, last: range, epoch_totals: Any, every: int) -> None:
    if last[-1] % every:
        tail = window_reports(engine, rows, last, run.epoch, every, ends_epoch=True)
        assert tail is not None
        run.history.promise(tail)
    run.history.promise(
        totals_report(engine, "train", epoch_totals, run.step, run.epoch, prefix="train/", suffix="_epoch")
    )
    run.epochs_reported += 1


def shown(metrics: Mapping[str, Any], *, epoch: bool = False) -> dict[str, Any]:
    """Picks what a person wants to see: the newest window, or the means of the epoch under the same names."""
    return {
        name: metrics.get(f"{name}_epoch", value) if epoch else value
        for name, value in metrics.items()
        if not name.endswith("_epoch")
    }
