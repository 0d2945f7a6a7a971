"""What a step that optimizes manually works with: optimizers, schedulers, and Lightning's methods for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lightjax_torch.counters import Counters
from lightjax_torch.manual_schedules import InStep, one_or_all
from lightjax_torch.optim import step_at_any_rate
from lightjax_torch.step_view import StepView
from lightjax_torch.trainer_values import TrainerValues


class ManualView(StepView):
    """What such a step sees of the trainer.

    Attributes:
      steps: steps of its optimizers so far.
      scheduled: steps of each scheduler so far, by the number of its optimizer.
    """

    def __init__(self, counters: Counters, values: TrainerValues) -> None:
        super().__init__(counters, values, training=True)
        self.steps = 0
        self.scheduled: dict[str, int] = {}

    @property
    def global_step(self) -> Any:
        """Steps of all optimizers together, as in Lightning."""
        return self._counters.number("global_step") + self.steps if self.steps else self._counters.number("global_step")


def counting(optimizer: torch.optim.Optimizer, view: ManualView) -> None:
    """Counts the steps of an optimizer."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        view.steps += 1
        return step_at_any_rate(optimizer, *args, **kwargs)

    optimizer.__dict__["step"] = counted


@contextlib.contextmanager
def optimizing(
    module: Any, optimizers: Sequence[torch.optim.Optimizer], view: ManualView, rates: Mapping[str, Any]
) -> Iterator[None]:
    """Gives a module what it optimizes with; takes it away again.

    Args:
      module: the module.
      optimizers: its optimizers over the tensors of the step.
      view: counts.
      rates: of every scheduler, by the number of its optimizer: the table of learning rates [rows, groups], and the row
        that holds now.
    """
    everything = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]

    def toggle(optimizer: torch.optim.Optimizer) -> None:
        own = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for p in everything:
            p.requires_grad_(id(p) in own)

    def untoggle(_: torch.optim.Optimizer) -> None:
        for p in everything:
            p.requires_grad_(True)

    def clip(optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def stepping(number: str) -> InStep:
        def take() -> None:
            view.scheduled[number] += 1
            set_rates(optimizers[int(number)], rates[number], view.scheduled[number])

        return InStep(take)

    view.scheduled = dict.fromkeys(rates, 0)
    schedulers = [stepping(number) for number in rates]
    view.__dict__["optimizers"] = list(optimizers)
    own = {
        "optimizers": lambda use_pl_optimizer=True: optimizers[0] if len(optimizers) == 1 else list(optimizers),
        "lr_schedulers": lambda: one_or_all(schedulers),
        "manual_backward": lambda loss, *args, **kwargs: loss.backward(*args, **kwargs),
        "toggle_optimizer": toggle,
        "untoggle_optimizer": untoggle,
        "clip_gradients": clip,
    }
    module.__dict__.update(own)
    yield
    for name in own:
        module.__dict__.pop(name, None)


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[torch.Tensor, torch.Tensor], steps: int) -> None:
    """Gives an optimizer the learning rates of its scheduler after so many steps."""
    table, row = rates
    found = table.index_select(0, (row + steps).clamp(0, table.shape[0] - 1).reshape(1))[0]
    for number, group in enumerate(optimizer.param_groups):
        group["lr"] = found[number]
