"""Counts of elements in bins of one or more dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax_torch.lowering.table import aten, lowers


def _edges(points: jax.Array, bins: Sequence[int], given: Any) -> list[jax.Array]:
    """Returns the edges of bins of equal width of every column, between its extremes where no range is given."""
    found = []
    for dim, count in enumerate(bins):
        if given:
            edges = _known_edges(count, given[2 * dim], given[2 * dim + 1], np.dtype(points.dtype))
            found.append(jnp.asarray(edges))
            continue
        if points.shape[0]:
            low, high = points[:, dim].min(), points[:, dim].max()
        else:
            low, high = jnp.zeros((), points.dtype), jnp.ones((), points.dtype)
        flat = low == high
        low, high = jnp.where(flat, low - 0.5, low), jnp.where(flat, high + 0.5, high)
        places = jnp.arange(count + 1, dtype=points.dtype)
        step = (high - low) / count
        found.append(jnp.where(places < (count + 1) // 2, low + places * step, high - (count - places) * step))
    return found


def _known_edges(count: int, low: float, high: float, dtype: Any) -> np.ndarray:
    """The edges from both ends to the middle, rounded once each, as torch's: an element may lie on one."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    low, high = dtype.type(low), dtype.type(high)
    step = np.longdouble((high - low) / dtype.type(count))
    places = np.arange(count + 1)
    edges = np.where(places < (count + 1) // 2, low + places * step, high - (count - places) * step)
    return edges.astype(dtype)


def _counted(points: jax.Array, edges: Sequence[jax.Array], weight: Any, density: bool) -> jax.Array:
    """Returns the sum of the weights in every bin; the last bin has both of its edges."""
    sizes = [edge.shape[0] - 1 for edge in edges]
    inside = jnp.ones(points.shape[0], bool)
    place = jnp.zeros(points.shape[0], jnp.int32)
    for dim, (edge, size) in enumerate(zip(edges, sizes, strict=True)):
        column = points[:, dim]
        inside &= (column >= edge[0]) & (column <= edge[-1])
        along = jnp.searchsorted(edge, column, side="right") - 1
        place = place * size + jnp.clip(along, 0, size - 1).astype(jnp.int32)
    weights = jnp.ones(points.shape[0], points.dtype) if weight is None else weight.ravel().astype(points.dtype)
    sums = jnp.zeros(math.prod(sizes), points.dtype).at[place].add(jnp.where(inside, weights, 0)).reshape(sizes)
    if not density:
        return sums
    sums = sums / sums.sum()
    for dim, edge in enumerate(edges):
        sums = sums / jnp.expand_dims(jnp.diff(edge), [d for d in range(len(edges)) if d != dim])
    return sums


def _points(x: jax.Array, dimensions: int) -> jax.Array:
    return x.reshape(x.size // dimensions, dimensions)


@lowers(aten.histogram.bin_ct)
def histogram(
    x: jax.Array, bins: int = 100, *, range: Any = None, weight: Any = None, density: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A histogram of bins of equal width, and their edges."""
    edges = _edges(_points(x, 1), [bins], range)
    return _counted(_points(x, 1), edges, weight, density), edges[0]


@lowers(aten.histogram.bins_tensor)
def histogram_of_edges(
    x: jax.Array, bins: jax.Array, *, weight: Any = None, density: bool = False
) -> tuple[jax.Array, jax.Array]:
    """A histogram of bins between given edges."""
    return _counted(_points(x, 1), [bins], weight, density), bins


@lowers(aten._histogramdd_bin_edges.default)
def histogramdd_edges(
    x: jax.Array, bins: Sequence[int], *, range: Any = None, weight: Any = None, density: bool = False
) -> list[jax.Array]:
    """The edges of the bins of every dimension."""
    return _edges(_points(x, len(bins)), bins, range)


@lowers(aten._histogramdd_from_bin_cts.default)
def histogramdd(
    x: jax.Array, bins: Sequence[int], *, range: Any = None, weight: Any = None, density: bool = False
) -> jax.Array:
    """A histogram of points with as many coordinates as there are numbers of bins."""
    points = _points(x, len(bins))
    return _counted(points, _edges(points, bins, range), weight, density)


@lowers(aten._histogramdd_from_bin_tensors.default)
def histogramdd_of_edges(
    x: jax.Array, bins: Sequence[jax.Array], *, weight: Any = None, density: bool = False
) -> jax.Array:
    """A histogram of points in bins between given edges."""
    return _counted(_points(x, len(bins)), bins, weight, density)
