"""Views and joins: what moves elements and computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lightjax_torch.arrays import jax_dtype
from lightjax_torch.lowering.table import aten, axes, lower_all, lowers, vjp

lower_all(
    {
        aten.view.default: jnp.reshape,
        aten.reshape.default: jnp.reshape,
        aten._unsafe_view.default: jnp.reshape,
        aten._reshape_copy.default: jnp.reshape,
        aten.view_copy.default: jnp.reshape,
        aten.view.dtype: lambda x, dtype: _reinterpreted(x, dtype),
        aten.permute.default: lambda x, dims: jnp.transpose(x, [d % x.ndim for d in dims]),
        aten.transpose.int: lambda x, a, b: jnp.swapaxes(x, a, b) if x.ndim else x,
        aten.t.default: lambda x: x.T,
        aten.unsqueeze.default: lambda x, dim: jnp.expand_dims(x, dim if dim >= 0 else dim + x.ndim + 1),
        aten.squeeze.default: jnp.squeeze,
        aten.stack.default: lambda tensors, dim=0: jnp.stack(tensors, dim),
        aten.repeat.default: jnp.tile,
        aten.flip.default: jnp.flip,
        aten.select.int: lambda x, dim, index: lax.index_in_dim(x, index, dim % x.ndim, keepdims=False),
        aten.diagonal.default: lambda x, offset=0, dim1=0, dim2=1: jnp.diagonal(x, offset, dim1, dim2),
        aten.unbind.int: lambda x, dim=0: [
            lax.index_in_dim(x, index, dim % x.ndim, keepdims=False) for index in range(x.shape[dim])
        ],
        aten.sym_size.int: lambda x, dim: x.shape[dim],
        aten._assert_tensor_metadata.default: lambda *_, **__: None,
    }
)


def _reinterpreted(x: jax.Array, dtype: Any) -> jax.Array:
    wanted = jnp.dtype(jax_dtype(dtype))
    if wanted.itemsize > x.dtype.itemsize:
        ratio = wanted.itemsize // x.dtype.itemsize
        return lax.bitcast_convert_type(x.reshape(*x.shape[:-1], -1, ratio), wanted)
    found = lax.bitcast_convert_type(x, wanted)
    return found if found.ndim == x.ndim else found.reshape(*x.shape[:-1], -1)


@lowers(aten.expand.default)
def expand(x: jax.Array, size: Sequence[int], implicit: bool = False) -> jax.Array:
    """Repeats along dimensions of length 1; -1 keeps a length."""
    new = len(size) - x.ndim
    return jnp.broadcast_to(x, [x.shape[i - new] if n == -1 else n for i, n in enumerate(size)])


@lowers(aten.squeeze.dims, aten.squeeze.dim)
def squeeze(x: jax.Array, dims: int | Sequence[int]) -> jax.Array:
    """Takes dimensions of length 1 away."""
    chosen = axes(dims, x.ndim) if isinstance(dims, int) or len(dims) else ()
    return jnp.squeeze(x, tuple(d for d in chosen if x.shape[d] == 1))


@lowers(aten.cat.default)
def cat(tensors: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    """Joins tensors; empty vectors count for nothing, as in torch."""
    return jnp.concatenate([x for x in tensors if x.shape != (0,)] or tensors, dim)


@lowers(aten.slice.Tensor)
def slice_(x: jax.Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> jax.Array:
    """A slice along one dimension."""
    first, last, _ = slice(start, end, step).indices(x.shape[dim])
    return lax.slice_in_dim(x, first, max(first, last), step, axis=dim % x.ndim)


@lowers(aten.slice_scatter.default)
def slice_scatter(
    x: jax.Array, source: jax.Array, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> jax.Array:
    """X with a slice replaced."""
    return x.at[_along(x, dim, slice(*slice(start, end, step).indices(x.shape[dim])))].set(source.astype(x.dtype))


@lowers(aten.select_scatter.default)
def select_scatter(x: jax.Array, source: jax.Array, dim: int, index: int) -> jax.Array:
    """X with one index of a dimension replaced."""
    return x.at[_along(x, dim, index)].set(source.astype(x.dtype))


@lowers(aten.diagonal_scatter.default)
def diagonal_scatter(x: jax.Array, source: jax.Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> jax.Array:
    """X with a diagonal replaced."""
    moved = jnp.moveaxis(x, (dim1, dim2), (-2, -1))
    places = jnp.arange(source.shape[-1])
    moved = moved.at[..., places + max(-offset, 0), places + max(offset, 0)].set(source.astype(x.dtype))
    return jnp.moveaxis(moved, (-2, -1), (dim1, dim2))


def _along(x: jax.Array, dim: int, index: Any) -> tuple[Any, ...]:
    place: list[Any] = [slice(None)] * x.ndim
    place[dim] = index
    return tuple(place)


@lowers(aten.split_with_sizes.default)
def split_with_sizes(x: jax.Array, sizes: Sequence[int], dim: int = 0) -> list[jax.Array]:
    """Pieces of given lengths."""
    return jnp.split(x, np.cumsum(sizes)[:-1].tolist(), dim)


@lowers(aten.split.Tensor)
def split(x: jax.Array, size: int, dim: int = 0) -> list[jax.Array]:
    """Pieces of one length, the last one shorter."""
    return jnp.split(x, list(range(size, x.shape[dim], size)), dim)


@lowers(aten.roll.default)
def roll(x: jax.Array, shifts: Any, dims: Any = ()) -> jax.Array:
    """Rolls along dimensions, or the flattened tensor."""
    return jnp.roll(x, shifts, dims) if dims else jnp.roll(x.ravel(), shifts).reshape(x.shape)


def strided_places(size: Sequence[int], stride: Sequence[int], offset: int) -> np.ndarray:
    """Returns where the elements of a strided view lie in memory."""
    places = np.full(size, offset, np.int32)
    for dim, (n, step) in enumerate(zip(size, stride, strict=True)):
        shape = [1] * len(size)
        shape[dim] = n
        places = places + (np.arange(n, dtype=np.int32) * step).reshape(shape)
    return places


@lowers(aten.as_strided.default)
def as_strided(x: jax.Array, size: Any, stride: Any, offset: int | None = None) -> jax.Array:
    """A view of memory; captured tensors are contiguous, so the flattened tensor is it."""
    return jnp.ravel(x)[strided_places(size, stride, offset or 0)]


@lowers(aten.as_strided_scatter.default)
def as_strided_scatter(x: jax.Array, source: jax.Array, size: Any, stride: Any, offset: int | None = None) -> jax.Array:
    """X with a view of its memory replaced."""
    places = strided_places(size, stride, offset or 0)
    return jnp.ravel(x).at[places].set(source.astype(x.dtype)).reshape(x.shape)


@lowers(aten.unfold.default)
def unfold(x: jax.Array, dim: int, size: int, step: int) -> jax.Array:
    """Windows along a dimension, as a new last dimension."""
    if not x.ndim:
        return x[None][:size]
    dim %= x.ndim
    count = (x.shape[dim] - size) // step + 1
    places = (np.arange(count) * step)[:, None] + np.arange(size)
    return jnp.moveaxis(jnp.take(x, places, axis=dim), dim + 1, -1)


@lowers(aten.unfold_backward.default)
def unfold_backward(g: jax.Array, shape: Sequence[int], dim: int, size: int, step: int) -> jax.Array:
    """Adds windows up where they came from."""
    return vjp(lambda x: unfold(x, dim, size, step), jnp.zeros(shape, g.dtype))(g)[0]


@lowers(aten.constant_pad_nd.default)
def constant_pad(x: jax.Array, pad: Sequence[int], value: Any = 0) -> jax.Array:
    """Pads, or crops where the padding is negative; the last dimension comes first."""
    config = [(0, 0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        config[x.ndim - 1 - i] = (pad[2 * i], pad[2 * i + 1], 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), config)
