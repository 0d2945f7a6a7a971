"""Interpolation, sampling at points, padding by reflection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax_torch.lowering.table import aten, lower_all, lowers, vjp

# A separable interpolation is a matrix a dimension, [wanted, size]; its gradient is the transposed one.
Weights = Callable[[int, int, bool, float | None], np.ndarray]


def _sources(size: int, wanted: int, align_corners: bool, scale: float | None) -> np.ndarray:
    if align_corners:
        return np.arange(wanted) * ((size - 1) / (wanted - 1) if wanted > 1 else 0.0)
    return (np.arange(wanted) + 0.5) * (1 / scale if scale else size / wanted) - 0.5


def _linear(size: int, wanted: int, align_corners: bool, scale: float | None) -> np.ndarray:
    source = np.maximum(_sources(size, wanted, align_corners, scale), 0)
    left = np.minimum(source.astype(int), size - 1)
    share = source - left
    matrix = np.zeros((wanted, size))
    np.add.at(matrix, (np.arange(wanted), left), 1 - share)
    np.add.at(matrix, (np.arange(wanted), np.minimum(left + 1, size - 1)), share)
    return matrix


def _cubic(size: int, wanted: int, align_corners: bool, scale: float | None) -> np.ndarray:
    source = _sources(size, wanted, align_corners, scale)
    left = np.floor(source)
    t, a = source - left, -0.75  # Keys's kernel
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # noqa: E731
    matrix = np.zeros((wanted, size))
    for offset, weight in zip((-1, 0, 1, 2), (far(t + 1), near(t), near(1 - t), far(2 - t)), strict=True):
        np.add.at(matrix, (np.arange(wanted), np.clip(left + offset, 0, size - 1).astype(int)), weight)
    return matrix


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _smooth_cubic(x: np.ndarray) -> np.ndarray:
    x, a = np.abs(x), -0.5  # torch follows Pillow here
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _antialiased(kernel: Callable[[np.ndarray], np.ndarray], radius: float) -> Weights:
    def weights(size: int, wanted: int, align_corners: bool, scale: float | None) -> np.ndarray:
        step = (
            ((size - 1) / (wanted - 1) if wanted > 1 else 0.0)
            if align_corners
            else 1 / scale
            if scale
            else size / wanted
        )
        support, stretch = radius * max(step, 1.0), max(step, 1.0)
        matrix = np.zeros((wanted, size))
        for row in range(wanted):
            center = step * (row + 0.5)
            first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
            found = kernel((np.arange(first, last) - center + 0.5) / stretch)
            matrix[row, first:last] = found / found.sum()
        return matrix

    return weights


def _interpolated(x: jax.Array, sizes: Sequence[int], weights: Weights, align_corners: bool, scales: Any) -> jax.Array:
    for place, wanted in enumerate(sizes):
        dim = x.ndim - len(sizes) + place
        scale = scales[place] if place < len(scales) else None
        matrix = jnp.asarray(weights(x.shape[dim], wanted, align_corners, scale), x.dtype)
        x = jnp.moveaxis(jnp.tensordot(x, matrix, axes=((dim,), (1,))), -1, dim)
    return x


for _name, _weights in {
    "upsample_linear1d": _linear,
    "upsample_bilinear2d": _linear,
    "upsample_trilinear3d": _linear,
    "upsample_bicubic2d": _cubic,
    "_upsample_bilinear2d_aa": _antialiased(_triangle, 1.0),
    "_upsample_bicubic2d_aa": _antialiased(_smooth_cubic, 2.0),
}.items():

    def _forward(
        x: jax.Array, sizes: Any, align_corners: bool, *scales: Any, weights: Weights = _weights, **named: Any
    ) -> jax.Array:
        return _interpolated(x, sizes, weights, align_corners, scales or tuple(named.values()))

    def _backward(
        g: jax.Array,
        sizes: Any,
        shape: Any,
        align_corners: bool,
        *scales: Any,
        weights: Weights = _weights,
        **named: Any,
    ) -> jax.Array:
        given = scales or tuple(named.values())
        primal = jnp.zeros(shape, g.dtype)
        return vjp(lambda x: _interpolated(x, sizes, weights, align_corners, given), primal)(g)[0]

    lowers(getattr(aten, _name).default)(_forward)
    lowers(getattr(aten, f"{_name}_backward").default)(_backward)


def _nearest(exact: bool) -> Callable[..., jax.Array]:
    def rule(x: jax.Array, sizes: Sequence[int], *scales: Any) -> jax.Array:
        for place, wanted in enumerate(sizes):
            dim = x.ndim - len(sizes) + place
            scale = scales[place] if place < len(scales) else None
            # In float32, as torch computes the places: in float64 some of them would be others.
            step = np.float32(1 / scale) if scale else np.float32(x.shape[dim]) / np.float32(wanted)
            begin = np.arange(wanted, dtype=np.float32) + np.float32(0.5 if exact else 0)
            places = np.minimum(np.floor(begin * step).astype(int), x.shape[dim] - 1)
            x = jnp.take(x, places, axis=dim)
        return x

    return rule


def _nearest_backward(exact: bool) -> Callable[..., jax.Array]:
    def rule(g: jax.Array, sizes: Sequence[int], shape: Sequence[int], *scales: Any) -> jax.Array:
        return vjp(lambda x: _nearest(exact)(x, sizes, *scales), jnp.zeros(shape, g.dtype))(g)[0]

    return rule


for _n in (1, 2, 3):
    for _prefix, _exact in (("upsample_nearest", False), ("_upsample_nearest_exact", True)):
        lowers(getattr(aten, f"{_prefix}{_n}d").default)(_nearest(_exact))
        lowers(getattr(aten, f"{_prefix}{_n}d_backward").default)(_nearest_backward(_exact))


def _unnormalized(g: jax.Array, size: int, align_corners: bool) -> jax.Array:
    return (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2


def _reflected(x: jax.Array, size: int, align_corners: bool) -> jax.Array:
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return jnp.zeros_like(x)
    away = jnp.abs(x - low)
    flips, rest = jnp.floor(away / span), jnp.mod(away, span)
    return jnp.where(flips % 2 == 0, rest + low, high - rest)


def _inside_of(place: jax.Array, size: int, padding: int, align_corners: bool) -> jax.Array:
    """Moves places into an image: as they are (0), to the border (1), or by reflection (2)."""
    if padding == 2:
        place = _reflected(place, size, align_corners)
    return jnp.clip(place, 0, size - 1) if padding else place


def _cubic_weights(t: jax.Array) -> tuple[jax.Array, ...]:
    """Keys's weights of the four neighbours of a place, `t` right of the second."""
    a = -0.75
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # noqa: E731
    return far(t + 1), near(t), near(1 - t), far(2 - t)


@lowers(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(
    x: jax.Array, grid: jax.Array, mode: int = 0, padding: int = 0, align_corners: bool = False
) -> jax.Array:
    """Samples images at points: linear (0), nearest (1), cubic (2); zeros (0), border (1) or reflection (2) outside."""
    n = x.ndim - 2
    sizes = x.shape[2:]
    # The last coordinate of a point is that of the first dimension.
    places = [_unnormalized(grid[..., n - 1 - dim], size, align_corners) for dim, size in enumerate(sizes)]

    def at(*places: jax.Array) -> jax.Array:
        inside = jnp.ones(places[0].shape, bool)
        indices = []
        for place, size in zip(places, sizes, strict=True):
            inside &= (place >= 0) & (place < size)
            indices.append(jnp.clip(place, 0, size - 1).astype(jnp.int32))
        found = jax.vmap(lambda image, *indices: image[(slice(None), *indices)])(x, *indices)
        return jnp.where(inside[:, None], found, 0)

    inside_of = lambda place, dim: _inside_of(place, sizes[dim], padding, align_corners)  # noqa: E731
    if mode != 2:
        places = [inside_of(place, dim) for dim, place in enumerate(places)]
    if mode == 1:
        return at(*(jnp.round(place) for place in places))
    lowest = [jnp.floor(jax.lax.stop_gradient(place)) for place in places]
    shares = [place - low for place, low in zip(places, lowest, strict=True)]
    weights = [_cubic_weights(share) if mode == 2 else (1 - share, share) for share in shares]
    found: Any = 0
    for corner in np.ndindex(*(len(one) for one in weights)):
        of_corner: Any = 1
        for of_dim, place in zip(weights, corner, strict=True):
            of_corner = of_corner * of_dim[place]
        if mode == 2:
            neighbour = [
                inside_of(low + place - 1, dim) for dim, (low, place) in enumerate(zip(lowest, corner, strict=True))
            ]
        else:
            neighbour = [low + place for low, place in zip(lowest, corner, strict=True)]
        found = found + at(*neighbour) * of_corner[:, None]
    return found


@lowers(aten.grid_sampler_2d_backward.default, aten.grid_sampler_3d_backward.default)
def grid_sampler_backward(
    g: jax.Array, x: jax.Array, grid: jax.Array, mode: int, padding: int, align_corners: bool, wanted: Sequence[bool]
) -> tuple[Any, Any]:
    """Gradients of images and points."""
    transpose = vjp(lambda x, grid: grid_sampler(x, grid, mode, padding, align_corners), x, grid)
    of_x, of_grid = transpose(g)
    return of_x if wanted[0] else None, of_grid


def _padded(mode: str, n: int) -> Callable[..., jax.Array]:
    def rule(x: jax.Array, padding: Sequence[int]) -> jax.Array:
        widths = [(0, 0)] * (x.ndim - n) + [(padding[2 * i], padding[2 * i + 1]) for i in reversed(range(n))]
        if mode == "edge":
            for dim, (low, high) in enumerate(widths):
                size = x.shape[dim]
                x = jnp.take(x, np.clip(np.arange(size + low + high) - low, 0, size - 1), axis=dim)
            return x
        for dim, (low, high) in enumerate(widths):  # negative padding crops
            x = jax.lax.slice_in_dim(x, max(-low, 0), x.shape[dim] - max(-high, 0), axis=dim)
        return jnp.pad(x, [(max(low, 0), max(high, 0)) for low, high in widths], mode=mode)

    return rule


def _transposed(forward: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda g, x, padding: vjp(lambda x: forward(x, padding), x)(g)[0]


for _n in (1, 2, 3):
    for _prefix, _mode in (("reflection", "reflect"), ("replication", "edge")):
        _rule = _padded(_mode, _n)
        lower_all(
            {
                getattr(aten, f"{_prefix}_pad{_n}d").default: _rule,
                getattr(aten, f"{_prefix}_pad{_n}d_backward").default: _transposed(_rule),
            }
        )
