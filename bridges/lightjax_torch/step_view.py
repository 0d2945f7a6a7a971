"""What a step of a module sees while it is captured: `self.log`, `self.trainer`, the number of the step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import lightjax as lj
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.source_lines import current_line

_REDUCTIONS = {
    "mean": "mean", "avg": "mean", "sum": "sum", "max": "max", "min": "min",
    torch.mean: "mean", torch.sum: "sum", torch.max: "max", torch.min: "min", torch.amax: "max", torch.amin: "min",
    max: "max", min: "min", sum: "sum",
}  # fmt: skip


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


class StepView:
    """Stands in for the trainer while a step is captured, and gathers what it logs.

    Args:
      global_step: 0-dimensional whole tensor, the optimizer steps done.
      training: whether a train step is captured.
    """

    def __init__(self, global_step: torch.Tensor, *, training: bool) -> None:
        self.logged: dict[str, torch.Tensor] = {}
        self.logged_as: dict[str, LoggedAs] = {}
        self.global_step = global_step
        self.training = training
        self.sanity_checking = False
        self.global_rank = self.local_rank = 0
        self.world_size = 1
        self.is_global_zero = True
        self.logger = None
        self.loggers: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CaptureError(
            f"{current_line()}: the step reads trainer.{name}, which is Python outside of the compiled step: it would "
            f"be read once, while the step is captured, and never again. Read it in a callback, or {WAY_OUT}."
        )

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
        if not isinstance(value, torch.Tensor | int | float) or (
            isinstance(value, torch.Tensor) and value.numel() != 1
        ):
            raise CaptureError(
                f"{current_line()}: self.log({name!r}, ...) got {_kind(value)}; a ported step logs scalars: "
                f"reduce it first, value.mean(); a torchmetrics object logs metric(preds, target), its value of this "
                "batch."
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
        if not isinstance(getattr(type(module), "trainer", None), property):
            own["trainer"] = self
        for name, value in {"global_step": self.global_step, "current_epoch": Unknown("current_epoch")}.items():
            if not isinstance(getattr(type(module), name, None), property):
                own[name] = value
        module.__dict__.update(own)
        yield
        for name in own:
            module.__dict__.pop(name, None)

    @property
    def current_epoch(self) -> Any:
        """Is not known inside of a step."""
        return Unknown("current_epoch")

    def _no_manual_optimization(self, *_: Any, **__: Any) -> None:
        raise CaptureError(
            f"{current_line()}: manual_backward was called, but automatic_optimization is True; set "
            "self.automatic_optimization = False in __init__."
        )


def _kind(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


class Unknown:
    """A number that a compiled step does not get: any use of it is an error with the user's line."""

    def __init__(self, name: str) -> None:
        self.__dict__["name"] = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise CaptureError(
            f"{current_line()}: the step uses {self.__dict__['name']}. A ported step is a function of its state and "
            "its batch, compiled once, and sees neither the number of the batch nor of the epoch; count in a buffer "
            f"(self.register_buffer), use self.global_step, a tensor, or {WAY_OUT}."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __neg__ = __abs__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __int__ = __float__ = __index__ = _refuse
    __str__ = __format__ = __getattr__ = __getitem__ = __iter__ = __len__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]
