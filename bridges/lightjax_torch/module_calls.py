"""ModuleCalls: the steps and hooks of a module, called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lightjax.errors import StepError
from lightjax_torch.hooks import overridden
from lightjax_torch.numerics import to_device

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


class ModuleCalls:
    """Calls what the module defines of steps and hooks.

    Args:
      engine: runs the module.

    Attributes:
      module: the module.
      hook: the step or hook under way; None between.
      callbacks: of Lightning's class; each of their hooks is called before the module's.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self.module: Any = engine.module
        self.hook: str | None = None
        self.callbacks: list[Any] = []
        self._overridden: dict[str, bool] = {}
        self._steps: dict[str, Callable[..., Any]] = {}
        self._accepted: dict[str, int] = {}
        self._transfers: list[tuple[Callable[..., Any], tuple[Any, ...]]] | None = None

    def forget(self) -> None:
        """Looks anew at what the module defines."""
        self._overridden.clear()
        self._steps.clear()
        self._transfers = None

    def call(self, hook: str, *arguments: Any, default: Callable[[], Any] | None = None) -> Any:
        """Calls a hook of the callbacks, then that of the module if it has one of its own, else the default."""
        if self.callbacks:
            self.call_callbacks(hook, *arguments)
        found = self._overridden.get(hook)
        if not (self.has(hook) if found is None else found):
            return default() if default is not None else None
        return self._called(hook, getattr(self.module, hook), *arguments)

    def call_callbacks(self, hook: str, *arguments: Any) -> None:
        """Calls a hook of the callbacks of Lightning's class."""
        for one in self.callbacks:
            if overridden(one, hook):
                self._called(hook, getattr(one, hook), self._engine.view, self.module, *arguments)

    def _called(self, hook: str, function: Callable[..., Any], *arguments: Any) -> Any:
        self.hook, before = hook, self.hook
        # Hooks of evaluation run without gradients, as its steps do.
        evaluating = self._engine.stage not in (None, "train")
        with torch.inference_mode() if evaluating else nullcontext():
            found = function(*arguments)
        self.hook = before
        return found

    def has(self, hook: str) -> bool:
        """Says whether the module has a hook of its own."""
        found = self._overridden.get(hook)
        if found is None:
            found = self._overridden[hook] = overridden(self.module, hook)
        return found

    def run_step(self, name: str, *arguments: Any) -> Any:
        """Runs a step of the module with as many of the arguments as it takes."""
        step = self._steps.get(name)
        if step is None:
            step = self._steps[name] = self._engine.task.compiled(getattr(self.module, name))
            self._accepted[name] = _accepted(getattr(self.module, name), name)
        self.hook, before = name, self.hook
        with self._engine.numerics.scope():
            found = step(*arguments[: self._accepted[name]])
        self.hook = before
        return found

    def moved(self, batch: Any, loader: int = 0) -> Any:
        """Returns a batch on the device, as its hooks of the data module or the module move it."""
        if self._transfers is None:
            self._transfers = self._find_transfers()
        batch = self._engine.numerics.convert_batch(batch)
        for transfer, more in self._transfers:
            batch = transfer(batch, *more, loader)
        return batch

    def _find_transfers(self) -> list[tuple[Callable[..., Any], tuple[Any, ...]]]:
        datamodule, found = self._engine.datamodule, []
        for hook in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            more = (self._engine.device,) if hook == "transfer_batch_to_device" else ()
            owner = datamodule if overridden_in(datamodule, hook) else self.module if self.has(hook) else None
            if owner is not None:
                found.append((getattr(owner, hook), more))
            elif more:
                found.append((_moved, more))
        return found


def _moved(batch: Any, device: torch.device, loader: int) -> Any:
    return to_device(batch, device)


def is_automatic(module: Any) -> bool:
    """Says whether the engine steps the optimizer, and not the module."""
    return getattr(module, "automatic_optimization", True)


def overridden_in(owner: Any, name: str) -> bool:
    """Says whether an object, which may be None, has a method of its own."""
    return owner is not None and overridden(owner, name)


def _accepted(step: Callable[..., Any], name: str) -> int:
    """Returns how many arguments a step takes: the batch, its number, the number of the loader."""
    parameters = inspect.signature(step).parameters.values()
    if any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters):
        return 3
    count = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    if not count:
        raise StepError(f"{name} takes no batch; define {name}(self, batch, batch_idx).")
    return count
