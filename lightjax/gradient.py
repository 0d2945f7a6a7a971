"""Gradients of a loss with respect to the parameters of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lightjax import _tree
from lightjax.errors import StepError
from lightjax.metrics import Mean, batch_size
from lightjax.microbatches import in_microbatches, microbatch_size, replica_mean
from lightjax.policy import Policy
from lightjax.remat import remat
from lightjax.train_states import for_compute
from lightjax.trainable import merged, only, trained_leaves


def grad(loss_fn: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Makes the gradient of a loss with respect to `state.params`.

    What `state.policy` asks for happens here: parameters and floating leaves of the batch are cast for the compute and
    gradients come back in the parameters' dtype, the loss is scaled and the gradient unscaled, the batch is cut into
    microbatches, and gradients are averaged over replicas by weight.

    Args:
      loss_fn: `(state, batch, **kwargs) -> (loss, aux)`. The loss is a scalar (a mean over the batch) or a
        `lj.Mean(values, weights)`, which stays exact through microbatches of unequal weight; `aux` is whatever the step
        needs next: metrics, or `(metrics, model_state)`. Of microbatches, metrics are merged, bare numbers averaged,
        arrays with one row an example put one after the other, and the model state handed from one to the next.

    Returns:
      `(state, batch, **kwargs) -> (grads, aux)`, with `grads` a pytree like `state.params`. It is pure, is traced
      where it is called, and works without a trainer. A `TrainState` among `kwargs` shows its parameters cast, too.

    Raises:
      StepError: (when called) the state has no `params`, the function does not return `(loss, aux)`, the loss is
        not a real scalar or `lj.Mean`, a parameter is not floating, or the batch cannot be cut into microbatches.

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
    both = value_and_grad(loss_fn)

    def gradient(state: Any, batch: Any, **kwargs: Any) -> tuple[Any, Any]:
        (_, aux), grads = both(state, batch, **kwargs)
        return grads, aux

    return gradient


def value_and_grad(loss_fn: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[tuple[jax.Array, Any], Any]]:
    """Makes a loss and its gradient: as `lj.grad`, with the loss beside its aux, as `jax.value_and_grad` has it.

    Args:
      loss_fn: as for `lj.grad`.

    Returns:
      `(state, batch, **kwargs) -> ((loss, aux), grads)`. The loss is a scalar of float32 at least: the mean over the
      whole batch, unscaled.

    Raises:
      StepError: (when called) as for `lj.grad`.

    Example:
      >>> import jax.numpy as jnp, optax, lightjax as lj
      >>> state = lj.TrainState.create(params={"w": 3.0}, optimizer=optax.sgd(0.1))
      >>> (loss, aux), grads = lj.value_and_grad(lambda state, batch: (state.params["w"] ** 2, {}))(state, {})
      >>> float(loss), float(grads["w"])
      (9.0, 6.0)
    """
    name = getattr(loss_fn, "__name__", "loss_fn")

    def value_and_gradient(state: Any, batch: Any, **kwargs: Any) -> tuple[tuple[jax.Array, Any], Any]:
        if not (hasattr(state, "params") and hasattr(state, "replace")):
            raise StepError(
                f"lj.grad({name}) was called on a state of type {type(state).__name__}, which has no params to "
                "differentiate; use lj.TrainState, or call jax.grad yourself."
            )
        policy = getattr(state, "policy", Policy())
        precision, trained = policy.precision, trained_leaves(policy.trainable, state.params)
        params = only(trained, state.params)
        for path, leaf in _tree.named_leaves(params).items():
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                raise StepError(
                    f"lj.grad({name}) cannot differentiate parameter {path!r} of type {_tree.describe(leaf)}: "
                    "gradients exist for floating parameters; keep integers in model_state, or leave them out with "
                    "trainable."
                )
        scale = None if getattr(state, "loss_scale", None) is None else state.loss_scale.scale
        kwargs = for_compute(kwargs)

        def scaled_loss(params: Any, view: Any, batch: Any) -> tuple[Any, tuple[jax.Array, jax.Array, Any]]:
            view = view.replace(params=precision.to_compute(merged(trained, view.params, params)))
            # Built anew: the nodes of some trees (flax's nnx variables) change only within the trace they were made in.
            view, others = jax.tree.map(lambda leaf: leaf, (view, kwargs))
            loss, aux = check_loss(loss_fn(view, precision.batch_to_compute(batch), **others), name)
            mean, weight = _mean_and_weight(loss, batch)
            return mean if scale is None else mean * scale, (mean, weight, aux)

        differentiate = jax.grad(
            scaled_loss if policy.remat is None else remat(scaled_loss, policy.remat), has_aux=True
        )

        def part(rows: Any, index: Any, model_state: Any) -> tuple[jax.Array, Any, Any, Any]:
            view = state
            if getattr(state, "key", None) is not None:
                view = view.replace(key=jax.random.fold_in(state.key, index))
            if model_state is not None:
                view = view.replace(model_state=model_state)
            grads, (mean, weight, aux) = differentiate(params, view, rows)
            return weight, (mean, grads), *_without_model_state(aux, model_state)

        size = microbatch_size(policy, batch)
        if size is None:
            grads, (loss, weight, aux) = differentiate(params, state, batch)
        else:
            model_state = getattr(state, "model_state", None)
            weight, (loss, grads), model_state, aux = in_microbatches(part, batch, size, model_state)
            aux = _with_model_state(aux, model_state)
        if policy.replica_axis is not None:
            loss, grads = replica_mean((loss, grads), weight, policy.replica_axis)
        if scale is not None:
            grads = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / scale, grads)
        if policy.on_nonfinite != "ignore":
            # A loss that is not finite has no gradient, even where autodiff finds one.
            grads = jax.tree.map(lambda leaf: jnp.where(jnp.isfinite(loss), leaf, jnp.nan), grads)
        grads = jax.tree.map(lambda leaf, param: leaf.astype(param.dtype), grads, params)
        return (loss, aux), merged(trained, jax.tree.map(jnp.zeros_like, state.params), grads)

    return value_and_gradient


def _mean_and_weight(loss: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Returns a loss as a mean, in float32 at least, and what it weighs against other parts: examples for a scalar."""
    mean = jnp.asarray(loss.compute() if isinstance(loss, Mean) else loss)
    mean = mean.astype(jnp.promote_types(mean.dtype, jnp.float32))
    weight = loss.weight.compute() if isinstance(loss, Mean) else jnp.asarray(batch_size(batch) or 1, mean.dtype)
    return mean, weight


def _without_model_state(aux: Any, model_state: Any) -> tuple[Any, Any]:
    """Takes the model state out of `(metrics, model_state)`; gives the one before where there is none."""
    if model_state is None or not (isinstance(aux, tuple) and len(aux) == 2):
        return model_state, aux
    if jax.tree.structure(aux[1]) != jax.tree.structure(model_state):
        return model_state, aux
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), aux[1], model_state), (aux[0], None)


def _with_model_state(aux: Any, model_state: Any) -> Any:
    """Puts the model state back."""
    taken = model_state is not None and isinstance(aux, tuple) and len(aux) == 2 and aux[1] is None
    return (aux[0], model_state) if taken else aux


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
