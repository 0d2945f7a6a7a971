"""Sums, extremes, norms, running sums, sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax

from lightjax_torch.arrays import jax_dtype
from lightjax_torch.lowering.table import aten, axes, dtype_or, floating, is_inexact, lower_all, lowers


@lowers(aten.sum.dim_IntList, aten.sum.default)
def total(x: jax.Array, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> jax.Array:
    """Sums; whole numbers in the widest dtype."""
    x = x.astype(dtype_or(dtype, jnp.result_type(x) if is_inexact(x) else jax_dtype(torch.int64)))
    return jnp.sum(x, axes(dim, x.ndim), keepdims=keepdim)


@lowers(aten.mean.dim, aten.mean.default)
def mean(x: jax.Array, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> jax.Array:
    """Means."""
    return jnp.mean(x.astype(dtype_or(dtype, x.dtype)), axes(dim, x.ndim), keepdims=keepdim)


@lowers(aten.var.correction)
def variance(x: jax.Array, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> jax.Array:
    """The variance; NaN where the correction leaves no degree of freedom."""
    dims = axes(dim, x.ndim)
    freedom = math.prod(x.shape[d] for d in dims) - (1 if correction is None else correction)
    squares = jnp.square(jnp.abs(x - x.mean(dims, keepdims=True)))
    return jnp.sum(squares, dims, keepdims=keepdim) / (freedom if freedom > 0 else jnp.zeros((), squares.dtype))


@lowers(aten.var_mean.correction)
def variance_and_mean(x: jax.Array, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    """The variance and the mean."""
    found = variance(x, dim, correction=correction, keepdim=keepdim)
    return found, jnp.mean(x, axes(dim, x.ndim), keepdims=keepdim)


def _extreme(reduce: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda x, dim=None, keepdim=False: reduce(x, axis=axes(dim, x.ndim), keepdims=keepdim)


def _extreme_and_place(find: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def rule(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
        if not x.ndim:
            return x, jnp.zeros((), jnp.int32)
        places = find(x, axis=dim, keepdims=True)
        values = jnp.take_along_axis(x, places, axis=dim)
        return (values, places) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(places, dim))

    return rule


lower_all(
    {
        aten.amax.default: _extreme(jnp.max),
        aten.amin.default: _extreme(jnp.min),
        aten.max.default: _extreme(jnp.max),
        aten.min.default: _extreme(jnp.min),
        aten.max.dim: _extreme_and_place(jnp.argmax),
        aten.min.dim: _extreme_and_place(jnp.argmin),
        aten.argmax.default: lambda x, dim=None, keepdim=False: _place_of(jnp.argmax, x, dim, keepdim),
        aten.argmin.default: lambda x, dim=None, keepdim=False: _place_of(jnp.argmin, x, dim, keepdim),
        aten.any: _extreme(jnp.any),
        aten.all: _extreme(jnp.all),
        aten.prod.default: lambda x, dtype=None: jnp.prod(_for_product(x, dtype)),
        aten.prod.dim_int: lambda x, dim, keepdim=False, dtype=None: jnp.prod(
            _for_product(x, dtype), axes(dim, x.ndim), keepdims=keepdim
        ),
        aten.cumsum.default: lambda x, dim, dtype=None: jnp.cumsum(_for_product(x, dtype), dim) if x.ndim else x,
        aten.cumprod.default: lambda x, dim, dtype=None: jnp.cumprod(_for_product(x, dtype), dim) if x.ndim else x,
        aten.mode.default: lambda x, dim=-1, keepdim=False: mode(x, dim, keepdim),
        aten.logcumsumexp.default: lambda x, dim: lax.cumlogsumexp(x, dim % x.ndim) if x.ndim else x,
        aten.argsort.default: lambda x, dim=-1, descending=False: sort(x, dim, descending)[1],
        aten.argsort.stable: lambda x, stable=True, dim=-1, descending=False: sort(x, dim, descending)[1],
        aten.sort.stable: lambda x, stable=True, dim=-1, descending=False: sort(x, dim, descending),
        aten.median.default: lambda x: median(x.ravel(), 0, False, ignore_nan=False)[0],
        aten.median.dim: lambda x, dim=-1, keepdim=False: median(x, dim, keepdim, ignore_nan=False),
        aten.nanmedian.default: lambda x: median(x.ravel(), 0, False, ignore_nan=True)[0],
        aten.nanmedian.dim: lambda x, dim=-1, keepdim=False: median(x, dim, keepdim, ignore_nan=True),
    }
)


def _place_of(find: Callable[..., jax.Array], x: jax.Array, dim: int | None, keepdim: bool) -> jax.Array:
    if not x.ndim:
        return jnp.zeros((), jnp.int32)
    return find(x.astype(jnp.int32) if x.dtype == jnp.bool_ else x, dim, keepdims=keepdim)


def median(x: jax.Array, dim: int, keepdim: bool, *, ignore_nan: bool) -> tuple[jax.Array, jax.Array]:
    """The lower median and its place; NaN where one is NaN, or, ignored, only where all are."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int32)
    if not x.shape[dim]:  # of an empty vector
        shape = [1 if d == dim % x.ndim else n for d, n in enumerate(x.shape)]
        values, places = jnp.full(shape, jnp.nan if is_inexact(x) else 0, x.dtype), jnp.zeros(shape, jnp.int32)
        return (values, places) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(places, dim))
    values, places = sort(x, dim)
    missing = jnp.sum(jnp.isnan(x), dim, keepdims=True)
    n = x.shape[dim]
    last = jnp.maximum(n - missing - 1, 0)
    middle = last // 2 if ignore_nan else jnp.where(missing > 0, n - missing, (n - 1) // 2)
    found = tuple(jnp.take_along_axis(one, middle, dim) for one in (values, places))
    return found if keepdim else tuple(jnp.squeeze(one, dim) for one in found)  # pyright: ignore[reportReturnType]


def _for_product(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype_or(dtype, x.dtype if is_inexact(x) else jax_dtype(torch.int64)))


@lowers(aten.linalg_vector_norm.default)
def vector_norm(
    x: jax.Array, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> jax.Array:
    """The norm of vectors."""
    x = floating(x).astype(dtype_or(dtype, floating(x).dtype))
    dims, size = axes(dim, x.ndim), jnp.abs(x)
    if ord == math.inf:
        return jnp.max(size, dims, keepdims=keepdim)
    if ord == -math.inf:
        return jnp.min(size, dims, keepdims=keepdim)
    if ord == 0:
        return jnp.sum(size != 0, dims, keepdims=keepdim).astype(size.dtype)
    if ord == 1:
        return jnp.sum(size, dims, keepdims=keepdim)
    if ord == 2:
        return jnp.sqrt(jnp.sum(size * size, dims, keepdims=keepdim))
    return jnp.power(jnp.sum(jnp.power(size, ord), dims, keepdims=keepdim), 1.0 / ord)


def _running_extreme(find: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def rule(x: jax.Array, dim: int) -> tuple[jax.Array, jax.Array]:
        if not x.ndim:
            return x, jnp.zeros((), jnp.int32)
        dim %= x.ndim
        if x.dtype == jnp.bool_:
            return rule(x.astype(jnp.int32), dim)
        values = find(x, dim)
        places = lax.broadcasted_iota(jnp.int32, x.shape, dim)
        return values, lax.cummax(jnp.where(x == values, places, 0), dim)

    return rule


lower_all({aten.cummax.default: _running_extreme(lax.cummax), aten.cummin.default: _running_extreme(lax.cummin)})


@lowers(aten.sort.default)
def sort(x: jax.Array, dim: int = -1, descending: bool = False) -> tuple[jax.Array, jax.Array]:
    """Sorts, equal elements in their order."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int32)
    places = jnp.argsort(x, dim, descending=descending, stable=True)
    return jnp.take_along_axis(x, places, dim), places


@lowers(aten.topk.default)
def topk(x: jax.Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[jax.Array, jax.Array]:
    """The k largest or smallest elements."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int32)
    if largest:
        values, places = lax.top_k(jnp.moveaxis(x, dim, -1), k)
        return jnp.moveaxis(values, -1, dim), jnp.moveaxis(places, -1, dim)
    values, places = sort(x, dim)
    return lax.slice_in_dim(values, 0, k, axis=dim % x.ndim), lax.slice_in_dim(places, 0, k, axis=dim % x.ndim)


@lowers(aten.kthvalue.default)
def kthvalue(x: jax.Array, k: int, dim: int = -1, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
    """The k-th smallest element."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int32)
    values, places = (lax.slice_in_dim(one, k - 1, k, axis=dim % x.ndim) for one in sort(x, dim))
    return (values, places) if keepdim else (jnp.squeeze(values, dim), jnp.squeeze(places, dim))


def mode(x: jax.Array, dim: int, keepdim: bool) -> tuple[jax.Array, jax.Array]:
    """The smallest of the most frequent elements, and its last place."""
    if not x.ndim:
        return x, jnp.zeros((), jnp.int32)
    rows = jnp.moveaxis(x, dim, -1)
    counts = jnp.sum(rows[..., :, None] == rows[..., None, :], -1)
    ordered = jnp.argsort(rows, -1, stable=True)
    first = jnp.argmax(jnp.take_along_axis(counts, ordered, -1), -1, keepdims=True)
    values = jnp.take_along_axis(rows, jnp.take_along_axis(ordered, first, -1), -1)
    places = rows.shape[-1] - 1 - jnp.argmax((rows == values)[..., ::-1], -1, keepdims=True)
    found = values, places
    if not keepdim:
        return values[..., 0], places[..., 0]
    return tuple(jnp.moveaxis(one, -1, dim) for one in found)  # pyright: ignore[reportReturnType]


@lowers(aten.histc.default)
def histc(x: jax.Array, bins: int = 100, min: float = 0, max: float = 0) -> jax.Array:
    """Counts elements in bins of equal width; what lies outside counts nowhere."""
    low, high = jnp.asarray(min, x.dtype), jnp.asarray(max, x.dtype)
    if min == max and x.size:
        low, high = x.min(), x.max()
    low, high = jnp.where(low == high, low - 1, low), jnp.where(low == high, high + 1, high)
    place = jnp.clip(((x - low) / (high - low) * bins).astype(jnp.int32), 0, bins - 1)
    inside = (x >= low) & (x <= high)
    return jnp.zeros(bins, x.dtype).at[place.ravel()].add(inside.ravel().astype(x.dtype))


def moments(x: jax.Array, dims: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance, dimensions kept."""
    center = jnp.mean(x, tuple(dims), keepdims=True)
    return center, jnp.mean(jnp.square(x - center), tuple(dims), keepdims=True)
