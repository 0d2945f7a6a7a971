"""Torch functions that a capture takes whole, before torch takes them apart."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from lightjax_torch import operators
from lightjax_torch.errors import WAY_OUT, CaptureError
from lightjax_torch.source_lines import current_line

_CELLS = {torch._VF.lstm: "lstm", torch._VF.gru: "gru", torch._VF.rnn_tanh: "tanh", torch._VF.rnn_relu: "relu"}


# Torch keeps the decomposition of the transposed matrix where the matrix lies contiguously in memory, of the matrix
# itself elsewhere, and its backward pass asks for the layout: captured, such matrices are always contiguous.
_DETERMINANTS = {
    *(torch.det, torch.logdet, torch.slogdet, torch.linalg.det, torch.linalg.slogdet),
    *(torch.Tensor.det, torch.Tensor.logdet, torch.Tensor.slogdet),
}

_DATA: Any = torch.Tensor.data


class TracedFunctions(TorchFunctionMode):
    """Keeps recurrent networks and the CTC loss whole: they become scans. `x.data = y` becomes a write."""

    def __init__(self) -> None:
        super().__init__()
        self._sharing = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls a torch function, or what stands for it."""
        kwargs = kwargs or {}
        if func == _DATA.__set__:
            return self._assign_data(*args)
        if func == _DATA.__get__:
            self._sharing[found := func(*args, **kwargs)] = True
            return found
        if func in _CELLS and len(args) == 9 and isinstance(args[2], list | tuple):
            found = _rnn(_CELLS[func], *args)
            if found is not None:
                return found
        if func is F.ctc_loss:
            return _ctc_loss(*args, **kwargs)
        if func is F.gaussian_nll_loss:
            return _gaussian_nll_loss(*args, **kwargs)
        if func in _DETERMINANTS and args:
            return func(args[0].contiguous(), *args[1:], **kwargs)
        if func is torch.bincount:
            return _bincount(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _assign_data(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """Does what torch does below every layer that a tracer sees: the tensor has other memory from now on."""
        if tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise CaptureError(
                f"{current_line()}: a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} gets .data of shape "
                f"{tuple(value.shape)} and {value.dtype}. A compiled step has a state of fixed shapes; {WAY_OUT}."
            )
        if value in self._sharing or value._is_view() or (value.is_leaf and value.requires_grad):
            raise CaptureError(
                f"{current_line()}: `x.data = y` makes two tensors share one memory from then on, which no compiled "
                "step can; write `x.data.copy_(y)`, or `x.data = y.clone()`."
            )
        if not isinstance(tensor, FunctionalTensor):
            raise CaptureError(f"{current_line()}: .data of a constant is set; register it as a buffer, or {WAY_OUT}.")
        with torch.no_grad():
            fresh: Any = torch.empty_like(tensor.detach()).copy_(value)
        # What holds the values moves, as in torch: views taken before keep the memory of before.
        tensor.elem = fresh.elem


def _rnn(
    cell: str,
    inputs: torch.Tensor,
    hidden: Any,
    weights: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...] | None:
    """Returns None where torch has to take it apart: dropout between layers, projections."""
    states = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    gates = {"lstm": 4, "gru": 3}.get(cell, 1)
    if (dropout and train and num_layers > 1) or states[0].shape[-1] * gates != weights[0].shape[0]:
        return None
    return tuple(operators.rnn(cell, inputs, states, list(weights), has_biases, num_layers, bidirectional, batch_first))


def _ctc_loss(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> torch.Tensor:
    if targets.dim() == 1 and log_probs.dim() == 3:
        raise NotImplementedError(
            "ctc_loss with targets joined into one row has a layout that depends on values; pad them to [batch, length]"
        )
    unbatched = log_probs.dim() == 2
    if unbatched:
        log_probs, targets = log_probs.unsqueeze(1), targets.unsqueeze(0)
    input_lengths, target_lengths = (
        torch.as_tensor(lengths, dtype=torch.int64).reshape(-1) for lengths in (input_lengths, target_lengths)
    )
    losses = operators.ctc(log_probs, targets, input_lengths, target_lengths, blank)
    if zero_infinity:
        losses = torch.where(torch.isinf(losses), 0.0, losses)
    if reduction == "mean":
        return (losses / target_lengths.clamp(min=1).to(losses.dtype)).mean()
    if reduction == "sum":
        return losses.sum()
    return losses[0] if unbatched else losses


def _gaussian_nll_loss(
    values: torch.Tensor,
    target: torch.Tensor,
    var: torch.Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> torch.Tensor:
    """Without torch's check that no variance is negative: such a variance gives NaN."""
    var = torch.as_tensor(var, dtype=values.dtype)
    if var.dim() and var.shape != values.shape and var.shape == values.shape[:-1]:
        var = var.unsqueeze(-1)
    valid = torch.where(var < 0, torch.nan, var.detach().clamp(min=eps) - var.detach()) + var
    losses = 0.5 * (torch.log(valid) + (values - target) ** 2 / valid)
    losses = losses + 0.5 * math.log(2 * math.pi) if full else losses
    return {"mean": torch.Tensor.mean, "sum": torch.Tensor.sum, "none": lambda x: x}[reduction](losses)


def _bincount(
    func: Callable[..., Any], values: torch.Tensor, weights: torch.Tensor | None = None, minlength: int = 0
) -> torch.Tensor:
    """Counts into `minlength` places: torch makes more where a value is larger, which no fixed shape can.

    Such a value makes every count NaN, or without weights -2**31, which nobody takes for a count.
    """
    if not minlength:
        return func(values, weights, minlength)
    if weights is None:
        weights = torch.ones_like(values, dtype=torch.int64)
    elif weights.dtype is not torch.float32:
        weights = weights.to(torch.float64)
    places = values.to(torch.int64)
    counts = torch.zeros(minlength, dtype=weights.dtype).scatter_add(0, places.clamp(max=minlength - 1), weights)
    none = torch.nan if weights.is_floating_point() else -(2**31)
    return torch.where((places >= minlength).any(), none, counts)


@contextlib.contextmanager
def without_recomputation() -> Iterator[None]:
    """Lets `torch.utils.checkpoint` call its function plainly.

    In a captured graph recomputation would draw other random numbers than the forward pass did, and XLA decides by
    itself what is computed twice; what a trainer's `remat` asks for still holds.
    """
    module: Any = torch.utils.checkpoint
    generator, reentrant = module._checkpoint_without_reentrant_generator, module.CheckpointFunction

    def nothing_around(*_: Any, **__: Any) -> Iterator[None]:
        yield

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    module._checkpoint_without_reentrant_generator, module.CheckpointFunction = nothing_around, Plain
    try:
        yield
    finally:
        module._checkpoint_without_reentrant_generator, module.CheckpointFunction = generator, reentrant
