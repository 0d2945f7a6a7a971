"""Convolutions, transposed ones and their gradients, in any number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightjax_torch.lowering.table import aten, lowers, per_dimension, vjp


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
        options: dict[str, Any] = {"window_strides": (1,) * n, "padding": pads, "lhs_dilation": stride}
    else:
        kernel, options = weight, {"window_strides": stride, "padding": [(p, p) for p in padding]}
    found = lax.conv_general_dilated(
        batched,
        kernel,
        rhs_dilation=dilation,
        dimension_numbers=dimensions,
        feature_group_count=groups,
        **options,
    )
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
    transpose = vjp(lambda x, weight: convolution(x, weight, *options), x, weight)
    of_x, of_weight = transpose(g)
    others = tuple(d for d in range(g.ndim) if d != g.ndim - weight.ndim + 1)
    of_bias = jnp.sum(g, others) if wanted[2] else None
    return of_x if wanted[0] else None, of_weight if wanted[1] else None, of_bias


@lowers(aten.im2col.default)
def im2col(
    x: jax.Array, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> jax.Array:
    """Windows as columns, [batch, channels * window, positions]."""
    batched = x if x.ndim == 4 else x[None]
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
