"""Losses whose backward passes torch keeps whole."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lowers, vjp

_REDUCTIONS = {0: lambda x: x, 1: jnp.mean, 2: jnp.sum}


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
