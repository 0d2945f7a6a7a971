"""Rematerialization: activations computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from lightjax.errors import ConfigurationError

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def remat(function: Callable[..., Any], policy: str | Callable[..., Any] = "full") -> Callable[..., Any]:
    """Makes a function keep less for its gradient, and compute again what it did not keep.

    Wrap the blocks of a model, where it saves most: then no more than one block's activations live at once. Around a
    whole loss (`Policy(remat=...)`, `Trainer(remat=...)`), "dots" drops what elementwise operations made; "full"
    drops everything and makes it again all at once, which saves little.

    Args:
      function: of pytrees of arrays; a block of a model, a loss.
      policy: what is kept: "full" recomputes everything (keeps nothing), "dots" keeps the results of matrix products,
        "dots_no_batch" those of products without batch dimensions (the weights', not attention's), or a
        `jax.checkpoint_policies` function.

    Returns:
      The function, with the same values and gradients.

    Raises:
      ConfigurationError: the policy is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, lightjax as lj
      >>> block = lj.remat(lambda w, x: jnp.tanh(x @ w), policy="dots")
      >>> jax.grad(lambda w: block(w, jnp.ones((1, 2))).sum())(jnp.zeros((2, 1))).shape
      (2, 1)
    """
    if conflict := remat_conflict(policy):
        raise ConfigurationError(f"{conflict}.")
    return jax.checkpoint(function, policy=_POLICIES[policy] if isinstance(policy, str) else policy)


def remat_conflict(policy: Any) -> str | None:
    """Says what is wrong with a policy; None where nothing is."""
    if callable(policy) or (isinstance(policy, str) and policy in _POLICIES):
        return None
    return f"remat={policy!r} is unknown: give {', '.join(map(repr, _POLICIES))} or a jax.checkpoint_policies function"
