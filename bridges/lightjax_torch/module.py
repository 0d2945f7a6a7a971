"""LightningModule and LightningDataModule for people without Lightning: the same methods, nothing more."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

import torch


class Hyperparameters(dict[str, Any]):
    """Hyperparameters by name, as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"No hyperparameter {name!r}; there are: {', '.join(self) or 'none'}.") from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class _WithHyperparameters:
    @property
    def hparams(self) -> Hyperparameters:
        """What `save_hyperparameters` kept."""
        return self.__dict__.setdefault("_hparams", Hyperparameters())

    @property
    def hparams_initial(self) -> Hyperparameters:
        """A copy of what `save_hyperparameters` kept."""
        return copy.deepcopy(self.__dict__.get("_hparams_initial", Hyperparameters()))

    def save_hyperparameters(
        self, *args: Any, ignore: str | list[str] | None = None, frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Keeps arguments of `__init__` in `self.hparams`; a checkpoint and the loggers get them.

        Args:
          *args: names of arguments, all when none is given; or one dict or namespace to keep instead.
          ignore: names to leave out.
          frame: of the `__init__`; the caller's when None.
          logger: ignored; loggers get them always.
        """
        caller = frame or inspect.currentframe().f_back  # pyright: ignore[reportOptionalMemberAccess]
        found: dict[str, Any]
        if len(args) == 1 and not isinstance(args[0], str):
            found = dict(args[0] if isinstance(args[0], dict) else vars(args[0]))
        else:
            found = _arguments(caller, self)
            if missing := [name for name in args if name not in found]:
                raise ValueError(f"save_hyperparameters got {missing}, which __init__ does not take: {sorted(found)}.")
            found = {name: found[name] for name in args} if args else found
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        self.hparams.update({name: value for name, value in found.items() if name not in ignored})
        self.__dict__["_hparams_initial"] = copy.deepcopy(self.hparams)


def _arguments(frame: FrameType | None, owner: Any) -> dict[str, Any]:
    """Collects the arguments of the `__init__` under way, those of subclasses that passed theirs on included."""
    found: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, rest, values = inspect.getargvalues(frame)
        if not names or values.get(names[0]) is not owner:
            break
        found |= {name: values[name] for name in names[1:]}
        found |= {
            name: values[name] for name in frame.f_code.co_varnames[len(names) :][: frame.f_code.co_kwonlyargcount]
        }
        found |= values[rest] if rest else {}
        frame = frame.f_back
    return found


class LightningModule(_WithHyperparameters, torch.nn.Module):
    """A torch module with the steps of a training.

    Define `training_step(batch, batch_idx)`, which returns the loss, and `configure_optimizers()`; `validation_step`,
    `test_step`, `predict_step` and any hook of Lightning's as needed. In them, `self.log(name, value)` reports numbers.

    Attributes:
      automatic_optimization: False leaves the optimizers to `training_step`.
      example_input_array: a batch for `forward`, for whoever draws the model.

    Example:
      >>> class Line(LightningModule):
      ...     def __init__(self):
      ...         super().__init__()
      ...         self.layer = torch.nn.Linear(1, 1)
      ...     def training_step(self, batch, batch_idx):
      ...         x, y = batch
      ...         loss = ((self.layer(x) - y) ** 2).mean()
      ...         self.log("loss", loss)
      ...         return loss
      ...     def configure_optimizers(self):
      ...         return torch.optim.SGD(self.parameters(), lr=0.1)
      >>> Line().automatic_optimization
      True
    """

    automatic_optimization = True
    example_input_array: Any = None

    @property
    def trainer(self) -> Any:
        """The trainer.

        Raises:
          RuntimeError: no trainer runs this module.
        """
        found = self.__dict__.get("_trainer")
        if found is None:
            raise RuntimeError(
                f"{type(self).__name__} is not attached to a trainer: pass it to trainer.fit(...) first."
            )
        return found

    @property
    def _view(self) -> Any:
        return self.__dict__.get("_trainer")

    @property
    def current_epoch(self) -> int:
        """The epoch, counted from 0."""
        return 0 if self._view is None else self._view.current_epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps done."""
        return 0 if self._view is None else self._view.global_step

    @property
    def global_rank(self) -> int:
        """The number of this process."""
        return 0 if self._view is None else self._view.global_rank

    local_rank = global_rank

    @property
    def logger(self) -> Any:
        """The first logger; None for none."""
        return None if self._view is None else self._view.logger

    @property
    def loggers(self) -> list[Any]:
        """The loggers."""
        return [] if self._view is None else self._view.loggers

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((one.device for one in self.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the parameters."""
        return next((one.dtype for one in self.parameters()), torch.get_default_dtype())

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Reports a number, a scalar tensor or a torchmetrics object; the trainer takes it.

        Keywords are Lightning's: prog_bar, logger, on_step, on_epoch, reduce_fx, batch_size, add_dataloader_idx.
        """

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Reports several numbers by name."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints."""
        print(*args, **kwargs)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Returns the optimizer, or a list where there are several."""
        found = self.trainer.strategy._lightning_optimizers if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else found

    def lr_schedulers(self) -> Any:
        """Returns the scheduler, a list where there are several, None where there is none."""
        found = [one.scheduler for one in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def manual_backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Runs the gradient of a loss, with the trainer's precision."""
        self.trainer.strategy.backward(loss, None, *args, **kwargs)

    def clip_gradients(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients of an optimizer's parameters."""
        value = self.trainer.gradient_clip_val if gradient_clip_val is None else gradient_clip_val
        algorithm = gradient_clip_algorithm or self.trainer.gradient_clip_algorithm or "norm"
        self.trainer.precision_plugin.clip_gradients(optimizer, value or 0.0, algorithm)

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Lets only an optimizer's parameters require gradients, until `untoggle_optimizer`."""
        before = {one: one.requires_grad for other in self.trainer.optimizers for one in _parameters(other)}
        for one in before:
            one.requires_grad = False
        for one in _parameters(optimizer):
            one.requires_grad = before[one]
        self.__dict__["_toggled"] = before

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Lets all parameters require gradients that did before `toggle_optimizer`."""
        for one, required in self.__dict__.pop("_toggled", {}).items():
            one.requires_grad = required

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Iterator[None]:
        """`toggle_optimizer` and `untoggle_optimizer` as a context."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # What hooks do unless a module says otherwise, for those that call super().

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Runs the gradient."""
        loss.backward(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Steps the optimizer."""
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Clears the gradients."""
        optimizer.zero_grad()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the gradients."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a scheduler."""
        scheduler.step() if metric is None else scheduler.step(metric)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch."""
        from lightjax_torch.numerics import to_device

        return to_device(batch, device)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Returns the batch."""
        return batch

    on_after_batch_transfer = on_before_batch_transfer

    def on_validation_model_zero_grad(self) -> None:
        """Clears the gradients."""
        self.zero_grad()

    def on_validation_model_eval(self) -> None:
        """Puts the module into evaluation mode."""
        self.eval()

    on_test_model_eval = on_predict_model_eval = on_validation_model_eval

    def on_validation_model_train(self) -> None:
        """Puts the module into training mode."""
        self.train()

    on_test_model_train = on_predict_model_train = on_validation_model_train

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Returns `self(batch)`."""
        return self(batch)

    def freeze(self) -> None:
        """Freezes all parameters, in evaluation mode."""
        for one in self.parameters():
            one.requires_grad = False
        self.eval()

    def unfreeze(self) -> None:
        """Lets all parameters be trained, in training mode."""
        for one in self.parameters():
            one.requires_grad = True
        self.train()

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: str | os.PathLike[str], *, strict: bool = True, **kwargs: Any
    ) -> Self:
        """Makes a module from a checkpoint; never unpickles code.

        Args:
          checkpoint_path: a `.ckpt` file of Lightning, or the directory of a checkpoint of lightjax; of that, the
            weights that were evaluated: the average where there is one.
          strict: every weight must fit.
          **kwargs: arguments of `__init__`, instead of the saved hyperparameters.
        """
        from lightjax_torch.lightning_checkpoint import load_weights_of, read_checkpoint

        found = read_checkpoint(checkpoint_path)
        module = cls(**(found.get("hyper_parameters", {}) | kwargs))
        load_weights_of(module, found["state_dict"], strict=strict)
        return module


for _hook in (
    "configure_model", "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start",
    "on_train_epoch_end", "on_after_backward", "on_validation_start", "on_validation_end",
    "on_validation_epoch_start", "on_validation_epoch_end", "on_test_start", "on_test_end", "on_test_epoch_start",
    "on_test_epoch_end", "on_predict_start", "on_predict_end", "on_predict_epoch_start", "on_predict_epoch_end",
):  # fmt: skip
    setattr(LightningModule, _hook, lambda self: None)
for _hook in ("on_train_batch_start", "on_validation_batch_start", "on_test_batch_start", "on_predict_batch_start"):
    setattr(LightningModule, _hook, lambda self, batch, batch_idx, dataloader_idx=0: None)
for _hook in ("on_train_batch_end", "on_validation_batch_end", "on_test_batch_end", "on_predict_batch_end"):
    setattr(LightningModule, _hook, lambda self, outputs, batch, batch_idx, dataloader_idx=0: None)
for _hook in (
    "setup", "teardown", "on_before_backward", "on_before_zero_grad", "on_before_optimizer_step", "on_save_checkpoint",
    "on_load_checkpoint",
):  # fmt: skip
    setattr(LightningModule, _hook, lambda self, argument: None)


class LightningDataModule(_WithHyperparameters):
    """Makes the loaders of every stage: `prepare_data`, `setup(stage)`, `train_dataloader()` and its siblings."""

    trainer: Any = None

    def prepare_data(self) -> None:
        """Downloads or converts, once."""

    def setup(self, stage: str) -> None:
        """Loads and splits, for "fit", "validate", "test" or "predict"."""

    def teardown(self, stage: str) -> None:
        """Cleans up."""


def _parameters(optimizer: Any) -> Iterator[torch.nn.Parameter]:
    for group in optimizer.param_groups:
        yield from group["params"]
