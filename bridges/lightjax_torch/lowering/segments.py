"""Reductions of the segments of a dimension, which lengths or offsets say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lightjax_torch.lowering.table import aten, lowers, vjp

_NEUTRAL = {"sum": 0.0, "mean": 0.0, "prod": 1.0, "max": -jnp.inf, "min": jnp.inf}


def _inside(data: jax.Array, lengths: Any, offsets: Any, axis: int) -> jax.Array:
    """Returns which elements of the axis each segment has, [*batch, segments, size, 1...]."""
    if offsets is None:
        ends = jnp.cumsum(lengths, -1)
        starts = ends - lengths
    else:
        starts, ends = offsets[..., :-1], offsets[..., 1:]
    places = jnp.arange(data.shape[axis])
    inside = (places >= starts[..., None]) & (places < ends[..., None])
    return inside.reshape(*inside.shape, *(1,) * (data.ndim - axis - 1))


def _of_segments(data: jax.Array, inside: jax.Array, reduce: str, axis: int, initial: Any) -> jax.Array:
    begin = _NEUTRAL[reduce] if initial is None else initial
    values = jnp.expand_dims(data, axis)
    along = axis + 1
    counts = jnp.sum(inside, along).astype(data.dtype)
    if reduce in ("max", "min"):
        extreme = jnp.max if reduce == "max" else jnp.min
        neutral = _NEUTRAL[reduce]
        return extreme(jnp.where(inside, values, neutral), along, initial=begin)
    if reduce == "prod":
        return jnp.prod(jnp.where(inside, values, 1), along) * begin
    sums = jnp.sum(jnp.where(inside, values, 0), along) + begin
    if reduce == "sum":
        return sums
    empty = jnp.nan if initial is None else sums
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1), empty)


@lowers(aten.segment_reduce.default)
def segment_reduce(
    data: jax.Array,
    reduce: str,
    *,
    lengths: Any = None,
    indices: Any = None,
    offsets: Any = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: Any = None,
) -> jax.Array:
    """Sums, means, products or extremes of segments."""
    if indices is not None:
        raise NotImplementedError("segments by indices")
    axis %= data.ndim
    return _of_segments(data, _inside(data, lengths, offsets, axis), reduce, axis, initial)


@lowers(aten._segment_reduce_backward.default)
def segment_reduce_backward(
    g: jax.Array,
    output: jax.Array,
    data: jax.Array,
    reduce: str,
    *,
    lengths: Any = None,
    offsets: Any = None,
    axis: int = 0,
    initial: Any = None,
) -> jax.Array:
    """The gradient of the data; equal extremes share theirs."""
    axis %= data.ndim
    inside = _inside(data, lengths, offsets, axis)
    if reduce in ("max", "min"):
        g, output, values = (
            jnp.expand_dims(one, place) for one, place in ((g, axis + 1), (output, axis + 1), (data, axis))
        )
        chosen = inside & ((values == output) | jnp.isnan(values))
        counts = jnp.maximum(jnp.sum(chosen, axis + 1, keepdims=True), 1)
        return jnp.sum(jnp.where(chosen, g / counts, 0), axis)
    return vjp(lambda data: _of_segments(data, inside, reduce, axis, initial), data)(g)[0]
