"""Operations on one element at a time: arithmetic, comparisons, functions of a number, activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax import lax

from lightjax_torch import operators as operators  # defines lightjax's own
from lightjax_torch.lowering.table import aten, dtype_or, floating, is_inexact, lower_all, lowers


def _of_floats(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda x: function(floating(x))


lower_all(
    {
        aten.abs.default: jnp.abs,
        aten.neg.default: jnp.negative,
        aten.sign.default: lambda x: x if x.dtype == jnp.bool_ else jnp.sign(x),
        aten.sgn.default: lambda x: x if x.dtype == jnp.bool_ else jnp.sign(x),
        aten.ceil.default: lambda x: jnp.ceil(x) if is_inexact(x) else x,
        aten.floor.default: lambda x: jnp.floor(x) if is_inexact(x) else x,
        aten.trunc.default: lambda x: jnp.trunc(x) if is_inexact(x) else x,
        aten.round.default: lambda x: jnp.round(x) if is_inexact(x) else x,
        aten.round.decimals: lambda x, decimals=0: jnp.round(x, decimals),
        aten.frac.default: lambda x: x - jnp.trunc(x),
        aten.square.default: lambda x: x * x,
        aten.isnan.default: jnp.isnan,
        aten.isinf.default: jnp.isinf,
        aten.isfinite.default: jnp.isfinite,
        aten.signbit.default: jnp.signbit,
        aten.logical_not.default: jnp.logical_not,
        aten.bitwise_not.default: jnp.bitwise_not,
        aten.real.default: jnp.real,
        aten.imag.default: jnp.imag,
        aten.angle.default: lambda x: jnp.angle(x) if jnp.iscomplexobj(x) else _angle_of_real(x),
        aten._conj.default: jnp.conj,
        aten._conj_physical.default: jnp.conj,
        aten.conj_physical.default: jnp.conj,
        aten.resolve_conj.default: lambda x: x,
        aten.resolve_neg.default: lambda x: x,
        aten.alias.default: lambda x: x,
        aten.detach.default: lambda x: x,
        aten.lift_fresh.default: lambda x: x,
        aten.lift_fresh_copy.default: lambda x: x,
        aten.clone.default: lambda x, memory_format=None: x,
        aten.contiguous.default: lambda x, memory_format=None: x,
    }
)
lower_all(
    {
        operator: _of_floats(function)
        for operator, function in {
            aten.exp.default: jnp.exp,
            aten.exp2.default: jnp.exp2,
            aten.expm1.default: jnp.expm1,
            aten.log.default: jnp.log,
            aten.log1p.default: jnp.log1p,
            aten.log2.default: jnp.log2,
            aten.log10.default: jnp.log10,
            aten.sqrt.default: jnp.sqrt,
            aten.rsqrt.default: lax.rsqrt,
            aten.reciprocal.default: jnp.reciprocal,
            aten.sin.default: jnp.sin,
            aten.cos.default: jnp.cos,
            aten.tan.default: jnp.tan,
            aten.asin.default: jnp.arcsin,
            aten.acos.default: jnp.arccos,
            aten.atan.default: jnp.arctan,
            aten.sinh.default: jnp.sinh,
            aten.cosh.default: jnp.cosh,
            aten.tanh.default: jnp.tanh,
            aten.asinh.default: jnp.arcsinh,
            aten.acosh.default: jnp.arccosh,
            aten.atanh.default: jnp.arctanh,
            aten.sinc.default: jnp.sinc,
            aten.sigmoid.default: jax.nn.sigmoid,
            aten.erf.default: lax.erf,
            aten.erfc.default: lax.erfc,
            aten.erfinv.default: lax.erf_inv,
            aten.lgamma.default: lax.lgamma,
            aten.special_erfcx.default: lambda x: jnp.exp(x * x) * lax.erfc(x),
            aten.special_ndtri.default: jax.scipy.special.ndtri,
            aten.special_log_ndtr.default: jax.scipy.special.log_ndtr,
            aten.special_i0e.default: jax.scipy.special.i0e,
            aten.special_i1.default: jax.scipy.special.i1,
            aten.special_i1e.default: jax.scipy.special.i1e,
            aten.i0.default: jax.scipy.special.i0,
        }.items()
    }
)
lower_all(
    {
        aten.mul: jnp.multiply,
        aten.maximum: jnp.maximum,
        aten.minimum: jnp.minimum,
        aten.fmax: jnp.fmax,
        aten.fmin: jnp.fmin,
        aten.atan2: lambda a, b: jnp.arctan2(floating(a), floating(b)),
        aten.hypot: jnp.hypot,
        aten.copysign: jnp.copysign,
        aten.nextafter: jnp.nextafter,
        aten.xlogy: lambda a, b: jnp.where(a == 0, jnp.where(jnp.isnan(b), jnp.nan, 0.0), a * jnp.log(b)),
        aten.fmod: jnp.fmod,
        aten.remainder: jnp.remainder,
        aten.eq: jnp.equal,
        aten.ne: jnp.not_equal,
        aten.lt: jnp.less,
        aten.le: jnp.less_equal,
        aten.gt: jnp.greater,
        aten.ge: jnp.greater_equal,
        aten.logical_and: jnp.logical_and,
        aten.logical_or: jnp.logical_or,
        aten.logical_xor: jnp.logical_xor,
        aten.bitwise_and: jnp.bitwise_and,
        aten.bitwise_or: jnp.bitwise_or,
        aten.bitwise_xor: jnp.bitwise_xor,
        aten.bitwise_left_shift: jnp.left_shift,
        aten.bitwise_right_shift: jnp.right_shift,
        aten.__lshift__: jnp.left_shift,
        aten.__rshift__: jnp.right_shift,
        aten.where: jnp.where,
        aten.floor_divide: jnp.floor_divide,
        aten.complex: lambda a, b: lax.complex(*jnp.broadcast_arrays(a, b)),
        torch.ops.prims.gcd.default: jnp.gcd,
        aten.gcd.default: jnp.gcd,
        aten.lcm.default: jnp.lcm,
        aten.frexp.Tensor: jnp.frexp,
        torch.ops.prims.frexp.default: jnp.frexp,
        aten.polar: lambda radius, angle: lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle)),
        aten.view_as_real: lambda x: jnp.stack([x.real, x.imag], -1),
        aten.view_as_complex: lambda x: lax.complex(x[..., 0], x[..., 1]),
        aten.igamma: jax.scipy.special.gammainc,
        aten.igammac: jax.scipy.special.gammaincc,
    }
)


def _angle_of_real(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x < 0, math.pi, 0.0))


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(a: Any, b: Any, alpha: Any = 1) -> Any:
    """`a + alpha * b`."""
    return jnp.add(a, b if _is_one(alpha) else jnp.multiply(b, alpha))


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def subtract(a: Any, b: Any, alpha: Any = 1) -> Any:
    """`a - alpha * b`."""
    return jnp.subtract(a, b if _is_one(alpha) else jnp.multiply(b, alpha))


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def reverse_subtract(a: Any, b: Any, alpha: Any = 1) -> Any:
    """`b - alpha * a`."""
    return jnp.subtract(b, a if _is_one(alpha) else jnp.multiply(a, alpha))


def _is_one(alpha: Any) -> bool:
    return isinstance(alpha, int | float) and alpha == 1


@lowers(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode)
def divide(a: Any, b: Any, rounding_mode: str | None = None) -> Any:
    """`a / b`, rounded towards zero ("trunc") or down ("floor")."""
    if rounding_mode is None:
        return jnp.true_divide(a, b)
    if rounding_mode == "floor":
        return jnp.floor_divide(a, b)
    if is_inexact(a) or is_inexact(b):
        return jnp.trunc(jnp.true_divide(a, b))
    dtype = jnp.result_type(a, b)
    return lax.div(*jnp.broadcast_arrays(jnp.asarray(a, dtype), jnp.asarray(b, dtype)))


@lowers(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(x: Any, exponent: Any) -> Any:
    """Powers; whole exponents by multiplication, as torch has them."""
    if jnp.result_type(x) == jnp.bool_ and isinstance(exponent, int) and not isinstance(exponent, bool):
        x = jnp.asarray(x, jnp.int32)
    if isinstance(exponent, int | float) and float(exponent).is_integer() and abs(exponent) <= 64:
        whole = is_inexact(x) or exponent >= 0
        return lax.integer_pow(x if whole else x.astype(jnp.float32), int(exponent))
    if exponent == 0.5 if isinstance(exponent, float) else False:
        return jnp.sqrt(floating(x))
    if isinstance(exponent, int | float):
        return jnp.power(floating(x), exponent)
    if is_inexact(x) or is_inexact(exponent):
        return jnp.power(x, exponent)
    # Whole numbers to negative powers are 0, but for those whose reciprocal is whole.
    x, exponent = jnp.asarray(x), jnp.asarray(exponent)
    odd = jnp.where(exponent % 2 == 0, 1, x)
    reciprocal = jnp.where(jnp.abs(x) == 1, odd, 0)
    return jnp.where(exponent < 0, reciprocal, jnp.power(x, jnp.maximum(exponent, 0)))


@lowers(aten.digamma.default)
def digamma(x: jax.Array) -> jax.Array:
    """The derivative of `lgamma`; below zero by reflection, with what is left of the nearest whole number."""
    x = floating(x)
    rest = x - jnp.trunc(x)
    reflected = lax.digamma(1 - jnp.where(x < 0, x, 0)) - math.pi / jnp.tan(math.pi * jnp.where(rest == 0, 0.5, rest))
    below = jnp.where(rest == 0, jnp.nan, reflected)
    return jnp.where(x == 0, jnp.copysign(jnp.inf, -x), jnp.where(x < 0, below, lax.digamma(jnp.where(x > 0, x, 1))))


def _trigamma(x: jax.Array) -> jax.Array:
    small = x < 0.5
    reflection = -((math.pi / jnp.sin(math.pi * jnp.where(small, x, 0.5))) ** 2)
    total = jnp.where(small, reflection, 0)
    y = jnp.where(small, 1 - x, x)
    for _ in range(6):
        total, y = total + 1 / (y * y), y + 1
    squared = 1 / (y * y)
    series = 1 + 1 / (2 * y) + squared * (1 / 6 - squared * (1 / 30 - squared * (1 / 42)))
    return jnp.where(small, -1, 1) * (total + series / y)


@lowers(aten.polygamma.default, aten.special_polygamma.default)
def polygamma(n: int, x: jax.Array) -> jax.Array:
    """The n-th derivative of `digamma`."""
    x = floating(x)
    if n < 2:
        return _trigamma(x) if n else digamma(x)
    sign = 1.0 if n % 2 else -1.0
    return sign * math.factorial(n) * zeta(jnp.asarray(n + 1, x.dtype), x)


@lowers(aten.special_zeta.default, aten.special_zeta.other_scalar, aten.special_zeta.self_scalar)
def zeta(s: Any, q: Any) -> jax.Array:
    """Hurwitz's zeta function, `sum((k + q) ** -s)` over all k."""
    s, q = jnp.broadcast_arrays(floating(s), floating(q))
    dtype = jnp.promote_types(s.dtype, q.dtype)
    s, q = s.astype(dtype), q.astype(dtype)
    usual = (s > 1) & (q > 0)
    found = jax.scipy.special.zeta(jnp.where(usual, s, 2), jnp.where(usual, q, 1))
    # Left of zero the terms up to the first positive one are added up, as long as there are no more than 16.
    below = jnp.zeros_like(found)
    start = q
    for _ in range(16):
        negative = start <= 0
        below = below + jnp.where(negative, 1 / lax.pow(jnp.where(negative, start, 1), s), 0)
        start = jnp.where(negative, start + 1, start)
    whole = (s > 1) & (q <= 0) & (s == jnp.floor(s)) & (start > 0)
    rest = jax.scipy.special.zeta(jnp.where(whole, s, 2), jnp.where(whole, start, 1))
    found = jnp.where(q > 0, found, jnp.where(whole, below + rest, jnp.nan))
    found = jnp.where((q <= 0) & (q == jnp.floor(q)), jnp.inf, found)
    return jnp.where(s == 1, jnp.inf, jnp.where(s < 1, jnp.nan, found))


@lowers(torch.ops.lightjax.one_minus_power.default, torch.ops.lightjax.one_minus_power.Tensor)
def one_minus_power(base: Any, exponent: jax.Array) -> jax.Array:
    """`1 - base**exponent` without the cancellation: Adam's corrections, where float32 loses 3e-6 of a parameter."""
    return -jnp.expm1(exponent * (math.log(base) if isinstance(base, float) else jnp.log(base)))


@lowers(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min, aten.hardtanh.default)
def clamp(x: jax.Array, min: Any = None, max: Any = None) -> jax.Array:
    """Limits from below, then from above: `max` wins where they cross, NaN stays."""
    if min is not None:
        x = jnp.maximum(x, min)
    return x if max is None else jnp.minimum(x, max)


lower_all(
    {
        aten.clamp_max: lambda x, max: jnp.minimum(x, max),
        aten.relu.default: lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)),
        aten.leaky_relu.default: lambda x, slope=0.01: jnp.where(x > 0, x, x * slope),
        aten.silu.default: lambda x: x * jax.nn.sigmoid(x),
        aten.nan_to_num.default: lambda x, nan=None, posinf=None, neginf=None: jnp.nan_to_num(
            x, nan=0.0 if nan is None else nan, posinf=posinf, neginf=neginf
        ),
        aten.threshold_backward.default: lambda g, x, threshold: jnp.where(x <= threshold, jnp.zeros((), g.dtype), g),
        aten.hardshrink_backward.default: lambda g, x, limit: jnp.where(jnp.abs(x) <= limit, jnp.zeros((), g.dtype), g),
        aten.softshrink_backward.default: lambda g, x, limit: jnp.where(jnp.abs(x) <= limit, jnp.zeros((), g.dtype), g),
        aten._local_scalar_dense.default: lambda x: jnp.reshape(x, ()),
    }
)


@lowers(aten.elu.default)
def elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    """`alpha * (exp(x) - 1)` below zero, x above."""
    return jnp.where(x > 0, x * scale, jnp.expm1(jnp.where(x > 0, 0, x) * input_scale) * (alpha * scale))


@lowers(aten.gelu.default)
def gelu(x: jax.Array, approximate: str = "none") -> jax.Array:
    """`x * Phi(x)`."""
    if approximate == "tanh":
        return jax.nn.gelu(x, approximate=True)
    return x * 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@lowers(aten.softplus.default)
def softplus(x: jax.Array, beta: float = 1, threshold: float = 20) -> jax.Array:
    """`log(1 + exp(beta x)) / beta`, x itself above the threshold."""
    return jnp.where(x * beta > threshold, x, jnp.log1p(jnp.exp(jnp.minimum(x * beta, threshold))) / beta)


@lowers(aten._to_copy.default)
def to_copy(x: jax.Array, dtype: Any = None, **_: Any) -> jax.Array:
    """Casts; a complex number becomes its real part."""
    if dtype is None:
        return x
    wanted = dtype_or(dtype, None)
    if jnp.iscomplexobj(x) and not jnp.issubdtype(wanted, jnp.complexfloating):
        x = x.real
    return x.astype(wanted)


@lowers(aten.copy.default)
def copy(target: jax.Array, source: jax.Array, non_blocking: bool = False) -> jax.Array:
    """The values of `source` in the shape and dtype of `target`."""
    return jnp.broadcast_to(source, target.shape).astype(target.dtype)
