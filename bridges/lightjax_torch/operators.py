"""Operators of our own that stand in captured graphs: what ATen has no word for, or takes apart too far."""

from __future__ import annotations

from typing import Any

import torch

_LIBRARY = torch.library.Library("lightjax", "FRAGMENT")

_LIBRARY.define("one_minus_power(float base, Tensor exponent) -> Tensor")
_LIBRARY.define("one_minus_power.Tensor(Tensor base, Tensor exponent) -> Tensor")
_LIBRARY.define("cotangent(Tensor output, int place) -> Tensor")
_LIBRARY.define("state_before(Tensor like, Tensor state) -> Tensor")
_LIBRARY.define(
    "rnn(str cell, Tensor input, Tensor[] hidden, Tensor[] weights, bool has_biases, int num_layers, "
    "bool bidirectional, bool batch_first) -> Tensor[]"
)
_LIBRARY.define(
    "rnn_backward(str cell, Tensor input, Tensor[] hidden, Tensor[] weights, Tensor[] cotangents, bool has_biases, "
    "int num_layers, bool bidirectional, bool batch_first) -> Tensor[]"
)
_LIBRARY.define(
    "ctc(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank) -> Tensor"
)
_LIBRARY.define(
    "ctc_backward(Tensor cotangent, Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, "
    "int blank) -> Tensor"
)


def cotangent(output: torch.Tensor, place: int) -> torch.Tensor:
    """Stands for the cotangent of the output tensor at a place."""
    return torch.ops.lightjax.cotangent(output.detach(), place)


def rnn(
    cell: str,
    inputs: torch.Tensor,
    hidden: list[torch.Tensor],
    weights: list[torch.Tensor],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[torch.Tensor]:
    """Runs a whole recurrent network as one operator, which becomes a scan a layer and direction.

    Torch would unroll it: a 4-layer LSTM over 35 steps took 47 s to trace and compile, and takes 7.
    """
    options = (has_biases, num_layers, bidirectional, batch_first)
    return list(_Rnn.apply(cell, len(hidden), options, inputs, *hidden, *weights))


def ctc(
    log_probs: torch.Tensor,
    targets: torch.Tensor,
    input_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    blank: int,
) -> torch.Tensor:
    """Returns the negative log likelihood of every sequence, [batch]."""
    return _Ctc.apply(log_probs, targets, input_lengths, target_lengths, blank)


class _Rnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell: str, n_hidden: int, options: tuple[Any, ...], inputs: Any, *states: Any) -> Any:
        ctx.cell, ctx.n_hidden, ctx.options = cell, n_hidden, options
        ctx.save_for_backward(inputs, *states)
        return tuple(torch.ops.lightjax.rnn(cell, inputs, states[:n_hidden], states[n_hidden:], *options))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, *states = ctx.saved_tensors
        hidden, weights = states[: ctx.n_hidden], states[ctx.n_hidden :]
        found = torch.ops.lightjax.rnn_backward(ctx.cell, inputs, hidden, weights, list(cotangents), *ctx.options)
        return None, None, None, *found


class _Ctc(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, blank: int) -> Any:
        ctx.blank = blank
        ctx.save_for_backward(log_probs, targets, input_lengths, target_lengths)
        return torch.ops.lightjax.ctc(log_probs, targets, input_lengths, target_lengths, blank)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.lightjax.ctc_backward(cotangent, *ctx.saved_tensors, ctx.blank), None, None, None, None


def _rnn_shapes(cell: str, inputs: Any, hidden: Any, weights: Any, *options: Any) -> list[torch.Tensor]:
    width = hidden[0].shape[-1] * (2 if options[2] else 1)
    return [inputs.new_empty((*inputs.shape[:-1], width)), *(torch.empty_like(one) for one in hidden)]


def _rnn_backward_shapes(cell: str, inputs: Any, hidden: Any, weights: Any, *_: Any) -> list[torch.Tensor]:
    return [torch.empty_like(one) for one in (inputs, *hidden, *weights)]


_LIBRARY.impl("one_minus_power", lambda base, exponent: torch.empty_like(exponent), "Meta")
_LIBRARY.impl("one_minus_power.Tensor", lambda base, exponent: torch.empty_like(exponent), "Meta")
_LIBRARY.impl("cotangent", lambda output, place: torch.empty_like(output), "Meta")
_LIBRARY.impl("state_before", lambda like, state: torch.empty_like(like), "Meta")
_LIBRARY.impl("rnn", _rnn_shapes, "Meta")
_LIBRARY.impl("rnn_backward", _rnn_backward_shapes, "Meta")
_LIBRARY.impl("ctc", lambda log_probs, *_: log_probs.new_empty((log_probs.shape[1],)), "Meta")
_LIBRARY.impl("ctc_backward", lambda cotangent, log_probs, *_: torch.empty_like(log_probs), "Meta")
