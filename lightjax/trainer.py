"""Trainer: checks what is asked for and connects the parts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import jax

from lightjax.callbacks import Callback, ModelCheckpoint
from lightjax.checkpoint import Checkpoint, Checkpointer, Checkpoints
from lightjax.checkpoint.catalog import FOLDER
from lightjax.checks import check_arguments, check_monitored
from lightjax.compilation_cache import compilation_cache_in
from lightjax.data.source import Source
from lightjax.data.stage import fit_data, stage_data
from lightjax.engine.engine import Engine
from lightjax.engine.jit import JitEngine
from lightjax.engine.layout import OneDevice
from lightjax.errors import ConfigurationError
from lightjax.evaluation import evaluate
from lightjax.history import History
from lightjax.interrupt import Interrupt
from lightjax.loggers import CSVLogger, Logger, LoggerCollection, TensorBoardLogger
from lightjax.loop import Loop, call
from lightjax.metrics import numbers
from lightjax.origin import checkpoint_to_resume, initial_state, state_to_evaluate, steps_done
from lightjax.pace import Pace
from lightjax.prediction import predict
from lightjax.progress import make_progress
from lightjax.progress.output import Output
from lightjax.result import FitResult
from lightjax.run import Run
from lightjax.run_directory import DEFAULT_ROOT, create_run_directory
from lightjax.schedule import Schedule, batches_between, seconds
from lightjax.summary import summarize
from lightjax.task import TaskLike


class Trainer:
    """Trains, evaluates and predicts with models written as pure functions.

    Arguments carry Lightning's names where the meaning is Lightning's.

    Args:
      max_epochs: passes over the training data.
      max_steps: optimizer steps in all; those a given `state` has already done count.
      max_time: "DD:HH:MM:SS", seconds, a timedelta or its arguments as a dict; the call that is under way is finished.
      seed: of the key that `init` receives, `jax.random.key(seed)`.
      steps_per_call: steps that one compiled call runs at most. "auto" times the first steps and chooses, and says why;
        1 turns fusing off. It never changes a number.
      callbacks: what looks at the run.
      logger: True for CSV and TensorBoard files, False for none, or one or several loggers.
      log_every_n_steps: training metrics are reported every n steps, merged over those steps, and at the end of each
        epoch.
      check_val_every_n_epoch: epochs between evaluations.
      val_check_interval: evaluate within an epoch, too: every so many batches, or after every such fraction of it.
      limit_train_batches: batches of an epoch at most: a number, or a fraction.
      limit_val_batches: the same for validation.
      limit_test_batches: the same for testing.
      limit_predict_batches: the same for prediction.
      enable_progress_bar: show a progress bar (plain lines where the output is no terminal).
      enable_checkpointing: save the last and the best state.
      enable_model_summary: print a table of the parameters before training.
      default_root_dir: where run directories are made; "lightjax_logs" when None.
      resume: "auto" goes on from the newest whole checkpoint of the newest run under `default_root_dir` (and begins a
        new run where there is none); the directory of a checkpoint or of a run goes on from there; None begins anew.
      compilation_cache: keep compiled programs for the next start: True beside the run directories (for runs that have
        one), a directory, or False.
      strict: raise where a step would have to be compiled again, instead of warning.

    Raises:
      ConfigurationError: arguments are out of range or contradict each other; every conflict is listed.

    Example:
      >>> import lightjax as lj, numpy as np, jax.numpy as jnp, optax
      >>> def init(key, batch):
      ...     return lj.TrainState.create(params={"w": jnp.zeros(())}, optimizer=optax.sgd(0.1), key=key)
      >>> def loss_fn(state, batch):
      ...     losses = (state.params["w"] * batch["x"] - batch["y"]) ** 2
      ...     return losses.mean(), {"loss": lj.Mean(losses)}
      >>> data = lj.ArrayLoader({"x": np.ones(8, np.float32), "y": np.full(8, 3, np.float32)}, batch_size=4)
      >>> trainer = lj.Trainer(max_epochs=20, logger=False, enable_checkpointing=False,
      ...                      enable_progress_bar=False, enable_model_summary=False)
      >>> result = trainer.fit(lj.Task.from_loss(init, loss_fn), data)
      >>> round(float(result.state.params["w"]), 2), result.stopped_by
      (3.0, 'max_epochs')
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        max_time: str | float | timedelta | dict[str, int] | None = None,
        seed: int = 0,
        steps_per_call: int | Literal["auto"] = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
        logger: bool | Logger | Sequence[Logger] | None = True,
        log_every_n_steps: int = 50,
        check_val_every_n_epoch: int = 1,
        val_check_interval: int | float | None = None,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        enable_progress_bar: bool = True,
        enable_checkpointing: bool = True,
        enable_model_summary: bool = True,
        default_root_dir: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
        compilation_cache: bool | str | os.PathLike[str] = True,
        strict: bool = False,
    ) -> None:
        self.hyperparameters = {
            name: value for name, value in locals().items() if name not in ("self", "callbacks", "logger")
        }
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.max_time_s = seconds(max_time)
        self.val_check_interval = val_check_interval
        self.compilation_cache = compilation_cache
        self.strict = strict
        self.resume = resume
        self.seed = seed
        self.steps_per_call: int | Literal["auto"] = steps_per_call
        self.callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        # What is saved has to hold what the others decided at the same look.
        self.callbacks.sort(key=lambda one: isinstance(one, ModelCheckpoint))
        self.loggers = _loggers(logger)
        self.log_every_n_steps = log_every_n_steps
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.limits = {
            "train": limit_train_batches,
            "val": limit_val_batches,
            "test": limit_test_batches,
            "predict": limit_predict_batches,
        }
        self.enable_progress_bar = enable_progress_bar
        self.enable_model_summary = enable_model_summary
        self.default_root_dir = default_root_dir
        self.enable_checkpointing = enable_checkpointing
        check_arguments(self)
        if enable_checkpointing and not any(isinstance(one, ModelCheckpoint) for one in self.callbacks):
            self.callbacks.append(ModelCheckpoint())
        self.directory: Path | None = None
        self._checkpoints = Checkpoints()
        self._state: Any = None
        self._engine: Engine | None = None

    @property
    def described(self) -> dict[str, Any]:
        """The arguments, as JSON: what is no number, string or truth value by its repr."""
        plain = bool | int | float | str | None
        return {
            name: value if isinstance(value, plain) else repr(value) for name, value in self.hyperparameters.items()
        }

    def fit(
        self,
        task: TaskLike,
        train_data: Any = None,
        val_data: Any = None,
        *,
        datamodule: Any = None,
        state: Any = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> FitResult[Any]:
        """Trains.

        A resumed run goes on in the directory of its checkpoint, from the batch after the last one that was trained on,
        and ends bit for bit where the run would have ended without the interruption.

        Args:
          task: a `Task`, or any object with its methods.
          train_data: `ArrayLoader`, any iterable of batches, or a generator function. A batch is a pytree of arrays.
          val_data: the same, evaluated at the end of epochs.
          datamodule: an object that makes the loaders, instead of `train_data` and `val_data`.
          state: the state to start from, copied; made by the task's `init` when None.
          resume: as for the trainer, for this call.

        Returns:
          The last state, metrics, history and checkpoints.

        Raises:
          ConfigurationError: no limit or no data was given, or arguments contradict each other.
          StepError: a step function breaks its contract.
          MetricError: a reported value is no metric, or a callback monitors a name that nobody reports.
          DataError: a loader gives no batches, or batches of different shapes.
          CheckpointError: the checkpoint to resume from is not there, damaged, or of another task.
        """
        if self.max_epochs is None and self.max_steps is None and self.max_time_s is None:
            raise ConfigurationError(
                "fit was called on a Trainer with neither max_epochs nor max_steps nor max_time, so the run would "
                "never end; write lj.Trainer(max_epochs=10) or lj.Trainer(max_steps=1000)."
            )
        train, val = fit_data(train_data, val_data, datamodule, self.limits)
        keeper = next((one for one in self.callbacks if isinstance(one, ModelCheckpoint)), None)
        self.directory = None
        checkpoint = checkpoint_to_resume(self.resume if resume is None else resume, self._root(), given=state)
        cache = compilation_cache_in(self._cache_directory(has_files=keeper is not None or bool(self.loggers)))
        with Interrupt() as interrupt, cache:
            engine = self._engine_for(task)
            batch = train.first()
            given = state if checkpoint is None else checkpoint
            state = initial_state(engine, jax.random.key(self.seed), batch, given, self.max_steps)
            engine.trace_train(state, batch)
            if val is not None:
                engine.trace_eval(state, val.first())
            check_monitored(self.callbacks, engine, validates=val is not None)
            schedule = self._schedule(train.batches)
            pace = self._pace(engine, batch, train.batches, schedule.total_steps(steps_done(state), train.batches))
            # From here on nothing the user wrote is wrong, as far as one can see without running it.
            return self._run(engine, state, train, val, schedule, pace, keeper, checkpoint, interrupt)

    def _run(
        self,
        engine: Engine,
        state: Any,
        train: Source,
        val: Source | None,
        schedule: Schedule,
        pace: Pace,
        keeper: ModelCheckpoint | None,
        checkpoint: Checkpoint | None,
        interrupt: Interrupt,
    ) -> FitResult[Any]:
        """Makes the run directory and all that writes into it, runs the loop, and closes them again."""
        output = Output()
        if self.enable_model_summary:
            output.write_line(str(summarize(state)))
        if keeper is not None and (reason := train.inexact()):
            warnings.warn(f"A resumed run will not see the batches this run would have seen: {reason}", stacklevel=3)
        if keeper is not None or self.loggers:
            if checkpoint is not None and checkpoint.path.parent.name == FOLDER:
                self.directory = checkpoint.path.parents[1]
            else:
                self.directory = create_run_directory(self.default_root_dir)
        logger = LoggerCollection(self.loggers)
        history = History(logger, self.directory / "history.jsonl" if self.directory and keeper else None)

        def before_write() -> None:
            history.write()
            logger.flush()

        checkpointer = Checkpointer(self.directory / FOLDER, before_write) if self.directory and keeper else None
        progress = make_progress(self.enable_progress_bar)
        run = Run(self, engine, state, history, logger, checkpointer, self.directory)
        run.validates = val is not None
        run.totals = engine.train_totals()
        about = None
        if checkpoint is not None:
            about = checkpoint.about()
            run.resume(checkpoint, about)
            output.write_line(
                f"resumed from {checkpoint.path} at step {run.step}, batch {run.batch} of epoch {run.epoch}"
            )
            train.resume(run.epoch, run.batch, run.place, output.write_line, interrupt.requested)
        with ExitStack() as closing:
            # Each is closed whatever the others raise: the display first, the loggers after the checkpoints.
            closing.callback(logger.finish)
            if checkpointer is not None:
                closing.callback(checkpointer.close)
            closing.callback(engine.close)
            closing.callback(progress.close)
            try:
                # The first program compiles while the loggers start.
                engine.compile_ahead("train", train.specs(pace.capacity)[:1])
                if self.directory is not None:
                    logger.start(self.directory)
                logger.log_hyperparams(self.hyperparameters)
                loop = Loop(run, engine, train, val, schedule, pace, self.callbacks, progress, interrupt)
                stopped_by = loop.fit(about)
            except BaseException as error:
                call(self.callbacks, "on_exception", run, error)
                raise
        self._state = run.state
        self._checkpoints = keeper.checkpoints if keeper is not None else Checkpoints()
        if self.directory is not None:
            output.write_line(f"stopped by {stopped_by} at step {run.step}; run directory: {self.directory}")
        return FitResult(
            state=run.state,
            metrics=dict(run.metrics),
            history=run.history.rows,
            checkpoint=self._checkpoints,
            stopped_by=stopped_by,
            directory=self.directory,
        )

    def _schedule(self, epoch_batches: int | None) -> Schedule:
        return Schedule(
            max_epochs=self.max_epochs,
            max_steps=self.max_steps,
            max_time_s=self.max_time_s,
            log_every_n_steps=self.log_every_n_steps,
            check_val_every_n_epoch=self.check_val_every_n_epoch,
            val_check_batches=batches_between(self.val_check_interval, epoch_batches),
        )

    def _pace(self, engine: Engine, batch: Any, epoch_steps: int | None, total_steps: int | None) -> Pace:
        return Pace(
            self.steps_per_call,
            loops=engine.loops("train"),
            callbacks=self.callbacks,
            batch=batch,
            epoch_steps=epoch_steps,
            total_steps=total_steps,
            on_cpu=engine.platform == "cpu",
        )

    def validate(
        self, task: TaskLike, data: Any = None, *, state: Any = None, datamodule: Any = None
    ) -> dict[str, Any]:
        """Evaluates a state on validation data.

        Args:
          task: the task; its `eval_step` is run.
          data: as for `fit`.
          state: a state, a checkpoint or its directory, "best" or "last" of the last `fit`; the last state of that
            `fit` when None.
          datamodule: makes the loader, instead of `data`.

        Returns:
          Python floats by name, prefixed "val/"; waits for the device.
        """
        return self._evaluate("val", task, data, state, datamodule)

    def test(self, task: TaskLike, data: Any = None, *, state: Any = None, datamodule: Any = None) -> dict[str, Any]:
        """Evaluates a state on test data: as `validate`, with names prefixed "test/"."""
        return self._evaluate("test", task, data, state, datamodule)

    def predict(self, task: TaskLike, data: Any = None, *, state: Any = None, datamodule: Any = None) -> Any:
        """Runs the task's `predict_step` on every batch.

        Returns:
          The outputs of all batches joined along their first axis, numpy arrays in the order of the data; waits for
          the device.
        """
        source = stage_data("predict", data, datamodule, self.limits)
        engine = self._engine_for(task)
        state = self._state_to_evaluate(engine, state, source)
        progress = make_progress(self.enable_progress_bar)
        try:
            return predict(engine, state, source, progress)
        finally:
            progress.close()

    def _evaluate(
        self, stage: Literal["val", "test"], task: TaskLike, data: Any, state: Any, datamodule: Any
    ) -> dict[str, Any]:
        source = stage_data(stage, data, datamodule, self.limits)
        engine = self._engine_for(task)
        state = self._state_to_evaluate(engine, state, source)
        engine.trace_eval(state, source.first())
        progress = make_progress(self.enable_progress_bar)
        try:
            totals = evaluate(state, engine, source, 0, stage, progress)
            metrics = numbers(engine.compute("eval", jax.device_get(totals)), f"{stage}/")
            progress.end_evaluation(metrics)
        finally:
            progress.close()
            engine.close()
        if self.directory is not None:
            logger = LoggerCollection(self.loggers)
            scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
            logger.log_metrics(steps_done(state), scalars)
            logger.finish()
        return metrics

    def _state_to_evaluate(self, engine: Engine, given: Any, source: Source) -> Any:
        key = jax.random.key(self.seed)
        return state_to_evaluate(engine, key, source, given, self._state, self._checkpoints)

    def _root(self) -> Path:
        return Path(self.default_root_dir or DEFAULT_ROOT).absolute()

    def _cache_directory(self, *, has_files: bool) -> Path | None:
        if isinstance(self.compilation_cache, bool):
            return self._root() / "compilation_cache" if self.compilation_cache and has_files else None
        return Path(self.compilation_cache).absolute()

    def _engine_for(self, task: TaskLike) -> Engine:
        """Returns an engine of the task, the one of the last call if it was the same task: its programs are kept."""
        for method in ("init", "train_step"):
            if not callable(getattr(task, method, None)):
                raise ConfigurationError(
                    f"The task {task!r} has no {method}; pass lj.Task(init, train_step, eval_step), or an object with "
                    "these methods."
                )
        if self._engine is None or self._engine.task is not task:
            batches = 8 if self.steps_per_call == "auto" else self.steps_per_call
            self._engine = JitEngine(
                task,
                OneDevice(jax.devices()[0]),
                log_every_n_steps=self.log_every_n_steps,
                eval_batches_per_call=batches,
                strict=self.strict,
            )
        return self._engine


def _loggers(logger: bool | Logger | Sequence[Logger] | None) -> list[Logger]:
    if logger is True:
        return [CSVLogger(), TensorBoardLogger()]
    if logger is None or logger is False:
        return []
    return list(logger) if isinstance(logger, list | tuple) else [logger]  # pyright: ignore[reportReturnType]
