"""Orthogonal polynomials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lightjax_torch.lowering.table import aten, floating, lower_all

# `(k, x, value, previous) -> next`: the polynomial of degree k + 1 from those of degrees k and k - 1.
Recurrence = Callable[[Any, jax.Array, jax.Array, jax.Array], jax.Array]


def _polynomial(first: Callable[[jax.Array], jax.Array], following: Recurrence, most: bool = False) -> Any:
    """Returns the rule of a family of polynomials, the degree an array of its own.

    Args:
      first: the polynomial of degree 1; that of degree 0 is 1.
      following: the recurrence.
      most: whether torch gives NaN for degrees that overflow anyway.
    """

    def rule(x: Any, n: Any) -> jax.Array:
        x, n = jnp.broadcast_arrays(floating(x), jnp.asarray(n))
        degree = jnp.trunc(n).astype(jnp.int32) if jnp.issubdtype(n.dtype, jnp.inexact) else n.astype(jnp.int32)

        def step(k: Any, carried: Any) -> Any:
            value, previous = carried
            further = following(k.astype(x.dtype), x, value, previous)
            goes_on = k < degree
            return jnp.where(goes_on, further, value), jnp.where(goes_on, value, previous)

        begin = first(x), jnp.ones_like(x)
        last = jnp.max(degree, initial=1)
        value, _ = lax.fori_loop(jnp.int32(1), last, step, begin)
        value = jnp.where(degree == 0, 1, jnp.where(degree < 0, 0, value))
        limit = 512 if x.dtype == jnp.float64 else 128
        return jnp.where(degree > limit, jnp.nan, value) if most else value

    return rule


def _chebyshev(k: Any, x: jax.Array, value: jax.Array, previous: jax.Array) -> jax.Array:
    return 2 * x * value - previous


def _shifted(k: Any, x: jax.Array, value: jax.Array, previous: jax.Array) -> jax.Array:
    return 2 * (2 * x - 1) * value - previous


lower_all(
    {
        aten.special_chebyshev_polynomial_t: _polynomial(lambda x: x, _chebyshev),
        aten.special_chebyshev_polynomial_u: _polynomial(lambda x: 2 * x, _chebyshev),
        aten.special_chebyshev_polynomial_v: _polynomial(lambda x: 2 * x - 1, _chebyshev),
        aten.special_chebyshev_polynomial_w: _polynomial(lambda x: 2 * x + 1, _chebyshev),
        aten.special_shifted_chebyshev_polynomial_t: _polynomial(lambda x: 2 * x - 1, _shifted),
        aten.special_shifted_chebyshev_polynomial_u: _polynomial(lambda x: 4 * x - 2, _shifted),
        aten.special_shifted_chebyshev_polynomial_v: _polynomial(lambda x: 4 * x - 3, _shifted),
        aten.special_shifted_chebyshev_polynomial_w: _polynomial(lambda x: 4 * x - 1, _shifted),
        aten.special_hermite_polynomial_h: _polynomial(
            lambda x: 2 * x, lambda k, x, value, previous: 2 * x * value - 2 * k * previous, most=True
        ),
        aten.special_hermite_polynomial_he: _polynomial(
            lambda x: x, lambda k, x, value, previous: x * value - k * previous, most=True
        ),
        aten.special_laguerre_polynomial_l: _polynomial(
            lambda x: 1 - x, lambda k, x, value, previous: ((2 * k + 1 - x) * value - k * previous) / (k + 1)
        ),
        aten.special_legendre_polynomial_p: _polynomial(
            lambda x: x, lambda k, x, value, previous: ((2 * k + 1) * x * value - k * previous) / (k + 1)
        ),
    }
)
