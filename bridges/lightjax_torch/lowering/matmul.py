"""Products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lightjax_torch.lowering.table import aten, is_inexact, lower_all, lowers, widened

lower_all(
    {
        aten.mm.default: jnp.matmul,
        aten.bmm.default: jnp.matmul,
        aten.mv.default: jnp.matmul,
        aten.dot.default: jnp.dot,
        aten.vdot.default: lambda a, b: jnp.dot(jnp.conj(a), b),
        aten.matmul.default: jnp.matmul,
    }
)


@lowers(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(c: jax.Array, a: jax.Array, b: jax.Array, *, beta: Any = 1, alpha: Any = 1) -> jax.Array:
    """`beta * c + alpha * (a @ b)`; beta 0 ignores c, NaN included."""
    if (alpha, beta) not in ((1, 1), (1, 0)):
        c, a, b = widened(c), widened(a), widened(b)  # torch rounds once, at the end
    product = jnp.matmul(a, b)
    if not is_inexact(product):
        beta, alpha = int(beta), int(alpha)  # as torch reads them for whole numbers
    product = product if alpha == 1 else product * alpha
    if beta == 0:
        return product
    return product + (c if beta == 1 else c * beta)


@lowers(aten.addbmm.default)
def addbmm(c: jax.Array, a: jax.Array, b: jax.Array, *, beta: Any = 1, alpha: Any = 1) -> jax.Array:
    """`beta * c + alpha * sum(a @ b)` over the batch."""
    rows, columns = (jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1), b.reshape(-1, b.shape[2]))
    return addmm(c, rows, columns, beta=beta, alpha=alpha)


@lowers(aten._trilinear.default)
def trilinear(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sum_dims: Sequence[int],
    unroll_dim: int = 1,
) -> jax.Array:
    """The sum of products of three expanded tensors: `nn.Bilinear`."""
    expanded = (jnp.expand_dims(x, tuple(dims)) for x, dims in ((a, expand1), (b, expand2), (c, expand3)))
    a, b, c = expanded
    return jnp.sum(a * b * c, tuple(sum_dims))


def _distance(difference: jax.Array, p: float) -> jax.Array:
    """The p-norm over the last dimension."""
    size = jnp.abs(difference)
    if p == 0:
        return jnp.sum(size != 0, -1).astype(size.dtype)
    if p == jnp.inf:
        return jnp.max(size, -1, initial=0)
    if p == 1:
        return jnp.sum(size, -1)
    if p == 2:
        return jnp.sqrt(jnp.sum(size * size, -1))
    return jnp.power(jnp.sum(jnp.power(size, p), -1), 1 / p)


def _distance_slope(difference: jax.Array, distance: jax.Array, p: float) -> jax.Array:
    """The derivative of distances by their differences; 0 where the distance is."""
    d, size = distance[..., None], jnp.abs(difference)
    safe = jnp.where(d == 0, 1, d)
    if p == 0:
        return jnp.zeros_like(difference)
    if p == 1:
        slope = jnp.sign(difference)
    elif p == 2:
        slope = difference / safe
    elif p == jnp.inf:
        slope = jnp.sign(difference) * (size == d)
    else:
        small = jnp.where(size == 0, 1, size)
        slope = jnp.where(size == 0, 0, jnp.sign(difference) * jnp.power(small / safe, p - 1))
    return jnp.where(d == 0, 0, slope)


@lowers(aten._cdist_forward.default)
def cdist(a: jax.Array, b: jax.Array, p: float, compute_mode: int | None = None) -> jax.Array:
    """Distances between all rows."""
    return _distance(a[..., :, None, :] - b[..., None, :, :], p)


@lowers(aten._cdist_backward.default)
def cdist_backward(g: jax.Array, a: jax.Array, b: jax.Array, p: float, distances: jax.Array) -> jax.Array:
    """The gradient of distances with respect to the first rows."""
    slope = _distance_slope(a[..., :, None, :] - b[..., None, :, :], distances, p)
    found = jnp.sum(g[..., None] * slope, -2)
    return found if found.size else jnp.zeros(a.shape, found.dtype)


@lowers(aten._pdist_forward.default)
def pdist(x: jax.Array, p: float = 2) -> jax.Array:
    """Distances between all pairs of rows."""
    first, second = np.triu_indices(x.shape[0], 1)
    return _distance(x[first] - x[second], p)


@lowers(aten._pdist_backward.default)
def pdist_backward(g: jax.Array, x: jax.Array, p: float, distances: jax.Array) -> jax.Array:
    """The gradient of distances of pairs."""
    first, second = np.triu_indices(x.shape[0], 1)
    slope = g[:, None] * _distance_slope(x[first] - x[second], distances, p)
    return jnp.zeros_like(x).at[first].add(slope).at[second].add(-slope)


@lowers(aten._grouped_mm.default)
def grouped_mm(a: jax.Array, b: jax.Array, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> jax.Array:
    """Products of groups of rows with a matrix each; `offs` are the ends of the groups."""
    if a.ndim != 2 or b.ndim != 3 or offs is None:
        raise NotImplementedError("only rows in groups times one matrix a group is known")
    return lax.ragged_dot(a, b, jnp.diff(offs, prepend=0).astype(jnp.int32))
