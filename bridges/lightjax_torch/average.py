"""Average: parameters averaged while a module trains, beside the module's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import get_swa_avg_fn, get_swa_multi_avg_fn

from lightjax_torch.state import to_array, to_tensor

Share = Callable[[Any], Any]


class Average:
    """The average of a module's floating parameters, as `torch.optim.swa_utils.AveragedModel` makes it: the same bits.

    Those of less than 32 bits are averaged in float32. Buffers, such as the statistics of BatchNorm, are not averaged.

    Args:
      module: whose parameters are averaged.

    Attributes:
      wanted: whether there is to be one; nothing else does anything otherwise.
      share: of the newest parameters, given how many the average holds (an int32); None for equal weights.
      every: steps between two that are averaged; None where somebody else says when.
      start: steps before the average begins.
      averaged: how often parameters went into it.
      steps: counted since it began.

    Example:
      >>> module = torch.nn.Linear(1, 1, bias=False)
      >>> average = Average(module)
      >>> average.ask(share=None, every=1, start=0)
      >>> average.begin()
      >>> for value in (1.0, 2.0):
      ...     _ = torch.nn.init.constant_(module.weight, value)
      ...     average.after_step()
      >>> average.put_in()
      True
      >>> module.weight.item()
      1.5
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self.wanted = False
        self.share: Share | None = None
        self.every: int | None = None
        self.start = 0
        self.averaged = self.steps = 0
        self._params: dict[str, torch.Tensor] = {}
        self._own: dict[str, torch.Tensor] = {}
        self._last: dict[str, torch.Tensor] | None = None

    def ask(self, *, share: Share | None, every: int | None, start: int) -> None:
        """Says that there is to be an average, and of what."""
        self.wanted, self.share, self.every, self.start = True, share, every, start

    def begin(self) -> None:
        """Begins anew, at the parameters that the module has."""
        self.averaged = self.steps = 0
        if self.wanted:
            self._own = _floating(self._module)
            self._params = {name: one.detach().to(_wide(one.dtype), copy=True) for name, one in self._own.items()}

    def after_step(self) -> None:
        """Takes in the parameters of a step, if it is one that is averaged."""
        if not self.wanted:
            return
        self.steps += 1
        if self.every is not None and self.steps > self.start and (self.steps - self.start) % self.every == 0:
            self.take_in()

    @torch.no_grad()
    def take_in(self) -> None:
        """Takes the present parameters into the average."""
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for name, average in self._params.items():
            averages, newest = groups.setdefault((average.device, average.dtype), ([], []))
            averages.append(average)
            newest.append(self._own[name].detach().to(average.dtype))
        for averages, newest in groups.values():
            self._join(averages, newest)
        self.averaged += 1

    def _join(self, averages: list[torch.Tensor], newest: list[torch.Tensor]) -> None:
        if not self.averaged:
            for average, new in zip(averages, newest, strict=True):
                average.copy_(new)
        elif self.share is not None:
            weight = float(self.share(np.int32(self.averaged)))
            torch._foreach_lerp_(averages, newest, weight)  # pyright: ignore[reportPrivateImportUsage]
        elif (device := averages[0].device).type == "cpu":
            # AveragedModel divides on the CPU and interpolates on GPUs: the last bits differ.
            count, join = torch.tensor(self.averaged), get_swa_avg_fn()
            for average, new in zip(averages, newest, strict=True):
                average.copy_(join(average, new, count))
        else:
            get_swa_multi_avg_fn()(averages, newest, torch.tensor(self.averaged, device=device))

    @torch.no_grad()
    def put_in(self) -> bool:
        """Puts the average, once there is one, into the module until `put_back`; says whether it did."""
        if not self.averaged or self._last is not None:
            return False
        self._last = {name: one.detach().clone() for name, one in self._own.items()}
        for name, one in self._own.items():
            one.copy_(self._params[name])
        return True

    @torch.no_grad()
    def put_back(self) -> bool:
        """Puts the last parameters back into the module; says whether they were out."""
        if self._last is None:
            return False
        for name, one in self._own.items():
            one.copy_(self._last[name])
        self._last = None
        return True

    def last(self) -> dict[str, torch.Tensor]:
        """Returns the module's parameters by name: the last ones, also while the average is in the module."""
        return dict(self._module.named_parameters()) | (self._last or {})

    def arrays(self) -> dict[str, Any]:
        """Returns what a state keeps of it; {} where there is none."""
        if not self._params:
            return {}
        params = {name: to_array(one) for name, one in self._params.items()}
        return {"params": params, "averaged": np.asarray(self.averaged), "steps": np.asarray(self.steps)}

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Goes on from what a state keeps of one; without that, begins at the parameters that the module has."""
        self.begin()
        if self.wanted and arrays:
            self._params = {name: to_tensor(arrays["params"][name]).to(one) for name, one in self._params.items()}
            self.averaged, self.steps = int(arrays["averaged"]), int(arrays["steps"])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _floating(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: one for name, one in module.named_parameters() if one.dtype.is_floating_point or one.dtype.is_complex}
