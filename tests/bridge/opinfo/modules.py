"""Torch's database of modules, in the form of its operators: a module is a function of its tensors and arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tests.bridge.opinfo.database import SampleInput, module_db


class ModuleOperator:
    """One module of the database; gradients are those of its parameters and floating arguments."""

    supports_autograd = True

    def __init__(self, info: Any) -> None:
        self.info = info
        self.name = self.full_name = f"module.{info.name}"
        self.decorators = info.decorators or ()

    def supports_dtype(self, dtype: torch.dtype, device: str) -> bool:
        """Whether the database has the module in a dtype."""
        return dtype in self.info.dtypesIfMPS if device == "mps" else dtype in self.info.dtypes

    def supported_backward_dtypes(self, device: str) -> set[torch.dtype]:
        """The dtypes with a gradient."""
        return {torch.float32, torch.float64}

    def sample_inputs(self, device: str, dtype: torch.dtype, requires_grad: bool) -> Iterator[SampleInput]:
        """Makes a module for every entry, training and evaluating where that differs."""
        for training in (True, False) if self.info.train_and_eval_differ else (True,):
            options = {"device": device, "dtype": dtype, "requires_grad": requires_grad, "training": training}
            for one in self.info.module_inputs_func(self.info, **options):
                built = one.constructor_input
                module = self.info.module_cls(*built.args, **built.kwargs).to(dtype).train(training)
                if one.forward_input is not None:
                    tensors = dict(module.named_parameters()), dict(module.named_buffers())
                    arguments = one.forward_input.args, one.forward_input.kwargs
                    yield SampleInput(tensors, args=(module, *arguments))

    def op(self, tensors: Any, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Calls a module with other tensors; returns its outputs and its buffers afterwards."""
        parameters, buffers = tensors
        buffers = {name: buffer.clone() for name, buffer in buffers.items()}
        return torch.func.functional_call(module, parameters | buffers, args, kwargs), buffers


def modules() -> list[ModuleOperator]:
    """Returns torch's modules; those of lazy parameters and of quantization are made by others."""
    return [ModuleOperator(info) for info in module_db if "Lazy" not in info.name]
