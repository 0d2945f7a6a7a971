"""Precision of torch programs: autocast, casts and loss scaling, by Lightning's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from lightjax.errors import ConfigurationError

_NAMES: dict[Any, str] = {
    None: "32-true", 32: "32-true", "32": "32-true", "32-true": "32-true",
    16: "16-mixed", "16": "16-mixed", "16-mixed": "16-mixed",
    "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed",
    "16-true": "16-true", "bf16-true": "bf16-true",
    64: "64-true", "64": "64-true", "64-true": "64-true",
}  # fmt: skip
_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "32": torch.float32, "64": torch.float64}


class Numerics:
    """What a precision does to a module, its batches, its steps and its gradients.

    Args:
      precision: a name of Lightning's.
      device: where the module runs.

    Attributes:
      name: the full name; on the CPU, which has no float16 autocast, "bf16-mixed" for "16-mixed", as in Lightning.
      scaler: scales losses so that float16 gradients do not vanish; None where that is not needed.

    Raises:
      ConfigurationError: there is no such precision.
    """

    def __init__(self, precision: Any, device: torch.device) -> None:
        if not isinstance(precision, str | int | None) or precision not in _NAMES:
            raise ConfigurationError(
                f"precision={precision!r} is none of a torch module's; give one of: "
                f"{', '.join(dict.fromkeys(_NAMES.values()))}."
            )
        self.name = _NAMES[precision]
        if self.name == "16-mixed" and device.type == "cpu":
            self.name = "bf16-mixed"
        bits, kind = self.name.split("-")
        self.dtype = _DTYPES[bits]
        self.device = device
        self.mixed = kind == "mixed"
        self.casts = kind == "true" and self.dtype is not torch.float32
        self.scaler = torch.amp.GradScaler(device.type) if self.name == "16-mixed" else None

    def convert_module(self, module: torch.nn.Module) -> None:
        """Casts the floating parameters and buffers, where they are to be of another type."""
        if self.casts:
            module.to(self.dtype)

    def convert_batch(self, batch: Any) -> Any:
        """Casts the floating tensors of a batch likewise."""
        if not self.casts:
            return batch
        return map_tensors(lambda one: one.to(self.dtype) if one.is_floating_point() else one, batch)

    def scope(self) -> AbstractContextManager[Any]:
        """Returns the context in which steps of the module run."""
        if self.mixed:
            return torch.autocast(self.device.type, dtype=self.dtype, cache_enabled=False)
        return _default_dtype(self.dtype) if self.casts else nullcontext()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def map_tensors(function: Callable[[torch.Tensor], Any], batch: Any) -> Any:
    """Applies a function to the tensors of a batch, in dicts, lists, tuples, named tuples and what has `.to`."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if isinstance(batch, dict):
        found = {key: map_tensors(function, value) for key, value in batch.items()}
        return found if type(batch) is dict else type(batch)(found)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(function, value) for value in batch))
    if isinstance(batch, (list, tuple)):  # a union would be made anew each time
        return type(batch)(map_tensors(function, value) for value in batch)
    return batch


_MAPPED = (torch.Tensor, dict, list, tuple)


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves the tensors of a batch to a device, without waiting for pinned ones."""
    if device.type == "cpu" and isinstance(batch, torch.Tensor) and batch.device.type == "cpu":
        return batch
    if not isinstance(batch, _MAPPED) and hasattr(batch, "to"):
        return batch.to(device)
    if device.type == "cpu":
        return map_tensors(torch.Tensor.cpu, batch)
    return map_tensors(lambda one: one.to(device, non_blocking=True), batch)


def clip(parameters: list[torch.Tensor], value: float, algorithm: str) -> None:
    """Clips gradients by norm or by value."""
    if algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip_value=value)
    else:
        torch.nn.utils.clip_grad_norm_(parameters, value)
