"""Tensors made of nothing: constants, ranges, triangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from lightjax_torch.lowering.table import Rule, aten, dtype_or, lower_all, lowers


def _filled(value: Any) -> Rule:
    return lambda size, dtype=None, **_: jnp.full(size, value, dtype_or(dtype, torch.get_default_dtype()))


def _filled_like(value: Any) -> Rule:
    return lambda x, dtype=None, **_: jnp.full(x.shape, value, dtype_or(dtype, x.dtype))


def _new_filled(value: Any) -> Rule:
    return lambda x, size, dtype=None, **_: jnp.full(size, value, dtype_or(dtype, x.dtype))


lower_all(
    {
        aten.zeros.default: _filled(0),
        aten._efficientzerotensor.default: _filled(0),
        aten.ones.default: _filled(1),
        aten.empty.memory_format: _filled(0),
        aten.empty_permuted.default: lambda size, layout, dtype=None, **_: _filled(0)(size, dtype),
        aten.empty_strided.default: lambda size, stride, dtype=None, **_: _filled(0)(size, dtype),
        aten.zeros_like.default: _filled_like(0),
        aten.ones_like.default: _filled_like(1),
        aten.empty_like.default: _filled_like(0),
        aten.new_zeros.default: _new_filled(0),
        aten.new_ones.default: _new_filled(1),
        aten.new_empty.default: _new_filled(0),
        aten.new_empty_strided.default: lambda x, size, stride, dtype=None, **_: _new_filled(0)(x, size, dtype),
        aten.new_full.default: lambda x, size, value, dtype=None, **_: jnp.full(size, value, dtype_or(dtype, x.dtype)),
        aten.full_like.default: lambda x, value, dtype=None, **_: jnp.full(x.shape, value, dtype_or(dtype, x.dtype)),
        aten.fill.Scalar: lambda x, value: jnp.full(x.shape, value, x.dtype),
        aten.fill.Tensor: lambda x, value: jnp.broadcast_to(value, x.shape).astype(x.dtype),
        aten.scalar_tensor.default: lambda value, dtype=None, **_: jnp.asarray(
            value, dtype_or(dtype, torch.get_default_dtype())
        ),
        aten.tril.default: lambda x, diagonal=0: jnp.tril(x, diagonal),
        aten.triu.default: lambda x, diagonal=0: jnp.triu(x, diagonal),
        aten.eye.default: lambda n, dtype=None, **_: jnp.eye(n, dtype=dtype_or(dtype, torch.get_default_dtype())),
        aten.eye.m: lambda n, m, dtype=None, **_: jnp.eye(n, m, dtype=dtype_or(dtype, torch.get_default_dtype())),
        aten.linspace.default: lambda start, end, steps, dtype=None, **_: jnp.linspace(
            start, end, steps, dtype=dtype_or(dtype, torch.get_default_dtype())
        ),
        aten.tril_indices.default: lambda rows, columns, offset=0, **_: jnp.stack(
            jnp.tril_indices(rows, offset, columns)
        ),
        aten.triu_indices.default: lambda rows, columns, offset=0, **_: jnp.stack(
            jnp.triu_indices(rows, offset, columns)
        ),
    }
)


@lowers(aten.full.default)
def full(size: Sequence[int], value: Any, dtype: Any = None, **_: Any) -> jax.Array:
    """A tensor of one value; its dtype follows the value's."""
    if dtype is None:
        whole = torch.int64 if isinstance(value, int) else torch.get_default_dtype()
        dtype = torch.bool if isinstance(value, bool) else whole
    return jnp.full(size, value, dtype_or(dtype, None))


@lowers(aten.arange.start_step, aten.arange.start, aten.arange.default)
def arange(start: Any, end: Any = None, step: Any = 1, dtype: Any = None, **_: Any) -> jax.Array:
    """A range; whole where all its numbers are."""
    if end is None:
        start, end = 0, start
    whole = all(isinstance(value, int) for value in (start, end, step))
    return jnp.arange(start, end, step, dtype_or(dtype, torch.int64 if whole else torch.get_default_dtype()))
