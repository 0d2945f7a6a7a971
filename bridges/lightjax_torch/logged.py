"""What a module logs: `self.log` gathered on the device, read when somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import torch

from lightjax.errors import MetricError
from lightjax_torch.processes import Processes

# Where a value goes if the call does not say: (on_step, on_epoch), by the method it is logged in.
_BY_BATCH: dict[str, tuple[bool, bool]] = dict.fromkeys(
    (
        "training_step", "on_train_batch_start", "on_train_batch_end", "on_before_backward", "backward",
        "on_after_backward", "on_before_optimizer_step", "optimizer_step", "configure_gradient_clipping",
        "on_before_zero_grad", "optimizer_zero_grad",
    ),
    (True, False),
)  # fmt: skip
_SILENT = ("predict", "configure", "setup", "teardown", "on_fit", "on_train_end", "on_validation_end", "on_test_end")


@dataclass(eq=False)
class Logged:
    """The values logged in an epoch or an evaluation.

    A pytree without leaves: it travels where packed metrics of a compiled step would.

    Attributes:
      steps: on-step values of the newest step.
      running: values that are reduced over the epoch, by name.
      frozen: what the epoch came to, on the device, once it is over.
    """

    steps: dict[str, torch.Tensor] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    frozen: dict[str, torch.Tensor] | None = None

    def add(
        self,
        name: str,
        value: Any,
        *,
        on_step: bool,
        on_epoch: bool,
        reduce: Any,
        batch_size: Callable[[], int],
        sync: Processes | None = None,
    ) -> None:
        """Takes a value; nothing waits for the device, unless it is reduced over several processes at once (`sync`)."""
        forked = on_step and on_epoch
        if isinstance(value, torch.Tensor):
            if on_step:
                self.steps[f"{name}_step" if forked else name] = (
                    value.clone() if sync is None else sync.reduced(value, reduce_op=_NAMES.get(reduce, reduce))
                )
            if on_epoch:
                running = self.running.get(name)
                if running is None:
                    running = self.running[name] = Running(reduce, forked, sync is not None)
                running.update(value, batch_size)
            return
        # A torchmetrics object: it has gathered the epoch itself.
        if on_step and value._forward_cache is not None:
            self.steps[f"{name}_step" if forked else name] = value._forward_cache
        if on_epoch:
            self.running.setdefault(name, Running(value, forked))

    def freeze(self, processes: Processes | None = None) -> dict[str, torch.Tensor]:
        """Reduces the epoch, once; of several processes, together: waits for all of them."""
        if self.frozen is None:
            running = self.running
            if processes is not None and not processes.alone:
                running = together(running, processes)
            self.frozen = {f"{name}_epoch" if one.forked else name: one.compute() for name, one in running.items()}
        return self.frozen

    def reset(self) -> None:
        """Lets metrics that gathered the epoch begin anew."""
        for one in self.running.values():
            one.reset()


@dataclass(eq=False)
class StepValues:
    """The values logged on one step, its loss and its number; a pytree without leaves."""

    values: dict[str, torch.Tensor]
    loss: Any
    step: int


for _kind in (Logged, StepValues):
    kind: Any = _kind
    jax.tree_util.register_pytree_node(kind, lambda one: ((), one), lambda one, _: one)


class Running:
    """A value reduced over an epoch: by "mean", weighted by the batch size, "sum", "min", "max", or by a metric.

    The arithmetic is Lightning's, so that the numbers are.
    """

    def __init__(self, reduce: Any, forked: bool, sync: bool = False) -> None:
        self.sync = sync
        self.reduce: Any = _NAMES.get(reduce, reduce) if not hasattr(reduce, "compute") else reduce
        self.forked = forked
        self.total: torch.Tensor | None = None
        self.weight = 0

    def update(self, value: torch.Tensor, batch_size: Callable[[], int]) -> None:
        """Takes the value of a batch in."""
        total = self.total
        if self.reduce == "mean":
            size = batch_size()
            value = value * size
            self.weight += size
            self.total = value if total is None else total + value
        elif total is None:
            self.total = value.clone()
        elif self.reduce == "sum":
            self.total = total + value
        elif self.reduce in ("min", "max"):
            self.total = torch.minimum(total, value) if self.reduce == "min" else torch.maximum(total, value)
        else:
            raise MetricError(
                f"self.log got reduce_fx={self.reduce!r}, which cannot be computed batch by batch; give 'mean', 'sum', "
                "'min' or 'max', or log a torchmetrics object."
            )

    def compute(self) -> torch.Tensor:
        """Returns the reduced value, on the device."""
        if hasattr(self.reduce, "compute"):
            return self.reduce.compute()
        assert self.total is not None
        return self.total / self.weight if self.reduce == "mean" else self.total

    def reset(self) -> None:
        """Lets a metric forget the epoch."""
        if hasattr(self.reduce, "reset"):
            self.reduce.reset()


def together(running: Mapping[str, Running], processes: Processes) -> dict[str, Running]:
    """Returns what the processes gathered in an epoch, the same in all of them.

    What was logged with `sync_dist=True` is reduced over them; anything else is that of the first process that logged
    it, so that whoever decides by it decides alike everywhere. Metric objects reduce themselves.
    """
    metrics = {name: one for name, one in running.items() if not isinstance(one.reduce, str)}
    mine = [
        (name, one.reduce, one.forked, one.sync, None if one.total is None else one.total.cpu(), one.weight)
        for name, one in running.items()
        if name not in metrics
    ]
    found: dict[str, Running] = {}
    for part in processes.gathered(mine):
        for name, reduce, forked, sync, total, weight in part:
            if name not in found:
                found[name] = one = Running(reduce, forked, sync)
                one.total, one.weight = total, weight
            elif sync:
                one = found[name]
                one.weight += weight
                join = {"min": torch.minimum, "max": torch.maximum}.get(reduce, torch.add)
                assert one.total is not None
                assert total is not None
                one.total = join(one.total, total)
    return found | metrics


_NAMES = {
    torch.mean: "mean", torch.sum: "sum", torch.max: "max", torch.min: "min", torch.amax: "max", torch.amin: "min",
    "avg": "mean", max: "max", min: "min", sum: "sum",
}  # fmt: skip


def levels(hook: str | None, name: str, on_step: bool | None, on_epoch: bool | None) -> tuple[bool, bool]:
    """Says whether a value is reported on steps and over epochs.

    Args:
      hook: the method it is logged in.
      name: of the value.
      on_step: what the call said.
      on_epoch: what the call said.

    Raises:
      MetricError: nothing can be logged there.
    """
    silent = hook is None or hook.startswith(_SILENT) or "predict" in hook
    if hook is None or (silent and hook not in _BY_BATCH):
        raise MetricError(
            f"self.log({name!r}, ...) was called in {hook or 'a method that the trainer did not call'}, where nothing "
            "is gathered; log in the steps and in the hooks of training, validation and test."
        )
    step, epoch = _BY_BATCH.get(hook, (False, True))
    step, epoch = step if on_step is None else on_step, epoch if on_epoch is None else on_epoch
    if step and hook not in _BY_BATCH and "batch" not in hook and not hook.endswith("_step"):
        raise MetricError(f"self.log({name!r}, on_step=True) was called in {hook}, which runs once an epoch.")
    return step, epoch


def as_value(name: str, value: Any, device: torch.device) -> Any:
    """Returns a logged value as a floating scalar tensor, detached, or the metric object it is.

    Raises:
      MetricError: it is neither.
    """
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise MetricError(
                f"self.log({name!r}, ...) got a tensor of shape {tuple(value.shape)}; log scalars: reduce it first, "
                "for example with .mean()."
            )
        value = value.detach()
        if value.dtype not in (torch.float32, torch.float64):
            value = value.to(_dtype())
        return value if value.ndim == 0 else value.reshape(())
    if isinstance(value, bool | int | float) or (hasattr(value, "item") and not hasattr(value, "compute")):
        return torch.tensor(float(value), dtype=_dtype(), device=device)
    if hasattr(value, "compute") and hasattr(value, "update"):
        return value
    raise MetricError(f"self.log({name!r}, ...) got {value!r}; log a number, a scalar tensor or a torchmetrics object.")


def _dtype() -> torch.dtype:
    """Returns the type that values are gathered in, also where the module computes in 16 bits."""
    default = torch.get_default_dtype()
    return default if default in (torch.float32, torch.float64) else torch.float32


def read(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads values from the device, in one transfer; waits for it. What computes to a dict gives `name/key` each."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": part for key, part in value.items()}
        else:
            flat[name] = value
    if not flat:
        return {}
    scalars = {name: value for name, value in flat.items() if isinstance(value, torch.Tensor) and value.numel() == 1}
    if all(value.device.type == "cpu" for value in scalars.values()):
        numbers = [value.item() for value in scalars.values()]
    else:
        numbers = torch.stack([value.reshape(()).double() for value in scalars.values()]).tolist()
    found = dict(zip(scalars, map(float, numbers), strict=True))
    return {
        name: found[name] if name in found else value.cpu().numpy() if isinstance(value, torch.Tensor) else float(value)
        for name, value in flat.items()
    }


def batch_size(batch: Any) -> int:
    """Returns the examples in a batch: the first axis of its first tensor, or array; 1 where there is none."""
    if hasattr(batch, "ndim"):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    if not parts and hasattr(batch, "__dataclass_fields__"):
        parts = vars(batch).values()
    for part in parts:
        if hasattr(part, "ndim") or isinstance(part, Mapping | list | tuple):
            return batch_size(part)
    return 1
