"""Random numbers: every operation gets a key of its own, folded from the step's key and its place in the graph.

The numbers are JAX's, not torch's; the distributions are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch

from lightjax_torch.lowering.table import Rule, aten, dtype_or, lowers


def _sized(draw: Rule) -> Rule:
    return lambda size, *, key, dtype=None, **_: draw(key, size, dtype_or(dtype, torch.get_default_dtype()))


def _like(draw: Rule) -> Rule:
    return lambda x, *, key, dtype=None, **_: draw(key, x.shape, dtype_or(dtype, x.dtype))


for _operator, _rule in {
    aten.rand.default: _sized(jax.random.uniform),
    aten.randn.default: _sized(jax.random.normal),
    aten.rand_like.default: _like(jax.random.uniform),
    aten.randn_like.default: _like(jax.random.normal),
    aten.bernoulli.default: lambda x, *, key, **_: jax.random.bernoulli(key, x, x.shape).astype(x.dtype),
    aten.bernoulli.p: lambda x, p, *, key, **_: jax.random.bernoulli(key, p, x.shape).astype(x.dtype),
    aten.exponential.default: lambda x, rate=1.0, *, key, **_: jax.random.exponential(key, x.shape, x.dtype) / rate,
    aten.geometric.default: lambda x, p, *, key, **_: jax.random.geometric(key, p, x.shape).astype(x.dtype),
    aten.cauchy.default: lambda x, median=0, sigma=1, *, key, **_: (
        median + sigma * jax.random.cauchy(key, x.shape, x.dtype)
    ),
    aten.poisson.default: lambda rate, *, key, **_: jax.random.poisson(key, rate).astype(rate.dtype),
    aten._standard_gamma.default: lambda alpha, *, key, **_: jax.random.gamma(key, alpha, dtype=alpha.dtype),
    aten._sample_dirichlet.default: lambda alpha, *, key, **_: jax.random.dirichlet(key, alpha, dtype=alpha.dtype),
}.items():
    lowers(_operator, random=True)(_rule)


@lowers(aten.native_dropout.default, random=True)
def native_dropout(x: jax.Array, p: float, train: bool | None = True, *, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keeps each element with probability 1 - p and scales it up, or drops it."""
    if not train:
        return x, jnp.ones_like(x, bool)
    kept = jax.random.bernoulli(key, 1 - p, x.shape)
    return jnp.where(kept, x / (1 - p) if p < 1 else 0 * x, jnp.zeros((), x.dtype)), kept


@lowers(aten.uniform.default, random=True)
def uniform(x: jax.Array, low: float = 0.0, high: float = 1.0, *, key: jax.Array, **_: Any) -> jax.Array:
    """Uniform numbers of the shape and dtype of x."""
    return jax.random.uniform(key, x.shape, x.dtype, low, high)


@lowers(aten.normal.float_float, random=True)
def normal_of_size(
    mean: float, std: float, size: Sequence[int], dtype: Any = None, *, key: jax.Array, **_: Any
) -> jax.Array:
    """Normal numbers of a given shape."""
    return jax.random.normal(key, size, dtype_or(dtype, torch.get_default_dtype())) * std + mean


@lowers(aten.normal_functional.default, random=True)
def normal(x: Any, mean: float = 0.0, std: float = 1.0, *, key: jax.Array, **_: Any) -> jax.Array:
    """Normal numbers of the shape and dtype of x."""
    return jax.random.normal(key, x.shape, x.dtype) * std + mean


@lowers(aten.normal.Tensor_float, aten.normal.float_Tensor, aten.normal.Tensor_Tensor, random=True)
def normal_around(mean: Any, std: Any = 1.0, *, key: jax.Array, **_: Any) -> jax.Array:
    """Normal numbers, each around its own mean."""
    shape = jnp.broadcast_shapes(jnp.shape(mean), jnp.shape(std))
    return jax.random.normal(key, shape, jnp.result_type(mean, std)) * std + mean


@lowers(aten.randint.low, random=True)
def randint(low: int, high: int, size: Sequence[int], dtype: Any = None, *, key: jax.Array, **_: Any) -> jax.Array:
    """Whole numbers of [low, high)."""
    wanted = dtype_or(dtype, torch.int64)
    whole = wanted if jnp.issubdtype(wanted, jnp.integer) else jnp.int32
    return jax.random.randint(key, size, low, high, whole).astype(wanted)


@lowers(aten.randint.default, random=True)
def randint_from_zero(high: int, size: Sequence[int], dtype: Any = None, *, key: jax.Array, **_: Any) -> jax.Array:
    """Whole numbers of [0, high)."""
    return randint(0, high, size, dtype, key=key)


@lowers(aten.randint_like.default, random=True)
def randint_like(x: jax.Array, high: int, dtype: Any = None, *, key: jax.Array, **_: Any) -> jax.Array:
    """Whole numbers of [0, high) in the shape of x."""
    return randint(0, high, x.shape, key=key).astype(dtype_or(dtype, x.dtype))


@lowers(aten.randint_like.low_dtype, random=True)
def randint_like_from(x: jax.Array, low: int, high: int, dtype: Any = None, *, key: jax.Array, **_: Any) -> jax.Array:
    """Whole numbers of [low, high) in the shape of x."""
    return randint(low, high, x.shape, key=key).astype(dtype_or(dtype, x.dtype))


@lowers(aten.randperm.default, random=True)
def randperm(n: int, *, key: jax.Array, **_: Any) -> jax.Array:
    """A permutation of 0 to n - 1."""
    return jax.random.permutation(key, n)


@lowers(aten.rrelu_with_noise_functional.default, random=True)
def rrelu(
    x: jax.Array,
    noise: jax.Array,
    low: float = 0.125,
    high: float = 1 / 3,
    train: bool = False,
    *,
    key: jax.Array,
    **_: Any,
) -> tuple[jax.Array, jax.Array]:
    """Scales negative elements by random slopes, which are returned as well."""
    if not train:
        return jnp.where(x <= 0, x * ((low + high) / 2), x), noise
    slope = jnp.where(x <= 0, jax.random.uniform(key, x.shape, x.dtype, low, high), 1)
    return x * slope, slope


@lowers(aten.multinomial.default, random=True)
def multinomial(p: jax.Array, n: int, replacement: bool = False, *, key: jax.Array, **_: Any) -> jax.Array:
    """Draws n indices a row with the given weights (without replacement: Gumbel's top k)."""
    logits = jnp.log(p)
    if replacement:
        return jnp.moveaxis(jax.random.categorical(key, logits, shape=(n, *p.shape[:-1])), 0, -1)
    return jax.lax.top_k(logits + jax.random.gumbel(key, p.shape, p.dtype), n)[1]
