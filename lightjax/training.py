"""Training: one call of `fit`, from what was asked for to its result."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lightjax import _tree, distributed
from lightjax.callbacks import ModelCheckpoint
from lightjax.callbacks.callback import call, call_to_the_end
from lightjax.callbacks.extension import extended_state
from lightjax.callbacks.model_checkpoint import checkpoint_places
from lightjax.checkpoint import Checkpointer, Checkpoints
from lightjax.checkpoint.location import is_remote
from lightjax.checks import check_monitored
from lightjax.closing import closing_summary
from lightjax.compilation_cache import compilation_cache_in
from lightjax.data.grouped import joined_spec
from lightjax.data.stage import FitData
from lightjax.engine.engine import Engine
from lightjax.evaluation import metric_names, trace
from lightjax.history import HISTORY_FILE, History
from lightjax.interrupt import Interrupt
from lightjax.loggers import LoggerCollection, in_background
from lightjax.loop import Loop
from lightjax.origin import checkpoint_to_resume, initial_state, steps_done
from lightjax.pace import Pace
from lightjax.profiler.profiler import Profiler
from lightjax.progress import make_progress
from lightjax.progress.output import Output
from lightjax.report.record import Life, add_life
from lightjax.requeue import requeue_slurm_job
from lightjax.result import FitResult
from lightjax.run import Run
from lightjax.run_directory import RunPlaces, run_places
from lightjax.schedule import Schedule, seconds
from lightjax.task import TaskLike

if TYPE_CHECKING:
    from lightjax.trainer import Trainer

UNKNOWN: Any = object()


class Training:
    """Finds out what is to run, checks it, runs it, and closes what it opened.

    Args:
      trainer: what was asked for. Its `directory` is set.
      resume: as for `Trainer.fit`.
      given: the state of the user's to start from.

    Attributes:
      under_way: the run, as callbacks see it; None before.
      estimated_steps: optimizer steps of the whole, None where nobody knows, `UNKNOWN` before the data is there.
      epoch_batches: batches of an epoch, None where nobody knows.
    """

    def __init__(self, trainer: Trainer, resume: str | os.PathLike[str] | None, given: Any) -> None:
        trainer.directory = None
        self.trainer = trainer
        self.under_way: Run | None = None
        self._given = given
        self._keeper = next((one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)), None)
        self._place = next(iter(checkpoint_places(trainer.callbacks)), None)
        self._checkpoint = checkpoint_to_resume(resume, trainer.root, self._place, given=given)
        self._about = None if self._checkpoint is None else self._checkpoint.about()
        self._epoch = 0
        if self._about is not None:
            every, epoch = trainer.reload_dataloaders_every_n_epochs, self._about["position"]["epoch"]
            self._epoch = epoch - epoch % every if every else epoch
        self.estimated_steps: Any = UNKNOWN
        self.epoch_batches: int | None = None
        self._output = Output()

    @property
    def epoch(self) -> int:
        """The epoch under way; before, the one whose loaders are made first."""
        return self._epoch if self.under_way is None else self.under_way.epoch

    def run(self, task: TaskLike, train_data: Any, val_data: Any, datamodule: Any) -> FitResult[Any]:
        """Finds out what is to run, checks it, and runs it; arguments as for `Trainer.fit`."""
        trainer, given = self.trainer, self._given if self._checkpoint is None else self._checkpoint
        engine = trainer.engine_for(task)
        data = engine.fit_data(
            train_data,
            val_data,
            datamodule,
            trainer.limits,
            overfit_batches=trainer.overfit_batches,
            reload_every_n_epochs=trainer.reload_dataloaders_every_n_epochs,
            accumulation=trainer.accumulation,
            kept=None if self._about is None else self._about.get("datamodule"),
            given=given,
        )
        batches = data.train.batches
        self.estimated_steps, self.epoch_batches = steps_of(trainer, batches), batches
        with Interrupt() as interrupt, compilation_cache_in(self._cache_directory()):
            batch = data.train.first()
            if self._checkpoint is None and given is not None:
                given = extended_state(given, [engine.stand_in(one) for one in trainer.callbacks])
            state = initial_state(engine, jax.random.key(trainer.seed), batch, given, trainer.max_steps)
            engine.trace_train(state, batch)
            trace(engine, state, data.val)
            meant: Mapping[str, str] = {}
            if not engine.own_names:
                names = engine.metric_names("train"), metric_names(engine, "val", data.val)
                meant = check_monitored(trainer.callbacks, *names)
            schedule = schedule_of(trainer, batches)
            pace = pace_of(trainer, engine, batch, batches, schedule.total_steps(steps_done(state), batches))
            # From here on nothing the user wrote is wrong, as far as one can see without running it.
            return self._train(engine, state, data, schedule, pace, meant, interrupt)

    def _train(
        self,
        engine: Engine,
        state: Any,
        data: FitData,
        schedule: Schedule,
        pace: Pace,
        meant: Mapping[str, str],
        interrupt: Interrupt,
    ) -> FitResult[Any]:
        """Makes the run directory and all that writes into it, runs the loop, and closes them again."""
        trainer, output = self.trainer, self._output
        if trainer.enable_model_summary:
            output.write_line(str(engine.summarize(state)))
        if self._keeper is not None and (reason := data.train.inexact()):
            output.write_line(f"note: resumed, this run would see other batches: {reason}")
        places = self._places()
        directory = trainer.directory = None if places is None else places.directory
        checkpoint = self._checkpoint if places is None else places.checkpoint
        main, profiler = distributed.is_main(), trainer.profiler
        logger = LoggerCollection(map(in_background, trainer.loggers if main else ()))
        history = History(logger, directory / HISTORY_FILE if directory and self._keeper and main else None, profiler)
        checkpointer = None
        if places is not None and self._keeper:
            # No link leads from an object store to the run directory: the reports are kept there as well.
            copy = places.checkpoints / HISTORY_FILE if main and is_remote(places.checkpoints) else None
            checkpointer = Checkpointer(
                places.checkpoints, partial(_write, history, logger, copy), trainer.on_save_error
            )
        progress = make_progress(trainer.enable_progress_bar and main)
        run = self.under_way = Run(trainer, engine, state, history, logger, checkpointer, directory)
        run.profiler = profiler
        run.totals = engine.train_totals()
        run.estimated_steps = self.estimated_steps
        run.meant = meant
        run.datamodule = data.datamodule
        run.batch_spec = _tree.abstract(data.train.first())
        if checkpoint is not None and self._about is not None:
            if not run.resume(checkpoint, self._about, None if places is None else places.reports):
                output.write_line("note: what the run reported before this is not here; result.history begins anew")
            if not trainer.quiet:
                output.write_line(
                    f"resumed from {checkpoint.path} at step {run.step}, batch {run.batch} of epoch {run.epoch}"
                )
            data.train.resume(run.epoch, run.batch, run.place, output.write_line, interrupt.requested)
        with ExitStack() as closing:
            # Each is closed whatever the others raise: the display first, the loggers after the checkpoints.
            profiler.tracer = engine.tracer
            profiler.start(directory)
            closing.callback(profiler.finish)
            closing.callback(_timed, profiler, "logging", logger.finish)
            if checkpointer is not None:
                closing.callback(_timed, profiler, "checkpoint", checkpointer.close)
            closing.callback(engine.close)
            closing.callback(progress.close)
            try:
                # The first program compiles while the loggers start.
                with profiler.profile("compilation"):
                    engine.compile_ahead("train", data.train.specs(pace.capacity)[:1])
                with profiler.profile("logging"):
                    if directory is not None:
                        logger.start(directory, resumed_at=run.step if checkpoint is not None else None)
                    logger.log_hyperparams(trainer.hyperparameters | dict(engine.hyperparameters))
                loop = Loop(run, engine, data, schedule, pace, run.callbacks, progress, interrupt)
                stopped_by = loop.fit(self._about)
            except BaseException as error:
                call_to_the_end(run.callbacks, run, error)
                raise
            call(run.callbacks, "teardown", run, "fit")
        return self._result(run, stopped_by)

    def _result(self, run: Run, stopped_by: str) -> FitResult[Any]:
        """Says what came out of a run that is closed."""
        trainer, output, directory = self.trainer, self._output, self.trainer.directory
        times = trainer.profiler.times()
        if directory is not None and distributed.is_main():
            add_life(directory, Life(stopped_by, run.step, times))
        if trainer.enable_model_summary:
            output.write_line(closing_summary(run.history.rows, times))
        if report := trainer.profiler.report():
            output.write_line(report)
        if directory is not None and not trainer.quiet:
            output.write_line(f"stopped by {stopped_by} at step {run.step}; run directory: {directory}")
        if trainer.requeue and stopped_by == "preempted" and (line := requeue_slurm_job()):
            output.write_line(line)
        return FitResult(
            state=run.state,
            metrics=dict(run.metrics),
            history=run.history.rows,
            checkpoint=Checkpoints() if self._keeper is None else self._keeper.checkpoints,
            stopped_by=stopped_by,
            directory=directory,
            times=times,
        )

    def _places(self) -> RunPlaces | None:
        """Finds where the run's files are; None for a run without files."""
        trainer = self.trainer
        if self._keeper is None and not trainer.loggers:
            return None
        return run_places(trainer.default_root_dir, self._checkpoint, self._place)

    def _cache_directory(self) -> Path | None:
        trainer = self.trainer
        if isinstance(trainer.compilation_cache, bool):
            has_files = self._keeper is not None or bool(trainer.loggers)
            return trainer.root / "compilation_cache" if trainer.compilation_cache and has_files else None
        return Path(trainer.compilation_cache).absolute()


def schedule_of(trainer: Trainer, epoch_batches: int | None) -> Schedule:
    """Returns the limits and intervals that a trainer was asked for, in epochs of so many batches.

    Raises:
      ConfigurationError: `val_check_interval` does not go with these epochs.
    """
    interval = trainer.val_check_interval
    by_time = isinstance(interval, str | timedelta | dict)
    return Schedule(
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
        max_time_s=trainer.max_time_s,
        log_every_n_steps=trainer.log_every_n_steps,
        check_val_every_n_epoch=trainer.check_val_every_n_epoch,
        val_check_interval=None if by_time else interval,
        val_check_s=seconds(interval, "val_check_interval") if by_time else None,
        accumulation=trainer.accumulation,
    ).for_epochs_of(epoch_batches)


def steps_of(trainer: Trainer, epoch_batches: int | None) -> int | None:
    """Returns the optimizer steps of a training with epochs of so many batches, None where nobody knows."""
    return schedule_of(trainer, epoch_batches).total_steps(0, epoch_batches)


def pace_of(trainer: Trainer, engine: Engine, batch: Any, epoch_batches: int | None, total_steps: int | None) -> Pace:
    """Returns how many steps run in one call."""
    accumulation = trainer.accumulation
    pace = Pace(
        trainer.steps_per_call if engine.reads_ahead else 1,
        loops=engine.loops("train"),
        callbacks=trainer.callbacks,
        batch=joined_spec(batch, accumulation.largest) if accumulation.largest > 1 else batch,
        epoch_steps=None if epoch_batches is None else accumulation.steps(1, epoch_batches),
        total_steps=total_steps,
        on_cpu=engine.platform == "cpu",
    )
    if not engine.reads_ahead:
        pace.reason = "the task's own steps run one by one"
    return pace


def _write(history: History, logger: LoggerCollection, copy: Path | None) -> None:
    """Writes what was reported, before a checkpoint that counts on it."""
    history.write()
    if copy is not None and history.file is not None and history.file.exists():
        copy.write_bytes(history.file.read_bytes())
    logger.flush()


def _timed(profiler: Profiler, action: str, close: Callable[[], None]) -> None:
    with profiler.profile(action):
        close()
