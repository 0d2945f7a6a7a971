"""What a step of a module sees while it is captured: `self.log`, `self.trainer`, the number of the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch

import lightjax as lj
from lightjax.metrics import batch_size, is_metric
from lightjax_torch.arrays import jax_dtype
from lightjax_torch.counters import Counters, Number
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.logged import batch_size as examples_of
from lightjax_torch.metric_objects import MetricObjects, is_metric_object
from lightjax_torch.source_lines import current_line
from lightjax_torch.trainer_values import TrainerValues

_REDUCTIONS = {
    "mean": "mean", "avg": "mean", "sum": "sum", "max": "max", "min": "min",
    torch.mean: "mean", torch.sum: "sum", torch.max: "max", torch.min: "min", torch.amax: "max", torch.amin: "min",
    max: "max", min: "min", sum: "sum",
}  # fmt: skip


@jax.tree_util.register_pytree_node_class
class AtLevel:
    """A metric that is reported for windows of steps, or for epochs, alone.

    Args:
      metric: the metric.
      level: "step" or "epoch".
    """

    def __init__(self, metric: Any, level: str) -> None:
        self.metric, self.level = metric, level
        self.elementwise = getattr(metric, "elementwise", False)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Returns the metric, and the level."""
        return (self.metric,), self.level

    @classmethod
    def tree_unflatten(cls, level: str, metric: Any) -> AtLevel:
        """Puts it together again."""
        return cls(metric[0], level)

    def merge(self, other: AtLevel) -> AtLevel:
        """Merges the metric."""
        return AtLevel(self.metric.merge(other.metric), self.level)

    def compute(self) -> Any:
        """Computes the metric."""
        return self.metric.compute()


def at_level(value: Any, level: str | None, examples: int) -> Any:
    """Returns a metric, or a bare number, that is reported at a level alone; None for all."""
    if level is None:
        return value
    return AtLevel(value if is_metric(value) else lj.Mean(value, weights=examples), level)


@dataclass(frozen=True)
class LoggedAs:
    """How a logged value is gathered.

    Attributes:
      reduction: "mean", "sum", "max" or "min".
      batch_size: what a mean is weighted with; None for the batch's own size.
    """

    reduction: str
    batch_size: Any

    def metric(self, value: Any) -> Any:
        """Makes the metric of a value: a bare number is weighted with the size of the batch."""
        if self.reduction == "mean":
            return value if self.batch_size is None else lj.Mean(value, weights=self.batch_size)
        return {"sum": lj.Sum, "max": lj.Max, "min": lj.Min}[self.reduction](value)

    def metric_or_none(self, value: Any, dtype: Any, examples: int) -> Any:
        """Makes the metric of a value that only some steps log: `value` None for one that does not."""
        if self.reduction == "mean":
            weight = 0 if value is None else examples if self.batch_size is None else self.batch_size
            return lj.Mean(jnp.asarray(0 if value is None else value, dtype), weights=jnp.asarray(weight, dtype))
        nothing = {"sum": 0, "max": -jnp.inf, "min": jnp.inf}[self.reduction]
        return self.metric(jnp.asarray(nothing if value is None else value, dtype))


def weighted(metrics: Mapping[str, Any], batch: Any) -> dict[str, Any]:
    """Weighs bare numbers, where the leaves of a batch share no leading dimension, with that of the first one."""
    if batch_size(batch) is not None:
        return dict(metrics)
    examples = examples_of(batch)
    return {name: one if is_metric(one) else lj.Mean(one, weights=examples) for name, one in metrics.items()}


class StepView:
    """Stands in for the trainer while a step is captured, and gathers what it logs.

    Args:
      counters: the numbers of batch, epoch and step.
      values: what stays the same for a training.
      training: whether a train step is captured.

    Attributes:
      logged: values by name, and `logged_as`, how they are gathered.
      levels: "step" or "epoch" for what is reported there alone.
      read: what was read of the trainer.
    """

    def __init__(self, counters: Counters, values: TrainerValues, *, training: bool) -> None:
        self.logged: dict[str, Any] = {}
        self.logged_as: dict[str, Any] = {}
        self.levels: dict[str, str] = {}
        self._objects: dict[str, Any] = {}
        self.read: dict[str, Any] = {}
        self.training = training
        self.sanity_checking = False
        self.global_rank = self.local_rank = self.node_rank = 0
        self.world_size = self.num_devices = self.num_nodes = 1
        self.is_global_zero = True
        self.logger = _NoLogger()
        self.loggers: list[Any] = []
        self._counters, self._values = counters, values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = self.read[name] = self._values.read(name)
        return found

    @property
    def current_epoch(self) -> Number:
        """The number of the epoch."""
        return self._counters.number("current_epoch")

    @property
    def global_step(self) -> Number:
        """The number of the step."""
        return self._counters.number("global_step")

    @property
    def is_last_batch(self) -> Any:
        """Whether this is the last batch of the epoch."""
        if not self.training:
            raise CaptureError(f"{current_line()}: an evaluation step reads is_last_batch; {WAY_OUT}.")
        return self._counters.number("batch_idx") + 1 == self.num_training_batches

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        batch_size: int | None = None,
        **_: Any,
    ) -> None:
        """Takes a value of the module's `self.log`."""
        if self.training and (on_step is False or on_epoch is False):
            if on_step is on_epoch:
                return
            self.levels[name] = "epoch" if on_step is False else "step"
        if is_metric_object(value):
            self._objects[name] = value
            return
        if isinstance(value, Number):
            value = value.tensor()
        if not isinstance(value, torch.Tensor | int | float) or (
            isinstance(value, torch.Tensor) and value.numel() != 1
        ):
            raise CaptureError(
                f"{current_line()}: self.log({name!r}, ...) got {_kind(value)}; a ported step logs scalars: "
                "reduce it first, value.mean()."
            )
        if reduce_fx not in _REDUCTIONS:
            raise CaptureError(
                f"{current_line()}: self.log({name!r}, reduce_fx={reduce_fx!r}) cannot be gathered in a compiled step; "
                "use 'mean', 'sum', 'max' or 'min'."
            )
        tensor = torch.as_tensor(value, dtype=None if isinstance(value, torch.Tensor) else torch.get_default_dtype())
        # By its path, a "/" in a name would make it a nested one; lightjax's prefixes come before it.
        self.logged[name] = tensor.detach().reshape(())
        self.logged_as[name] = LoggedAs(_REDUCTIONS[reduce_fx], batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Takes several values."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    def take_objects(self, metrics: MetricObjects, part: str, stage: str, *, gathers: bool = True) -> None:
        """Takes what a part did to metric objects; arguments as for `MetricObjects.left`."""
        for name, (states, how) in metrics.left(self._objects, part, stage, gathers=gathers).items():
            self.logged[name], self.logged_as[name] = states, how

    @contextlib.contextmanager
    def attached(self, module: torch.nn.Module) -> Iterator[None]:
        """Puts itself in the place of the module's trainer; `unchanged(module)` puts everything back."""
        own = {
            "log": self.log,
            "log_dict": self.log_dict,
            "print": lambda *_, **__: None,
            "_trainer": self,
            "manual_backward": self._no_manual_optimization,
        }
        own |= {"trainer": self, "global_step": self.global_step, "current_epoch": self.current_epoch}
        with attached_to(module, own):
            yield

    def _no_manual_optimization(self, *_: Any, **__: Any) -> None:
        raise CaptureError(
            f"{current_line()}: manual_backward was called, but automatic_optimization is True; set "
            "self.automatic_optimization = False in __init__."
        )


def dtypes_of(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the dtypes of logged numbers, which are nodes of a graph here, by name."""
    return {name: jax_dtype(node.meta["val"].dtype) for name, node in logged.items() if isinstance(node, torch.fx.Node)}


@contextlib.contextmanager
def attached_to(module: torch.nn.Module, lent: Mapping[str, Any]) -> Iterator[None]:
    """Lends a module, and the LightningModules in it, attributes; properties of its class stay what they are."""
    parts = [one for one in module.modules() if one is module or hasattr(type(one), "manual_backward")]
    before = []
    for one in parts:
        own = {n: v for n, v in lent.items() if not isinstance(getattr(type(one), n, None), property)}
        before.append((one, own, {name: one.__dict__[name] for name in own if name in one.__dict__}))
        one.__dict__.update(own)
    try:
        yield
    finally:
        for one, own, theirs in before:
            for name in own:
                one.__dict__.pop(name, None)
            one.__dict__.update(theirs)


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


class _NoLogger:
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(
            f"{current_line()}: the step uses its logger (.{name}), which is Python outside of the compiled step. "
            f"self.log what are numbers, write images and the like in a callback (run.logger), or {WAY_OUT}."
        )


class Unknown:
    """Something that a compiled step does not get: any use of it is an error with the user's line.

    Args:
      name: what the module calls it.
      way_out: what to write instead.
    """

    def __init__(self, name: str, way_out: str) -> None:
        self.__dict__.update(name=name, way_out=way_out)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by whoever looks at any object, inspect or copy
            raise AttributeError(name)
        self._refuse()

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise CaptureError(
            f"{current_line()}: {self.__dict__['name']} is used, which a compiled step does not get: "
            f"{self.__dict__['way_out']}; or {WAY_OUT}."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __float__ = __index__ = _refuse
    __str__ = __format__ = __getitem__ = __iter__ = __len__ = __contains__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]
