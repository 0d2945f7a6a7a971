"""Convolutions, transposed ones and their gradients, in any number of dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lightjax_torch.lowering.table import aten, lowers, per_dimension, vjp, widened


@lowers(aten.convolution.default)
def convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> jax.Array:
    """A convolution, [batch, channels, ...]."""
    n = weight.ndim - 2
    stride, padding, dilation, output_padding = (
        per_dimension(value, n) for value in (stride, padding, dilation, output_padding or [0])
    )
    batched = x if x.ndim == n + 2 else x[None]
    dimensions = ("NC" + "DHW"[-n:], "OI" + "DHW"[-n:], "NC" + "DHW"[-n:])
    if transposed:
        # The gradient of a convolution: kernel flipped, inputs and outputs exchanged within each group, input dilated.
        inputs, outputs, *window = weight.shape
        kernel = jnp.flip(weight, range(2, n + 2)).reshape(groups, inputs // groups, outputs, *window)
        kernel = kernel.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *window)
        pads = [
            (d * (k - 1) - p, d * (k - 1) - p + extra)
            for d, k, p, extra in zip(dilation, window, padding, output_padding, strict=True)
        ]
        strides, spread = (1,) * n, stride
    else:
        kernel, pads, strides, spread = weight, [(p, p) for p in padding], stride, (1,) * n

    def whole(x: jax.Array, kernel: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"dimension_numbers": dimensions, "feature_group_count": groups}
        return lax.conv_general_dilated(x, kernel, strides, pads, spread, dilation, **options)

    if _is_depthwise(batched, weight, groups):
        by_taps = lambda x, kernel: _by_taps(x, kernel, strides, pads, spread, dilation)  # noqa: E731
        found = lax.platform_dependent(batched, kernel, cpu=by_taps, default=whole)
    else:
        found = whole(batched, kernel)
    if bias is not None:
        found = found + bias.reshape((-1,) + (1,) * n)
    return found if batched is x else found[0]


@lowers(aten.convolution_backward.default)
def convolution_backward(
    g: jax.Array,
    x: jax.Array,
    weight: jax.Array,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Any, Any, Any]:
    """Gradients of input, weight and bias."""
    options = (None, stride, padding, dilation, transposed, output_padding, groups)
    of_both = lambda g, x, weight: vjp(lambda x, weight: convolution(x, weight, *options), x, weight)(g)  # noqa: E731
    on_cpu = None
    if x.ndim == weight.ndim and not transposed:
        n = weight.ndim - 2
        stride, padding, dilation = (per_dimension(one, n) for one in (stride, padding, dilation))
        if _is_depthwise(x, weight, groups):
            on_cpu = lambda g, x, weight: _of_taps(g, x, weight, stride, padding, dilation)  # noqa: E731
        elif groups == 1 and {*stride, *dilation} == {1} and weight.shape[0] >= weight.shape[1] and x.size:
            of_x = lambda g, x, weight: vjp(lambda x: convolution(x, weight, *options), x)(g)[0]  # noqa: E731
            on_cpu = lambda g, x, weight: (of_x(g, x, weight), _of_weight(g, x, weight, padding))  # noqa: E731
    if on_cpu is None:
        of_x, of_weight = of_both(g, x, weight)
    else:
        of_x, of_weight = lax.platform_dependent(g, x, weight, cpu=on_cpu, default=of_both)
    others = tuple(d for d in range(g.ndim) if d != g.ndim - weight.ndim + 1)
    of_bias = jnp.sum(g, others) if wanted[2] else None
    return of_x if wanted[0] else None, of_weight if wanted[1] else None, of_bias


def _is_depthwise(x: jax.Array, weight: jax.Array, groups: int) -> bool:
    """Whether every channel has a window of its own.

    On a CPU, XLA computes these 20 to 100 times slower than the sum over the window's elements, and the gradients of
    strided ones in float64 700 times.
    """
    return groups > 1 and weight.shape[:2] == (groups, 1) and x.size > 0


def _by_taps(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    spread: Sequence[int],
    dilation: Sequence[int],
) -> jax.Array:
    """A depthwise convolution as a sum over the elements of the window; `spread` puts zeros between inputs."""
    dtype, x, kernel = x.dtype, widened(x), widened(kernel)
    gaps = [(low, high, between - 1) for (low, high), between in zip(pads, spread, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *gaps])
    window = kernel.shape[2:]
    sizes = [
        (size - d * (k - 1) - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], window, stride, dilation, strict=True)
    ]
    found = jnp.zeros((*x.shape[:2], *sizes), x.dtype)
    for place in itertools.product(*map(range, window)):
        first = [d * at for d, at in zip(dilation, place, strict=True)]
        last = [begin + s * (size - 1) + 1 for begin, s, size in zip(first, stride, sizes, strict=True)]
        seen = lax.slice(x, (0, 0, *first), (*x.shape[:2], *last), (1, 1, *stride))
        found += seen * kernel[(slice(None), 0, *place)].reshape(-1, *(1 for _ in window))
    return found.astype(dtype)


def _of_taps(
    g: jax.Array,
    x: jax.Array,
    weight: jax.Array,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[jax.Array, jax.Array]:
    """Gradients of input and weight of a depthwise convolution."""
    window = weight.shape[2:]
    stride, padding, dilation = (per_dimension(one, len(window)) for one in (stride, padding, dilation))
    sizes = list(zip(x.shape[2:], g.shape[2:], window, stride, padding, dilation, strict=True))
    ends = [(d * (k - 1) - p, n - 1 + p - s * (m - 1)) for n, m, k, s, p, d in sizes]
    flipped = jnp.flip(weight, range(2, weight.ndim))
    of_x = _by_taps(g, flipped, (1,) * len(window), ends, stride, dilation)
    wide, padded = widened(g), jnp.pad(widened(x), [(0, 0), (0, 0), *((p, p) for p in padding)])

    def of_tap(first: jax.Array) -> jax.Array:
        # In a loop: one program for all elements of the window.
        extents = [s * (m - 1) + 1 for _, m, _, s, _, _ in sizes]
        begin = [jnp.zeros((), first.dtype)] * 2 + [first[at] for at in range(len(window))]
        seen = lax.dynamic_slice(padded, begin, (*x.shape[:2], *extents))
        seen = seen[(slice(None), slice(None), *(slice(None, None, s) for s in stride))]
        return jnp.sum(seen * wide, (0, *range(2, g.ndim)))

    places = np.asarray(list(itertools.product(*map(range, window))), np.int32) * np.asarray(dilation, np.int32)
    of_weight = jax.lax.map(of_tap, jnp.asarray(places)).T.reshape(weight.shape)
    return of_x, of_weight.astype(weight.dtype)


def _of_weight(g: jax.Array, x: jax.Array, weight: jax.Array, padding: Sequence[int]) -> jax.Array:
    """Gradient of the weight of a convolution without stride, dilation and groups, with the input as the kernel.

    The same sums as of the input convolved with the gradient. XLA keeps the channels of what is convolved in front and
    those of the kernel at the end on a CPU: near torch's order [outputs, inputs, ...], so that an optimizer reads it in
    half the time.
    """
    window = weight.shape[2:]
    pads = [(k - 1 - p, k - 1 - p) for k, p in zip(window, padding, strict=True)]
    names = "DHW"[-len(window) :]
    dimensions = ("CN" + names, "IO" + names, "NC" + names)
    found = lax.conv_general_dilated(g, x, (1,) * len(window), pads, dimension_numbers=dimensions)
    return jnp.flip(found, range(2, weight.ndim))


@lowers(aten.im2col.default)
def im2col(
    x: jax.Array, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> jax.Array:
    """Windows as columns, [batch, channels * window, positions]."""
    batched = x if x.ndim == 4 else x[None]
    if not batched.shape[0]:  # an empty batch, which JAX's patches refuse
        reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
        counts = [
            (n + 2 * p - r) // s + 1 for n, p, r, s in zip(batched.shape[2:], padding, reach, stride, strict=True)
        ]
        return jnp.zeros((0, batched.shape[1] * math.prod(kernel), math.prod(counts)), x.dtype)
    windows = lax.conv_general_dilated_patches(
        batched, tuple(kernel), tuple(stride), [(p, p) for p in padding], rhs_dilation=tuple(dilation)
    )
    found = windows.reshape(*windows.shape[:2], -1)
    return found if batched is x else found[0]


@lowers(aten.col2im.default)
def col2im(
    columns: jax.Array,
    output_size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> jax.Array:
    """Adds windows up where they came from."""
    channels = columns.shape[-2] // (kernel[0] * kernel[1])
    image = jnp.zeros((*columns.shape[:-2], channels, *output_size), columns.dtype)
    return vjp(lambda x: im2col(x, kernel, dilation, padding, stride), image)(columns)[0]
