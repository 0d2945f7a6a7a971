"""What a module sees of its trainer: `self.trainer`, `self.logger`, with Lightning's names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

import lightjax
from lightjax.profiler.profiler import Profiler
from lightjax_torch.logger_view import LoggerView
from lightjax_torch.trainer_state import TrainerState

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine

_PASSED_ON = (
    "max_epochs", "max_steps", "min_epochs", "min_steps", "log_every_n_steps", "check_val_every_n_epoch",
    "accumulate_grad_batches", "num_sanity_val_steps", "fast_dev_run", "overfit_batches",
    "val_check_interval", "reload_dataloaders_every_n_epochs", "enable_progress_bar",
)  # fmt: skip
_LOADERS = {
    "train_dataloader": "train",
    "val_dataloaders": "val",
    "test_dataloaders": "test",
    "predict_dataloaders": "predict",
}
_LIMITS = {f"limit_{stage}_batches": stage for stage in ("train", "val", "test", "predict")}


class TrainerView:
    """The trainer as a module sees it.

    It has what modules read of Lightning's: where the training is, the optimizers, the metrics, the devices. Asking for
    something else names what there is.

    Attributes:
      state: what runs.
      loaders: of the stages that run, as they were given or made, by "train", "val", "test" and "predict".
    """

    barebones = received_sigterm = interrupted = False
    progress_bar_callback = ckpt_path = None

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._waiting: list[Callable[[], None]] = []
        self.state = TrainerState(engine)
        self.loaders: dict[str, Any] = {}
        processes = engine.processes
        self.world_size, self.num_devices = processes.count, processes.local_count
        self.num_nodes = max(1, processes.count // processes.local_count)
        self.global_rank, self.local_rank = processes.rank, processes.local_rank
        self.node_rank = processes.rank // processes.local_count
        self.is_global_zero = processes.rank == 0
        self.strategy = SimpleNamespace(
            backward=engine.train_step.backward_by_module,
            reduce=processes.reduced,
            reduce_boolean_decision=self._reduce_decision,
            barrier=processes.barrier,
            broadcast=processes.broadcast,
            all_gather=processes.all_gathered,
            root_device=engine.device,
            is_global_zero=processes.rank == 0,
            global_rank=processes.rank,
            local_rank=processes.local_rank,
            world_size=processes.count,
        )
        self.precision_plugin = SimpleNamespace(clip_gradients=engine.train_step.clip, precision=engine.numerics.name)

    @property
    def _lightning_optimizers(self) -> list[Any]:
        return self._engine.wrapped

    @property
    def current_epoch(self) -> int:
        """The epoch, counted from 0."""
        return self._engine.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps done, those of all optimizers together."""
        return self._engine.optimizer_steps

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers."""
        return self._engine.optimizers

    @property
    def lr_scheduler_configs(self) -> list[Any]:
        """The schedulers, each with when it steps."""
        return self._engine.schedulers

    @property
    def callback_metrics(self) -> Mapping[str, torch.Tensor]:
        """The newest value of every metric, those of the step under way included."""
        log = self._engine.log
        log.note_step()
        return log.newest

    logged_metrics = progress_bar_metrics = callback_metrics

    @property
    def logger(self) -> Any:
        """The first logger; None for none."""
        return next(iter(self.loggers), None)

    @property
    def loggers(self) -> list[Any]:
        """The loggers; of those that run unless others are named the first, as Lightning has one."""
        trainer = self._engine.trainer
        seen = trainer.loggers[:1] if trainer.logger is True else trainer.loggers
        return [
            LoggerView(one, number, self, lambda: self._engine.run, self._waiting) for number, one in enumerate(seen)
        ]

    def begin(self) -> None:
        """Logs what was logged before there was a run."""
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()

    @property
    def should_stop(self) -> bool:
        """Whether the training is to end."""
        run = self._engine.run
        return run is not None and run.stopped_by is not None

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        if stop and self._engine.run is not None:
            self._engine.run.stop("trainer.should_stop")

    @property
    def training(self) -> bool:
        """Whether train steps run."""
        return self._engine.stage == "train"

    @property
    def validating(self) -> bool:
        """Whether validation steps run."""
        return self._engine.stage == "validation" and not self.sanity_checking

    @property
    def testing(self) -> bool:
        """Whether test steps run."""
        return self._engine.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether predict steps run."""
        return self._engine.stage == "predict"

    @property
    def evaluating(self) -> bool:
        """Whether validation or test steps run."""
        return self.validating or self.testing

    @property
    def sanity_checking(self) -> bool:
        """Whether validation is only tried."""
        run = self._engine.run
        return run is not None and run.sanity_checking

    @property
    def is_last_batch(self) -> bool:
        """Whether this is the last batch of the epoch."""
        return self._engine.last_batch

    @property
    def num_training_batches(self) -> int | float:
        """Batches of an epoch."""
        data = self._engine.data
        return float("inf") if data is None or data.train.batches is None else data.train.batches

    @property
    def num_val_batches(self) -> list[int | float]:
        """Validation batches of each loader."""
        data = self._engine.data
        return [float("inf") if one.batches is None else one.batches for one in data.val.values()] if data else []

    @property
    def fit_loop(self) -> Any:
        """What modules use of the loop: `setup_data()` asks for the training data before it is needed; its limits."""
        trainer = self._engine.trainer
        return SimpleNamespace(
            setup_data=self._engine.preparation.estimated_steps,
            max_epochs=trainer.max_epochs,
            min_epochs=trainer.min_epochs,
            max_steps=-1 if trainer.max_steps is None else trainer.max_steps,
        )

    @property
    def callbacks(self) -> list[Any]:
        """The callbacks, those of Lightning's class included."""
        return [*self._engine.trainer.callbacks, *self._engine.calls.callbacks]

    @property
    def checkpoint_callbacks(self) -> list[Any]:
        """The callbacks that save."""
        return self._callbacks_of(lightjax.ModelCheckpoint)

    @property
    def checkpoint_callback(self) -> Any:
        """The first callback that saves; None without one."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[Any]:
        """The callbacks that end a run early."""
        return self._callbacks_of(lightjax.EarlyStopping)

    @property
    def early_stopping_callback(self) -> Any:
        """The first callback that ends a run early; None without one."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def profiler(self) -> Any:
        """What times actions: `with self.trainer.profiler.profile("my work"):`."""
        run = self._engine.run
        return Profiler() if run is None else run.profiler

    @property
    def device_ids(self) -> list[int]:
        """The numbers of the devices of this machine."""
        return list(range(self.num_devices))

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole training."""
        return self._engine.preparation.estimated_steps()

    @property
    def datamodule(self) -> Any:
        """The data module, None without one."""
        return self._engine.datamodule

    @property
    def lightning_module(self) -> Any:
        """The module."""
        return self._engine.module

    model = lightning_module

    @property
    def gradient_clip_val(self) -> float | None:
        """Where gradients are clipped."""
        return self._engine.clip_value

    @property
    def gradient_clip_algorithm(self) -> str | None:
        """How gradients are clipped."""
        return self._engine.clip_algorithm

    @property
    def precision(self) -> str:
        """The precision's name."""
        return self._engine.numerics.name

    @property
    def log_dir(self) -> str | None:
        """The directory of the run."""
        directory = self._engine.trainer.directory
        return None if directory is None else str(directory)

    @property
    def default_root_dir(self) -> str:
        """Where run directories are made."""
        return str(Path(self._engine.trainer.default_root_dir or "."))

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints, in process 0."""
        if self.is_global_zero:
            print(*args, **kwargs)

    def _callbacks_of(self, kind: type) -> list[Any]:
        return [one for one in self.callbacks if isinstance(one, kind)]

    def _reduce_decision(self, decision: bool, all: bool = True) -> bool:
        found = self._engine.processes.gathered(bool(decision))
        return min(found) if all else max(found)

    def __getattr__(self, name: str) -> Any:
        if name in _PASSED_ON:
            return getattr(self._engine.trainer, name)
        if name in _LOADERS:
            return self.loaders.get(_LOADERS[name])
        if name in _LIMITS:
            limit = self._engine.trainer.limits[_LIMITS[name]]
            return 1.0 if limit is None else limit
        known = sorted({*_PASSED_ON, *_LOADERS, *_LIMITS, *(one for one in dir(self) if not one.startswith("_"))})
        raise AttributeError(
            f"self.trainer.{name} was read, which lightjax's trainer does not have; it has: {', '.join(known)}."
        )
