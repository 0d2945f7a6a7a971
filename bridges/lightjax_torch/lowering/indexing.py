"""Reading and writing at places given by tensors.

What torch refuses at run time, an index outside of its tensor, cannot stop a compiled step: such a read gives NaN (the
smallest whole number for whole numbers), such a write is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax_torch.lowering.table import aten, is_inexact, lower_all, lowers


@lowers(aten.embedding.default)
def embedding(weight: jax.Array, indices: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """Rows of a table."""
    return jnp.take(weight, indices, axis=0)


@lowers(aten.embedding_dense_backward.default)
def embedding_backward(
    g: jax.Array, indices: jax.Array, num_weights: int, padding_idx: int = -1, scale_by_freq: bool = False
) -> jax.Array:
    """Adds the gradients of rows up, those of the padding left out."""
    rows = g.reshape(-1, g.shape[-1])
    flat = indices.reshape(-1)
    if scale_by_freq:
        rows = rows / jnp.zeros(num_weights, g.dtype).at[flat].add(1)[flat][:, None]
    rows = jnp.where((flat == padding_idx)[:, None], 0, rows) if padding_idx >= 0 else rows
    return jnp.zeros((num_weights, g.shape[-1]), g.dtype).at[flat].add(rows)


@lowers(aten.embedding_renorm.default)
def embedding_renorm(weight: jax.Array, indices: jax.Array, max_norm: float, norm_type: float) -> jax.Array:
    """Shortens the rows that are looked up to a largest norm."""
    norms = jnp.linalg.norm(weight, norm_type, axis=-1, keepdims=True)
    scale = jnp.where(norms > max_norm, max_norm / (norms + 1e-7), 1.0).astype(weight.dtype)
    used = jnp.zeros(weight.shape[0], bool).at[indices.ravel()].set(True)[:, None]
    return jnp.where(used, weight * scale, weight)


@lowers(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(
    weight: jax.Array,
    indices: jax.Array,
    offsets: jax.Array,
    scale_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[jax.Array, ...]:
    """Sums (0), means (1) or maxima (2) of bags of rows."""
    bags = offsets.shape[0] - include_last_offset
    bag = _bags(offsets, indices)
    rows = jnp.take(weight, indices, axis=0)
    counted = (indices != padding_idx)[:, None]
    counts = jax.ops.segment_sum(counted[:, 0].astype(weight.dtype), bag, bags)
    if mode == 2:
        largest = jax.ops.segment_max(jnp.where(counted, rows, -jnp.inf), bag, bags)
        found = jnp.where(counts[:, None] > 0, largest, 0)
        is_largest = counted & (rows == largest[bag])
        first = jax.ops.segment_min(
            jnp.where(is_largest, jnp.arange(rows.shape[0])[:, None], rows.shape[0]), bag, bags
        ).clip(0, rows.shape[0] - 1)
        largest_indices = jnp.where(counts[:, None] > 0, indices[first], -1)
    else:
        rows = rows if per_sample_weights is None else rows * per_sample_weights[:, None]
        found = jax.ops.segment_sum(jnp.where(counted, rows, 0), bag, bags)
        found = found / jnp.maximum(counts, 1)[:, None] if mode == 1 else found
        largest_indices = counts
    # What bag an index is in, torch leaves out where it has no use for it.
    is_left_out = mode == 0 and padding_idx < 0 and weight.dtype in (jnp.float32, jnp.float16)
    return found, bag[:0] if is_left_out else bag, counts, largest_indices


def _bags(offsets: jax.Array, indices: jax.Array) -> jax.Array:
    """Returns the bag of every index."""
    return jnp.searchsorted(offsets, jnp.arange(indices.shape[0]), side="right") - 1


@lowers(aten._embedding_bag_dense_backward.default)
def embedding_bag_backward(
    g: jax.Array,
    indices: jax.Array,
    bag: jax.Array,
    counts: jax.Array,
    largest_indices: jax.Array,
    num_weights: int,
    scale_by_freq: bool,
    mode: int,
    per_sample_weights: Any,
    padding_idx: int = -1,
) -> jax.Array:
    """Spreads the gradient of bags over the rows they are made of."""
    if scale_by_freq:
        raise NotImplementedError("bags scaled by frequency")
    table = jnp.zeros((num_weights, g.shape[-1]), g.dtype)
    if mode == 2:
        columns = jnp.broadcast_to(jnp.arange(g.shape[-1]), g.shape)
        rows = jnp.where(largest_indices < 0, num_weights, largest_indices)
        return table.at[rows, columns].add(g, mode="drop")
    if mode == 1:
        g = g / jnp.maximum(counts, 1)[:, None].astype(g.dtype)
    rows = g[bag] if per_sample_weights is None else g[bag] * per_sample_weights[:, None]
    return table.at[indices].add(jnp.where((indices != padding_idx)[:, None], rows, 0))


@lowers(aten._embedding_bag_backward.default)
def embedding_bag_any_backward(
    g: jax.Array,
    indices: jax.Array,
    offsets: jax.Array,
    bag: jax.Array,
    counts: jax.Array,
    largest_indices: jax.Array,
    num_weights: int,
    scale_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: Any,
    padding_idx: int = -1,
) -> jax.Array:
    """The same, asked for in another order; a sparse gradient is dense here."""
    bag = bag if bag.size else _bags(offsets, indices)
    options = (num_weights, scale_by_freq, mode, per_sample_weights, padding_idx)
    return embedding_bag_backward(g, indices, bag, counts, largest_indices, *options)


@lowers(aten._embedding_bag_per_sample_weights_backward.default)
def embedding_bag_weights_backward(
    g: jax.Array,
    weight: jax.Array,
    indices: jax.Array,
    offsets: jax.Array,
    bag: jax.Array,
    mode: int,
    padding_idx: int = -1,
) -> jax.Array:
    """The gradient of the weights of the rows of bags."""
    bag = bag if bag.size else _bags(offsets, indices)
    found = jnp.sum(g[bag] * jnp.take(weight, indices, axis=0), -1)
    return jnp.where(indices != padding_idx, found, 0)


def _places(indices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


@lowers(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(x: jax.Array, indices: Sequence[Any]) -> jax.Array:
    """Advanced indexing."""
    return x.at[_places(indices)].get(mode="fill", fill_value=jnp.nan if is_inexact(x) else None)


@lowers(aten._unsafe_masked_index.default)
def masked_index(x: jax.Array, mask: jax.Array, indices: Sequence[Any], fill: Any) -> jax.Array:
    """Advanced indexing where the mask holds, a value elsewhere."""
    inside = [None if one is None else jnp.clip(one, 0, x.shape[d] - 1) for d, one in enumerate(indices)]
    return jnp.where(mask, x[_places(inside)], jnp.asarray(fill, x.dtype))


@lowers(aten._unsafe_masked_index_put_accumulate.default)
def masked_index_put(x: jax.Array, mask: jax.Array, indices: Sequence[Any], values: jax.Array) -> jax.Array:
    """Adds values at the places where the mask holds."""
    if x.dtype == jnp.bool_:
        return masked_index_put(x.astype(jnp.int32), mask, indices, values) != 0
    inside = [None if one is None else jnp.clip(one, 0, x.shape[d] - 1) for d, one in enumerate(indices)]
    return x.at[_places(inside)].add(jnp.where(mask, values, 0).astype(x.dtype))


@lowers(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(x: jax.Array, indices: Sequence[Any], values: jax.Array, accumulate: bool = False) -> jax.Array:
    """X with values written, or added, at places; a mask stands alone."""
    values = values.astype(x.dtype)
    if x.dtype == jnp.bool_ and accumulate:
        return index_put(x.astype(jnp.int32), indices, values, accumulate) != 0
    masks = [place for place, one in enumerate(indices) if one is not None and one.dtype == jnp.bool_]
    if masks:
        if len([one for one in indices if one is not None]) > 1:
            raise NotImplementedError("a mask among other indices writes as many values as it has true elements")
        return _masked_put(x, indices[masks[0]], masks[0], values, accumulate)
    at = x.at[_places(indices)]
    return at.add(values) if accumulate else at.set(values)


def _masked_put(x: jax.Array, mask: jax.Array, place: int, values: jax.Array, accumulate: bool) -> jax.Array:
    """X with the places of a mask of the dimensions from `place` on written, in order."""
    rest = x.shape[place + mask.ndim :]
    along = values.ndim - len(rest) - 1  # the dimension of values that counts the mask's true elements
    if values.size != 1 and along >= 0 and values.shape[along] != 1:
        order = jnp.cumsum(mask.ravel()) - 1
        mask = mask & (order < values.shape[along]).reshape(mask.shape)
        values = jnp.take(values, jnp.clip(order, 0, values.shape[along] - 1), axis=along)
        values = values.reshape(*values.shape[:along], *mask.shape, *values.shape[along + 1 :])
    elif values.size == 1:
        values = values.reshape(())
    elif along >= 0:
        values = jnp.expand_dims(values, range(along, along + mask.ndim - 1))
    mask = mask.reshape((1,) * place + mask.shape + (1,) * len(rest))
    return jnp.where(mask, x + values if accumulate else values, x)


def _rows(index: jax.Array, dim: int) -> tuple[Any, ...]:
    """Returns places for every element of `index`: its own along other dimensions, the index along `dim`."""
    grid = list(jnp.indices(index.shape, sparse=True))
    grid[dim % index.ndim] = index
    return tuple(grid)


def _at_least_1d(*arrays: Any) -> list[Any]:
    return [one[None] if hasattr(one, "ndim") and not one.ndim else one for one in arrays]


def _matching(source: jax.Array, index: jax.Array) -> jax.Array:
    return source[tuple(slice(0, n) for n in index.shape)]


@lowers(aten.gather.default)
def gather(x: jax.Array, dim: int, index: jax.Array, sparse_grad: bool = False) -> jax.Array:
    """One element of x for every element of the index."""
    if not x.ndim:
        return jnp.broadcast_to(x, index.shape)
    if not index.ndim:
        return gather(x, dim, index[None])[0]
    if not index.size:  # of any number of dimensions, then
        return jnp.zeros(index.shape, x.dtype)
    return x.at[_rows(index, dim)].get(mode="fill", fill_value=jnp.nan if is_inexact(x) else None)


@lowers(aten.scatter.src, aten.scatter.value)
def scatter(x: jax.Array, dim: int, index: jax.Array, source: Any) -> jax.Array:
    """X with elements replaced."""
    if not x.ndim:
        return jnp.broadcast_to(jnp.asarray(source, x.dtype).reshape(()), x.shape) if index.size else x
    index, source = _at_least_1d(index, source)
    if not index.size:
        return x
    source = _matching(source, index) if hasattr(source, "shape") else source
    return x.at[_rows(index, dim)].set(jnp.asarray(source, x.dtype))


@lowers(aten.scatter_add.default)
def scatter_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    """X with elements added."""
    if not index.size:
        return x
    if not x.ndim:
        return scatter_add(x[None], 0, *_at_least_1d(index, source))[0]
    if x.dtype == jnp.bool_:
        return scatter_add(x.astype(jnp.int32), dim, index, source) != 0
    index, source = _at_least_1d(index, source)
    return x.at[_rows(index, dim)].add(_matching(source, index).astype(x.dtype))


@lowers(aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_with(x: jax.Array, dim: int, index: jax.Array, source: Any, *, reduce: str) -> jax.Array:
    """X with elements added or multiplied in."""
    if not index.size:
        return x
    if not x.ndim:
        return scatter_with(x[None], 0, *_at_least_1d(index, source), reduce=reduce)[0]
    if x.dtype == jnp.bool_:
        return scatter_with(x.astype(jnp.int32), dim, index, source, reduce=reduce) != 0
    index, source = _at_least_1d(index, source)
    source = _matching(source, index) if hasattr(source, "shape") else source
    source = jnp.asarray(source, x.dtype)
    at = x.at[_rows(index, dim)]
    return at.add(source) if reduce == "add" else at.multiply(source)


@lowers(aten.scatter_reduce.two)
def scatter_reduce(
    x: jax.Array, dim: int, index: jax.Array, source: jax.Array, reduce: str, include_self: bool = True
) -> jax.Array:
    """X with elements reduced into it."""
    if not index.size:
        return x
    if not x.ndim:
        return scatter_reduce(x[None], 0, *_at_least_1d(index, source), reduce, include_self)[0]
    if x.dtype == jnp.bool_:
        return scatter_reduce(x.astype(jnp.int32), dim, index, source, reduce, include_self) != 0
    index, source = _at_least_1d(index, source)
    return _reduced_into(x, _rows(index, dim), _matching(source, index).astype(x.dtype), reduce, include_self)


@lowers(aten.index_reduce.default)
def index_reduce(
    x: jax.Array, dim: int, index: jax.Array, source: jax.Array, reduce: str, *, include_self: bool = True
) -> jax.Array:
    """X with slices reduced into it."""
    if not x.ndim:
        return index_reduce(x[None], 0, *_at_least_1d(index, source), reduce, include_self=include_self)[0]
    index, source = _at_least_1d(index, source)
    return _reduced_into(x, _along(x, dim, index), source.astype(x.dtype), reduce, include_self)


def _reduced_into(x: jax.Array, places: Any, source: jax.Array, reduce: str, include_self: bool) -> jax.Array:
    lowest, highest = (-jnp.inf, jnp.inf) if is_inexact(x) else (jnp.iinfo(x.dtype).min, jnp.iinfo(x.dtype).max)
    if not include_self:
        touched = jnp.zeros(x.shape, bool).at[places].set(True)
        neutral = {"sum": 0, "mean": 0, "prod": 1, "amax": lowest, "amin": highest}[reduce]
        x = jnp.where(touched, jnp.asarray(neutral, x.dtype), x)
    at = x.at[places]
    if reduce in ("sum", "mean"):
        total = at.add(source)
        if reduce == "sum":
            return total
        count = jnp.full(x.shape, int(include_self), jnp.int32).at[places].add(1)
        count = jnp.maximum(count, 1)
        return total / count.astype(x.dtype) if is_inexact(x) else total // count
    return {"prod": at.multiply, "amax": at.max, "amin": at.min}[reduce](source)


def _along_dim(write: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Writes slices of an array of any number of dimensions; bool as whole numbers."""

    def rule(x: jax.Array, dim: int, index: jax.Array, source: Any, alpha: Any = 1) -> jax.Array:
        if not x.ndim:
            index, source = _at_least_1d(index, source)
            return rule(x[None], 0, index, source, alpha)[0]
        if x.dtype == jnp.bool_ and write is _added:
            return rule(x.astype(jnp.int32), dim, index, source, alpha) != 0
        source = jnp.asarray(source, x.dtype)
        return write(x.at[_along(x, dim, *_at_least_1d(index))], source if _is_one(alpha) else source * alpha)

    return rule


def _added(at: Any, source: jax.Array) -> jax.Array:
    return at.add(source)


def _set(at: Any, source: jax.Array) -> jax.Array:
    return at.set(source)


def _is_one(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and alpha == 1


@lowers(aten.put.default)
def put(x: jax.Array, index: jax.Array, source: jax.Array, accumulate: bool = False) -> jax.Array:
    """X with elements of its flattened self written, or added."""
    if x.dtype == jnp.bool_ and accumulate:
        return put(x.astype(jnp.int32), index, source, accumulate) != 0
    at, source = x.ravel().at[index.ravel()], source.ravel().astype(x.dtype)
    return (at.add(source) if accumulate else at.set(source)).reshape(x.shape)


@lowers(aten.nonzero_static.default)
def nonzero_static(x: jax.Array, *, size: int, fill_value: int = -1) -> jax.Array:
    """The places of the first elements that are not zero."""
    if not x.ndim:
        return jnp.zeros((size, 0), jnp.int32)
    if not x.size:
        return jnp.full((size, x.ndim), fill_value, jnp.int32)
    return jnp.stack(jnp.nonzero(x, size=size, fill_value=fill_value), -1)


@lowers(aten.masked_scatter_backward.default)
def masked_scatter_backward(g: jax.Array, mask: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """The gradient of the source: what the places of the mask got, in order."""
    n = int(np.prod(sizes))
    mask = jnp.broadcast_to(mask, g.shape).ravel()
    order = jnp.where(mask, jnp.cumsum(mask) - 1, n)
    return jnp.zeros(n, g.dtype).at[order].add(g.ravel(), mode="drop").reshape(sizes)


def _along(x: jax.Array, dim: int, places: Any) -> tuple[Any, ...]:
    found: list[Any] = [slice(None)] * x.ndim
    found[dim] = places
    return tuple(found)


lower_all(
    {
        aten.index_select.default: lambda x, dim, index: jnp.take(x, *_at_least_1d(index), axis=dim) if x.ndim else x,
        aten.index_add.default: _along_dim(_added),
        aten.index_copy.default: _along_dim(_set),
        aten.index_fill.int_Scalar: _along_dim(_set),
        aten.index_fill.int_Tensor: _along_dim(_set),
        aten.masked_fill: lambda x, mask, value: jnp.where(mask, jnp.asarray(value, x.dtype), x),
        aten.bucketize.Tensor: lambda x, bounds, out_int32=False, right=False: jnp.searchsorted(
            bounds, x, side="right" if right else "left"
        ),
        aten.take.default: lambda x, index: jnp.take(x.ravel(), index),
    }
)


@lowers(aten.masked_scatter.default)
def masked_scatter(x: jax.Array, mask: jax.Array, source: jax.Array) -> jax.Array:
    """X with the places of the mask filled from `source`, in order."""
    shape = jnp.broadcast_shapes(mask.shape, x.shape)
    mask, x = jnp.broadcast_to(mask, shape), jnp.broadcast_to(x, shape)
    order = jnp.cumsum(mask.ravel()) - 1
    return jnp.where(mask, jnp.take(source.ravel(), order, mode="clip").reshape(x.shape), x)


@lowers(aten.searchsorted.Scalar)
def searchsorted_scalar(bounds: jax.Array, value: Any, *options: Any, **named: Any) -> jax.Array:
    """Where a number belongs in a sorted row."""
    return searchsorted(bounds, jnp.asarray(value), *options, **named)


@lowers(aten.searchsorted.Tensor)
def searchsorted(
    bounds: jax.Array,
    values: jax.Array,
    out_int32: bool = False,
    right: bool = False,
    side: Any = None,
    sorter: Any = None,
) -> jax.Array:
    """Where values belong in sorted rows."""
    if sorter is not None:
        bounds = jnp.take_along_axis(bounds, sorter, -1)
    search = lambda row, wanted: jnp.searchsorted(row, wanted, side="right" if right else side or "left")  # noqa: E731
    if bounds.ndim == 1:
        return search(bounds, values)
    for _ in range(bounds.ndim - 1):
        search = jax.vmap(search)
    return search(bounds, values)
