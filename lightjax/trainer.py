"""Trainer: checks what is asked for and connects the parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import jax

from lightjax import distributed
from lightjax.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightjax.callbacks.extension import extended_task
from lightjax.checks import check_arguments
from lightjax.data.grouped import Accumulation
from lightjax.data.module import in_use
from lightjax.data.stage import fit_data
from lightjax.engine.engine import Engine
from lightjax.engine.jit import JitEngine
from lightjax.engine.layout import Layout
from lightjax.errors import ConfigurationError
from lightjax.inference import metrics_of, outputs_of
from lightjax.loggers import Logger
from lightjax.loggers.choice import make_loggers
from lightjax.plan import Plan, make_plan
from lightjax.policy_request import PolicyRequest
from lightjax.precision import Precision
from lightjax.profiler.choice import make_profiler
from lightjax.profiler.profiler import Profiler
from lightjax.result import FitResult
from lightjax.run_directory import DEFAULT_ROOT
from lightjax.schedule import seconds
from lightjax.seeding import global_seed
from lightjax.shortcuts import rehearse, strip
from lightjax.strategy import Devices, MeshLike, Strategy, layout_of
from lightjax.task import TaskLike
from lightjax.topology import topology_devices
from lightjax.training import UNKNOWN, Training, steps_of


class Trainer:
    """Trains, evaluates and predicts with models written as pure functions.

    Arguments carry Lightning's names where the meaning is Lightning's.

    Args:
      max_epochs: passes over the training data.
      max_steps: optimizer steps in all; those a given `state` has already done count.
      min_epochs: epochs before which no callback and no `max_time` ends the run: who asked earlier gets it then.
      min_steps: the same in optimizer steps. Both have to be reached.
      max_time: "DD:HH:MM:SS", seconds, a timedelta or its arguments as a dict; the call that is under way is finished.
      seed: of the key that `init` receives, `jax.random.key(seed)`; that of `lj.seed_everything` when None, 0 without.
      deterministic: choose kernels that give the same bits every time, where others are faster (on GPUs).
      strategy: how training spreads over several devices. "jit" (and "auto") keeps the state whole on each and splits
        batches; "fsdp" splits the state, too; "pmap" runs the step on each device by itself, over its part of the
        batch, with the axis name "data" in `state.policy.replica_axis`; `lj.Sharded` says leaf by leaf. The same step
        gives the same training.
      devices: how many, which (indices, or some of `jax.devices()`), or "auto": all, or `jax_default_device` where that
        is set.
      mesh: how "jit" and "fsdp" arrange the devices: axis names with sizes, or a `jax.sharding.Mesh`.
      precision: "32-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true" or "64-true" (or 32, 16, "bf16", 64), or an
        `lj.Precision`; None leaves everything as it is. Mixed keeps float32 parameters and casts them, and the batch,
        for the compute, in evaluation and prediction, too; float16 scales the loss.
      accumulate_grad_batches: batches of the loader that make one optimizer step, or {epoch: number} from that epoch
        on. They come to `train_step` as one batch, which `lj.grad` goes through one by one; the last ones of an epoch
        make a step of their own.
      microbatches: parts that `lj.grad` cuts every batch of the loader into, to save memory.
      gradient_clip_val: the largest norm, or the largest absolute value, of a gradient: of a whole step's, unscaled.
      gradient_clip_algorithm: "norm" or "value".
      track_grad_norm: report the norm of gradients before clipping as `grad_norm`; clipping by norm does, too.
      on_nonfinite: "ignore" applies gradients that are not finite, "skip" leaves the state as it was and counts such
        steps in `skipped_steps`, "raise" ends the run one report later and names the step.
      trainable: regular expressions for the paths of parameters to train, or a pytree of bools; the others are frozen.
      remat: what the loss keeps for its gradient: "dots", "dots_no_batch", "full", or a `jax.checkpoint_policies`
        function. `lj.remat` around the blocks of a model saves more.
      steps_per_call: steps that one compiled call runs at most. "auto" times the first steps and chooses, and says why;
        1 turns fusing off. It never changes a number.
      callbacks: what looks at the run.
      logger: True for CSV and TensorBoard files, False for none; "csv", "tensorboard", "jsonl", "mlflow", "wandb",
        "comet", "neptune", "polyaxon", "clearml"; a logger; or a list. Those that are not quick and local are written
        from threads of their own, and can neither stop nor slow the run.
      log_every_n_steps: training metrics are reported every n steps, merged over those steps, and at the end of each
        epoch.
      profiler: "simple" prints at the end where the time went and what helps; "advanced" adds the heaviest Python
        functions of each action, "jax" a trace of some steps with the heaviest operations, "memory" what lies in the
        devices' memory; or a `lightjax.profiler.Profiler`.
      check_val_every_n_epoch: epochs between evaluations. None counts the batches of `val_check_interval` through all
        epochs instead of anew in each.
      val_check_interval: evaluate within an epoch, too: every so many batches, or after every such fraction of it; or,
        as for `max_time`, whenever so much time has passed (then, as with `check_val_every_n_epoch=None`, the end of
        the run is evaluated and the ends of epochs are not).
      num_sanity_val_steps: validation batches of each loader that are tried before training; their metrics are thrown
        away. -1 tries all. The step itself is traced before training in any case.
      limit_train_batches: batches of an epoch at most: a number, or a fraction (rounded down, at least 1).
      limit_val_batches: the same for each validation loader; 0 turns validation off.
      limit_test_batches: the same for testing.
      limit_predict_batches: the same for prediction.
      overfit_batches: train on so many batches (a number, or a fraction), the same in every epoch, and evaluate on as
        many.
      fast_dev_run: try everything on one batch of each stage, or on so many: one epoch, no files, no early stopping.
      reload_dataloaders_every_n_epochs: the data module makes its loaders anew every n epochs; 0 for never. It finds
        the epoch in `trainer.current_epoch`.
      barebones: the loop alone: no logger, checkpoints, progress bar, summary or sanity check.
      enable_progress_bar: show a progress bar (plain lines where the output is no terminal).
      enable_checkpointing: save the last and the best state.
      enable_model_summary: print a table of the parameters and what was derived from the arguments (devices, precision,
        batch, steps, memory, checkpoints) before training, and what came out of it and where the time went after it.
      quiet: print neither bar nor tables nor how a run went and where its files are, for the `--quiet` of a program;
        notes of what is not as it should be are printed all the same.
      default_root_dir: where run directories are made; "lightjax_logs" when None.
      resume: "auto" goes on from the newest whole checkpoint of the newest run under `default_root_dir` (and begins a
        new run where there is none); the directory of a checkpoint or of a run goes on from there; None begins anew.
      on_save_error: what to do about a checkpoint that cannot be written (disk full, directory gone, no permission):
        "raise" ends the run with the error, "warn" trains on and tries again at the next save. Either way a checkpoint
        that is complete is never deleted before a newer one is.
      requeue: in a SLURM job, run `scontrol requeue` as the last act of a run that was preempted; with resume="auto"
        the job then goes on by itself.
      compilation_cache: keep compiled programs for the next start: True beside the run directories (for runs that have
        one), a directory, or False.
      strict: raise where a step would have to be compiled again, instead of warning.
      check_memory: refuse a train step that needs more memory than a device has, before it runs, with the numbers.

    Attributes:
      result: of the last `fit`; None before.
      directory: of its run; None for a run without files.

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
        min_epochs: int | None = None,
        min_steps: int | None = None,
        max_time: str | float | timedelta | dict[str, int] | None = None,
        seed: int | None = None,
        strategy: Strategy = "auto",
        devices: Devices = "auto",
        mesh: MeshLike | None = None,
        precision: str | int | Precision | None = None,
        accumulate_grad_batches: int | Mapping[int, int] = 1,
        microbatches: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        track_grad_norm: bool = False,
        on_nonfinite: Literal["ignore", "skip", "raise"] | None = None,
        trainable: Any = None,
        remat: str | Callable[..., Any] | None = None,
        steps_per_call: int | Literal["auto"] = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
        logger: bool | str | Logger | Sequence[str | Logger] | None = True,
        log_every_n_steps: int = 50,
        profiler: str | Profiler | None = None,
        check_val_every_n_epoch: int | None = 1,
        val_check_interval: int | float | str | timedelta | dict[str, int] | None = None,
        num_sanity_val_steps: int = 0,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        overfit_batches: int | float = 0,
        fast_dev_run: bool | int = False,
        reload_dataloaders_every_n_epochs: int = 0,
        barebones: bool = False,
        enable_progress_bar: bool = True,
        enable_checkpointing: bool = True,
        enable_model_summary: bool = True,
        quiet: bool = False,
        default_root_dir: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
        on_save_error: Literal["raise", "warn"] = "raise",
        requeue: bool = False,
        deterministic: bool = False,
        compilation_cache: bool | str | os.PathLike[str] = True,
        strict: bool = False,
        check_memory: bool = True,
    ) -> None:
        distributed.join_launched()
        self.hyperparameters = {
            name: value for name, value in locals().items() if name not in ("self", "callbacks", "logger")
        }
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.min_epochs = min_epochs
        self.min_steps = min_steps
        self.max_time_s = seconds(max_time)
        self.val_check_interval = val_check_interval
        self.compilation_cache = compilation_cache
        self.strict = strict
        self.check_memory = check_memory
        self.resume = resume
        self.on_save_error: Literal["raise", "warn"] = on_save_error
        self.requeue = requeue
        self.seed = global_seed() if seed is None else seed
        self.deterministic = deterministic
        self.strategy: Strategy = strategy
        self.devices: Devices = devices
        self.mesh = mesh
        self.steps_per_call: int | Literal["auto"] = steps_per_call
        self.microbatches = microbatches
        self.policy: dict[str, Any] = {
            name: value
            for name, value in (
                ("precision", precision),
                ("gradient_clip_val", gradient_clip_val),
                ("gradient_clip_algorithm", None if gradient_clip_val is None else gradient_clip_algorithm),
                ("track_grad_norm", track_grad_norm or None),
                ("on_nonfinite", on_nonfinite),
                ("trainable", trainable),
                ("remat", remat),
            )
            if value is not None
        }
        self.callbacks = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        # What is saved has to hold what the others decided at the same look.
        self.callbacks.sort(key=lambda one: isinstance(one, ModelCheckpoint))
        self.logger = logger
        self.loggers = make_loggers(logger)
        schedulers = [one for one in self.callbacks if isinstance(one, GradientAccumulationScheduler)]
        if schedulers:
            accumulate_grad_batches = schedulers[0].scheduling
        self.accumulate_grad_batches = accumulate_grad_batches
        self.log_every_n_steps = log_every_n_steps
        self.profiler: Any = profiler
        self.check_val_every_n_epoch = check_val_every_n_epoch
        self.num_sanity_val_steps = num_sanity_val_steps
        self.overfit_batches = overfit_batches
        self.fast_dev_run = fast_dev_run
        self.reload_dataloaders_every_n_epochs = reload_dataloaders_every_n_epochs
        self.barebones = barebones
        self.limits: dict[str, int | float | None] = {
            "train": limit_train_batches,
            "val": overfit_batches if overfit_batches and limit_val_batches is None else limit_val_batches,
            "test": limit_test_batches,
            "predict": limit_predict_batches,
        }
        self.enable_progress_bar = enable_progress_bar and not quiet
        self.enable_model_summary = enable_model_summary and not quiet
        self.quiet = quiet
        self.default_root_dir = default_root_dir
        self.enable_checkpointing = enable_checkpointing
        check_arguments(self)
        self.profiler = make_profiler(profiler)
        if fast_dev_run:
            rehearse(self, int(fast_dev_run))
        if barebones:
            strip(self)
        if self.enable_checkpointing and not any(isinstance(one, ModelCheckpoint) for one in self.callbacks):
            self.callbacks.append(ModelCheckpoint())
        self.directory: Path | None = None
        self.result: FitResult[Any] | None = None
        self.accumulation = Accumulation.of(accumulate_grad_batches)
        self._training: Training | None = None
        self._task: TaskLike | None = None
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
          val_data: the same, evaluated at the end of epochs; or a dict of several, {"clean": ..., "noisy": ...}, whose
            metrics are named `val/clean/...`.
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
        with in_use(datamodule, self, "fit"):
            self._training = Training(self, self.resume if resume is None else resume, state)
            self.result = self._training.run(task, train_data, val_data, datamodule)
        return self.result

    def validate(
        self, task: TaskLike, data: Any = None, *, state: Any = None, datamodule: Any = None
    ) -> dict[str, Any]:
        """Evaluates a state on validation data.

        Args:
          task: the task; its `eval_step` is run.
          data: as `val_data` for `fit`.
          state: a state, a checkpoint or its directory, "best" or "last" of the last `fit`; the last state of that
            `fit` when None.
          datamodule: makes the loader, instead of `data`.

        Returns:
          Python floats by name, prefixed "val/"; waits for the device.
        """
        with in_use(datamodule, self, "validate"):
            return metrics_of(self, "val", task, data, datamodule, state)

    def test(self, task: TaskLike, data: Any = None, *, state: Any = None, datamodule: Any = None) -> dict[str, Any]:
        """Evaluates a state on test data: as `validate`, with names prefixed "test/".

        A task with another step for test data has a task with that eval_step as its attribute `testing`.
        """
        with in_use(datamodule, self, "test"):
            return metrics_of(self, "test", getattr(task, "testing", task), data, datamodule, state)

    def predict(
        self,
        task: TaskLike,
        data: Any = None,
        *,
        state: Any = None,
        datamodule: Any = None,
        return_predictions: bool = True,
    ) -> Any:
        """Runs the task's `predict_step` on every batch.

        Args:
          task: the task.
          data: as `val_data` for `fit`.
          state: as for `validate`.
          datamodule: makes the loader, instead of `data`.
          return_predictions: False returns None and keeps nothing: what matters, a callback such as
            `PredictionWriter` took.

        Returns:
          The outputs of all batches joined along their first axis, numpy arrays in the order of the data (a dict of
          them for a dict of loaders); waits for the device.
        """
        with in_use(datamodule, self, "predict"):
            return outputs_of(self, task, data, datamodule, state, keep=return_predictions)

    def plan(
        self, task: TaskLike, batch: Any, *, topology: str | None = None, steps_per_call: int | None = None
    ) -> Plan:
        """Compiles the train step ahead of time and says what it needs; runs nothing.

        Args:
          task: the task.
          batch: one batch over all devices: arrays, or their shapes.
          topology: a TPU pod to compile for that need not be there, such as "v5e:16x16" or "v5p:4x4x4"; the devices of
            this trainer when None. It needs the package `libtpu`.
          steps_per_call: steps of a call; the trainer's own, or 1, when None.

        Returns:
          The plan; `plan.check()` refuses what does not fit, `print(plan)` shows it.

        Raises:
          ConfigurationError: the devices cannot be arranged, or the TPU compiler is not installed.

        Example:
          >>> import jax, jax.numpy as jnp, optax, lightjax as lj
          >>> def init(key, batch):
          ...     return lj.TrainState.create(params={"w": jnp.zeros((8, 8))}, optimizer=optax.sgd(0.1), key=key)
          >>> def loss_fn(state, batch):
          ...     return ((batch @ state.params["w"]) ** 2).mean(), {}
          >>> task = lj.Task.from_loss(init, loss_fn)
          >>> plan = lj.Trainer(devices=1).plan(task, jax.ShapeDtypeStruct((4, 8), jnp.float32))
          >>> plan.flops, plan.collectives
          (1024, ())
          >>> state = plan.create_state(jax.random.key(0), jnp.ones((4, 8)))
          >>> state, metrics = plan.train_step(state, jnp.ones((4, 8)))
          >>> int(state.step)
          1
        """
        devices = self.devices if topology is None else topology_devices(topology)
        _tell(task, self)
        engine = self._make_engine(task, layout_of(self.strategy, devices, self.mesh))
        steps = steps_per_call or (1 if self.steps_per_call == "auto" else self.steps_per_call)
        return make_plan(engine, jax.random.key(self.seed), batch, steps, present=topology is None)

    @property
    def current_epoch(self) -> int:
        """The epoch of the training under way, or of the last one."""
        return 0 if self._training is None else self._training.epoch

    @property
    def estimated_steps(self) -> int | None:
        """Optimizer steps of the training that was begun last, for schedules: `init` may read it.

        None where nobody knows: the data has no length, or only `max_time` ends the run. A resumed run has the steps of
        the whole.

        Raises:
          ConfigurationError: no `fit` has begun and knows its data; `estimate_steps(train_data)` tells before.
        """
        found = UNKNOWN if self._training is None else self._training.estimated_steps
        if found is UNKNOWN:
            raise ConfigurationError(
                "trainer.estimated_steps was read before fit knew the data; read it in init, which fit calls, or write "
                "trainer.estimate_steps(train_data)."
            )
        return found

    @property
    def epoch_batches(self) -> int | None:
        """Batches of an epoch of the training that was begun last; None where nobody knows."""
        return None if self._training is None else self._training.epoch_batches

    def estimate_steps(self, train_data: Any = None, *, datamodule: Any = None) -> int | None:
        """Returns the optimizer steps that `fit` would take, None where nobody knows; runs nothing.

        Example:
          >>> import lightjax as lj, numpy as np
          >>> loader = lj.ArrayLoader({"x": np.zeros(10)}, batch_size=4)
          >>> lj.Trainer(max_epochs=5).estimate_steps(loader)
          15
        """
        data = fit_data(train_data, None, datamodule, self.limits, overfit_batches=self.overfit_batches)
        return steps_of(self, data.train.batches)

    @property
    def root(self) -> Path:
        """Where run directories are made."""
        return Path(self.default_root_dir or DEFAULT_ROOT).absolute()

    def engine_for(self, task: TaskLike) -> Engine:
        """Returns an engine of the task, the one of the last call if it was the same task: its programs are kept."""
        if self._engine is not None and self._task is task:
            return self._engine
        _tell(task, self)
        # A task may bring callbacks of its own (schedulers of a ported module); they leave with it.
        own = [one for one in self.callbacks if one not in getattr(self._task, "callbacks", ())]
        both = [*own, *getattr(task, "callbacks", ())]
        self.callbacks = sorted(both, key=lambda one: isinstance(one, ModelCheckpoint))
        self._task = task
        engine: Engine
        if (bring := getattr(task, "engine", None)) is not None:
            engine = self._engine = bring(self)
            return engine
        for method in ("init", "train_step"):
            if not callable(getattr(task, method, None)):
                raise ConfigurationError(
                    f"The task {task!r} has no {method}; pass lj.Task(init, train_step, eval_step), or an object with "
                    "these methods."
                )
        engine = self._engine = self._make_engine(task, layout_of(self.strategy, self.devices, self.mesh))
        return engine

    def _make_engine(self, task: TaskLike, layout: Layout) -> JitEngine:
        return JitEngine(
            extended_task(task, self.callbacks),
            layout,
            log_every_n_steps=self.log_every_n_steps,
            eval_batches_per_call=8 if self.steps_per_call == "auto" else self.steps_per_call,
            strict=self.strict,
            deterministic=self.deterministic,
            checks_memory=self.check_memory,
            request=PolicyRequest(self.policy, self.microbatches, self.accumulation.largest > 1),
        )


def _tell(task: TaskLike, trainer: Trainer) -> None:
    """Tells a task that wants to know which trainer runs it."""
    if (attach := getattr(task, "attach", None)) is not None:
        attach(trainer)
