"""Trainer: `lightjax.Trainer` for programs that say `import lightning as L`, with only the import changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

import lightjax
from lightjax.errors import ConfigurationError
from lightjax.result import FitResult
from lightjax_torch.bridge import from_torch
from lightjax_torch.lightning_callbacks import parted
from lightjax_torch.processes import Processes, joined

# Arguments of Lightning's trainer that are gone or called otherwise, and what to write.
_RENAMED = {
    "gpus": "device='cuda' (or leave it out: 'auto' takes a GPU where there is one)",
    "tpu_cores": "lightjax_torch.from_torch(module, backend='jax')",
    "auto_select_gpus": "device='auto'",
    "num_processes": "torchrun --nproc-per-node=N program.py",
    "distributed_backend": "torchrun --nproc-per-node=N program.py",
    "checkpoint_callback": "enable_checkpointing=",
    "progress_bar_refresh_rate": "enable_progress_bar=",
    "weights_summary": "enable_model_summary=",
    "max_nb_epochs": "max_epochs=",
    "min_nb_epochs": "min_epochs=",
    "resume_from_checkpoint": "trainer.fit(..., ckpt_path=...)",
    "truncated_bptt_steps": "detach the hidden state in training_step",
    "terminate_on_nan": "on_nonfinite='raise'",
    "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs=1",
    "check_point_callback": "callbacks=[ModelCheckpoint(...)]",
    "early_stop_callback": "callbacks=[EarlyStopping(...)]",
    "amp_level": "precision='16-mixed'",
    "amp_backend": "precision='16-mixed'",
    "flush_logs_every_n_steps": "nothing: loggers write by themselves",
    "row_log_interval": "log_every_n_steps=",
    "val_percent_check": "limit_val_batches=",
    "train_percent_check": "limit_train_batches=",
}
_DEVICES = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps", "auto": "auto"}
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


def _missing(processes: Processes, devices: Any, num_nodes: int) -> list[str]:
    """Says where there are other processes than were asked for: here nobody starts any."""
    found = []
    nodes = max(1, processes.count // processes.local_count)
    count = len(devices) if isinstance(devices, list) else devices
    if count not in ("auto", -1, "-1") and str(count) != str(processes.local_count):
        found.append(
            f"devices={devices!r}: {processes.local_count} process{'es run' if processes.local_count > 1 else ' runs'} "
            f"on this machine, each with one device; start several with torchrun --nproc-per-node={count} program.py"
        )
    if num_nodes != nodes:
        found.append(f"num_nodes={num_nodes}: the processes are on {nodes}; start them with torchrun --nnodes or srun")
    return found


class Trainer(lightjax.Trainer):
    """Trains torch modules as they are; the arguments are those of `lightjax.Trainer`, with Lightning's defaults.

    Args:
      accelerator: "auto", "cpu", "gpu", "cuda" or "mps".
      devices: processes on each machine, as torchrun, SLURM or MPI started them; "auto" for as many as there are.
      backend: "eager", or a backend of torch.compile; see `from_torch`.
      device: the device itself, instead of `accelerator`.
      num_nodes: machines, likewise.
      strategy: "auto" or "ddp" average gradients by DistributedDataParallel where there are several processes;
        "ddp_find_unused_parameters_true" where steps leave parameters without gradients.
      use_distributed_sampler: as for `from_torch`.
      max_epochs: passes over the data; 1000 where neither `max_steps` nor `max_time` is given.
      max_steps: optimizer steps; -1 for no limit.
      num_sanity_val_steps: validation batches tried before training.
      precision: "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true" or "64-true" (or 32, 16, "bf16", 64).
      **arguments: of `lightjax.Trainer`.

    Raises:
      ConfigurationError: an argument is out of range, or of an old Lightning: it names the new one.

    Example:
      >>> Trainer(gpus=1)
      Traceback (most recent call last):
      ...
      lightjax.errors.ConfigurationError: Trainer cannot do what it was asked for:
        gpus=1 was an argument of an older Lightning: write device='cuda' (or leave it out: 'auto' takes a GPU where ...
    """

    def __init__(
        self,
        *,
        accelerator: str = "auto",
        devices: int | str = "auto",
        backend: str = "eager",
        device: str | torch.device | None = None,
        num_nodes: int = 1,
        strategy: str = "auto",
        use_distributed_sampler: bool = True,
        max_epochs: int | None = None,
        max_steps: int | None = -1,
        num_sanity_val_steps: int = 2,
        precision: Any = None,
        **arguments: Any,
    ) -> None:
        conflicts = [
            f"{name}={value!r} was an argument of an older Lightning: write {_RENAMED[name]}"
            for name, value in arguments.items()
            if name in _RENAMED
        ]
        if accelerator not in _DEVICES:
            conflicts.append(f"accelerator={accelerator!r}: give one of {', '.join(_DEVICES)}")
        if strategy not in _STRATEGIES:
            conflicts.append(f"strategy={strategy!r}: give one of {', '.join(_STRATEGIES)}")
        if not conflicts:
            conflicts += _missing(joined(), devices, num_nodes)
        given = arguments.get("callbacks")
        given = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
        arguments["callbacks"], self.lightning_callbacks = parted(given, "Trainer(callbacks=...) got")
        if conflicts:
            raise ConfigurationError(
                "Trainer cannot do what it was asked for:\n" + "\n".join(f"  {one}" for one in conflicts)
            )
        max_steps = None if max_steps == -1 else max_steps
        if max_epochs is None and max_steps is None and arguments.get("max_time") is None:
            max_epochs = 1000
        self.backend = backend
        self.device = _DEVICES[accelerator] if device is None else device
        self.use_distributed_sampler = use_distributed_sampler
        self.find_unused_parameters = strategy == "ddp_find_unused_parameters_true"
        self._tasks: dict[int, Any] = {}
        if arguments.get("barebones") or arguments.get("fast_dev_run"):
            num_sanity_val_steps = 0
        super().__init__(
            max_epochs=None if max_epochs == -1 else max_epochs,
            max_steps=max_steps,
            num_sanity_val_steps=num_sanity_val_steps,
            **arguments,
        )
        # Set past the checks of what JAX can do: torch's float64 needs no setting.
        if precision is not None:
            self.policy = {**self.policy, "precision": precision}
            self.hyperparameters["precision"] = precision

    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Any,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> FitResult[Any]:
        """Trains a module; see `lightjax.Trainer.fit`."""
        if hasattr(train_dataloaders, "train_dataloader"):
            train_dataloaders, datamodule = None, train_dataloaders
        arguments.setdefault("resume", "auto" if ckpt_path in ("last", "hpc") else ckpt_path)
        return super().fit(self._task_of(model), train_dataloaders, val_dataloaders, datamodule=datamodule, **arguments)

    def validate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        datamodule: Any = None,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """Evaluates a module, the last one trained when None; returns a list of one dict, as Lightning's does."""
        state = arguments.get("state", ckpt_path)
        return [self._evaluated(super().validate, "val", model, dataloaders, datamodule, state)]

    def test(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Any = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        datamodule: Any = None,
        **arguments: Any,
    ) -> list[dict[str, Any]]:
        """Tests a module: as `validate`."""
        state = arguments.get("state", ckpt_path)
        return [self._evaluated(super().test, "test", model, dataloaders, datamodule, state)]

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: Any = None,
        **arguments: Any,
    ) -> Any:
        """Returns the outputs of every batch, as a list."""
        state = arguments.pop("state", ckpt_path)
        return self._evaluated(super().predict, "predict", model, dataloaders, datamodule, state, **arguments)

    @property
    def callback_metrics(self) -> dict[str, torch.Tensor]:
        """The newest value of every name that was logged."""
        engine: Any = self._engine
        return {} if engine is None else dict(engine.log.newest)

    logged_metrics = callback_metrics

    @property
    def checkpoint_callback(self) -> Any:
        """The callback that saves; None without one."""
        return next((one for one in self.callbacks if isinstance(one, lightjax.ModelCheckpoint)), None)

    @property
    def early_stopping_callback(self) -> Any:
        """The callback that ends a run early; None without one."""
        return next((one for one in self.callbacks if isinstance(one, lightjax.EarlyStopping)), None)

    @property
    def model(self) -> Any:
        """The module that was run last; None before."""
        return getattr(self._engine, "module", None)

    @property
    def global_step(self) -> int:
        """Optimizer steps done."""
        return getattr(self._engine, "optimizer_steps", 0)

    def _task_of(self, model: Any) -> Any:
        """Returns the task of a module, the same for the same module."""
        if model is None:
            if self._engine is None:
                raise ConfigurationError("No module was given and this Trainer has run none; pass the module.")
            return self._engine.task
        if not isinstance(model, torch.nn.Module):
            return model
        if id(model) not in self._tasks:
            self._tasks[id(model)] = from_torch(
                model,
                self.backend,
                self.device,
                use_distributed_sampler=self.use_distributed_sampler,
                find_unused_parameters=self.find_unused_parameters,
            )
        return self._tasks[id(model)]

    def _evaluated(
        self,
        method: Callable[..., Any],
        stage: str,
        model: Any,
        dataloaders: Any,
        datamodule: Any,
        state: Any,
        **arguments: Any,
    ) -> Any:
        """Calls a method of `lightjax.Trainer` with what Lightning's takes; a data module may stand for its loaders."""
        if hasattr(dataloaders, f"{stage}_dataloader"):
            dataloaders, datamodule = None, dataloaders
        return method(self._task_of(model), dataloaders, state=state, datamodule=datamodule, **arguments)
