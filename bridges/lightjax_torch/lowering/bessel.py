"""Bessel functions of orders 0 and 1: power series near zero; beyond, an integral by the trapezoid rule.

With `w = x` for the modified functions and `w = -ix` for the others, `K_n(w) exp(w) sqrt(2w)` is twice the integral
over `u > 0` of `exp(-u**2) (1 + u**2 / w)**n / sqrt(1 + u**2 / 2w)`. The integrand is even, and analytic next to the
real axis: the trapezoid rule's error falls exponentially with the number of points, below 1e-15 with the ones here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from lightjax_torch.lowering.table import aten, floating, lower_all

_EULER = 0.57721566490153286
_TERMS = 24
_HARMONIC = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, _TERMS + 1))])
_FACTORIAL = np.cumprod(np.concatenate([[1.0], np.arange(1.0, _TERMS + 1)]))

# Of 1 / k!^2 and of 1 / (k! (k+1)!); then the same times the sums of the reciprocals up to k.
_REGULAR = (1 / _FACTORIAL[:-1] ** 2, 1 / (_FACTORIAL[:-1] * _FACTORIAL[1:]))
_SINGULAR = (_HARMONIC[:-1] * _REGULAR[0], (_HARMONIC[:-1] + _HARMONIC[1:]) / 2 * _REGULAR[1])

_STEP = 0.25
_POINTS = np.arange(0.0, 6.25, _STEP) ** 2
_WEIGHTS = 2 * _STEP * np.exp(-_POINTS)
_WEIGHTS[0] /= 2


def _sum(coefficients: np.ndarray, t: jax.Array) -> jax.Array:
    return jnp.polyval(jnp.asarray(coefficients[::-1], t.dtype), t)


def _near(x: jax.Array, order: int, sign: int) -> tuple[jax.Array, jax.Array]:
    """Returns the regular solution, and the singular one times pi / 2, near zero; J and Y for the sign -1, I and K."""
    half = x / 2
    t = sign * half * half
    power = half if order else jnp.ones_like(x)
    regular = power * _sum(_REGULAR[order], t)
    singular = (jnp.log(half) + _EULER) * regular - power * _sum(_SINGULAR[order], t)
    if sign > 0:
        return regular, 1 / x + singular if order else -singular
    return regular, singular - 1 / x if order else singular


def _modified_far(x: jax.Array, order: int) -> jax.Array:
    """K times exp(x) of an argument of 2 or more."""
    found = jnp.zeros_like(x)
    for point, weight in zip(_POINTS.tolist(), _WEIGHTS.tolist(), strict=True):
        share = point / x
        found = found + weight * ((1 + share) if order else 1) / jnp.sqrt(1 + share / 2)
    return found / jnp.sqrt(2 * x)


def _modified(order: int, scaled: bool) -> Callable[[jax.Array], jax.Array]:
    def rule(x: jax.Array) -> jax.Array:
        x = floating(x)
        low, high = jnp.clip(x, 0, 2), jnp.maximum(x, 2)
        near, far = _near(low, order, 1)[1], _modified_far(high, order)
        found = jnp.where(x <= 2, near * jnp.exp(low) if scaled else near, far if scaled else far * jnp.exp(-high))
        return jnp.where(x > 0, found, jnp.where(x == 0, jnp.inf, jnp.nan))

    return rule


def _far(x: jax.Array, order: int) -> tuple[jax.Array, jax.Array]:
    """J and Y of an argument of 4 or more: real and imaginary part of the Hankel function."""
    real, imaginary = jnp.zeros_like(x), jnp.zeros_like(x)
    for point, weight in zip(_POINTS.tolist(), _WEIGHTS.tolist(), strict=True):
        # 1 / sqrt(1 + iy) is (p - iq), from the half of its angle.
        y = point / (2 * x)
        length = jnp.sqrt(1 + y * y)
        p = jnp.sqrt((length + 1) / 2) / length
        q = y / (2 * p * length * length)
        real = real + weight * (p + 2 * y * q if order else p)
        imaginary = imaginary + weight * (2 * y * p - q if order else -q)
    scale = math.sqrt(2) / (math.pi * jnp.sqrt(x))
    # x - pi/4, and a quarter turn further back for order 1.
    cos, sin = jnp.cos(x), jnp.sin(x)
    turn = (cos + sin, sin - cos) if not order else (sin - cos, -sin - cos)
    first, second = (one * math.sqrt(0.5) for one in turn)
    return scale * (first * real - second * imaginary), scale * (second * real + first * imaginary)


def _first_kind(order: int) -> Callable[[jax.Array], jax.Array]:
    def rule(x: jax.Array) -> jax.Array:
        x = floating(x)
        size = jnp.abs(x)
        near, far = _near(jnp.minimum(size, 4), order, -1)[0], _far(jnp.maximum(size, 4), order)[0]
        found = jnp.where(size <= 4, near, far)
        return jnp.where(x < 0, -found, found) if order else found

    return rule


def _second_kind(order: int) -> Callable[[jax.Array], jax.Array]:
    def rule(x: jax.Array) -> jax.Array:
        x = floating(x)
        near = _near(jnp.clip(x, 0, 4), order, -1)[1] * (2 / math.pi)
        found = jnp.where(x <= 4, near, _far(jnp.maximum(x, 4), order)[1])
        return jnp.where(x > 0, found, jnp.where(x == 0, -jnp.inf, jnp.nan))

    return rule


def _spherical_bessel(x: jax.Array) -> jax.Array:
    x = floating(x)
    squared = x * x
    near = 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42 * (1 - squared / 72 * (1 - squared / 110))))
    far = jnp.where(jnp.isinf(x), 0, jnp.sin(x) / jnp.where(x == 0, 1, x))
    return jnp.where(jnp.abs(x) < 0.5, near, far)


lower_all(
    {
        aten.special_modified_bessel_i0.default: lambda x: jax.scipy.special.i0(floating(x)),
        aten.special_modified_bessel_i1.default: lambda x: jax.scipy.special.i1(floating(x)),
        torch.ops.prims.spherical_bessel_j0.default: _spherical_bessel,
        aten.special_spherical_bessel_j0.default: _spherical_bessel,
    }
)
for _order in (0, 1):
    _of_first, _of_second = _first_kind(_order), _second_kind(_order)
    lower_all(
        {
            getattr(torch.ops.prims, f"bessel_j{_order}").default: _of_first,
            getattr(aten, f"special_bessel_j{_order}").default: _of_first,
            getattr(aten, f"special_bessel_y{_order}").default: _of_second,
            getattr(aten, f"special_modified_bessel_k{_order}").default: _modified(_order, scaled=False),
            getattr(aten, f"special_scaled_modified_bessel_k{_order}").default: _modified(_order, scaled=True),
        }
    )
