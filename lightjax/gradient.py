"""Gradients of a loss with respect to the parameters of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.errors import StepError
from lightjax.metrics import Mean


def grad(loss_fn: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Makes the gradient of a loss with respect to `state.params`.

    Args:
      loss_fn: `(state, batch, **kwargs) -> (loss, aux)`. The loss is a scalar (a mean over the batch) or a
        `lj.Mean(values, weights)`; `aux` is whatever the step needs next: metrics, or `(metrics, model_state)`.

    Returns:
      `(state, batch, **kwargs) -> (grads, aux)`, with `grads` a pytree like `state.params`. It is pure, is traced
      where it is called, and works without a trainer.

    Raises:
      StepError: (when called) the state has no `params`, the function does not return `(loss, aux)`, the loss is
        not a real scalar or `lj.Mean`, or a parameter is not floating.

    Example:
      >>> import jax, jax.numpy as jnp, optax, lightjax as lj
      >>> def loss_fn(state, batch):
      ...     losses = (state.params["w"] * batch["x"] - batch["y"]) ** 2
      ...     return losses.mean(), {"loss": lj.Mean(losses)}
      >>> state = lj.TrainState.create(params={"w": 1.0}, optimizer=optax.sgd(0.1))
      >>> grads, metrics = lj.grad(loss_fn)(state, {"x": jnp.array([1.0, 2.0]), "y": jnp.zeros(2)})
      >>> float(grads["w"]), float(metrics["loss"].compute())
      (5.0, 2.5)
    """
    name = getattr(loss_fn, "__name__", "loss_fn")

    def gradient(state: Any, batch: Any, **kwargs: Any) -> tuple[Any, Any]:
        if not (hasattr(state, "params") and hasattr(state, "replace")):
            raise StepError(
                f"lj.grad({name}) was called on a state of type {type(state).__name__}, which has no params to "
                "differentiate; use lj.TrainState, or call jax.grad yourself."
            )
        for path, leaf in _tree.named_leaves(state.params).items():
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise StepError(
                    f"lj.grad({name}) cannot differentiate parameter {path!r} of type {_tree.describe(leaf)}: "
                    "gradients exist for floating parameters; keep integers in model_state."
                )

        def scalar_loss(params: Any) -> tuple[jax.Array, Any]:
            loss, aux = check_loss(loss_fn(state.replace(params=params), batch, **kwargs), name)
            return jnp.asarray(loss.compute() if isinstance(loss, Mean) else loss), aux

        return jax.grad(scalar_loss, has_aux=True)(state.params)

    return gradient


def check_loss(returned: Any, name: str) -> tuple[Any, Any]:
    """Checks what a loss function returned while it is traced.

    Returns:
      `(loss, aux)` as the function gave them: the loss a real scalar or a `Mean`.

    Raises:
      StepError: it returned something else; the message names the function.
    """
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise StepError(
            f"{name} returned {_kind(returned)}; a loss function returns (loss, aux), where aux holds the metrics: "
            "`return loss, {}`."
        )
    loss, aux = returned
    if isinstance(loss, Mean):
        return loss, aux
    if not isinstance(loss, float | jax.Array | np.floating | np.ndarray) or (
        jnp.ndim(loss) != 0 or not jnp.issubdtype(jnp.result_type(loss), jnp.floating)
    ):
        raise StepError(
            f"{name} returned a loss of type {_kind(loss)}; gradients need one real number: return losses.mean(), or "
            "lj.Mean(losses, weights) for examples of unequal weight."
        )
    return loss, aux


def _kind(value: Any) -> str:
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else _tree.describe(value)
