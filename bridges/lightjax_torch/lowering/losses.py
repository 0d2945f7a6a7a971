"""Losses whose backward passes torch keeps whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lowers, vjp

_REDUCTIONS = {0: lambda x: x, 1: jnp.mean, 2: jnp.sum}


@lowers(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    g: jax.Array, x: jax.Array, target: jax.Array, weight: Any, reduction: int, ignore: int, total: jax.Array
) -> jax.Array:
    """The gradient of the log-probabilities [batch, classes, ...] or [classes].

    Compared with the labels rather than scattered: one pass over the classes, together with what softmax makes of it.
    """
    along = min(x.ndim - 1, 1)
    labels = jnp.expand_dims(target if x.ndim > 1 else target.reshape(-1)[0], along)
    classes = jax.lax.broadcasted_iota(target.dtype, x.shape, along)
    g = g / total if reduction == 1 else g
    g = jnp.expand_dims(g, along) if g.ndim == x.ndim - 1 and g.ndim else g
    if weight is not None:
        g = g * weight.reshape([-1 if dim == along else 1 for dim in range(x.ndim)])
    return jnp.where((classes == labels) & (labels != ignore), -g, 0)


@lowers(aten.multi_margin_loss.default)
def multi_margin_loss(
    x: jax.Array, target: jax.Array, p: Any = 1, margin: Any = 1, weight: Any = None, reduction: int = 1
) -> jax.Array:
    """How far the other classes come within a margin of the right one."""
    rows, labels = jnp.atleast_2d(x), target.reshape(-1)
    right = jnp.take_along_axis(rows, labels[:, None], -1)
    distance = jnp.where(margin - right + rows > 0, margin - right + rows, 0)
    distance = distance if p == 1 else distance * distance
    distance = distance if weight is None else distance * weight[labels][:, None]
    others = jnp.arange(rows.shape[-1]) != labels[:, None]
    losses = jnp.sum(jnp.where(others, distance, 0), -1) / rows.shape[-1]
    return _REDUCTIONS[reduction](losses if x.ndim > 1 or reduction else losses.reshape(target.shape))


@lowers(aten.multi_margin_loss_backward.default)
def multi_margin_loss_backward(
    g: jax.Array, x: jax.Array, target: jax.Array, p: Any, margin: Any, weight: Any = None, reduction: int = 1
) -> jax.Array:
    """The gradient of the scores."""
    return vjp(lambda x: multi_margin_loss(x, target, p, margin, weight, reduction), x)(g)[0]


def _multilabel_margins(x: jax.Array, target: jax.Array, reduction: int) -> tuple[jax.Array, jax.Array]:
    rows, labels = jnp.atleast_2d(x), jnp.atleast_2d(target)
    # A row's labels end at the first negative one.
    valid = jnp.cumprod(labels >= 0, -1).astype(bool)
    classes = jnp.arange(rows.shape[-1])
    is_label = jnp.any((labels[..., None] == classes) & valid[..., None], -2)
    scores = jnp.take_along_axis(rows, jnp.where(valid, labels, 0), -1)
    distance = 1 - scores[..., :, None] + rows[..., None, :]
    counted = valid[..., :, None] & ~is_label[..., None, :] & (distance > 0)
    losses = jnp.sum(jnp.where(counted, distance, 0), (-2, -1)) / rows.shape[-1]
    losses = losses.reshape(x.shape[:-1]) if reduction == 0 else losses
    return _REDUCTIONS[reduction](losses), is_label.astype(x.dtype).reshape(target.shape)


@lowers(aten.multilabel_margin_loss_forward.default)
def multilabel_margin_loss(x: jax.Array, target: jax.Array, reduction: int = 1) -> tuple[jax.Array, jax.Array]:
    """How far classes come within a margin of any of the right ones, and which the right ones are."""
    return _multilabel_margins(x, target, reduction)


@lowers(aten.multilabel_margin_loss_backward.default)
def multilabel_margin_loss_backward(
    g: jax.Array, x: jax.Array, target: jax.Array, reduction: int, is_target: jax.Array
) -> jax.Array:
    """The gradient of the scores."""
    return vjp(lambda x: _multilabel_margins(x, target, reduction)[0], x)(g)[0]
