"""Recurrent networks and the CTC loss as scans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from lightjax_torch import operators as operators  # defines lightjax's own
from lightjax_torch.lowering.table import lowers, vjp

_ops = torch.ops.lightjax


def _lstm(carry: tuple[jax.Array, ...], gates: jax.Array, recur: Callable[[jax.Array], jax.Array]) -> Any:
    h, c = carry
    i, f, g, o = jnp.split(gates + recur(h), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def _gru(carry: tuple[jax.Array, ...], gates: jax.Array, recur: Callable[[jax.Array], jax.Array]) -> Any:
    (h,) = carry
    reset, update, new = jnp.split(gates, 3, -1)
    own_reset, own_update, own_new = jnp.split(recur(h), 3, -1)
    r, z = jax.nn.sigmoid(reset + own_reset), jax.nn.sigmoid(update + own_update)
    h = (1 - z) * jnp.tanh(new + r * own_new) + z * h
    return (h,), h


def _elman(activation: Callable[[jax.Array], jax.Array]) -> Callable[..., Any]:
    def cell(carry: tuple[jax.Array, ...], gates: jax.Array, recur: Callable[[jax.Array], jax.Array]) -> Any:
        h = activation(gates + recur(carry[0]))
        return (h,), h

    return cell


_CELLS = {"lstm": _lstm, "gru": _gru, "tanh": _elman(jnp.tanh), "relu": _elman(jax.nn.relu)}


@lowers(_ops.rnn.default)
def rnn(
    cell: str,
    x: jax.Array,
    hidden: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> list[jax.Array]:
    """Runs a network over a sequence: the products with the inputs at once, those with the state in a scan."""
    batched = x.ndim == 3
    if not batched:
        x, hidden = x[:, None], [one[:, None] for one in hidden]
    elif batch_first:
        x = jnp.swapaxes(x, 0, 1)
    directions, per_layer = 1 + bidirectional, 4 if has_biases else 2
    last: list[tuple[jax.Array, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            w_in, w_own, *biases = weights[place * per_layer : (place + 1) * per_layer]
            b_in, b_own = biases or (0.0, 0.0)
            gates = (x[::-1] if direction else x) @ w_in.T + b_in
            recur = lambda h, w=w_own, b=b_own: h @ w.T + b  # noqa: E731
            carry = tuple(one[place] for one in hidden)
            carry, found = lax.scan(lambda carry, g, recur=recur: _CELLS[cell](carry, g, recur), carry, gates)
            last.append(carry)
            outputs.append(found[::-1] if direction else found)
        x = jnp.concatenate(outputs, -1)
    states = [jnp.stack(ones) for ones in zip(*last, strict=True)]
    if not batched:
        return [x[:, 0], *(one[:, 0] for one in states)]
    return [jnp.swapaxes(x, 0, 1) if batch_first else x, *states]


@lowers(_ops.rnn_backward.default)
def rnn_backward(
    cell: str,
    x: jax.Array,
    hidden: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    cotangents: Sequence[jax.Array],
    *options: Any,
) -> list[jax.Array]:
    """Gradients of inputs, states and weights."""
    transpose = vjp(lambda *primals: rnn(cell, *primals, *options), x, list(hidden), list(weights))
    of_x, of_hidden, of_weights = transpose(list(cotangents))
    return [of_x, *of_hidden, *of_weights]


@lowers(_ops.ctc.default)
def ctc(
    log_probs: jax.Array, targets: jax.Array, input_lengths: jax.Array, target_lengths: jax.Array, blank: int
) -> jax.Array:
    """The forward algorithm over the targets with blanks between them; inf where no path exists.

    Source: Graves et al., Connectionist Temporal Classification, 2006.
    """
    steps, batch, _ = log_probs.shape
    length = 2 * targets.shape[1] + 1
    impossible = jnp.asarray(-1e30, log_probs.dtype)
    labels = jnp.full((batch, length), blank, targets.dtype).at[:, 1::2].set(targets)
    emitted = jnp.take_along_axis(log_probs, jnp.broadcast_to(labels[None], (steps, batch, length)), 2)
    skips = (labels[:, 2:] != blank) & (labels[:, 2:] != labels[:, :-2])
    skips = jnp.pad(skips, ((0, 0), (2, 0)))
    alpha = jnp.where(np.arange(length) < 2, emitted[0], impossible)

    def shifted(alpha: jax.Array, by: int) -> jax.Array:
        return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=-1e30)[:, :length]

    def step(alpha: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        emission, time = inputs
        paths = jnp.stack([alpha, shifted(alpha, 1), jnp.where(skips, shifted(alpha, 2), impossible)])
        following = jax.nn.logsumexp(paths, 0) + emission
        return jnp.where((time < input_lengths)[:, None], following, alpha), None

    alpha, _ = lax.scan(step, alpha, (emitted[1:], jnp.arange(1, steps)))
    end = 2 * target_lengths[:, None]
    in_blank = jnp.take_along_axis(alpha, end, 1)[:, 0]
    in_label = jnp.take_along_axis(alpha, jnp.maximum(end - 1, 0), 1)[:, 0]
    likelihood = jnp.logaddexp(in_blank, jnp.where(target_lengths > 0, in_label, impossible))
    return jnp.where(likelihood < -1e29, jnp.inf, -likelihood)


@lowers(_ops.ctc_backward.default)
def ctc_backward(cotangent: jax.Array, log_probs: jax.Array, *options: Any) -> jax.Array:
    """The gradient of the log probabilities as torch defines it, with that of their softmax in it.

    Through the `log_softmax` before it, both definitions give the same; NaN where no path exists.
    """
    losses, transpose = jax.vjp(lambda log_probs: ctc(log_probs, *options), log_probs)
    cotangent = jnp.where(jnp.isinf(losses) & (cotangent != 0), jnp.nan, cotangent)
    read = jnp.arange(log_probs.shape[0])[:, None] < options[1]
    weight = jnp.where(read, cotangent, 0)[..., None]
    return transpose(cotangent)[0] + jnp.where(weight == 0, 0, weight * jnp.exp(log_probs))
