"""Softmax, batch, layer and group normalization. 16-bit floats are computed in float32, as torch does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightjax_torch.lowering.reductions import moments
from lightjax_torch.lowering.table import aten, axes, lower_all, lowers, widened

lower_all(
    {
        aten._softmax.default: lambda x, dim, half_to_float=False: jax.nn.softmax(widened(x), axes(dim, x.ndim)),
        aten._log_softmax.default: lambda x, dim, half_to_float=False: jax.nn.log_softmax(
            widened(x), axes(dim, x.ndim)
        ),
        aten._softmax_backward_data.default: lambda g, y, dim, dtype: (
            ((g := widened(g)) - jnp.sum(g * widened(y), axes(dim, g.ndim), keepdims=True)) * widened(y)
        ),
        aten._log_softmax_backward_data.default: lambda g, y, dim, dtype: (
            (g := widened(g)) - jnp.exp(widened(y)) * jnp.sum(g, axes(dim, g.ndim), keepdims=True)
        ),
    }
)


@lowers(aten._safe_softmax.default)
def safe_softmax(x: jax.Array, dim: int, dtype: Any = None) -> jax.Array:
    """Softmax; 0 where everything is masked."""
    dims = axes(dim, x.ndim)
    masked = jnp.all(x == -jnp.inf, dims, keepdims=True)
    return jnp.where(masked, 0, jax.nn.softmax(jnp.where(masked, 0, widened(x)), dims))


@lowers(aten.native_layer_norm.default)
def layer_norm(
    x: jax.Array, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes over the last dimensions; returns the mean and the reciprocal deviation as well."""
    wide = widened(x)
    center, spread = moments(wide, range(x.ndim - len(shape), x.ndim))
    scale = lax.rsqrt(spread + eps)
    return _affine((wide - center) * scale, weight, bias), center, scale


@lowers(aten.native_group_norm.default)
def group_norm(
    x: jax.Array, weight: Any, bias: Any, n: int, channels: int, positions: int, groups: int, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes over groups of channels."""
    if not x.size:
        empty = jnp.zeros((n, groups), widened(x).dtype)
        return x, empty, empty
    grouped = widened(x).reshape(n, groups, -1)
    center, spread = moments(grouped, [-1])
    scale = lax.rsqrt(spread + eps)
    shape = (1, channels) + (1,) * (x.ndim - 2)
    normal = ((grouped - center) * scale).reshape(x.shape)
    weight, bias = (None if one is None else one.reshape(shape) for one in (weight, bias))
    return _affine(normal, weight, bias), center[..., 0], scale[..., 0]


def _affine(x: jax.Array, weight: Any, bias: Any) -> jax.Array:
    if weight is not None:
        x = x * weight
    return x if bias is None else x + bias


@lowers(aten._native_batch_norm_legit_functional.default)
def batch_norm(
    x: jax.Array, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """Normalizes over the batch; returns what is kept for the backward pass, and the new running statistics."""
    wide, dims = widened(x), (0, *range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if training:
        center, spread = (one.reshape(-1) for one in moments(wide, dims))
        if mean is not None:
            n = x.size // x.shape[1]
            mean = (1 - momentum) * mean + momentum * center
            var = (1 - momentum) * var + momentum * spread * (n / max(n - 1, 1))
    else:
        center, spread = mean, var
    scale = lax.rsqrt(spread + eps)
    normal = (wide - center.reshape(shape)) * scale.reshape(shape)
    weight, bias = (None if one is None else one.reshape(shape) for one in (weight, bias))
    kept = (center, scale) if training else (jnp.zeros((0,), wide.dtype),) * 2
    return _affine(normal, weight, bias), *kept, mean, var


lower_all(
    {
        aten._native_batch_norm_legit.no_stats: lambda x, weight, bias, training, momentum, eps: batch_norm(
            x, weight, bias, None, None, True, momentum, eps
        )[:3],
        aten._native_batch_norm_legit_no_training.default: lambda x, weight, bias, mean, var, momentum, eps: batch_norm(
            x, weight, bias, mean, var, False, momentum, eps
        )[:3],
    }
)


@lowers(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    g: jax.Array,
    x: jax.Array,
    weight: Any,
    mean: Any,
    var: Any,
    saved_mean: Any,
    saved_scale: Any,
    training: bool,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Any, Any, Any]:
    """Gradients of input, weight and bias."""
    g, wide, dims = widened(g), widened(x), (0, *range(2, x.ndim))
    shape = (1, -1) + (1,) * (x.ndim - 2)
    center, scale = (saved_mean, saved_scale) if training else (mean, lax.rsqrt(widened(var) + eps))
    normal = (wide - center.reshape(shape)) * scale.reshape(shape)
    of_bias, of_weight = g.sum(dims), (g * normal).sum(dims)
    factor = scale if weight is None else scale * weight
    if training:
        n = x.size // x.shape[1]
        g = g - (of_bias.reshape(shape) + normal * of_weight.reshape(shape)) / n
    return g * factor.reshape(shape), of_weight if wanted[1] else None, of_bias if wanted[2] else None


@lowers(aten._weight_norm_interface_backward.default)
def weight_norm_backward(
    g: jax.Array, direction: jax.Array, size: jax.Array, norms: jax.Array, dim: int
) -> tuple[jax.Array, jax.Array]:
    """Gradients of direction and size of a weight that is kept as both."""
    others = tuple(d for d in range(direction.ndim) if d != dim % direction.ndim)
    norms = norms.reshape([n if d == dim % direction.ndim else 1 for d, n in enumerate(direction.shape)])
    along = jnp.sum(g * direction, others, keepdims=True)
    return size / norms * (g - direction * along / norms**2), (along / norms).reshape(size.shape)
