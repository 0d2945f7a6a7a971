"""TrainState: the convenient state of a step function."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from lightjax import _tree
from lightjax.errors import StepError

_UNCHANGED: Any = object()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Parameters, optimizer state, step and key, as one pytree.

    Any pytree may be the state of a step function; this one carries what almost every step needs. It is immutable:
    `apply_gradients` and `replace` return a new state.

    Attributes:
      step: int32 scalar, the number of optimizer steps taken.
      params: pytree of arrays that `lj.grad` differentiates.
      opt_state: the optimizer's state, as `optimizer.init(params)` made it.
      model_state: what the model carries besides parameters (BatchNorm statistics, caches); None without any.
      key: a PRNG key, never advanced: `key_for` folds the step into it; None without randomness.
      optimizer: the optax transformation (static: part of the tree's structure, not a leaf).

    Example:
      >>> import jax, optax
      >>> state = TrainState.create(params={"w": 1.0}, optimizer=optax.sgd(0.5), key=jax.random.key(0))
      >>> state = state.apply_gradients({"w": 1.0})
      >>> float(state.params["w"]), int(state.step)
      (0.5, 1)
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    key: jax.Array | None
    optimizer: optax.GradientTransformation = dataclasses.field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        *,
        params: Any,
        optimizer: optax.GradientTransformation,
        key: jax.Array | None = None,
        model_state: Any = None,
    ) -> Self:
        """Makes the state of step 0.

        Args:
          params: pytree of floating arrays.
          optimizer: an optax transformation; its state is made from `params`.
          key: the key that `key_for` derives from.
          model_state: pytree of arrays the model updates itself.

        Raises:
          StepError: the optimizer is no optax transformation.
        """
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            raise StepError(
                f"TrainState.create got optimizer={optimizer!r}, which has no init and update functions; "
                "pass an optax transformation such as optimizer=optax.adamw(1e-3)."
            )
        # Python numbers become arrays: a weakly typed leaf would change its type at the first update.
        params = jax.tree.map(jnp.asarray, params)
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            model_state=model_state,
            key=key,
            optimizer=optimizer,
        )

    def replace(self, **changes: Any) -> Self:
        """Returns the state with the given attributes changed."""
        return dataclasses.replace(self, **changes)

    def apply_gradients(self, grads: Any, *, model_state: Any = _UNCHANGED, **extra: Any) -> Self:
        """Takes one optimizer step.

        Args:
          grads: gradients, a pytree like `params`.
          model_state: the new model state; left as it is when not given.
          **extra: passed on to optimizers that take more (`value=loss` for `optax.contrib.reduce_on_plateau`).

        Returns:
          The state with new `params` and `opt_state` and `step + 1`.

        Raises:
          StepError: `grads` is not shaped like `params`; names the first leaf that differs.
        """
        if jax.tree.structure(grads) != jax.tree.structure(self.params):
            raise StepError(
                f"apply_gradients got gradients whose tree is not that of the parameters: "
                f"{_tree.difference(self.params, grads)}; pass what lj.grad returned first, "
                "`grads, metrics = lj.grad(loss_fn)(state, batch)`."
            )
        update = optax.with_extra_args_support(self.optimizer).update
        updates, opt_state = update(grads, self.opt_state, self.params, **extra)
        return self.replace(
            step=self.step + 1,
            params=optax.apply_updates(self.params, updates),
            opt_state=opt_state,
            model_state=self.model_state if model_state is _UNCHANGED else model_state,
        )

    def key_for(self, name: str) -> jax.Array:
        """Derives the key of this step for one purpose: `fold_in` of the key with the step and the name.

        The key depends on nothing else, so that a resumed run draws the same numbers.

        Args:
          name: what the randomness is for; each name has its own stream.

        Raises:
          StepError: the state was created without a key.

        Example:
          >>> import jax, optax
          >>> state = TrainState.create(params={}, optimizer=optax.sgd(1.0), key=jax.random.key(0))
          >>> bool(jax.random.uniform(state.key_for("dropout")) == jax.random.uniform(state.key_for("noise")))
          False
        """
        if self.key is None:
            raise StepError(
                f"key_for({name!r}) was called on a state without a key; "
                "pass the key that init receives: TrainState.create(..., key=key)."
            )
        return jax.random.fold_in(jax.random.fold_in(self.key, self.step), zlib.crc32(name.encode()))
