"""TrainStep: a train step of a module, its gradient, its optimizer and its schedulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lightjax.data.stretch import Stretch
from lightjax.errors import ConfigurationError, MetricError, StepError
from lightjax_torch.logged import StepValues
from lightjax_torch.module_calls import is_automatic
from lightjax_torch.numerics import clip

if TYPE_CHECKING:
    from lightjax_torch.engine import TorchEngine


class TrainStep:
    """Runs the batches of an optimizer step as Lightning does, hook by hook.

    Args:
      engine: runs the module.
    """

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._module: Any = engine.module
        self._calls = engine.calls
        self._log = engine.log

    def run(self, stretch: Stretch) -> StepValues:
        """Runs the batches of one optimizer step; returns the values it logged."""
        batches: Any = stretch.steps
        assert self._engine.run is not None
        self._engine.stage, log = "train", self._log.current
        log.steps = {}
        group, count = self._engine.data.train.group(self._engine.epoch), batches.size
        loss = None
        for place, batch in enumerate(self._engine.run.profiler.each("reading", batches.items)):
            self._engine.last_batch = batches.last and place == count - 1
            loss = self._run_batch(batch, batches.first + place, group, first=not place, steps=place == count - 1)
        self._engine.steps += 1
        return StepValues(log.steps, loss, self._engine.steps)

    def _run_batch(self, batch: Any, number: int, group: int, *, first: bool, steps: bool) -> torch.Tensor | None:
        batch = self._log.batch = self._calls.moved(batch)
        if self._calls.call("on_train_batch_start", batch, number) == -1:
            self._engine.data.train.cut_at(number + 1)
            self._engine.last_batch = True
            self.step_schedulers("epoch", self._engine.epoch, plateau=False)
            return None
        if is_automatic(self._module):
            output = self._optimize(batch, number, group, first=first, steps=steps)
        else:
            output = self._outputs(self._training_step(batch, number), needs_loss=False)
        if steps:
            self.step_schedulers("step", number, plateau=False)
        if self._engine.last_batch:
            self.step_schedulers("epoch", self._engine.epoch, plateau=False)
        self._calls.call("on_train_batch_end", output, batch, number)
        if self._engine.outputs is not None:
            self._engine.outputs.append(output)
        if steps:
            self.step_schedulers("step", number, plateau=True)
        self._log.batch = None
        self._log.note_step()
        return output.get("loss") if isinstance(output, dict) else None

    def _optimize(self, batch: Any, number: int, group: int, *, first: bool, steps: bool) -> dict[str, Any]:
        """Runs a train step, its gradient and, where a group of batches ends, the optimizer."""
        optimizer = self._engine.optimizers[0] if self._engine.optimizers else None
        output: dict[str, Any] = {}

        def closure() -> torch.Tensor | None:
            output.clear()
            found = self._training_step(batch, number)
            output.update(self._outputs(found, needs_loss=True))
            loss = found if found is None or isinstance(found, torch.Tensor) else found["loss"]
            if first and optimizer is not None:
                self._calls.call("on_before_zero_grad", optimizer)
                if self._calls.has("optimizer_zero_grad"):
                    self._calls.call("optimizer_zero_grad", self._engine.epoch, number, optimizer)
                else:
                    optimizer.zero_grad()
            if loss is None:
                self._check_alone()
                return None
            if group > 1:
                loss = loss / group
                output["loss"] = loss.detach()
            self._backward(loss)
            return loss

        if not steps or optimizer is None:
            replica = self._engine.replica
            with nullcontext() if replica is None else replica.unsynchronized():
                closure()
        elif self._calls.has("optimizer_step"):
            self._calls.call("optimizer_step", self._engine.epoch, number, self._engine.wrapped[0], closure)
        else:
            self._step(optimizer, closure)
        if steps:
            self._engine.optimizer_steps += 1
        return output

    def _training_step(self, batch: Any, number: int) -> Any:
        replica = self._engine.replica
        if replica is not None:
            return replica.step(batch, number)
        return self._calls.run_step("training_step", batch, number)

    def _check_alone(self) -> None:
        if not self._engine.processes.alone:
            raise StepError(
                f"{type(self._module).__name__}.training_step returned None, which skips a batch; the other processes "
                "would wait for its gradient. Return a loss, such as 0.0 * the sum of the outputs."
            )

    def _backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        if self._engine.numerics.scaler is not None:
            loss = self._engine.numerics.scaler.scale(loss)
        self._calls.call("on_before_backward", loss)
        if self._engine.replica is not None:
            self._engine.replica.before_backward(loss)
        if self._calls.has("backward"):
            self._calls.call("backward", loss, *args, **kwargs)
        else:
            loss.backward(*args, **kwargs)
        self._calls.call("on_after_backward")

    def backward_by_module(self, loss: torch.Tensor, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Runs the gradient that a module asked for (`self.manual_backward`)."""
        hook = self._calls.hook
        self._backward(loss, *args, **kwargs)
        self._calls.hook = hook

    def _step(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Steps an optimizer after the closure made its gradients, with the hooks in between."""
        scaler = self._engine.numerics.scaler
        if scaler is None:
            after = self._after_closure

            def whole() -> Any:
                found = closure()
                after(optimizer)
                return found

            return optimizer.step(closure=whole, **kwargs)
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigurationError("LBFGS evaluates its closure several times, which loss scaling (16-mixed) cannot.")
        found = torch.enable_grad()(closure)()
        if is_automatic(self._module) and found is not None:
            scaler.unscale_(optimizer)
        self._after_closure(optimizer)
        if found is not None or not is_automatic(self._module):
            scaler.step(optimizer, **kwargs)
            scaler.update()
        return found

    def step_by_module(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        """Steps an optimizer for the module: its wrapped optimizer's `step`."""
        if is_automatic(self._module):
            return self._step(optimizer, closure or _nothing, **kwargs)
        hook = self._calls.hook
        found = self._step(optimizer, closure or _nothing, **kwargs)
        self._calls.hook = hook
        self._engine.optimizer_steps += 1
        return found

    def _after_closure(self, optimizer: torch.optim.Optimizer) -> None:
        self._calls.call("on_before_optimizer_step", optimizer)
        if not is_automatic(self._module):
            return
        if self._calls.has("configure_gradient_clipping"):
            self._calls.call(
                "configure_gradient_clipping", optimizer, self._engine.clip_value, self._engine.clip_algorithm
            )
        elif self._engine.clip_value is not None:
            self.clip(optimizer, self._engine.clip_value, self._engine.clip_algorithm or "norm")

    def clip(self, optimizer: torch.optim.Optimizer, value: float, algorithm: Any = "norm") -> None:
        """Clips the gradients of an optimizer's parameters."""
        if value > 0:
            parameters = [one for group in optimizer.param_groups for one in group["params"]]
            clip(parameters, value, getattr(algorithm, "value", algorithm))

    def step_schedulers(self, interval: str, index: int, *, plateau: bool) -> None:
        """Steps the schedulers whose turn it is.

        Args:
          interval: "step" or "epoch".
          index: of the batch or the epoch, counted from 0.
          plateau: those that look at a metric, or the others.

        Raises:
          MetricError: a metric that a scheduler looks at was not logged.
        """
        if not self._engine.schedulers or self._engine.schedulers_rest or not is_automatic(self._module):
            return
        for one in self._engine.schedulers:
            due = one.interval == interval and (index + 1) % one.frequency == 0
            if not due or one.reduce_on_plateau is not plateau:
                continue
            value = None
            if plateau:
                value = self._log.newest.get(one.monitor or "")
                if value is None and one.strict:
                    raise MetricError(
                        f"{type(one.scheduler).__name__} looks at {one.monitor!r}, which nobody logged; logged are: "
                        f"{', '.join(sorted(self._log.newest)) or 'none'}. Log it, or set the scheduler's monitor."
                    )
                if value is None:
                    continue
            if self._calls.has("lr_scheduler_step"):
                self._calls.call("lr_scheduler_step", one.scheduler, value)
            elif value is None:
                one.scheduler.step()
            else:
                one.scheduler.step(value)

    def _outputs(self, found: Any, *, needs_loss: bool) -> dict[str, Any]:
        """Returns what `training_step` returned as a dict, detached."""
        if found is None:
            return {}
        if isinstance(found, torch.Tensor):
            return {"loss": found.detach()}
        if isinstance(found, Mapping):
            if needs_loss and "loss" not in found:
                raise StepError(
                    f"{type(self._module).__name__}.training_step returned a dict without 'loss' ({sorted(found)}), so "
                    "there is nothing to differentiate; return the loss, or {'loss': loss, ...}, or None to skip."
                )
            return {
                key: value.detach() if isinstance(value, torch.Tensor) and key == "loss" else value
                for key, value in found.items()
            }
        if not needs_loss:
            return {"loss": found}
        raise StepError(
            f"{type(self._module).__name__}.training_step returned {type(found).__name__}; return the loss as a "
            "tensor, a dict with 'loss', or None to skip the batch."
        )


def _nothing() -> None:
    """Closes over nothing: the gradients are there already."""
