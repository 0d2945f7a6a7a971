"""Pooling over windows, and adaptive pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lightjax_torch.lowering.table import aten, is_inexact, lower_all, lowers, per_dimension, vjp


def _outputs(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """Returns how many windows fit, as torch counts them: none may begin in the padding on the right."""
    count = (n + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= n + padding else count


def _geometry(
    shape: Sequence[int], n: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Any, ...]:
    """Returns window, stride, dilation, counts, and padding (left, right) of the last n dimensions."""
    kernel = per_dimension(kernel, n)
    stride = per_dimension(stride, n) if stride else kernel
    padding, dilation = per_dimension(padding, n), per_dimension(dilation, n)
    sizes = shape[-n:]
    counts = tuple(_outputs(*one, ceil_mode) for one in zip(sizes, kernel, stride, padding, dilation, strict=True))
    pads = tuple(
        (p, (count - 1) * s + d * (k - 1) + 1 - size - p)
        for size, k, s, p, d, count in zip(sizes, kernel, stride, padding, dilation, counts, strict=True)
    )
    return kernel, stride, dilation, counts, pads


def _max_pool(
    x: jax.Array,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil_mode: bool = False,
    *,
    n: int,
) -> tuple[jax.Array, jax.Array]:
    """The largest element of each window, and its place in the flattened image; the first one of equals."""
    kernel, stride, dilation, counts, pads = _geometry(x.shape, n, kernel, stride, padding, dilation, ceil_mode)
    lowest = -jnp.inf if is_inexact(x) else jnp.iinfo(x.dtype).min
    around = [(0, 0, 0)] * (x.ndim - n)
    padded = lax.pad(x, jnp.asarray(lowest, x.dtype), [*around, *((low, high, 0) for low, high in pads)])
    sizes = x.shape[-n:]
    numbered = np.pad(
        np.arange(math.prod(sizes), dtype=np.int32).reshape(sizes), [(low, max(high, 0)) for low, high in pads]
    )
    values: Any = None
    places: Any = None
    for offset in np.ndindex(*kernel):
        window = tuple(
            slice(o * d, o * d + (count - 1) * s + 1, s)
            for o, d, count, s in zip(offset, dilation, counts, stride, strict=True)
        )
        value, place = padded[(..., *window)], jnp.asarray(numbered[window])
        if values is None:
            values, places = value, jnp.broadcast_to(place, value.shape)
        else:
            larger = (value > values) | (jnp.isnan(value) & ~jnp.isnan(values))
            values, places = jnp.where(larger, value, values), jnp.where(larger, place, places)
    return values, places


def _max_pool_backward(
    g: jax.Array,
    x: jax.Array,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    places: jax.Array,
    *,
    n: int,
) -> jax.Array:
    """Adds each gradient up where its window had the largest element."""
    return _add_at_places(jnp.zeros(x.shape, g.dtype), g, places, n)


def _add_at_places(image: jax.Array, g: jax.Array, places: jax.Array, n: int) -> jax.Array:
    if not image.size:
        return image
    rows = math.prod(image.shape[:-n])
    flat = image.reshape(rows, -1)
    flat = flat.at[jnp.arange(rows)[:, None], places.reshape(rows, -1)].add(g.reshape(rows, -1))
    return flat.reshape(image.shape)


def _average_pool(
    x: jax.Array,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    n: int,
) -> jax.Array:
    """The mean of each window."""
    kernel, stride, _, _, pads = _geometry(x.shape, n, kernel, stride, padding, (1,), ceil_mode)
    leading = (1,) * (x.ndim - n)

    def sums(values: jax.Array, pads: Any) -> jax.Array:
        lead = leading[: values.ndim - n]
        return lax.reduce_window(
            values, np.zeros((), values.dtype), lax.add, lead + kernel, lead + stride, [(0, 0)] * len(lead) + list(pads)
        )

    if divisor_override:
        return sums(x, pads) / divisor_override
    inside = per_dimension(padding, n) if count_include_pad else (0,) * n
    ones = jnp.asarray(np.pad(np.ones(x.shape[-n:]), [(p, p) for p in inside], constant_values=1.0), x.dtype)
    counts = sums(ones, [(low - p, high - p) for (low, high), p in zip(pads, inside, strict=True)])
    return sums(x, pads) / counts


def _backward_of(forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The gradient of a linear operation."""
    return lambda g, x, *options: vjp(lambda x: forward(x, *options), x)(g)[0]


def _adaptive_matrix(size: int, wanted: int, dtype: Any) -> jax.Array:
    """Returns the means of an adaptive pooling as a matrix, [wanted, size]."""
    matrix = np.zeros((wanted, size))
    for row in range(wanted):
        first, last = (row * size) // wanted, -(-(row + 1) * size // wanted)
        matrix[row, first:last] = 1 / (last - first)
    return jnp.asarray(matrix, dtype)


def adaptive_average_pool(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """The means of as many windows as wanted."""
    for place, wanted in enumerate(sizes):
        dim = x.ndim - len(sizes) + place
        matrix = _adaptive_matrix(x.shape[dim], wanted, x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, axes=((dim,), (1,))), -1, dim)
    return x


def adaptive_max_pool(x: jax.Array, sizes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """The largest elements of as many windows as wanted, and their places."""
    n = len(sizes)
    shape = x.shape[-n:]
    numbered = np.arange(math.prod(shape)).reshape(shape)
    values, places = [], []
    for cell in np.ndindex(*sizes):
        window = tuple(
            slice((i * size) // wanted, -(-(i + 1) * size // wanted))
            for i, size, wanted in zip(cell, shape, sizes, strict=True)
        )
        inside = x[(..., *window)].reshape(*x.shape[:-n], numbered[window].size)
        best = jnp.argmax(inside, -1)
        values.append(jnp.take_along_axis(inside, best[..., None], -1)[..., 0])
        places.append(jnp.asarray(numbered[window].ravel())[best])
    found = (*x.shape[:-n], *sizes)
    return jnp.stack(values, -1).reshape(found), jnp.stack(places, -1).reshape(found)


lower_all(
    {
        aten.max_pool2d_with_indices.default: partial(_max_pool, n=2),
        aten.max_pool3d_with_indices.default: partial(_max_pool, n=3),
        aten.max_pool2d_with_indices_backward.default: partial(_max_pool_backward, n=2),
        aten.max_pool3d_with_indices_backward.default: partial(_max_pool_backward, n=3),
        aten.avg_pool1d.default: partial(_average_pool, n=1),
        aten.avg_pool2d.default: partial(_average_pool, n=2),
        aten.avg_pool3d.default: partial(_average_pool, n=3),
        aten.avg_pool2d_backward.default: _backward_of(partial(_average_pool, n=2)),
        aten.avg_pool3d_backward.default: _backward_of(partial(_average_pool, n=3)),
        aten.adaptive_avg_pool1d.default: adaptive_average_pool,
        aten._adaptive_avg_pool2d.default: adaptive_average_pool,
        aten._adaptive_avg_pool3d.default: adaptive_average_pool,
        aten._adaptive_avg_pool2d_backward.default: lambda g, x: _backward_of(adaptive_average_pool)(
            g, x, g.shape[-2:]
        ),
        aten._adaptive_avg_pool3d_backward.default: lambda g, x: _backward_of(adaptive_average_pool)(
            g, x, g.shape[-3:]
        ),
        aten.adaptive_max_pool2d.default: adaptive_max_pool,
        aten.adaptive_max_pool3d.default: adaptive_max_pool,
        aten.adaptive_max_pool2d_backward.default: lambda g, x, places: _add_at_places(
            jnp.zeros(x.shape, g.dtype), g, places, 2
        ),
        aten.adaptive_max_pool3d_backward.default: lambda g, x, places: _add_at_places(
            jnp.zeros(x.shape, g.dtype), g, places, 3
        ),
    }
)


@lowers(aten.max_unpool2d.default)
def max_unpool(x: jax.Array, places: jax.Array, size: Sequence[int]) -> jax.Array:
    """Puts elements back where a pooling found them."""
    image = jnp.zeros((*x.shape[:-2], *size), x.dtype)
    if not image.size:
        return image
    rows = math.prod(x.shape[:-2])
    flat = image.reshape(rows, -1).at[jnp.arange(rows)[:, None], places.reshape(rows, -1)].set(x.reshape(rows, -1))
    return flat.reshape(image.shape)


def _fractional_starts(size: int, kernel: int, wanted: int, sample: jax.Array) -> jax.Array:
    """Returns where the windows of a random pooling begin, [batch, channels, wanted]."""
    last = size - kernel
    if wanted == 1:
        return jnp.full((*sample.shape, 1), last, jnp.int32)
    step = jnp.asarray(last, sample.dtype) / (wanted - 1)
    places = jnp.arange(wanted, dtype=sample.dtype)
    starts = jnp.trunc((places + sample[..., None]) * step) - jnp.trunc(sample * step)[..., None]
    return jnp.where(places == wanted - 1, last, starts.astype(jnp.int32))


def _fractional_max_pool(
    x: jax.Array, kernel: Any, sizes: Sequence[int], samples: jax.Array, *, order: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """The largest elements of windows at random places; `order` says which of the samples is which dimension's."""
    n = len(order)
    kernel = per_dimension(kernel, n)
    shape = x.shape[-n:]
    images = x if x.ndim > n + 1 else x[None]
    samples = samples[: images.shape[0]]  # torch takes samples of more images than there are
    starts = [
        _fractional_starts(extent, window, count, samples[..., place])
        for extent, window, count, place in zip(shape, kernel, sizes, order, strict=True)
    ]
    flat = images.reshape(*images.shape[:2], math.prod(shape))
    values: Any = None
    places: Any = None
    for offset in np.ndindex(*kernel):
        place: Any = 0
        for dim, (start, begin, size) in enumerate(zip(starts, offset, shape, strict=True)):
            along = jnp.expand_dims(start + begin, [2 + d for d in range(n) if d != dim])
            place = place * size + along
        value = jnp.take_along_axis(flat, place.reshape(*flat.shape[:2], math.prod(sizes)), -1).reshape(place.shape)
        if values is None:
            values, places = value, place
        else:
            larger = (value > values) | jnp.isnan(value)
            values, places = jnp.where(larger, value, values), jnp.where(larger, place, places)
    found = (*x.shape[:-n], *sizes)
    return values.reshape(found), places.reshape(found)


def _fractional_backward(n: int) -> Callable[..., jax.Array]:
    return lambda g, x, kernel, sizes, places: _add_at_places(jnp.zeros(x.shape, g.dtype), g, places, n)


lower_all(
    {
        aten.fractional_max_pool2d.default: partial(_fractional_max_pool, order=(1, 0)),
        aten.fractional_max_pool3d.default: partial(_fractional_max_pool, order=(0, 1, 2)),
        aten.fractional_max_pool2d_backward.default: _fractional_backward(2),
        aten.fractional_max_pool3d_backward.default: _fractional_backward(3),
    }
)
