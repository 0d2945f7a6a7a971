"""Optimizers and learning-rate schedulers, in every form that `configure_optimizers` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightjax.errors import ConfigurationError


@dataclass
class Scheduler:
    """A learning-rate scheduler and when it steps.

    Attributes:
      scheduler: the scheduler.
      name: for whoever logs learning rates.
      interval: "epoch" or "step".
      frequency: of the interval.
      reduce_on_plateau: whether it looks at a metric.
      monitor: the metric.
      strict: whether a missing metric is an error.
    """

    scheduler: Any
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


FORMS = """an optimizer; a list of them; ([optimizers], [schedulers]);
  {"optimizer": ..., "lr_scheduler": ..., "monitor": ...}; or several such dicts"""


def configured(found: Any, module: torch.nn.Module, *, automatic: bool) -> tuple[list[Optimizer], list[Scheduler]]:
    """Reads what `configure_optimizers` returned.

    Args:
      found: what it returned.
      module: whose parameters are to be optimized.
      automatic: whether the engine steps the optimizer, and not the module.

    Raises:
      ConfigurationError: it is none of the documented forms, or an optimizer has parameters the module does not have.
    """
    name = f"{type(module).__name__}.configure_optimizers"
    optimizers, schedulers, monitor = _parts(found, name)
    if automatic and len(optimizers) > 1:
        raise ConfigurationError(
            f"{name} returned {len(optimizers)} optimizers, which leaves open which one steps when; set "
            "self.automatic_optimization = False in __init__ and step them in training_step (self.optimizers())."
        )
    names = {id(parameter): path for path, parameter in module.named_parameters()}
    for number, optimizer in enumerate(optimizers):
        for group, settings in enumerate(optimizer.param_groups):
            strange = [tuple(one.shape) for one in settings["params"] if id(one) not in names]
            if strange:
                raise ConfigurationError(
                    f"{name} returned {type(optimizer).__name__} (optimizer {number}) whose group {group} holds "
                    f"parameters that {type(module).__name__} does not have (shapes {strange[:3]}): they would be "
                    "neither saved nor moved to the device; assign their module to an attribute of self first."
                )
    return optimizers, [_scheduler(one, monitor, name, optimizers) for one in schedulers]


def _parts(found: Any, name: str) -> tuple[list[Optimizer], list[Any], str | None]:
    if found is None:
        return [], [], None
    if isinstance(found, Optimizer):
        return [found], [], None
    if isinstance(found, list | tuple) and len(found) == 2 and isinstance(found[0], list | tuple):
        schedulers = found[1] if isinstance(found[1], list | tuple) else [found[1]]
        if all(isinstance(one, Optimizer) for one in found[0]):
            return list(found[0]), list(schedulers), None
    if isinstance(found, Mapping):
        found = [found]
    dicts: Any = found
    if isinstance(found, list | tuple) and found and all(isinstance(one, Mapping) for one in found):
        if missing := [one for one in dicts if not isinstance(one.get("optimizer"), Optimizer)]:
            raise ConfigurationError(f"{name} returned a dict without an 'optimizer': {sorted(missing[0])}.")
        schedulers = [one["lr_scheduler"] for one in dicts if one.get("lr_scheduler") is not None]
        monitor = dicts[0].get("monitor") if len(dicts) == 1 else None
        return [one["optimizer"] for one in dicts], schedulers, monitor
    if isinstance(found, list | tuple) and all(isinstance(one, Optimizer) for one in found):
        return list(found), [], None
    raise ConfigurationError(f"{name} returned {found!r}, which is no documented form; return {FORMS}.")


def _scheduler(one: Any, monitor: str | None, name: str, optimizers: list[Optimizer]) -> Scheduler:
    settings = dict(one) if isinstance(one, Mapping) else {"scheduler": one}
    known = {field.name for field in fields(Scheduler)}
    unknown = settings.keys() - known
    if "scheduler" not in settings or unknown:
        wrong = f"the keys {sorted(unknown)}" if "scheduler" in settings else "no 'scheduler'"
        raise ConfigurationError(
            f"{name} returned a scheduler dict with {wrong}; it may have: {', '.join(sorted(known))}."
        )
    plateau = isinstance(settings["scheduler"], ReduceLROnPlateau)
    settings.setdefault("reduce_on_plateau", plateau)
    if settings["reduce_on_plateau"]:
        settings.setdefault("monitor", monitor)
        if settings["monitor"] is None:
            raise ConfigurationError(
                f"{name} returned ReduceLROnPlateau without the metric it looks at; return "
                '{"optimizer": ..., "lr_scheduler": {"scheduler": ..., "monitor": "val_loss"}}.'
            )
    found = Scheduler(**settings)
    if found.interval not in ("step", "epoch"):
        raise ConfigurationError(f"{name} returned interval={found.interval!r}; give 'step' or 'epoch'.")
    of = getattr(found.scheduler, "optimizer", None)
    if of is not None and all(of is not optimizer for optimizer in optimizers):
        raise ConfigurationError(
            f"{name} returned {type(found.scheduler).__name__} of an optimizer that it did not return: it would change "
            "nothing; return that optimizer, too."
        )
    return found


class SteppedByModule:
    """An optimizer as `self.optimizers()` gives it: its `step` goes through the engine, which counts and scales.

    Everything else is the optimizer's own.
    """

    _optimizer: Optimizer
    _step: Callable[..., Any]
    _module: torch.nn.Module

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer itself."""
        return self._optimizer

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Steps the optimizer, with the precision, hooks and counters of the trainer."""
        return self._step(self._optimizer, closure, **kwargs)

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """Clears the gradients."""
        self._optimizer.zero_grad(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Gives the optimizer a state."""
        self._optimizer.load_state_dict(state_dict)

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Adds parameters."""
        self._optimizer.add_param_group(group)

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """While entered, only this optimizer's parameters require gradients."""
        module: Any = self._module
        module.toggle_optimizer(self)
        yield
        module.untoggle_optimizer(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_optimizer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._optimizer, name, value)


def stepped_by_module(optimizer: Optimizer, step: Callable[..., Any], module: torch.nn.Module) -> Any:
    """Wraps an optimizer; the wrapper is an instance of its class, too."""
    kind = type(f"Stepped{type(optimizer).__name__}", (SteppedByModule, type(optimizer)), {})
    wrapper = object.__new__(kind)
    wrapper.__dict__.update(_optimizer=optimizer, _step=step, _module=module)
    return wrapper
