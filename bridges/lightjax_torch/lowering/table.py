"""The table of rules, and how a rule gets into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch._ops import OpOverload

from lightjax_torch.arrays import jax_dtype

Rule = Callable[..., Any]

TABLE: dict[Any, Rule] = {}
# Rules that get a key, `key=`, of their own in every place and step.
RANDOM: set[Any] = set()

aten = torch.ops.aten


def register_lowering(operator: Any, rule: Rule, *, random: bool = False) -> None:
    """Says how an operation is computed in JAX: a custom operator's, a library's, or another way of torch's.

    An operation with a rule is not taken apart any further. If the operation is differentiated, torch's autograd asks
    for its backward, which needs a rule of its own unless it is made of operations that have one.

    Args:
      operator: an overload, `torch.ops.my_library.my_op.default`; of a packet, `torch.ops.my_library.my_op`, all
        overloads.
      rule: takes the operator's arguments, tensors as JAX arrays, and returns arrays of the shapes that torch says.
        Keyword arguments it has no use for (`device`, `layout`) may be among them.
      random: the rule draws numbers: it gets `key=`, another one in every place and step.

    Example:
      >>> import jax.numpy as jnp, numpy as np, torch
      >>> from lightjax_torch import jax_function, register_lowering
      >>> @torch.library.custom_op("docs::cube", mutates_args=())
      ... def cube(x: torch.Tensor) -> torch.Tensor:
      ...     return x**3
      >>> _ = cube.register_fake(lambda x: torch.empty_like(x))
      >>> cube.register_autograd(lambda ctx, g: g * 3 * ctx.x**2, setup_context=lambda ctx, inputs, output:
      ...     setattr(ctx, "x", inputs[0]))
      >>> register_lowering(torch.ops.docs.cube.default, lambda x: x**3)
      >>> fn, params, buffers = jax_function(cube, torch.ones(2))
      >>> np.asarray(fn(params, buffers, jnp.array([1.0, 2.0]))[0]).tolist()
      [1.0, 8.0]
    """
    overloads = [operator]
    if not isinstance(operator, OpOverload):
        overloads = [getattr(operator, name) for name in operator.overloads()]
    for overload in overloads:
        TABLE[overload] = rule
        if random:
            RANDOM.add(overload)


def lowers(*operators: Any, random: bool = False) -> Callable[[Rule], Rule]:
    """Registers the decorated function as the rule of operators."""

    def register(rule: Rule) -> Rule:
        for operator in operators:
            register_lowering(operator, rule, random=random)
        return rule

    return register


def lower_all(rules: Mapping[Any, Rule]) -> None:
    """Registers many one-line rules: a packet stands for its overloads that make new tensors."""
    for operator, rule in rules.items():
        overloads = [operator]
        if not isinstance(operator, OpOverload):
            overloads = [getattr(operator, name) for name in operator.overloads() if "out" not in name]
        for overload in overloads:
            TABLE[overload] = rule


def dtype_or(dtype: torch.dtype | None, default: Any) -> Any:
    """Returns the JAX dtype of a torch one, or a default (a torch or a JAX dtype)."""
    chosen = default if dtype is None else dtype
    return jax_dtype(chosen) if isinstance(chosen, torch.dtype) else chosen


def is_inexact(x: Any) -> bool:
    """Says whether an array is floating or complex."""
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))


def axes(dim: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Returns dimensions as torch reads them: none, or an empty list, are all."""
    if not ndim or dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(ndim))
    return tuple(d % ndim for d in ([dim] if isinstance(dim, int) else dim))


def widened(x: jax.Array) -> jax.Array:
    """Casts 16-bit floats to float32: torch computes sums and normalizations of them in it."""
    return x.astype(jnp.float32) if x.dtype in (jnp.bfloat16, jnp.float16) else x


def floating(x: Any) -> jax.Array:
    """Makes whole numbers float32, as torch does where a function has no whole results."""
    x = jnp.asarray(x)
    return x if is_inexact(x) else x.astype(jnp.float32)


def per_dimension(value: Sequence[int] | int, n: int) -> tuple[int, ...]:
    """Repeats a single size for all n dimensions."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * n if len(value) == 1 else value


def vjp(function: Callable[..., Any], *primals: Any) -> Callable[..., Any]:
    """Returns the transposed derivative of a rule, for the rule of its backward operation.

    Raises:
      NotImplementedError: a primal is complex: JAX's cotangents are the conjugates of torch's there.
    """
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(primals)):
        raise NotImplementedError("the gradient of complex numbers")
    return jax.vjp(function, *primals)[1]
