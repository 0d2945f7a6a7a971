"""Replica: a module of which every process has one, with gradients averaged by DistributedDataParallel."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from lightjax_torch.module_calls import is_automatic


class Replica:
    """Runs the train step of a module through DistributedDataParallel.

    Args:
      module: the module; its parameters and buffers become those of process 0.
      step: the train step.
      find_unused_parameters: whether a step may leave parameters without gradients, which costs time.
    """

    def __init__(self, module: torch.nn.Module, step: Callable[..., Any], *, find_unused_parameters: bool) -> None:
        self._module = module
        self._stepped = _Stepped(module, step)
        self._parallel = DistributedDataParallel(self._stepped, find_unused_parameters=find_unused_parameters)
        self._stepped.__dict__["parallel"] = self._parallel

    def step(self, *arguments: Any) -> Any:
        """Runs the train step."""
        before = self._parallel.require_backward_grad_sync
        try:
            return self._parallel(*arguments)
        finally:
            self._parallel.require_backward_grad_sync = before

    def close(self) -> None:
        """Lets the module go: its gradients are averaged by nobody until another replica is made of it."""
        del self._stepped.__dict__["parallel"], self._parallel
        gc.collect()  # the hooks at its gradients go with the reducer

    def unsynchronized(self) -> AbstractContextManager[Any]:
        """While entered, gradients are gathered and not averaged: more batches make the same step."""
        return self._parallel.no_sync()

    def share_buffers(self) -> None:
        """Gives every process the buffers of process 0: an evaluation is of one module."""
        for buffer in self._module.buffers():
            dist.broadcast(buffer, 0)

    def before_backward(self, loss: torch.Tensor) -> None:
        """Prepares a gradient that the module asks for within its step: DDP would prepare only after the step."""
        parallel: Any = self._parallel
        if is_automatic(self._module) or not (torch.is_grad_enabled() and parallel.require_backward_grad_sync):
            return
        parallel.require_forward_param_sync = True
        parallel.reducer._rebuild_buckets()
        parallel.reducer.prepare_for_backward([loss] if parallel.find_unused_parameters else [])


class _Stepped(torch.nn.Module):
    """A module whose forward is the train step."""

    def __init__(self, module: torch.nn.Module, step: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.step = step

    def forward(self, *arguments: Any) -> Any:
        found = self.step(*arguments)
        if not is_automatic(self.module):
            # Its gradients are made and averaged.
            self.__dict__["parallel"].require_backward_grad_sync = False
        return found
